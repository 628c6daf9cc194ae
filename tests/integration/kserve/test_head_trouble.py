"""What KServe's server makes of a head that is slow, refuses, dies or is gone: the mock head stands in for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from loadgen.mock.server import MODEL
from loadgen.server import ServerProcess, free_port
from tests.integration.kserve.conftest import NAME, ROOT, KServeServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

DEADLINE_S = 30.0
STALLS_AT_5 = ("--fault", "stall:5:3600000")


def mock_head(folder: Path, *arguments: str, port: int | None = None) -> ServerProcess:
    port = port or free_port()
    argv = [sys.executable, "-m", "loadgen.mock", "--port", str(port), *arguments]
    return ServerProcess("mock", argv, port=port, log_path=folder / "mock.log", stop_deadline_s=3)


def body(**about: object) -> dict[str, object]:
    return {"model": MODEL, "prompt": "a", "temperature": 0, "seed": 1, "max_tokens": 20, "stream": True, **about}


@pytest_asyncio.fixture
async def gone(kserve_python: str, tmp_path: Path) -> AsyncIterator[KServeServer]:
    """KServe's server before a head that is not there."""
    async with KServeServer(kserve_python, f"http://127.0.0.1:{free_port()}", tmp_path) as process:
        yield process


def client(server: KServeServer) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.address, timeout=DEADLINE_S, trust_env=False)


async def until(condition: object) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


def connections_of(process: ServerProcess) -> int:
    """How many clients the mock head has."""
    return sum(one.status == psutil.CONN_ESTABLISHED for one in psutil.Process(process.pid).net_connections("tcp"))


async def after_events(response: httpx.Response, number: int) -> AsyncIterator[str]:
    """Wait for a number of events; returns what gives the lines that follow, and hangs up when it is dropped."""
    lines = response.aiter_lines()
    while number:
        line = await asyncio.wait_for(anext(lines), DEADLINE_S)
        number -= line.startswith("data: ")
    return lines


class TestStreams:
    async def test_what_was_said_before_a_stall_is_there_and_the_request_ends_with_its_client(
        self, kserve_python: str, tmp_path: Path
    ) -> None:
        async with (
            mock_head(tmp_path, *STALLS_AT_5) as head,
            KServeServer(kserve_python, head.base_url, tmp_path) as server,
            client(server) as http,
        ):
            async with http.stream("POST", "/openai/v1/completions", json=body()) as response:
                lines = await after_events(response, 5)
                assert connections_of(head) == 1
                del lines
            await until(lambda: connections_of(head) == 0)

    async def test_a_head_that_dies_breaks_the_stream_and_is_503_until_it_is_back(
        self, kserve_python: str, tmp_path: Path
    ) -> None:
        head = mock_head(tmp_path, *STALLS_AT_5)
        async with head, KServeServer(kserve_python, head.base_url, tmp_path) as server, client(server) as http:
            assert (await http.get("/v2/health/ready")).json() == {"ready": True}
            with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012 - reading is what fails
                async with http.stream("POST", "/v1/completions", json=body()) as response:
                    lines = await after_events(response, 5)
                    os.kill(head.pid, signal.SIGKILL)
                    assert [line async for line in lines if line] == []
            await assert_gone(http)
            async with mock_head(tmp_path, port=int(head.base_url.rpartition(":")[2])):
                assert (await http.get(f"/v2/models/{NAME}/ready")).json() == {"name": NAME, "ready": True}
                events = (await http.post("/v1/completions", json=body())).text.split()
                assert events[-1] == "[DONE]"

    async def test_a_large_prompt_reaches_the_head(self, kserve_python: str, tmp_path: Path) -> None:
        prompt = "word " * 1_000_000
        async with (
            mock_head(tmp_path) as head,
            KServeServer(kserve_python, head.base_url, tmp_path) as server,
            client(server) as http,
        ):
            sent = body(prompt=prompt, max_tokens=1, return_token_ids=True)
            response = await http.post("/v1/completions", json=sent)
        first = json.loads(response.text.partition("\n")[0].removeprefix("data: "))
        assert bytes(first["choices"][0]["prompt_token_ids"]) == prompt.encode()

    async def test_as_many_streams_at_once_as_there_are(self, kserve_python: str, tmp_path: Path) -> None:
        async with (
            mock_head(tmp_path, *STALLS_AT_5) as head,
            KServeServer(kserve_python, head.base_url, tmp_path) as server,
            httpx.AsyncClient(timeout=DEADLINE_S, limits=httpx.Limits(max_connections=None), trust_env=False) as http,
            contextlib.AsyncExitStack() as streams,
        ):
            open_ends = []
            for seed in range(150):  # more than the connections that httpx has by default
                stream = http.stream("POST", f"{server.address}/v1/completions", json=body(seed=seed))
                open_ends.append(await after_events(await streams.enter_async_context(stream), 5))
            assert connections_of(head) == 150

    async def test_the_official_client_reads_it_like_the_head(self, kserve_python: str, tmp_path: Path) -> None:
        async with (
            mock_head(tmp_path) as head,
            KServeServer(kserve_python, head.base_url, tmp_path) as server,
        ):
            received = []
            for address in (head.base_url + "/v1", server.address + "/openai/v1"):
                async with AsyncOpenAI(base_url=address, api_key="none") as openai:
                    pieces = await openai.completions.create(model=MODEL, prompt="a", max_tokens=20, stream=True)
                    received.append([piece.choices[0].text async for piece in pieces if piece.choices])
        assert len(received[0]) == 20
        assert received[0] == received[1]


