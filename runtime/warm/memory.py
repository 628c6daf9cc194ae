"""How much memory is left, and how much this process has taken."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable

Done = TypeVar("Done")

_CGROUP = Path("/sys/fs/cgroup")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def available_bytes() -> int:
    """Return the bytes that can still be taken here, within the limit of this control group if it has one.

    Cached files that nobody has read lately do not count as taken: they go when memory is wanted.
    """
    free: int = psutil.virtual_memory().available
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        kinds = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        used = int((_CGROUP / "memory.current").read_text()) - int(kinds["inactive_file"])
    except (OSError, ValueError, KeyError):
        return free
    return free if limit == "max" else min(free, int(limit) - used)


def give_back_freed() -> None:
    """Give memory that was freed back to the system, where the C library keeps it otherwise."""
    with contextlib.suppress(AttributeError):  # another one than glibc
        ctypes.CDLL(None).malloc_trim(0)


def measured(act: Callable[[], Done]) -> tuple[Done, int]:
    """Act; return what came of it, and the bytes of memory of this process that it takes from now on.

    What was freed before (a forked process inherits that of its parent) does not make it seem less, nor what is freed
    on the way more.
    """
    give_back_freed()
    before = anonymous_bytes()
    done = act()
    give_back_freed()  # measured for weights: an eighth of what loading leaves behind
    return done, anonymous_bytes() - before


def anonymous_bytes() -> int:
    """Return the bytes of memory of this process that no file backs; cheap enough to call while serving."""
    _, resident, shared = Path("/proc/self/statm").read_text().split()[:3]
    return (int(resident) - int(shared)) * _PAGE
