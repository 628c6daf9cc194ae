"""Node runtimes and heads for the tests of this folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.runtime.warm.node_hosts import Daemon, Head

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    made: list[Daemon] = []

    def make(name: str = "edge-1", **options: Any) -> Daemon:
        made.append(Daemon(tmp_path, name, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Callable[..., Head]]:
    made: list[Head] = []

    def make(*daemons: Daemon, name: str = "head", controls: bool = True, address: str = "127.0.0.1:0") -> Head:
        made.append(Head(tmp_path, name, address))
        for one in daemons:
            one.trust(made[-1], controls=controls)
        return made[-1]

    yield make
    for one in made:
        one.close()
