"""KServe's server in its own environment, as a process, before a head: a real one, or the mock for what goes wrong."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import pytest_asyncio

from loadgen.process import WatchedProcess
from loadgen.server import ServerProcess, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

PYTHON_VARIABLE = "MIDSTREAM_KSERVE_PYTHON"
ROOT = Path(__file__).parents[3]
NAME = "smollm"


class KServeServer(WatchedProcess):
    """`python -m runtime.head.kserve_server`, in the environment that only has kserve."""

    READY = "live"

    def __init__(self, python: str, head: str, folder: Path, *arguments: str, **env: str) -> None:
        port = free_port()
        self.port = port
        self.address = f"http://127.0.0.1:{port}"
        super().__init__(
            "kserve",
            [python, "-m", "runtime.head.kserve_server", "--model-name", NAME, "--head", head,
             "--http-port", str(port), *arguments],
            log_path=folder / f"kserve-{port}.log",
            env={"PYTHONPATH": str(ROOT), **env},
        )  # fmt: skip

    async def ended(self) -> int:
        """Wait until the process has ended by itself; returns its exit status."""
        assert self._process is not None
        return await self._process.wait()

    @contextlib.asynccontextmanager
    async def _probe(self) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
        async with httpx.AsyncClient(base_url=self.address, timeout=5, trust_env=False) as http:

            async def live() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return (await http.get("/v2/health/live")).status_code == httpx.codes.OK
                return False

            yield live


@pytest.fixture(scope="session")
def kserve_python() -> str:
    """The interpreter of an environment with kserve."""
    python = os.environ.get(PYTHON_VARIABLE)
    if not python:
        pytest.skip(
            f"{PYTHON_VARIABLE} does not name the interpreter of an environment with kserve, which cannot share "
            "this one; `make kserve-env` makes one"
        )
    return python


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def head(kserve_python: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerProcess]:
    """A real head with the built-in model."""
    port = free_port()
    process = ServerProcess(
        "midstream",
        [sys.executable, "-m", "controller.cli", "serve", "--layers", "15,15", "--port", str(port)],
        port=port,
        log_path=tmp_path_factory.mktemp("head") / "server.log",
    )
    async with process:
        yield process


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server(
    head: ServerProcess, kserve_python: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[KServeServer]:
    """KServe's server before the real head."""
    async with KServeServer(kserve_python, head.base_url, tmp_path_factory.mktemp("kserve")) as process:
        yield process
