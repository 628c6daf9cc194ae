"""A head that says what a test tells it to, over real HTTP, and the function behind the real func-python, in process.

This file is the same in every function.
"""

from __future__ import annotations

import json
import signal
import threading
from collections import defaultdict, deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from func_python.cloudevent import ASGIApplication

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

PIPELINE = "smollm"


@dataclass
class Call:
    """One request to the head."""

    path: str
    body: dict[str, Any]
    key: str | None


@dataclass
class Head:
    """Answers each path with what it was given for it, one after the other; the last answer is given from then on."""

    url: str = ""
    calls: list[Call] = field(default_factory=list)
    may_answer: threading.Event = field(default_factory=threading.Event)
    asked: threading.Event = field(default_factory=threading.Event)
    answers: defaultdict[str, deque[tuple[int, Any]]] = field(default_factory=lambda: defaultdict(deque))

    def says(self, path: str, *answers: tuple[int, Any]) -> None:
        self.answers[path] = deque(answers)

    def refuses(self, path: str, status: int, kind: str, message: str = "so it is") -> None:
        self.says(path, self.refusal(status, kind, message))

    @staticmethod
    def refusal(status: int, kind: str, message: str = "so it is") -> tuple[int, Any]:
        return status, {"error": {"message": message, "type": kind, "param": None, "code": status}}

    def answer(self, call: Call) -> tuple[int, Any]:
        self.calls.append(call)
        self.asked.set()
        self.may_answer.wait(30)
        waiting = self.answers[call.path]
        if not waiting:
            return 404, {"detail": "Not Found"}
        return waiting.popleft() if len(waiting) > 1 else waiting[0]


def _handler(head: Head) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _answer(self, body: dict[str, Any]) -> None:
            path = self.path.partition("?")[0].removeprefix("/midstream/v1")
            status, content = head.answer(Call(path, body, self.headers["Idempotency-Key"]))
            encoded = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    return Handler


@pytest.fixture
def head() -> Iterator[Head]:
    head = Head()
    head.may_answer.set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(head))
    server.daemon_threads = True
    head.url = f"http://127.0.0.1:{server.server_address[1]}"
    serving = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    serving.start()
    yield head
    head.may_answer.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
async def client() -> AsyncIterator[Callable[[Any], httpx.AsyncClient]]:
    """Put a function behind func-python, and return a client for it."""
    opened: list[httpx.AsyncClient] = []

    def serve(function: Any) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(ASGIApplication(function))
        opened.append(httpx.AsyncClient(transport=transport, base_url="http://function"))
        return opened[-1]

    yield serve
    for each in opened:
        await each.aclose()


@pytest.fixture
def signals() -> Iterator[None]:
    """Leave the process's signal handlers as they were: a function that starts listens to them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def event() -> Callable[..., dict[str, Any]]:
    """Make an event, in the structured mode's form."""

    def make(kind: str, data: object, **attributes: str) -> dict[str, Any]:
        return {
            "specversion": "1.0",
            "type": f"dev.midstream.{kind}",
            "source": "/tests",
            "id": "event-1",
            "subject": PIPELINE,
            "data": data,
            **attributes,
        }

    return make


@pytest.fixture
def send() -> Callable[..., Any]:
    """Send an event in the structured mode."""

    async def send(client: httpx.AsyncClient, event: dict[str, Any]) -> httpx.Response:
        content = json.dumps(event)
        return await client.post("/", content=content, headers={"content-type": "application/cloudevents+json"})

    return send
