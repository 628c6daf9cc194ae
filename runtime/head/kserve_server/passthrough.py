"""Hand requests on to the head and its answers back, byte for byte.

Problem: OpenAI's API is vLLM's own server in the head, and nothing that it can may get lost on the way: streams, back
pressure, refusals, and that a client which hangs up ends its request. Protocol::

    request  --method, path, query, headers, body as it comes in--> head
    answer   <--status, headers, body as it comes out-------------- head
    client hangs up          -> the connection to the head is closed, which takes the request out of the engine
    client reads slowly      -> the head is read slowly
    head gone, not answering -> 503 with Retry-After
    head gone while it answers -> the connection is broken off: the client must not take the rest for the whole

Nothing is waited for but connecting: how long a request may take is the head's to say. Every request has a connection
of its own, since one that is kept may be closed by the head just when it is used again.

Caveats: only paths under ``/v1`` and ``/metrics`` reach the head. A path with ``.`` or ``..`` in it is refused: where
it leads is told only by who resolves it. WebSockets are not handed on.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING
from urllib.parse import quote

import httpx
from starlette.responses import JSONResponse

from runtime.head.hold import Refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONNECT_S = 5.0
RETRY_AFTER_S = 5

_OF_ONE_CONNECTION = frozenset(
    {b"connection", b"expect", b"host", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)
_BY_THE_SERVER = frozenset({b"date", b"server"})  # the server in front says its own
_log = logging.getLogger("kserve.midstream")


class ClientGoneError(Exception):
    """The client hung up before it had sent its request."""


def head_transport() -> httpx.AsyncHTTPTransport:
    """Return what connects to the head: as many connections as there are requests, and none kept."""
    return httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None, max_keepalive_connections=0))


def head_path(path: str) -> str | None:
    """Return the head's path for a path here; None when it is not the head's to answer."""
    if path.startswith("/openai/v1/"):
        return path.removeprefix("/openai")
    if path == "/metrics" or (path.startswith("/v1/") and not path.startswith("/v1/models/")):
        return path
    return None


class Front:
    """ASGI middleware around KServe's application: sends each request where it belongs, and ends it with its client.

    Args:
        app: what speaks KServe's protocols.
        head: the head's address.
        model_name: the model's name for KServe.
        transport: what connects to the head.

    """

    def __init__(self, app: ASGIApp, head: str, model_name: str, transport: httpx.AsyncBaseTransport) -> None:
        self._app, self._head, self._model_name, self._transport = app, head.rstrip("/"), model_name, transport

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            await until_client_goes(self._serve, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if not {".", ".."}.isdisjoint(path.split("/")):
            await _error(404, f"there is no {path}")(scope, receive, send)
        elif path.startswith("/v2/repository/"):
            message = "the head has one model from its start to its end; nothing can be loaded or unloaded here"
            await JSONResponse({"error": message}, 501)(scope, receive, send)
        elif (target := head_path(path)) is not None:
            await self._pass_on(target, scope, receive, send)
        else:
            await self._app(scope, receive, _with_retry_after(send))

    async def _pass_on(self, target: str, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._ask(target, scope, receive)
        except ClientGoneError:
            return
        except httpx.TransportError as error:
            _log.warning("the head at %s does not answer: %r", self._head, error)
            await gone().response()(scope, receive, send)
            return
        try:
            if scope["path"] == "/v1/models" and response.status_code == httpx.codes.OK:
                models = json.loads(await response.aread())
                await JSONResponse({**models, "models": [self._model_name]})(scope, receive, send)
                return
            await send(_start(response))
            async for chunk in response.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except httpx.TransportError as error:
            # Without a last message: the server closes the connection, and the client knows that the rest is missing.
            _log.warning("the head broke off its answer to %s: %r", target, error)
            return
        finally:
            await response.aclose()
        await send({"type": "http.response.body"})

    async def _ask(self, target: str, scope: Scope, receive: Receive) -> httpx.Response:
        query = scope["query_string"].decode("latin-1")
        headers = _passed_on(scope["headers"])
        names = {name for name, _ in scope["headers"]}
        body = _body(receive)
        has_body = b"transfer-encoding" in names or b"content-length" in names
        if not has_body:
            async for _ in body:
                pass
        request = httpx.Request(
            scope["method"],
            f"{self._head}{quote(target)}{'?' if query else ''}{query}",
            headers=headers,
            content=body if has_body else b"",
            extensions={"timeout": {"connect": CONNECT_S, "read": None, "write": None, "pool": None}},
        )
        return await self._transport.handle_async_request(request)


def gone() -> Refusal:
    """Return what a client is told when the head cannot be reached."""
    return Refusal("the head does not answer; it may be starting or restarting; try again in a moment", RETRY_AFTER_S)


async def until_client_goes(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run an application, and cancel it when the client hangs up before it has its answer."""
    body_read, hung_up = asyncio.Event(), asyncio.Event()
    complete = False

    async def receive_body() -> Message:
        if body_read.is_set():
            await hung_up.wait()
            return {"type": "http.disconnect"}
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            body_read.set()
        return message

    async def send_watched(message: Message) -> None:
        nonlocal complete
        complete = message["type"] == "http.response.body" and not message.get("more_body", False)
        await send(message)

    async def watch() -> None:
        await body_read.wait()
        await receive()  # after the body nothing comes but the end
        hung_up.set()

    serving = asyncio.ensure_future(app(scope, receive_body, send_watched))
    watching = asyncio.ensure_future(watch())
    try:
        await asyncio.wait({serving, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not complete:  # a server also reports the end of an exchange that went well
            serving.cancel()
        await asyncio.wait({serving})
    finally:
        serving.cancel()
        watching.cancel()
    if not serving.cancelled():
        serving.result()  # raises what the application raised


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


def _passed_on(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Leave out what is about one connection, as RFC 9110 (7.6.1) wants it."""
    named = {
        name.strip().lower() for key, value in headers if key.lower() == b"connection" for name in value.split(b",")
    }
    return [(key, value) for key, value in headers if key.lower() not in _OF_ONE_CONNECTION | named]


def _start(response: httpx.Response) -> Message:
    headers = [
        (key.lower(), value) for key, value in _passed_on(response.headers.raw) if key.lower() not in _BY_THE_SERVER
    ]
    return {"type": "http.response.start", "status": response.status_code, "headers": headers}


def _with_retry_after(send: Send) -> Send:
    async def send_with(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == httpx.codes.SERVICE_UNAVAILABLE:
            headers = list(message.get("headers", ()))
            if not any(key == b"retry-after" for key, _ in headers):
                headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
            message = {**message, "headers": headers}
        await send(message)

    return send_with


def _error(code: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "invalid", "param": None, "code": code}}, code)
