"""A server under test, as a watched child process: it is healthy when `GET /health` answers 200."""

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import httpx

from loadgen.process import WatchedProcess


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that is free at this moment; another process may still take it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class ServerProcess(WatchedProcess):
    """One server process; `port` is what the command was told to listen on, the rest is as for `WatchedProcess`."""

    READY = "healthy"

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        port: int,
        log_path: Path,
        env: Mapping[str, str] | None = None,
        start_deadline_s: float = 300.0,
        stop_deadline_s: float = 30.0,
    ) -> None:
        super().__init__(
            name,
            argv,
            log_path=log_path,
            env=env,
            start_deadline_s=start_deadline_s,
            stop_deadline_s=stop_deadline_s,
        )
        self.base_url = f"http://127.0.0.1:{port}"

    @contextlib.asynccontextmanager
    async def _probe(self) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
        async with httpx.AsyncClient(base_url=self.base_url, timeout=5, trust_env=False) as http:

            async def healthy() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return (await http.get("/health")).status_code == httpx.codes.OK
                return False

            yield healthy
