"""One side of an experiment: a server that the experiment starts, warms up and stops, and a client for it."""

import asyncio
import signal
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadgen.benchmarks.client import CompletionClient, served_model
from loadgen.benchmarks.passes import quiet_pass
from loadgen.benchmarks.reconfigure.options import ReconfigureOptions
from loadgen.errors import LoadgenError
from loadgen.server import ServerProcess

_WARM_UP_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Side:
    """A running server and a client for it."""

    server: ServerProcess
    client: CompletionClient


@asynccontextmanager
async def side(
    name: str, argv: list[str], port: int, options: ReconfigureOptions, log_dir: Path
) -> AsyncIterator[Side]:
    """Start a server, warm it up and stop it in the end."""
    async with (
        ServerProcess(
            name,
            argv,
            port=port,
            log_path=log_dir / f"{name}.log",
            env=options.env,
            start_deadline_s=options.start_deadline_s,
        ) as server,
        CompletionClient(server.base_url, await served_model(server.base_url)) as client,
    ):
        await quiet_pass(client, options.requests(tokens=_WARM_UP_TOKENS))
        yield Side(server, client)


@contextmanager
def server_logs(options: ReconfigureOptions) -> Iterator[Path]:
    """Give the folder of the servers' logs, name it in the errors of the experiment, and end it on SIGTERM."""
    log_dir = options.log_dir or Path(tempfile.mkdtemp(prefix="midstream-bench-"))
    try:
        with ended_by_sigterm():
            yield log_dir
    except LoadgenError as error:
        raise type(error)(f"{error} (server logs: {log_dir})") from error


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Cancel the current task on SIGTERM, so that an ended experiment stops its servers."""
    task = asyncio.current_task()
    if task is None or threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
