"""Requests on their way to the head and back, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvicorn
from starlette.responses import JSONResponse, PlainTextResponse

from runtime.head.kserve_server.passthrough import Front, head_path, head_transport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from starlette.types import Receive, Scope, Send

DEADLINE_S = 20.0
MOST_ON_THE_WAY = 64 << 20
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


class Head:
    """A head whose answers are written byte by byte; `requests` is what it was sent."""

    def __init__(self, answer: Callable[[Head, asyncio.StreamWriter], Awaitable[None]]) -> None:
        self._answer = answer
        self.requests: list[tuple[bytes, dict[bytes, bytes], bytes]] = []
        self.asked = asyncio.Event()
        self.gone = asyncio.Event()
        self.go_on = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).rstrip().split(b"\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        body = b""
        if b"content-length" in headers:
            body = await reader.readexactly(int(headers[b"content-length"]))
        elif b"transfer-encoding" in headers:
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        self.requests.append((first, headers, body))
        self.asked.set()
        answering = asyncio.ensure_future(self._answer(self, writer))
        hung_up = asyncio.ensure_future(reader.read(1))
        await asyncio.wait({answering, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            self.gone.set()
        answering.cancel()
        hung_up.cancel()
        writer.close()


def says(*parts: bytes) -> Callable[[Head, asyncio.StreamWriter], Awaitable[None]]:
    """Answer with these bytes."""

    async def answer(_: Head, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()

    return answer


def says_and_waits(*parts: bytes, then: bytes = b"") -> Callable[[Head, asyncio.StreamWriter], Awaitable[None]]:
    """Answer with these bytes, and with the rest when the test says so."""

    async def answer(head: Head, writer: asyncio.StreamWriter) -> None:
        await says(*parts)(head, writer)
        await head.go_on.wait()
        await says(then)(head, writer)

    return answer


async def kserve(scope: Scope, receive: Receive, send: Send) -> None:
    """What stands in for KServe's application."""
    if scope["type"] == "lifespan":
        return
    if scope["path"] == "/not-ready":
        await JSONResponse({"error": "not ready"}, 503)(scope, receive, send)
        return
    await PlainTextResponse(f"kserve {scope['path']}")(scope, receive, send)


