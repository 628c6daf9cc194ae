"""What the tests of the client share: plans made by hand, results in memory, servers that say exactly these bytes."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loadgen.clock import now_ns
from loadgen.results.columns import RequestRow
from loadgen.server import ServerProcess, free_port
from loadgen.streaming.answer import Answer
from loadgen.streaming.client import StreamingClient
from loadgen.streaming.deadlines import Deadlines
from loadgen.streaming.health import Health
from loadgen.streaming.runner import Runner
from loadgen.streaming.target import Limits, RequestWriter, Target, read_address
from loadgen.workloads.plan import PlannedRequest, PlannedUser, Prompt
from tests.unit.loadgen.streams import eventually

MS = 1_000_000


def planned(
    index: int = 0,
    *,
    due_ms: float | None = 0,
    user: int | None = None,
    think_ms: float = 0,
    tokens: int = 5,
    turn: int = 0,
) -> PlannedRequest:
    due_ns = None if due_ms is None else round(due_ms * MS)
    text = f"prompt {index}"
    return PlannedRequest(index, due_ns, user, turn, round(think_ms * MS), Prompt(len(text), text, None), tokens)


@dataclass
class HandMade:
    """A plan of users that are given."""

    given: Sequence[PlannedUser]
    concurrent_users: int | None = None
    total_requests: int | None = None
    duration_ns: int | None = None

    def users(self) -> Iterator[PlannedUser]:
        return iter(self.given)

    def notes(self) -> Mapping[str, int | str | list[str]]:
        return {}


def open_loop(count: int, *, every_ms: float = 10, tokens: int = 5) -> HandMade:
    requests = [planned(n, due_ms=n * every_ms, tokens=tokens) for n in range(count)]
    return HandMade([PlannedUser(r.due_ns or 0, None, iter([r])) for r in requests])


@dataclass
class Kept:
    """Results in memory."""

    rows: list[RequestRow] = field(default_factory=list)
    arrivals: dict[int, list[tuple[int, int, int, int | None]]] = field(default_factory=dict)
    samples: list[tuple[str, int, float]] = field(default_factory=list)

    def request(self, row: RequestRow) -> None:
        self.rows.append(row)

    def tokens(
        self,
        request: int,
        first_index: int,
        at_ns: Sequence[int],
        chunk: Sequence[int],
        ids: Sequence[int] | None = None,
    ) -> None:
        known = self.arrivals.setdefault(request, [])
        assert first_index == len(known)
        assert len(at_ns) == len(chunk) == len(at_ns if ids is None else ids)
        named = [None] * len(at_ns) if ids is None else ids
        known += [(first_index + n, at, chunk[n], named[n]) for n, at in enumerate(at_ns)]

    def sample(self, name: str, at_ns: int, value: float) -> None:
        self.samples.append((name, at_ns, value))

    def row(self, index: int) -> RequestRow:
        (row,) = [row for row in self.rows if row.request == index]
        return row


async def run(
    plan: HandMade, url: str, limits: Limits | None = None, *, target: Target | None = None
) -> tuple[Kept, Health]:
    kept = Kept()
    async with asyncio.timeout(60), Runner(plan, target or Target(url), limits) as runner:
        health = await runner.run(kept)
    kept.rows.sort(key=lambda row: row.request)
    return kept, health


@contextlib.asynccontextmanager
async def mock_process(folder: Path, *arguments: str) -> AsyncIterator[str]:
    """Run the mock in a process of its own; yields its base URL."""
    port = free_port()
    argv = (sys.executable, "-m", "loadgen.mock", "--port", str(port), *arguments)
    async with ServerProcess("mock", argv, port=port, log_path=folder / "mock.log", start_deadline_s=60) as server:
        yield server.base_url


@dataclass
class Wire:
    """A server that answers the n-th request with the n-th answer, in these pieces, and keeps what it was sent.

    An empty piece makes it wait until `go_on` is set. Where an answer ends, the connection is closed if `close`.
    """

    answers: list[list[bytes]]
    close: bool = True
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while self.answers:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                for piece in self.answers.pop(0):
                    if not piece:
                        await self.go_on.wait()
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.002)  # so that pieces are read apart
                if self.close:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self.open -= 1


@contextlib.asynccontextmanager
async def wired(wire: Wire, limits: Limits | None = None) -> AsyncIterator[StreamingClient]:
    """A client of a server made by hand."""
    server = await asyncio.start_server(wire.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        with Deadlines() as deadlines:
            async with StreamingClient(read_address(url), limits or Limits(), deadlines) as client:
                yield client
    finally:
        server.close()
        wire.go_on.set()
        await eventually(lambda: not wire.open)


WRITER = RequestWriter(Target("http://127.0.0.1"), "m", token_ids=False, run_id="test")


async def exchange(client: StreamingClient, answer: Answer | None = None) -> Answer:
    answer = answer or Answer(now_ns())
    async with asyncio.timeout(20):
        await client.exchange(WRITER.write(planned(), 0), answer)
    return answer


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


def coded(body: bytes) -> bytes:
    """One chunk of the chunked transfer coding."""
    return b"%x\r\n%b\r\n" % (len(body), body)


def text_event(text: str, finish_reason: str | None = None) -> bytes:
    finish = "null" if finish_reason is None else f'"{finish_reason}"'
    return f'data: {{"choices":[{{"text":"{text}","finish_reason":{finish}}}]}}\n\n'.encode()


WHOLE = text_event("a") + text_event("b", "stop") + b"data: [DONE]\n\n"
