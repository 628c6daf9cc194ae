"""Requests that come while the pipeline is not awake: they are held, but not for ever and not without number.

Problem: to a request a pipeline that sleeps, wakes or recovers looks like a slow one. It waits in the engine, whose
queue has no end, and it would wait as long as the trouble lasts. Protocol, for every request to generate::

    arrives --pipeline awake, or fewer than `requests` held--> passed on at once (this is what wakes the pipeline)
            --else--> 503
    passed on --its response begins--> no longer our business
              --`seconds` passed in which the pipeline was not awake at all--> 503
              --the pipeline has failed--> 503

Every 503 has a Retry-After and an error body like OpenAI's. The application hears of it as if the client had hung up,
and so takes the request out of the engine.

Caveats: a pipeline that is awake refuses nobody, however long its queue is. vLLM sends a stream's headers before there
is a token, and a status that is sent cannot be changed: they are kept back until the first token, or for two seconds
while the pipeline is awake, by when trouble that has just begun is known. With ``--sse-keep-alive-interval`` the first
comment begins the response. Several API servers each count their own.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse

from runtime.phase import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from runtime.phase import Standing

REQUESTS_VARIABLE, SECONDS_VARIABLE = "MIDSTREAM_HOLD_REQUESTS", "MIDSTREAM_HOLD_SECONDS"

_GENERATING_PATHS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/cohere/v2/chat",
        "/generative_scoring",
        "/inference/v1/generate",
        "/invocations",
    }
)
_FULL_RETRY_S = 2  # a wake takes about a second
_FAILED_RETRY_S = 60  # a server is started again
_HANG_UP_GRACE_S = 5.0
_TROUBLE_KNOWN_S = 2.0


@dataclass(frozen=True, slots=True)
class HoldLimits:
    """How many requests may wait for a pipeline that is not awake, and for how many seconds each."""

    requests: int
    seconds: float

    def as_environment(self) -> dict[str, str]:
        """Return the variables in which the limits reach the server."""
        return {REQUESTS_VARIABLE: str(self.requests), SECONDS_VARIABLE: str(self.seconds)}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> HoldLimits:
        """Read what `as_environment` returned."""
        return cls(int(environment[REQUESTS_VARIABLE]), float(environment[SECONDS_VARIABLE]))


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not served, and in how many seconds it may be worth another try."""

    reason: str
    retry_after_s: int

    def response(self) -> JSONResponse:
        """Return the 503."""
        error = {"message": self.reason, "type": "ServiceUnavailableError", "param": None, "code": 503}
        return JSONResponse({"error": error}, 503, {"Retry-After": str(self.retry_after_s)})


FAILED = Refusal(
    "the pipeline failed and this server is ending; its log says why; try again when it has been started again",
    _FAILED_RETRY_S,
)


