"""One real server with the built-in model, started by the command a user types, shared by all tests of this folder."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest_asyncio

from loadgen.server import ServerProcess, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerProcess]:
    """`midstream serve --layers 15,15`."""
    port = free_port()
    process = ServerProcess(
        "midstream",
        [sys.executable, "-m", "controller.cli", "serve", "--layers", "15,15", "--port", str(port)],
        port=port,
        log_path=tmp_path_factory.mktemp("serve") / "server.log",
    )
    async with process:
        yield process