@contextlib.asynccontextmanager
async def front(app: Any, address: str) -> AsyncIterator[str]:
    """Serve a front on a port of its own; yields its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(Front(app, address, "m", head_transport()), log_level="critical", lifespan="off")
    )
    serving = asyncio.ensure_future(server._serve([listener]))  # without uvicorn's signal handlers
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.force_exit = server.should_exit = True
        await asyncio.wait_for(serving, DEADLINE_S)
        listener.close()


@contextlib.asynccontextmanager
async def standing(
    answer: Callable[[Head, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[tuple[Head, httpx.AsyncClient]]:
    """A head, the front before it and a client of the front."""
    head = Head(answer)
    listener = await asyncio.start_server(head.serve, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with (
        listener,
        front(kserve, address) as url,
        httpx.AsyncClient(base_url=url, timeout=DEADLINE_S, trust_env=False) as client,
    ):
        yield head, client


def answer_of(status: bytes, body: bytes, *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 " + status, *headers, b"Content-Length: %d" % len(body), b"", body]
    return b"\r\n".join(lines)


class TestBytes:
    async def test_a_request_reaches_the_head_as_it_came(self) -> None:
        async with standing(says(answer_of(b"200 OK", b"{}"))) as (head, client):
            await client.post(
                "/openai/v1/completions?a=%20b&c",
                content=b'{"prompt": "\xf0\x9f\x98\x80"}',
                headers={"authorization": "Bearer k", "traceparent": "00-1-2-01", "connection": "x-hop", "x-hop": "1"},
            )
        (first, headers, body), *_ = head.requests
        assert first == b"POST /v1/completions?a=%20b&c HTTP/1.1"
        assert body == b'{"prompt": "\xf0\x9f\x98\x80"}'
        assert (headers[b"authorization"], headers[b"traceparent"]) == (b"Bearer k", b"00-1-2-01")
        assert b"x-hop" not in headers
        assert headers[b"host"].startswith(b"127.0.0.1:"), "the head's own, not the one the client called"

    async def test_an_answer_comes_back_as_the_head_gave_it(self) -> None:
        refusal = b'{"error":{"message":"asleep","code":503}}'
        raw = answer_of(
            b"503 Service Unavailable",
            refusal,
            b"Retry-After: 60",
            b"Content-Type: application/json",
            b"Server: head",
            b"Set-Cookie: a=1",
            b"Set-Cookie: b=2",
            b"X-Request-Id: 7",
        )
        async with standing(says(raw)) as (_, client):
            response = await client.post("/v1/chat/completions", content=b"{}")
        assert (response.status_code, response.content) == (503, refusal)
        assert response.headers["retry-after"] == "60"
        assert response.headers.get_list("set-cookie") == ["a=1", "b=2"]
        assert response.headers.get_list("server") == ["uvicorn"]
        assert response.headers["x-request-id"] == "7"

    async def test_a_packed_answer_stays_packed(self) -> None:
        raw = answer_of(b"200 OK", b"\x1f\x8bpacked", b"Content-Encoding: gzip")
        async with standing(says(raw)) as (_, client), client.stream("GET", "/metrics") as response:
            received = b"".join([part async for part in response.aiter_raw()])
        assert received == b"\x1f\x8bpacked"

    async def test_a_large_body_goes_through_without_a_length(self) -> None:
        async def parts() -> AsyncIterator[bytes]:
            for number in range(256):
                yield bytes([number]) * 65536

        async with standing(says(answer_of(b"200 OK", b"{}"))) as (head, client):
            await client.post("/v1/completions", content=parts())
        assert head.requests[0][2] == b"".join([bytes([number]) * 65536 for number in range(256)])

    async def test_a_request_without_a_body_has_none_at_the_head(self) -> None:
        async with standing(says(answer_of(b"200 OK", b"ok"))) as (head, client):
            assert (await client.get("/metrics")).text == "ok"
        assert not {b"transfer-encoding", b"content-length"} & head.requests[0][1].keys()


class TestStreams:
    async def test_each_event_comes_when_the_head_says_it(self) -> None:
        answer = says_and_waits(STREAM, chunk(b"data: 1\n\n"), then=chunk(b"data: [DONE]\n\n") + chunk(b""))
        async with standing(answer) as (head, client), client.stream("POST", "/v1/completions") as response:
            parts = response.aiter_raw()
            assert await asyncio.wait_for(anext(parts), DEADLINE_S) == b"data: 1\n\n"
            head.go_on.set()
            assert [part async for part in parts] == [b"data: [DONE]\n\n"]

    async def test_a_client_that_hangs_up_ends_its_request_at_the_head(self) -> None:
        async with standing(says_and_waits(STREAM, chunk(b"data: 1\n\n"))) as (head, client):
            async with client.stream("POST", "/v1/completions", content=b"{}") as response:
                await anext(response.aiter_raw())
            await asyncio.wait_for(head.gone.wait(), DEADLINE_S)

    async def test_also_before_the_head_has_said_anything(self) -> None:
        async with standing(says_and_waits()) as (head, client):
            asking = asyncio.ensure_future(client.post("/v1/completions", content=b"{}"))
            await asyncio.wait_for(head.asked.wait(), DEADLINE_S)
            asking.cancel()
            await asyncio.wait_for(head.gone.wait(), DEADLINE_S)

    async def test_a_slow_client_slows_the_head_down(self) -> None:
        written = 0
        stuck = asyncio.Event()

        async def flood(head: Head, writer: asyncio.StreamWriter) -> None:
            nonlocal written
            writer.write(STREAM)
            while not stuck.is_set() and written < MOST_ON_THE_WAY:
                writer.write(chunk(bytes(1 << 16)))
                try:
                    await asyncio.wait_for(writer.drain(), 1.0)
                except TimeoutError:
                    stuck.set()
                written += 1 << 16
            stuck.set()
            await writer.drain()
            writer.write(chunk(b""))

        async with standing(flood) as (_, client), client.stream("GET", "/v1/flood") as response:
            await asyncio.wait_for(stuck.wait(), DEADLINE_S)
            received = sum([len(part) async for part in response.aiter_raw()])
        assert received == written
        assert written < MOST_ON_THE_WAY, "only what the sockets hold may be on the way"

    async def test_an_answer_that_breaks_off_is_broken_off(self) -> None:
        async with standing(says(STREAM, chunk(b"data: 1\n\n"))) as (_, client):
            with pytest.raises(httpx.RemoteProtocolError):
                await client.post("/v1/completions", content=b"{}")


class TestGone:
    async def test_a_head_that_is_not_there_is_503(self) -> None:
        async with (
            front(kserve, "http://127.0.0.1:9") as url,
            httpx.AsyncClient(base_url=url, trust_env=False) as client,
        ):
            for path in ("/v1/completions", "/openai/v1/models", "/v1/models", "/metrics"):
                response = await client.get(path)
                assert (response.status_code, response.headers["retry-after"]) == (503, "5"), path
                assert response.json()["error"]["code"] == 503

    async def test_a_head_that_hangs_up_without_an_answer_is_503(self) -> None:
        async with standing(says()) as (_, client):
            response = await client.post("/v1/completions", content=b"{}")
        assert (response.status_code, response.headers["retry-after"]) == (503, "5")

    async def test_kserve_too_says_when_to_come_back(self) -> None:
        async with standing(says()) as (_, client):
            response = await client.get("/not-ready")
        assert (response.status_code, response.headers["retry-after"]) == (503, "5")


class TestPaths:
    def test_only_openais_paths_and_metrics_are_the_heads(self) -> None:
        assert head_path("/openai/v1/chat/completions") == "/v1/chat/completions"
        assert head_path("/openai/v1/models") == head_path("/v1/models") == "/v1/models"
        assert head_path("/metrics") == "/metrics"
        for path in ("/", "/midstream/v1/status", "/openai/midstream/v1/status", "/v2/models/m", "/v1", "/sleep",
                     "/v1/models/m", "/v1/models/m:predict", "/openai/v1", "/metrics/x", "/health"):  # fmt: skip
            assert head_path(path) is None, path

    @pytest.mark.parametrize(
        "path",
        [
            "/openai/v1/../../midstream/v1/status",
            "/v1/../midstream/v1/status",
            "/v1/%2e%2e/midstream/v1/status",
            "/v1/%2E./midstream/v1/status",
            "/v1/x/..%2f..%2fmidstream/v1/status",
            "/v1/./../midstream/v1/status",
        ],
    )
    async def test_the_control_api_cannot_be_reached_by_a_detour(self, path: str) -> None:
        async with standing(says(answer_of(b"200 OK", b"control"))) as (head, client):
            reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            status, *_ = (await reader.read()).split(b"\r\n")
            writer.close()
        assert status == b"HTTP/1.1 404 Not Found"
        assert head.requests == []

    async def test_an_encoded_detour_stays_encoded(self) -> None:
        async with standing(says(answer_of(b"200 OK", b"ok"))) as (head, client):
            await client.get("/v1/%252e%252e/midstream")
        assert head.requests[0][0] == b"GET /v1/%252e%252e/midstream HTTP/1.1"

    async def test_the_list_of_models_serves_openai_and_kserve(self) -> None:
        body = json.dumps({"object": "list", "data": [{"id": "smollm"}]}).encode()
        async with standing(says(answer_of(b"200 OK", body))) as (_, client):
            merged = (await client.get("/v1/models")).json()
            assert (await client.get("/openai/v1/models")).content == body
        assert merged == {"object": "list", "data": [{"id": "smollm"}], "models": ["m"]}

    async def test_a_refusal_to_list_them_is_the_heads(self) -> None:
        raw = answer_of(b"401 Unauthorized", b"{}", b"WWW-Authenticate: Bearer")
        async with standing(says(raw)) as (_, client):
            response = await client.get("/v1/models")
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")

    async def test_kserves_paths_are_kserves(self) -> None:
        async with standing(says()) as (head, client):
            for path in ("/v2/health/ready", "/v1/models/m", "/v1/models/m:predict", "/midstream/v1/status"):
                assert (await client.get(path)).text == f"kserve {path}"
        assert head.requests == []

    async def test_nothing_is_loaded_or_unloaded(self) -> None:
        async with standing(says()) as (_, client):
            response = await client.post("/v2/repository/models/m/unload")
        assert response.status_code == 501


class TestKServe:
    async def test_a_request_of_kserves_ends_with_its_client(self) -> None:
        asked, cancelled = asyncio.Event(), asyncio.Event()

        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            asked.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        async with (
            front(slow, "http://127.0.0.1:9") as url,
            httpx.AsyncClient(base_url=url, trust_env=False) as client,
        ):
            asking = asyncio.ensure_future(client.post("/v2/models/m/infer", content=b"{}"))
            await asyncio.wait_for(asked.wait(), DEADLINE_S)
            asking.cancel()
            await asyncio.wait_for(cancelled.wait(), DEADLINE_S)
