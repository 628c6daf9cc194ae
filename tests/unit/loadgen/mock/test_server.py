"""The mock over loopback, by clients that are not ours: httpx, OpenAI's own, and bare sockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from loadgen.mock.behaviour import Behaviour, Fault, TimedStall, TokenSource
from loadgen.mock.server import MODEL, MockServer
from tests.unit.loadgen.streams import eventually, mock_server

BODY: dict[str, Any] = {"model": MODEL, "prompt": "Hello", "max_tokens": 5, "temperature": 0, "stream": True}
IDS = [TokenSource("Hello", 0.0, None).at(index) for index in range(5)]


async def post(url: str, body: Any, path: str = "/v1/completions", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
        return await http.post(path, json=body, headers=headers)


async def get(url: str, path: str) -> Any:
    async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
        return (await http.get(path)).json()


def events(response: httpx.Response) -> list[Any]:
    payloads = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert payloads[-1] == "[DONE]"
    return [json.loads(payload) for payload in payloads[:-1]]


class TestCompletions:
    async def test_a_chunk_per_token_with_ids_usage_and_reason_only_if_asked_for(self):
        asked = BODY | {"return_token_ids": True, "stream_options": {"include_usage": True}}
        async with mock_server() as (url, _):
            *chunks, usage = events(await post(url, asked))
            bare = events(await post(url, BODY))
        choices = [chunk["choices"][0] for chunk in chunks]
        assert [choice["token_ids"] for choice in choices] == [[token] for token in IDS]
        assert [choice["finish_reason"] for choice in choices] == [None] * 4 + ["length"]
        assert choices[0]["prompt_token_ids"] == list(b"Hello")
        assert usage["usage"] == {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
        assert usage["choices"] == []
        assert [chunk["choices"][0]["text"] for chunk in bare] == [f" {token}" for token in IDS]
        assert "token_ids" not in bare[0]["choices"][0]
        assert len({chunk["id"] for chunk in chunks}) == 1

    async def test_usage_so_far_comes_in_every_chunk_if_asked_for(self):
        options = {"include_usage": True, "continuous_usage_stats": True}
        async with mock_server(Behaviour(tokens_per_chunk=2)) as (url, _):
            chunks = events(await post(url, BODY | {"stream_options": options}))
        assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [2, 4, 5, 5]

    async def test_a_prompt_of_ids_is_a_prompt(self):
        async with mock_server() as (url, _):
            chunks = events(await post(url, BODY | {"prompt": [1, 2, 3], "return_token_ids": True}))
        assert chunks[0]["choices"][0]["prompt_token_ids"] == [1, 2, 3]

    async def test_without_streaming_the_whole_answer_comes_when_the_last_token_is_due(self):
        async with mock_server(Behaviour(ttft_ms=50, itl_ms=50)) as (url, _):
            response = await post(url, BODY | {"stream": False})
        assert response.json()["choices"][0]["text"] == "".join(f" {token}" for token in IDS)
        assert response.json()["usage"]["completion_tokens"] == 5
        assert response.elapsed.total_seconds() >= 0.25


class TestOpenAIsOwnClient:
    @pytest.fixture
    async def openai(self) -> AsyncIterator[AsyncOpenAI]:
        async with (
            mock_server() as (url, _),
            httpx.AsyncClient(trust_env=False) as http,
            AsyncOpenAI(base_url=f"{url}/v1", api_key="any", http_client=http) as client,
        ):
            yield client

    async def test_chat_streams_and_counts(self, openai):
        stream = await openai.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=5,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[0].choices[0].delta.role == "assistant"
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == "".join(f" {token}" for token in IDS)
        assert chunks[-1].usage.completion_tokens == 5

    async def test_models_and_whole_answers_are_read(self, openai):
        assert [model.id async for model in openai.models.list()] == [MODEL]
        chat = await openai.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hello"}], max_completion_tokens=5, temperature=0
        )
        assert chat.choices[0].message.content == "".join(f" {token}" for token in IDS)


class TestRefusals:
    async def test_streams_beyond_the_most_are_told_to_come_again(self):
        async with mock_server(Behaviour(max_streams=1, ttft_ms=300)) as (url, mock):
            first = asyncio.create_task(post(url, BODY))
            await eventually(lambda: mock.open_streams)
            second = await post(url, BODY)
            assert (await first).status_code == 200
            third = await post(url, BODY)
        assert (second.status_code, second.headers["retry-after"]) == (503, "1")
        assert third.status_code == 200

    async def test_a_status_for_all(self):
        async with mock_server(Behaviour(refuse_status=429)) as (url, _):
            response = await post(url, BODY)
        assert response.status_code == 429
        assert response.json()["error"]["message"] == "the mock server refuses completions"

    async def test_the_key_is_asked_for_everywhere_but_at_health(self):
        mock = MockServer(Behaviour(), api_key="secret")
        server = await asyncio.get_running_loop().create_server(mock.connection, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            assert (await post(url, BODY)).status_code == 401
            assert (await post(url, BODY, authorization="Bearer guessed")).status_code == 401
            assert (await post(url, BODY, authorization="Bearer secret")).status_code == 200
            async with httpx.AsyncClient(trust_env=False) as http:
                assert (await http.get(f"{url}/health")).status_code == 200
                assert (await http.get(f"{url}/mock/truth")).status_code == 401
        finally:
            server.close()
            mock.close()

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ({"max_tokens": 5}, "prompt"),
            ({"prompt": {"a": 1}}, "prompt"),
            ({"prompt": "a", "max_tokens": -1}, "max_tokens is -1"),
            ([], "object"),
        ],
    )
    async def test_a_request_that_makes_no_sense_is_refused_with_the_reason(self, body, message):
        async with mock_server() as (url, _):
            response = await post(url, body)
        assert response.status_code == 400
        assert message in response.json()["error"]["message"]

    async def test_a_path_that_is_not_there(self):
        async with mock_server() as (url, _):
            assert (await post(url, {}, "/v1/embeddings")).status_code == 404


async def talk(url: str, *pieces: bytes) -> bytes:
    """Send pieces, one write each, and read until the server closes."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    writer.write_eof()
    async with asyncio.timeout(10):
        read = await reader.read()
    writer.close()
    await writer.wait_closed()
    return read


