"""Replacing one name of a vLLM module for the time of a call: the narrowest way to reach what has no plug point."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def substituted(module: Any, name: str, value: Any) -> Iterator[None]:
    """Set ``module.name`` to `value` while the body runs; AttributeError when the module has no such name."""
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)