class TestRefusals:
    @pytest.mark.parametrize("status", [429, 503])
    async def test_a_refusal_comes_as_it_is(self, kserve_python: str, tmp_path: Path, status: int) -> None:
        async with (
            mock_head(tmp_path, "--refuse", str(status)) as head,
            KServeServer(kserve_python, head.base_url, tmp_path) as server,
            client(server) as http,
        ):
            response = await http.post("/openai/v1/completions", json=body())
            assert response.status_code == status
            assert response.json()["error"]["type"] == "MockError"
            prompts = {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["a"]}
            response = await http.post(f"/v2/models/{NAME}/infer", json={"inputs": [prompts]})
            assert (response.status_code, response.json()) == (
                status,
                {"error": "the mock server refuses completions"},
            )

    async def test_a_head_that_is_gone_is_503_everywhere(self, gone: KServeServer) -> None:
        async with client(gone) as http:
            assert (await http.get("/v2/health/live")).json() == {"live": True}
            await assert_gone(http)
        assert "Traceback" not in gone.log_path.read_text(), "a head that starts is no bug"

    async def test_nobody_but_this_machine_gets_in(self, gone: KServeServer) -> None:
        listening = [
            one.laddr.ip for one in psutil.Process(gone.pid).net_connections("tcp") if one.status == psutil.CONN_LISTEN
        ]
        assert listening == ["127.0.0.1"]


class TestEnd:
    async def test_a_stream_may_end_after_sigterm(self, kserve_python: str, tmp_path: Path) -> None:
        async with (
            mock_head(tmp_path, "--itl-ms", "50") as head,
            KServeServer(kserve_python, head.base_url, tmp_path) as server,
            client(server) as http,
        ):
            async with http.stream("POST", "/v1/completions", json=body(max_tokens=60)) as response:
                lines = await after_events(response, 1)
                os.kill(server.pid, signal.SIGTERM)
                await until(lambda: not _listens(server))
                rest = [line async for line in lines if line]
            assert rest[-1] == "data: [DONE]"
            assert len(rest) == 59 + 1, "the other tokens, the last with the reason for the end, and [DONE]"
            assert await asyncio.wait_for(server.ended(), DEADLINE_S) == 0

    async def test_but_not_for_ever(self, kserve_python: str, tmp_path: Path) -> None:
        async with (
            mock_head(tmp_path, *STALLS_AT_5) as head,
            KServeServer(kserve_python, head.base_url, tmp_path, "--drain-seconds", "1") as server,
            client(server) as http,
            http.stream("POST", "/v1/completions", json=body()) as response,
        ):
            lines = await after_events(response, 5)
            os.kill(server.pid, signal.SIGTERM)
            with pytest.raises(httpx.RemoteProtocolError):
                assert [line async for line in lines if line] == []
            assert await asyncio.wait_for(server.ended(), DEADLINE_S) == 0


def test_its_environment_needs_neither_an_engine_nor_the_rest_of_midstream(kserve_python: str) -> None:
    program = (
        "import sys; sys.argv = ['test']; import runtime.head.kserve_server.server\n"
        "print(sorted({'vllm', 'torch', 'zmq', 'typer', 'msgspec', 'func_python'} & set(sys.modules)))"
    )
    done = subprocess.run([kserve_python, "-c", program], cwd=ROOT, capture_output=True, check=True, text=True)
    assert done.stdout == "[]\n"


async def assert_gone(http: httpx.AsyncClient) -> None:
    prompts = {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    for method, path, sent in (
        ("GET", "/v2/health/ready", None),
        ("GET", f"/v2/models/{NAME}/ready", None),
        ("GET", f"/v1/models/{NAME}", None),
        ("POST", f"/v2/models/{NAME}/infer", {"inputs": [prompts]}),
        ("POST", f"/v1/models/{NAME}:predict", {"instances": ["a"]}),
        ("POST", "/openai/v1/completions", body()),
        ("GET", "/v1/models", None),
        ("GET", "/metrics", None),
    ):
        response = await http.request(method, path, json=sent)
        assert response.status_code == 503, path
        assert int(response.headers["retry-after"]) > 0, path


def _listens(server: KServeServer) -> bool:
    return any(one.status == psutil.CONN_LISTEN for one in psutil.Process(server.pid).net_connections("tcp"))