class TestWire:
    async def test_a_request_in_single_bytes_is_understood(self):
        request = b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
        async with mock_server() as (url, _):
            read = await talk(url, *(bytes([byte]) for byte in request))
        assert read.startswith(b"HTTP/1.1 200 OK\r\n")

    async def test_requests_that_do_not_wait_are_answered_in_order(self):
        async with mock_server() as (url, _):
            read = await talk(url, b"GET /health HTTP/1.1\r\nhost: a\r\n\r\nGET /nowhere HTTP/1.1\r\nhost: a\r\n\r\n")
        assert [line for line in read.split(b"\r\n") if line.startswith(b"HTTP/1.1")] == [
            b"HTTP/1.1 200 OK",
            b"HTTP/1.1 404 Not Found",
        ]

    async def test_what_is_no_http_is_refused(self):
        async with mock_server() as (url, _):
            assert (await talk(url, b"hello there\r\n\r\n")).startswith(b"HTTP/1.1 400")

    async def test_a_client_that_goes_away_ends_its_stream(self):
        async with mock_server(Behaviour(itl_ms=10)) as (url, mock):
            async with (
                httpx.AsyncClient(base_url=url, trust_env=False) as http,
                http.stream("POST", "/v1/completions", json=BODY | {"max_tokens": 10_000}) as response,
            ):
                await anext(response.aiter_raw())
            await eventually(lambda: not mock.open_streams)
        assert mock.ends == {"left": 1}


class TestTruth:
    async def test_it_says_when_each_chunk_was_due_and_sent_and_how_late_it_was(self):
        behaviour = Behaviour(ttft_ms=30, itl_ms=10, faults=(Fault("stall", 3, 100),))
        mock = MockServer(behaviour, record_times=True)
        server = await asyncio.get_running_loop().create_server(mock.connection, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            await post(url, BODY, **{"x-request-id": "mine"})
            times = (await get(url, "/mock/times"))["mine"]
            truth = await get(url, "/mock/truth")
        finally:
            server.close()
            mock.close()
        due = [round((at - times["begun_ns"]) / 1e6) for at in times["due_ns"]]
        assert due == [30, 40, 50, 160, 170]
        late = [sent - at for sent, at in zip(times["sent_ns"], times["due_ns"], strict=True)]
        assert all(0 <= each < 50e6 for each in late)
        assert (truth["streams"], truth["chunks"], truth["tokens"]) == (1, 5, 5)
        assert truth["ended"] == {"finished": 1}
        assert truth["late_ms"]["p50"] <= truth["late_ms"]["max"]

    async def test_a_timed_stall_stops_all_streams_at_once_and_shifts_what_is_left(self):
        mock = MockServer(Behaviour(ttft_ms=10, itl_ms=10, stalls=(TimedStall(0.1, 200),)), record_times=True)
        server = await asyncio.get_running_loop().create_server(mock.connection, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            bodies = [BODY | {"max_tokens": 20, "prompt": f"p{n}"} for n in range(3)]
            await asyncio.gather(*(post(url, body, **{"x-request-id": body["prompt"]}) for body in bodies))
            times = await get(url, "/mock/times")
        finally:
            server.close()
            mock.close()
        begun = min(each["begun_ns"] for each in times.values())
        for each in times.values():
            gaps = [b - a for a, b in zip(each["due_ns"], each["due_ns"][1:], strict=False)]
            assert max(gaps) == 210_000_000  # the rhythm and the stall, to the nanosecond
            assert sorted(gaps)[:-1] == [10_000_000] * 18
            before = each["due_ns"][gaps.index(max(gaps))]
            assert before < begun + 101_000_000 <= before + 11_000_000

    async def test_times_are_kept_only_if_told_to(self):
        async with mock_server() as (url, _):
            assert "--record-times" in (await get(url, "/mock/times"))["error"]["message"]

    async def test_its_tokenizer_counts_bytes(self):
        async with mock_server() as (url, _):
            answer = (await post(url, {"prompt": "añb"}, "/tokenize")).json()
        assert (answer["count"], answer["tokens"]) == (4, list("añb".encode()))
