"""A sink for events: a real HTTP server on the loopback, under a test's control."""

from __future__ import annotations

import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self

from runtime.events.envelope import Event, read_http
from tests.unit.runtime.engine.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from types import TracebackType


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    sink: Sink


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        sink = self.server.sink
        event = read_http(dict(self.headers.items()), self.rfile.read(int(self.headers["content-length"])))
        status, headers = sink.answer(event)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


class Sink:
    """Listens from `open` to `close`, always at the same address. Answers 202, or what `answers` says first.

    While `free` is not set, it reads events and does not answer.
    """

    def __init__(self) -> None:
        self.tries: list[Event] = []
        self.taken: list[Event] = []
        self.answers: deque[int | tuple[int, dict[str, str]]] = deque()
        self.free = threading.Event()
        self.free.set()
        self._port = 0
        self._server: _Server | None = None
        self.open()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/"

    def open(self) -> None:
        self._server = _Server(("127.0.0.1", self._port), _Handler)
        self._server.sink = self
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.free.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def answer(self, event: Event) -> tuple[int, dict[str, str]]:
        self.tries.append(event)
        self.free.wait(DEADLINE_S)
        answer = self.answers.popleft() if self.answers else 202
        status, headers = (answer, {}) if isinstance(answer, int) else answer
        if status < 300:
            self.taken.append(event)
        return status, headers

    def wait_for(self, count: int) -> list[str]:
        """Return the ids of what was taken, as soon as it is `count` events."""
        assert eventually(lambda: len(self.taken) >= count), f"only {len(self.taken)} events came"
        return [event.id for event in self.taken]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
