"""Stream records made by hand, so that a metric's truth is in the test; and the mock server inside the test's loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

from loadgen.mock.behaviour import Behaviour
from loadgen.mock.server import MockServer
from loadgen.records import Identity, Outcome, StreamRecord, Token

MS = 1_000_000


def stream(
    arrivals_ms: Sequence[float],
    *,
    name: str = "s",
    ids: Sequence[int] | None = None,
    started_ms: float = 0,
    ended_ms: float | None = None,
    outcome: Outcome = Outcome.FINISHED,
    reported_tokens: int | None = None,
) -> StreamRecord:
    """A record whose tokens arrive at the given moments."""
    ids = range(len(arrivals_ms)) if ids is None else ids
    last = max([started_ms, *arrivals_ms])
    return StreamRecord(
        name=name,
        started_ns=round(started_ms * MS),
        ended_ns=round((last if ended_ms is None else ended_ms) * MS),
        unix_offset_ns=0,
        tokens=tuple(Token(i, "x", round(at * MS), n) for n, (i, at) in enumerate(zip(ids, arrivals_ms, strict=True))),
        prompt_token_ids=(1,),
        identities=(Identity("cmpl-1", 0, "m"),),
        outcome=outcome,
        finish_reason="length" if outcome is Outcome.FINISHED else None,
        reported_tokens=len(arrivals_ms) if reported_tokens is None else reported_tokens,
        detail=None,
    )


async def eventually(condition: Callable[[], object], deadline_s: float = 30.0) -> None:
    """Wait until the condition holds; fails at the deadline."""
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110 - the condition lies in another process or library
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def mock_server(behaviour: Behaviour | None = None) -> AsyncIterator[tuple[str, MockServer]]:
    """Serve the mock on loopback; yields its base URL and the mock itself."""
    mock = MockServer(behaviour or Behaviour())
    server = await asyncio.get_running_loop().create_server(mock.connection, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", mock
    finally:
        server.close()
        mock.close()
        await server.wait_closed()