class Hold:
    """ASGI middleware, see the module.

    Args:
        app: what is served.
        standing: returns what the pipeline does now, without waiting.
        limits: what may be held.
        clock: the seconds that `standing` counts in.

    """

    def __init__(
        self,
        app: ASGIApp,
        standing: Callable[[], Standing],
        limits: HoldLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app, self._standing, self._limits, self._clock = app, standing, limits, clock
        self._waiting: set[_Exchange] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if not _generates(scope):
            await self._app(scope, receive, send)
            return
        refusal = self._turned_away()
        if refusal is not None:
            await refusal.response()(scope, receive, send)
            return
        exchange = _Exchange(receive, send, self._standing, self._clock)
        serving = asyncio.ensure_future(self._app(scope, exchange.receive, exchange.send))
        try:
            refusal = await self._wait_until_settled(exchange, serving)
            if refusal is not None:
                await refusal.response()(scope, receive, send)
                # An application that only notices a hang-up when it sends would not notice before the wake.
                await asyncio.wait({serving}, timeout=_HANG_UP_GRACE_S)
                serving.cancel()
            await asyncio.wait({serving})
        finally:
            serving.cancel()
        if not serving.cancelled():
            serving.result()  # raises what the application raised

    def _turned_away(self) -> Refusal | None:
        """Return why a request that arrives now is not even passed on, if so."""
        now = self._standing()
        if now.phase is Phase.AWAKE:
            return None
        if now.phase is Phase.FAILED:
            return FAILED
        # Those that came before wait for their turn in an engine that was awake: they are no sign of trouble.
        held = sum(exchange.arrived >= now.since for exchange in self._waiting)
        if held < self._limits.requests:
            return None
        return Refusal(
            f"the pipeline is {now.phase.name.lower()} and {held} requests wait for it, as many as --hold-requests "
            "allows; try again in a moment",
            _FULL_RETRY_S,
        )

    async def _wait_until_settled(self, exchange: _Exchange, serving: asyncio.Task[None]) -> Refusal | None:
        """Wait until the response begins or must not any more; then return why."""
        self._waiting.add(exchange)
        try:
            while not exchange.settled.done():
                now = self._standing()
                left_s = self._left_s(exchange, now)
                if left_s <= 0 and now.phase is Phase.AWAKE:
                    await exchange.begin()
                elif left_s <= 0 or (serving.done() and now.phase is Phase.FAILED):
                    exchange.settled.set_result(self._waited_in_vain(now.phase))
                elif serving.done():
                    return None  # without a response: what it raised is told to the server
                else:
                    events: set[asyncio.Future[Any]] = {serving, exchange.settled}
                    if exchange.kept_at is None:
                        events.add(exchange.kept)
                    await asyncio.wait(events, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            return exchange.settled.result()
        finally:
            self._waiting.remove(exchange)

    def _left_s(self, exchange: _Exchange, now: Standing) -> float:
        """Return for how long the request, or the headers of its response, may wait from now on if nothing changes."""
        if now.phase is not Phase.AWAKE:
            return max(exchange.arrived, now.since) + self._limits.seconds - self._clock()
        if exchange.kept_at is None:
            return self._limits.seconds  # what begins from now on lasts that long before it counts
        return exchange.kept_at + _TROUBLE_KNOWN_S - self._clock()

    def _waited_in_vain(self, phase: Phase) -> Refusal:
        if phase is Phase.FAILED:
            return FAILED
        return Refusal(
            f"the pipeline is still {phase.name.lower()} after the {self._limits.seconds:g} s that --hold-seconds lets "
            "a request wait for it; try again, and look into the server's log if it stays so",
            math.ceil(self._limits.seconds),
        )


class _Exchange:
    """One request as the application sees it, until its response begins."""

    def __init__(
        self, receive: Receive, send: Send, standing: Callable[[], Standing], clock: Callable[[], float]
    ) -> None:
        self._receive, self._send, self._standing, self._clock = receive, send, standing, clock
        loop = asyncio.get_running_loop()
        self.arrived = clock()
        # The start of the response, while it may still become another.
        self.kept: asyncio.Future[Message] = loop.create_future()
        self.kept_at: float | None = None
        # With the reason when there will be no response of the application, or with None when it has begun.
        self.settled: asyncio.Future[Refusal | None] = loop.create_future()
        self._begun = False
        self._in_order = asyncio.Lock()

    async def receive(self) -> Message:
        """Return the client's next message; when the request is refused, that the client has hung up."""
        if self._begun:
            return await self._receive()
        receiving = asyncio.ensure_future(self._receive())
        events: set[asyncio.Future[Any]] = {receiving, self.settled}
        try:
            await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
            if self.settled.done() and not self._begun:
                return {"type": "http.disconnect"}
            return await receiving
        finally:
            receiving.cancel()

    async def send(self, message: Message) -> None:
        """Pass a message on; nothing reaches the client of a refused request."""
        if not self._begun:
            if self.settled.done():
                return
            if self._standing().phase is Phase.FAILED:
                self.settled.set_result(FAILED)
                return
            if message["type"] == "http.response.start":
                self.kept_at = self._clock()
                self.kept.set_result(message)
                return
            await self.begin()
        async with self._in_order:
            await self._send(message)

    async def begin(self) -> None:
        """Let the response begin: nothing can be refused from here on."""
        self._begun = True
        self.settled.set_result(None)
        async with self._in_order:
            if self.kept.done():
                await self._send(self.kept.result())


def _generates(scope: Scope) -> bool:
    """Whether this is a request that only an awake pipeline can answer."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) in _GENERATING_PATHS
