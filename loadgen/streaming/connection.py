"""One HTTP/1.1 connection of the client: bytes in, an `Answer` filled.

The moment of a read is taken first of all in `data_received`, which the loop calls as soon as it sees the bytes. With
an HTTP library on top, a task would be woken for each chunk and take it when its turn comes: with hundreds of streams
that is milliseconds later, and costs several times as much (see `loadgen.streaming.overhead`). httptools, the parser
of Node.js, takes the messages apart, in whatever pieces they come.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import httptools

from loadgen.clock import now_ns
from loadgen.records import Outcome
from loadgen.streaming.chunks import error_message

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.streaming.answer import Answer

_OK = 200
_MAX_REFUSAL = 64 << 10  # bytes of a refusal's body that are kept
_SHOWN = 200


class Connection(asyncio.Protocol):
    """A connection that serves one request after another.

    Args:
        on_idle: Told when it can take another request.
        on_closed: Told when it is gone.
    """

    def __init__(self, on_idle: Callable[[Connection], None], on_closed: Callable[[Connection], None]) -> None:
        self.idle_since_ns = 0
        self._on_idle = on_idle
        self._on_closed = on_closed
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: Answer | None = None
        self._now = 0
        self._reset()

    def _reset(self) -> None:
        self._events = False
        self._head_read = False
        self._ends_with_connection = False
        self._fields: dict[bytes, bytes] = {}
        self._body = bytearray()

    @property
    def usable(self) -> bool:
        """Whether a request can be sent now."""
        return self._transport is not None and not self._transport.is_closing() and self._answer is None

    def send(self, request: bytes, answer: Answer) -> None:
        """Send a request; its answer goes into `answer`."""
        if self._transport is None or not self.usable:
            answer.fail(Outcome.DISCONNECTED, "the connection was closed before the request could be sent", now_ns())
            return
        self._answer = answer
        self._transport.write(request)

    def abort(self) -> None:
        """Close at once, whatever is under way."""
        self._answer = None
        if self._transport is not None:
            self._transport.abort()

    def drop(self, answer: Answer) -> None:
        """Close if the message of this answer has still not ended."""
        if self._answer is answer:
            self.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what to write to (a callback of asyncio)."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take in what was read (a callback of asyncio)."""
        self._now = now_ns()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as wrong:
            self._fail(Outcome.MALFORMED, f"not an answer that HTTP/1.1 knows: {wrong}")

    def connection_lost(self, exc: Exception | None) -> None:
        """End what was under way with the server (a callback of asyncio)."""
        self._transport = None
        answer, self._answer = self._answer, None
        if answer is not None:
            now = now_ns()
            if exc is None and self._ends_with_connection:
                self._conclude(answer, now)
            else:
                answer.fail(Outcome.DISCONNECTED, self._how_lost(exc), now)
        self._on_closed(self)

    def _how_lost(self, exc: Exception | None) -> str:
        where = "in the middle of the answer" if self._head_read else "before it answered"
        return f"the server closed the connection {where}" + (f" ({exc})" if exc is not None else "")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take in a header field (a callback of httptools)."""
        self._fields[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Decide what the body is (a callback of httptools)."""
        self._head_read = True
        is_json = self._fields.get(b"content-type", b"").startswith(b"application/json")
        self._events = self._parser.get_status_code() == _OK and not is_json
        self._ends_with_connection = not {b"content-length", b"transfer-encoding"} & self._fields.keys()
        if self._answer is not None:
            self._answer.last_ns = self._now

    def on_body(self, body: bytes) -> None:
        """Take in a part of the body (a callback of httptools)."""
        if self._answer is None:
            return
        if self._events:
            self._answer.take(body, self._now)
        elif len(self._body) < _MAX_REFUSAL:
            self._answer.last_ns = self._now
            self._body += body

    def on_message_complete(self) -> None:
        """End the answer and become free for the next request (a callback of httptools)."""
        if self._parser.get_status_code() < _OK:  # an interim answer: the real one follows
            self._reset()
            return
        answer, self._answer = self._answer, None
        if answer is not None:
            self._conclude(answer, self._now)
        keep = self._parser.should_keep_alive()
        self._reset()
        if keep and self.usable:
            self.idle_since_ns = self._now
            self._on_idle(self)
        elif self._transport is not None:
            self._transport.close()

    def _conclude(self, answer: Answer, now: int) -> None:
        status = self._parser.get_status_code()
        if self._events:
            answer.close(now)
            return
        body = self._body.decode(errors="replace")
        said = error_message(body) or " ".join(body.split())[:_SHOWN] or "no reason given"
        if status == _OK:
            answer.fail(Outcome.MALFORMED, f"the server answered at once instead of streaming: {said}", now)
            return
        answer.retry_after_s = _seconds(self._fields.get(b"retry-after"))
        answer.fail(Outcome.REFUSED, f"HTTP {status}: {said}", now)

    def _fail(self, outcome: Outcome, detail: str) -> None:
        answer = self._answer
        self.abort()
        if answer is not None:
            answer.fail(outcome, detail, self._now)


def _seconds(value: bytes | None) -> float | None:
    return float(value) if value is not None and value.isdigit() else None
