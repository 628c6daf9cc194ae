"""A user's first hour with a real server: the clients they have, the commands they type."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from loadgen.server import ServerProcess, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

MODEL = "SmolLM2-135M-Instruct"


async def command(*arguments: str) -> tuple[int, str, str]:
    """Run `midstream` as a user would; returns exit code, output and errors."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "controller.cli", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output, errors = await asyncio.wait_for(process.communicate(), 120)
    return process.returncode or 0, output.decode(), errors.decode()


async def reconfigure(server: ServerProcess, layers: str) -> dict[str, Any]:
    code, output, errors = await command("reconfigure", "--layers", layers, "--endpoint", server.base_url, "--json")
    assert code == 0, errors
    report: dict[str, Any] = json.loads(output)
    return report


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def client(server: ServerProcess) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key="none") as openai:
        yield openai


async def test_the_official_client_streams_the_same_answer_through_two_changes(
    server: ServerProcess, client: AsyncOpenAI
) -> None:
    async def answer(*, changes: bool) -> tuple[str, set[tuple[str, int, str]]]:
        text, identities, change = "", set(), None
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Count from one to thirty in words."}],
            max_tokens=160,
            temperature=0.7,
            seed=7,
            stream=True,
        )
        pieces = 0
        async for chunk in stream:
            identities.add((chunk.id, chunk.created, chunk.model))
            if chunk.choices and chunk.choices[0].delta.content:
                text += chunk.choices[0].delta.content
                pieces += 1
                if changes and pieces == 10:
                    change = asyncio.create_task(_there_and_back(server))
        if change is not None:
            await change
        return text, identities

    undisturbed, _ = await answer(changes=False)
    disturbed, identities = await answer(changes=True)
    assert disturbed == undisturbed
    assert len(identities) == 1, "id, created and model of a stream must not change"


async def test_a_stream_goes_on_when_its_stages_are_killed(server: ServerProcess, client: AsyncOpenAI) -> None:
    async def answer(*, kills: bool) -> str:
        text, pieces = "", 0
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Name ten rivers and where they end."}],
            max_tokens=120,
            temperature=0.7,
            seed=11,
            stream=True,
        )
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                text += chunk.choices[0].delta.content
                pieces += 1
                if kills and pieces in {10, 40}:
                    stages = (await _status(server))["stages"]
                    os.kill(stages[0 if pieces == 10 else -1]["pid"], signal.SIGKILL)
        return text

    before = (await _status(server))["recoveries"]
    undisturbed = await answer(kills=False)
    assert await answer(kills=True) == undisturbed
    after = await _status(server)
    assert after["recoveries"] == before + 2
    _, story, _ = await command("story", f"recovery-{before + 1}", "--endpoint", server.base_url)
    assert "stage lost" in story
    assert "was ended by signal 9" in story
    assert "recovered" in story


async def _status(server: ServerProcess) -> dict[str, Any]:
    code, output, errors = await command("status", "--endpoint", server.base_url, "--json")
    assert code == 0, errors
    status: dict[str, Any] = json.loads(output)
    return status


async def _there_and_back(server: ServerProcess) -> None:
    for layers in ("8,12,10", "15,15"):
        assert (await reconfigure(server, layers))["state"] == "committed"


