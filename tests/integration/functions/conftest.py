"""A head that comes and goes, and functions as processes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.functions.head import Head, free_port
from tests.integration.functions.process import FunctionProcess


@pytest.fixture
def port() -> int:
    """Where the head is, whether it runs or not."""
    return free_port()


@pytest.fixture
def head(port: int) -> Iterator[Head]:
    with Head(port).running() as running:
        yield running


@pytest.fixture
def start(port: int, tmp_path: Path) -> Iterator[Callable[..., FunctionProcess]]:
    """Start a function; more settings by keyword, such as `MIDSTREAM_STAGE`."""
    started: list[FunctionProcess] = []

    def start(name: str, **settings: str) -> FunctionProcess:
        common = {"MIDSTREAM_ENDPOINT": f"http://127.0.0.1:{port}", "MIDSTREAM_PIPELINE": "smollm"}
        log_file = tmp_path / f"{name}-{len(started)}.log"
        started.append(FunctionProcess.start(name, free_port(), log_file, {**common, **settings}))
        return started[-1]

    yield start
    for function in started:
        function.close()
