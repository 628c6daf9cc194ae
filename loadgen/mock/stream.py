"""One stream of the mock: from what the engine lets go to bytes on its connection."""

from array import array
from collections.abc import Callable
from typing import Any

from loadgen.clock import now_ns
from loadgen.mock.behaviour import Script, TokenSource
from loadgen.mock.engine import Sent, Stream
from loadgen.mock.events import DONE, EventShape
from loadgen.mock.http import EventStream, Response, error


class Times:
    """When one stream began, and when each of its chunks was due and was sent, on the axis of `loadgen.clock`.

    Linux counts that axis from the machine's start, so a client in another process of the machine reads the same one.
    """

    __slots__ = ("begun_ns", "due_ns", "sent_ns")

    def __init__(self, begun_ns: int) -> None:
        self.begun_ns = begun_ns
        self.due_ns = array("q")
        self.sent_ns = array("q")

    def content(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"begun_ns": self.begun_ns, "due_ns": list(self.due_ns), "sent_ns": list(self.sent_ns)}


class MockStream(Stream):
    """A stream on a connection. `on_end(how)` is called once; `whole` answers at the end, without streaming."""

    def __init__(
        self,
        plan: Script,
        source: TokenSource,
        shape: EventShape,
        events: EventStream,
        *,
        whole: bool,
        on_end: Callable[[str], None],
        times: Times | None,
    ) -> None:
        super().__init__(plan, source)
        self._shape = shape
        self._events = events
        self._on_end = on_end
        self._times = times
        self._ids: list[int] | None = [] if whole else None
        self._begun = False
        events.on_lost = self._lost

    def send(self, sent: list[Sent], due_ns: int) -> None:
        """Send what is due."""
        if self._times is not None:
            self._times.due_ns.append(due_ns)
            self._times.sent_ns.append(now_ns())
        if self._ids is None:
            self._stream(sent)
        else:
            self._collect(self._ids, sent)

    def _stream(self, sent: list[Sent]) -> None:
        payload = b""
        if not self._begun:
            self._begun = True
            self._events.begin()
            payload = self._shape.opening()
        for chunk in sent:
            match chunk.fault:
                case "error":
                    self._end("error", payload + self._shape.failure())
                    return
                case "disconnect":
                    if payload:
                        self._events.send(payload)
                    self._finish("disconnected")
                    self._events.disconnect()
                    return
                case "truncate":
                    self._end("truncated", payload)
                    return
                case "abort":
                    self._end("aborted", payload + self._shape.tokens((), "abort") + DONE)
                    return
                case "garbage":
                    payload += b"data: {not json\n\n"
                case "rename":
                    self._shape.rename()
                case _ if chunk.last:
                    payload += self._shape.tokens(chunk.token_ids, "length" if self.plan.tokens else "stop")
                case _ if chunk.token_ids:
                    payload += self._shape.tokens(chunk.token_ids, None)
        if sent[-1].last:
            self._end("finished" if self.plan.tokens else "empty", payload + self._shape.ending())
        elif payload:
            self._events.send(payload)

    def _collect(self, ids: list[int], sent: list[Sent]) -> None:
        for chunk in sent:
            ids += chunk.token_ids
            match chunk.fault:
                case "disconnect":
                    self._finish("disconnected")
                    self._events.disconnect()
                    return
                case "error" | "truncate" | "abort" | "garbage":
                    self._finish("error")
                    self._events.answer(error(500, "the mock engine failed"))
                    return
                case _:
                    pass
        if sent[-1].last:
            self._shape.sent = len(ids)
            self._finish("finished")
            self._events.answer(Response(self._shape.whole(ids, "length" if ids else "stop")))

    def _end(self, how: str, payload: bytes) -> None:
        self._finish(how)
        self._events.send(payload, last=True)

    def _finish(self, how: str) -> None:
        self.ended = True
        self._events.on_lost = None
        self._on_end(how)

    def _lost(self) -> None:
        if not self.ended:
            self._finish("left")
