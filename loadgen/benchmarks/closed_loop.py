"""Closed-loop load: a fixed number of clients, each of which asks again as soon as it was answered.

Each client repeats one request, so that every one of its streams has the same reference. All begin together. A client
stops after a stream if the caller says that it is enough, and always after a stream that broke: it would otherwise
hammer a server that is down.
"""

import asyncio
from collections.abc import Callable, Sequence

from loadgen.benchmarks.client import CompletionClient, StreamRequest
from loadgen.records import StreamRecord


class ClosedLoop:
    """One pass of closed-loop load over `requests`, one client each.

    Attributes:
        tokens_arrived: Tokens that have arrived so far, over all clients.
        records: Streams that have ended so far, in that order; a client's streams share its request's name.
    """

    def __init__(self, client: CompletionClient, requests: Sequence[StreamRequest]) -> None:
        self._client = client
        self._requests = tuple(requests)
        self._awaited: list[tuple[int, asyncio.Event]] = []
        self.tokens_arrived = 0
        self.records: list[StreamRecord] = []

    async def run(self, enough: Callable[[], bool] = lambda: True) -> list[StreamRecord]:
        """Run until every client has stopped; `enough` is asked after each stream. Returns `records`."""
        async with asyncio.TaskGroup() as group:
            for request in self._requests:
                group.create_task(self._repeat(request, enough))
        return self.records

    async def until_tokens(self, count: int) -> None:
        """Wait until `count` tokens have arrived. Never returns if the load stops before: watch `run` beside it."""
        if self.tokens_arrived < count:
            event = asyncio.Event()
            self._awaited.append((count, event))
            await event.wait()

    async def _repeat(self, request: StreamRequest, enough: Callable[[], bool]) -> None:
        while True:
            record = await self._client.stream(request, on_tokens=self._count)
            self.records.append(record)
            if record.broken or enough():
                return

    def _count(self, tokens: int) -> None:
        self.tokens_arrived += tokens
        for count, event in self._awaited:
            if self.tokens_arrived >= count:
                event.set()
