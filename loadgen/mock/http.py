"""A small HTTP/1.1 server for the mock, because a server that is itself late cannot be the truth.

An ASGI server costs some 50 microseconds and a task switch for each chunk of a stream; here a chunk is one `write`,
made by the engine at the moment it is due. httptools (the parser of uvicorn) reads the requests. One request at a time
is served per connection, as HTTP/1.1 clients send them; a second one waits for the end of the first.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import parse_qsl

import httptools
import msgspec

_MAX_BODY = 64 << 20


@dataclass(slots=True)
class Request:
    """One request, wholly read. `fields` holds the header fields, names in lower case."""

    method: str
    path: str
    query: dict[str, str]
    fields: dict[str, str]
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer that is sent at once. `content` becomes JSON; None for no body."""

    content: Any = None
    status: int = 200
    fields: dict[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the bytes of the whole message."""
        body = b"" if self.content is None else msgspec.json.encode(self.content)
        lines = [
            f"HTTP/1.1 {self.status} {_reason(self.status)}",
            *([] if self.content is None else ["content-type: application/json"]),
            f"content-length: {len(body)}",
            *(f"{name}: {value}" for name, value in self.fields.items()),
        ]
        return "\r\n".join([*lines, "", ""]).encode() + body


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Status"


def error(status: int, message: str, **fields: str) -> Response:
    """Return a refusal in the shape of OpenAI's API; `fields` are header fields, with `_` for `-`."""
    content = {"error": {"message": message, "type": "MockError", "param": None, "code": status}}
    return Response(content, status, {name.replace("_", "-"): value for name, value in fields.items()})


class EventStream:
    """An answer of server-sent events, in chunked transfer coding, on the connection of one request."""

    __slots__ = ("_connection", "on_lost")

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self.on_lost: Callable[[], None] | None = None
        """Called when the client goes away."""

    def begin(self) -> None:
        """Send the head."""
        self._connection.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
        )

    def send(self, events: bytes, *, last: bool = False) -> None:
        """Send events as one chunk, and if `last` the end of the message with it."""
        coded = b"%x\r\n%b\r\n" % (len(events), events) if events else b""
        self._connection.write(coded + b"0\r\n\r\n" if last else coded)
        if last:
            self._connection.answered()

    def answer(self, response: Response) -> None:
        """Send a whole answer instead of events."""
        self._connection.write(response.encode())
        self._connection.answered()

    def disconnect(self) -> None:
        """Break the connection in the middle of the message; what was sent before still arrives."""
        self._connection.close()


Handler = Callable[[Request], Awaitable[Response]]
StreamHandler = Callable[[Request, EventStream], Response | None]


@dataclass(slots=True)
class Routes:
    """What answers a request: `streams` at once and for as long as they like, `handlers` each in a task."""

    handlers: dict[tuple[str, str], Handler]
    prefixes: dict[tuple[str, str], Handler]
    streams: dict[tuple[str, str], StreamHandler]
    guard: Callable[[Request], Response | None]
    connections: "set[Connection]" = field(default_factory=set)

    def handler(self, method: str, path: str) -> Handler | None:
        """Return who answers, by the whole path or by its beginning."""
        exact = self.handlers.get((method, path))
        if exact is not None:
            return exact
        return next((h for (m, prefix), h in self.prefixes.items() if m == method and path.startswith(prefix)), None)


class Connection(asyncio.Protocol):
    """One client connection."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[Request] = deque()
        self._busy = False
        self._stream: EventStream | None = None
        self._task: asyncio.Task[None] | None = None
        self._reset()

    def _reset(self) -> None:
        self._target = b""
        self._fields: dict[str, str] = {}
        self._body: list[bytes] = []
        self._size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what to write to (a callback of asyncio)."""
        self._transport = cast("asyncio.Transport", transport)
        self._routes.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """End what was under way with the client (a callback of asyncio)."""
        self._routes.connections.discard(self)
        self._transport = None
        if self._task is not None:
            self._task.cancel()
        if self._stream is not None and self._stream.on_lost is not None:
            self._stream.on_lost()
        self._stream = None

    def data_received(self, data: bytes) -> None:
        """Take in what was read (a callback of asyncio)."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(error(501, "the mock server upgrades no connection"))
        except httptools.HttpParserError as wrong:
            self._refuse(error(400, f"not a request that HTTP/1.1 knows: {wrong}"))

    def on_url(self, url: bytes) -> None:
        """Take in a part of the target (a callback of httptools)."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take in a header field (a callback of httptools)."""
        self._fields[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Let a client that asks first send its body (a callback of httptools)."""
        if self._fields.get("expect", "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Take in a part of the body (a callback of httptools)."""
        self._size += len(body)
        if self._size <= _MAX_BODY:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """Serve the request, or let it wait for the one before it (a callback of httptools)."""
        path, _, query = self._target.decode("latin-1").partition("?")
        body = b"".join(self._body)
        request = Request(self._parser.get_method().decode(), path, dict(parse_qsl(query)), self._fields, body)
        too_large = self._size > _MAX_BODY
        self._reset()
        if too_large:
            self._refuse(error(413, f"a body of more than {_MAX_BODY} bytes"))
            return
        self._waiting.append(request)
        if not self._busy:
            self._next()

    def write(self, data: bytes) -> None:
        """Send bytes, unless the client has gone."""
        if self._transport is not None:
            self._transport.write(data)

    def answered(self) -> None:
        """The answer to the present request is complete."""
        self._busy, self._stream = False, None
        if self._waiting:
            self._next()

    def close(self) -> None:
        """Close the connection after what was written."""
        self._stream = None
        if self._transport is not None:
            self._transport.close()

    def _next(self) -> None:
        self._busy = True
        request = self._waiting.popleft()
        refusal = self._routes.guard(request)
        if refusal is not None:
            self._answer(refusal)
            return
        stream_handler = self._routes.streams.get((request.method, request.path))
        if stream_handler is not None:
            stream = self._stream = EventStream(self)
            answer = stream_handler(request, stream)
            if answer is not None:
                self._answer(answer)
            return
        handler = self._routes.handler(request.method, request.path)
        if handler is None:
            self._answer(error(404, f"the mock server knows no {request.method} {request.path}"))
            return
        self._task = asyncio.get_running_loop().create_task(self._handle(handler, request))

    async def _handle(self, handler: Handler, request: Request) -> None:
        try:
            answer = await handler(request)
        except (msgspec.DecodeError, ValueError, TypeError, AttributeError) as wrong:
            answer = error(400, f"{request.path}: {wrong}")
        self._task = None
        self._answer(answer)

    def _answer(self, response: Response) -> None:
        self.write(response.encode())
        self.answered()

    def _refuse(self, response: Response) -> None:
        self.write(response.encode())
        self.close()