async def test_plain_curl_streams(server: ServerProcess) -> None:
    body = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0, "stream": True}
    url = f"{server.base_url}/v1/completions"
    header = "Content-Type: application/json"
    curl = await asyncio.create_subprocess_exec(
        "curl", "-sN", url, "-H", header, "-d", json.dumps(body), stdout=subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(curl.communicate(), 60)
    lines = [line for line in output.decode().splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    assert " Paris" in "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines[:-1])


async def test_vllms_own_benchmark_client_runs_while_the_pipeline_changes(server: ServerProcess) -> None:
    # The command `vllm bench serve` itself asks for a distribution called vllm, which the processor build is not.
    script = (
        "import argparse; from vllm.benchmarks.serve import add_cli_args, main; p = argparse.ArgumentParser(); "
        "add_cli_args(p); main(p.parse_args())"
    )
    bench = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, "--base-url", server.base_url, "--model", MODEL, "--tokenizer", _model_folder(),
        "--dataset-name", "random", "--random-input-len", "32", "--random-output-len", "48", "--num-prompts", "6",
        "--request-rate", "2", "--ignore-eos",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    reading = asyncio.create_task(bench.communicate())
    while not reading.done():
        await _there_and_back(server)
    output = (await reading)[0].decode()
    assert bench.returncode == 0, output
    assert "Successful requests:                     6" in output, output


def _model_folder() -> str:
    return subprocess.run(
        [sys.executable, "-m", "runtime.model"], capture_output=True, text=True, check=True
    ).stdout.strip()


async def test_health_metrics_and_models_are_vllms_own(server: ServerProcess) -> None:
    async with httpx.AsyncClient(base_url=server.base_url) as http:
        assert (await http.get("/health")).status_code == 200
        assert "vllm:inter_token_latency_seconds" in (await http.get("/metrics")).text
        assert (await http.get("/v1/models")).json()["data"][0]["id"] == MODEL


async def test_status_shows_the_stages_and_the_story_tells_what_happened(server: ServerProcess) -> None:
    report = await reconfigure(server, "10,10,10")
    code, output, _ = await command("status", "--endpoint", server.base_url)
    assert code == 0
    assert "layers   0 to   9" in output
    assert "layers  20 to  29" in output
    code, output, _ = await command("story", report["id"], "--endpoint", server.base_url, "--json")
    events = [json.loads(line)["event"] for line in output.splitlines()]
    steps = [event for event in events if not event.startswith("stage ")]
    assert steps == ["planned", "prepare", "cutover", "release", "committed", "ended"]
    assert (events.count("stage prepared"), events.count("stage released")) == (3, 2)
    await reconfigure(server, "15,15")


async def test_a_request_has_a_story_too(server: ServerProcess, client: AsyncOpenAI) -> None:
    stream = await client.completions.create(model=MODEL, prompt="Once upon", max_tokens=120, stream=True)
    change = None
    async for chunk in stream:
        request = chunk.id
        if change is None:
            change = asyncio.create_task(_there_and_back(server))
    assert change is not None
    await change
    code, output, errors = await command("story", request, "--endpoint", server.base_url, "--json")
    assert code == 0, errors
    assert "carried over" in {json.loads(line)["event"] for line in output.splitlines()}


@pytest.mark.parametrize(
    ("layers", "message"),
    [("15,14", "add up to 29, but the model has 30 layers; '15,15' would work"), ("0,30", "stage 0 is empty")],
)
async def test_a_layout_that_does_not_fit_is_refused_with_what_would(
    server: ServerProcess, layers: str, message: str
) -> None:
    code, _, errors = await command("reconfigure", "--layers", layers, "--endpoint", server.base_url)
    assert code == 2
    assert message in errors


async def test_the_control_api_does_not_answer_web_pages(server: ServerProcess) -> None:
    async with httpx.AsyncClient(base_url=f"{server.base_url}/midstream/v1") as http:
        page = await http.post("/reconfigurations", json={"layers": "30"}, headers={"Origin": "https://example.org"})
        rebound = await http.get("/status", headers={"Host": "example.org"})
        unknown = await http.get("/reconfigurations/change-999")
        malformed = await http.post("/reconfigurations", json={"layer": "30"})
    assert (page.status_code, rebound.status_code) == (403, 403)
    assert page.json()["error"]["type"] == "access_denied"
    assert (unknown.status_code, malformed.status_code) == (404, 400)


async def test_a_client_that_hangs_up_is_forgotten(server: ServerProcess) -> None:
    async with httpx.AsyncClient(base_url=server.base_url) as http:
        body = {"model": MODEL, "prompt": "Forever", "max_tokens": 2000, "ignore_eos": True, "stream": True}
        async with http.stream("POST", "/v1/completions", json=body) as response:
            await anext(response.aiter_lines())
        running = 1.0
        async with asyncio.timeout(20):
            while running:
                metrics = (await http.get("/metrics")).text
                line = next(x for x in metrics.splitlines() if x.startswith("vllm:num_requests_running"))
                running = float(line.rsplit(" ", 1)[1])
                await asyncio.sleep(0.1)


async def test_a_server_that_is_stopped_leaves_no_process_behind(tmp_path: Path) -> None:
    port = free_port()
    process = ServerProcess(
        "midstream",
        [sys.executable, "-m", "controller.cli", "serve", "--layers", "10,10,10", "--port", str(port)],
        port=port,
        log_path=tmp_path / "server.log",
    )
    async with process:
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 5, "an engine, a zygote and three stages"
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
