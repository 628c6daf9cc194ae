"""Requests that wait for a pipeline which cannot be woken now, or ever: a bound, a 503, and nothing left running."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
import pytest_asyncio

from loadgen.server import ServerProcess, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

MODEL = "SmolLM2-135M-Instruct"
HOLD_SECONDS, HOLD_REQUESTS = 4, 3
DEADLINE_S = 60
ENDLESS = {"model": MODEL, "prompt": "Forever", "max_tokens": 2000, "ignore_eos": True}
SHORT = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerProcess]:
    """A server of its own, that sleeps after a second; the last test of this module ends it."""
    port = free_port()
    process = ServerProcess(
        "midstream",
        [
            *(sys.executable, "-m", "controller.cli", "serve", "--layers", "15,15", "--port", str(port)),
            *("--sleep-after", "1", "--spare-stages", "0"),
            *("--hold-seconds", str(HOLD_SECONDS), "--hold-requests", str(HOLD_REQUESTS)),
        ],
        port=port,
        log_path=tmp_path_factory.mktemp("hold") / "server.log",
    )
    async with process:
        yield process


@pytest_asyncio.fixture(loop_scope="session")
async def http(server: ServerProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.base_url, timeout=DEADLINE_S) as client:
        yield client


async def asleep(server: ServerProcess, http: httpx.AsyncClient) -> list[psutil.Process]:
    """Wait until the pipeline sleeps; returns what is left below the engine: the zygote, and what belongs to it."""
    async with asyncio.timeout(DEADLINE_S):
        latest = None
        while latest != "asleep":
            await asyncio.sleep(0.05)
            events = (await http.get("/midstream/v1/story/pipeline")).json()["events"]
            latest = events[-1]["event"]
    below = [child.children(recursive=True) for child in psutil.Process(server.pid).children()]
    return [process for processes in below for process in processes]


@contextlib.contextmanager
def stopped(*processes: psutil.Process) -> Iterator[None]:
    """Keep processes from doing anything."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


async def number(http: httpx.AsyncClient, metric: str) -> float:
    lines = (await http.get("/metrics")).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"vllm:{metric}"))


def check_refused(response: httpx.Response, reason: str) -> None:
    assert response.status_code == 503, response.text
    assert int(response.headers["retry-after"]) > 0
    error: dict[str, Any] = response.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("ServiceUnavailableError", 503, None)
    assert reason in error["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_wakes_the_pipeline_and_is_answered(
    server: ServerProcess, http: httpx.AsyncClient, stream: bool
) -> None:
    await asleep(server, http)
    response = await http.post("/v1/completions", json={**SHORT, "stream": stream})
    assert response.status_code == 200
    assert " Paris" in response.text


async def test_what_cannot_be_woken_holds_so_many_so_long_and_leaves_nothing_running(
    server: ServerProcess, http: httpx.AsyncClient
) -> None:
    with stopped(*await asleep(server, http)):
        start = time.monotonic()
        requests = [{**ENDLESS, "stream": number % 2 == 0} for number in range(2 * HOLD_REQUESTS)]
        sent = [asyncio.create_task(http.post("/v1/completions", json=body)) for body in requests]
        answers = [await answer for answer in asyncio.as_completed(sent)]
        for response in answers[:HOLD_REQUESTS]:
            check_refused(response, f"{HOLD_REQUESTS} requests wait for it, as many as --hold-requests allows")
        for response in answers[HOLD_REQUESTS:]:
            check_refused(response, f"is still waking after the {HOLD_SECONDS} s that --hold-seconds lets a request")
        assert time.monotonic() - start >= HOLD_SECONDS
    # The next one is served as soon as the pipeline can wake; those that were refused are not, now or later.
    response = await http.post("/v1/completions", json=SHORT)
    assert response.status_code == 200
    assert " Paris" in response.text
    async with asyncio.timeout(DEADLINE_S / 2):  # 2000 tokens would take far longer
        left = 1.0
        while left:
            left = await number(http, "num_requests_running") + await number(http, "num_requests_waiting")
            await asyncio.sleep(0.1)


async def test_a_recovery_that_hangs_holds_what_comes_and_a_stream_outlives_it(
    server: ServerProcess, http: httpx.AsyncClient
) -> None:
    async with http.stream("POST", "/v1/completions", json={**ENDLESS, "max_tokens": 100, "stream": True}) as response:
        lines = response.aiter_lines()
        await anext(lines)
        stages = (await http.get("/midstream/v1/status")).json()["stages"]
        first, last = (psutil.Process(stage["pid"]) for stage in stages)
        with stopped(first):  # which has to be told of the loss of the other
            last.kill()
            refused = await http.post("/v1/completions", json={**SHORT, "stream": True})
        check_refused(refused, f"is still recovering after the {HOLD_SECONDS} s that --hold-seconds lets a request")
        rest = [line async for line in lines if line]
    assert len(rest) == 100
    assert rest[-1] == "data: [DONE]"


async def test_an_awake_pipeline_refuses_nobody(server: ServerProcess, http: httpx.AsyncClient) -> None:
    requests = [{**SHORT, "stream": number % 2 == 0} for number in range(4 * HOLD_REQUESTS)]
    async with http.stream("POST", "/v1/completions", json={**ENDLESS, "max_tokens": 300, "stream": True}) as response:
        await anext(response.aiter_lines())  # it is awake
        answers = await asyncio.gather(*(http.post("/v1/completions", json=body) for body in requests))
    assert [answer.status_code for answer in answers] == [200] * len(requests)


async def test_when_the_wake_fails_a_stream_and_another_get_a_503(
    server: ServerProcess, http: httpx.AsyncClient
) -> None:
    for process in await asleep(server, http):
        process.kill()
    requests = [{**SHORT, "stream": stream} for stream in (False, True)]
    for response in await asyncio.gather(*(http.post("/v1/completions", json=body) for body in requests)):
        check_refused(response, "the pipeline failed and this server is ending")
