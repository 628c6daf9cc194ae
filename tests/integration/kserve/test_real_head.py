"""The clients that KServe's users have, against the built-in model behind KServe's server."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, BadRequestError

from tests.integration.kserve.conftest import NAME, ROOT, KServeServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from loadgen.server import ServerProcess

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

MODEL = "SmolLM2-135M-Instruct"
PROMPTS = ["The capital of France is", "One, two, three,"]
CHOSEN = {"max_tokens": 8, "temperature": 0}
DEADLINE_S = 60.0


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def texts(head: ServerProcess) -> list[str]:
    """What the head itself completes the prompts with."""
    async with AsyncOpenAI(base_url=f"{head.base_url}/v1", api_key="none") as openai:
        completion = await openai.completions.create(model=MODEL, prompt=PROMPTS, max_tokens=8, temperature=0)
    return [choice.text for choice in completion.choices]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def http(server: KServeServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.address, timeout=120, trust_env=False) as client:
        yield client


async def kserve_client(python: str, server: KServeServer, *calls: dict[str, Any]) -> list[Any]:
    """Make calls with `kserve.InferenceRESTClient`."""
    process = await asyncio.create_subprocess_exec(
        python,
        str(ROOT / "tests/integration/kserve/rest_client.py"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    job = json.dumps({"address": server.address, "calls": calls}).encode()
    output, _ = await asyncio.wait_for(process.communicate(job), 300)
    assert process.returncode == 0
    results: list[Any] = json.loads(output)
    return results


class TestKServeClient:
    async def test_it_is_live_and_ready(self, kserve_python: str, server: KServeServer) -> None:
        calls = [{"what": "server_live"}, {"what": "server_ready"}, {"what": "model_ready", "model": NAME}]
        calls.append({"what": "model_ready", "model": NAME, "protocol": "v1"})
        assert await kserve_client(kserve_python, server, *calls) == [True, True, True, True]

    async def test_infer_completes_a_batch_of_prompts(
        self, kserve_python: str, server: KServeServer, texts: list[str]
    ) -> None:
        prompts = {"name": "prompt", "shape": [2], "datatype": "BYTES", "data": PROMPTS}
        (answer,) = await kserve_client(
            kserve_python,
            server,
            {"what": "infer", "model": NAME, "id": "42", "inputs": [prompts], "parameters": CHOSEN},
        )
        assert answer["id"] == "42"
        assert answer["model_name"] == NAME
        assert answer["outputs"]["text"] == texts
        assert answer["outputs"]["finish_reason"] == ["length", "length"]
        assert answer["outputs"]["completion_tokens"] == [8, 8]
        assert all(tokens > 0 for tokens in answer["outputs"]["prompt_tokens"])

    async def test_tensors_may_be_binary_both_ways(
        self, kserve_python: str, server: KServeServer, texts: list[str]
    ) -> None:
        inputs = [
            {"name": "prompt", "shape": [2], "datatype": "BYTES", "data": PROMPTS, "binary": True},
            {"name": "max_tokens", "shape": [1], "datatype": "INT64", "data": [8], "binary": True},
        ]
        call = {"what": "infer", "model": NAME, "inputs": inputs}
        call |= {"parameters": {"temperature": 0, "binary_data_output": True}}
        (answer,) = await kserve_client(kserve_python, server, call)
        assert answer["outputs"]["text"] == texts
        assert answer["outputs"]["completion_tokens"] == [8, 8]

    async def test_it_gets_the_outputs_it_asks_for(
        self, kserve_python: str, server: KServeServer, texts: list[str]
    ) -> None:
        prompts = {"name": "prompt", "shape": [2], "datatype": "BYTES", "data": PROMPTS}
        call = {"what": "infer", "model": NAME, "inputs": [prompts], "parameters": CHOSEN, "outputs": ["text"]}
        (answer,) = await kserve_client(kserve_python, server, call)
        assert answer["outputs"] == {"text": texts}

    async def test_predict_completes_instances(
        self, kserve_python: str, server: KServeServer, texts: list[str]
    ) -> None:
        body = {"instances": PROMPTS, "parameters": CHOSEN}
        (answer,) = await kserve_client(
            kserve_python, server, {"what": "predict", "protocol": "v1", "model": NAME, "body": body}
        )
        assert [prediction["text"] for prediction in answer["predictions"]] == texts

    async def test_a_refusal_is_one_sentence(self, kserve_python: str, server: KServeServer) -> None:
        prompts = {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["a"]}
        calls = [
            {"what": "infer", "model": NAME, "inputs": [prompts], "parameters": {"max_token": 1}},
            {"what": "infer", "model": NAME, "inputs": [prompts], "outputs": ["logits"]},
            {"what": "infer", "model": NAME, "inputs": [prompts], "parameters": {"temperature": -1}},
            {"what": "infer", "model": "other", "inputs": [prompts]},
        ]
        unknown, output, refused_by_head, no_model = await kserve_client(kserve_python, server, *calls)
        assert unknown["status"] == output["status"] == refused_by_head["status"] == 400
        assert "'max_token' is unknown" in unknown["error"]
        assert "there is no output 'logits'" in output["error"]
        assert "temperature" in refused_by_head["error"]
        assert no_model["status"] == 404


class TestUnreadable:
    @pytest.mark.parametrize(
        ("path", "body", "headers"),
        [
            ("v2/models/{}/infer", b"{", {}),
            ("v2/models/{}/infer", b"[]", {}),
            ("v2/models/{}/infer", b"null", {}),
            ("v2/models/{}/infer", b'{"inputs": 7}', {}),
            ("v2/models/{}/infer", b"", {}),
            ("v2/models/{}/infer", b"{}", {"content-type": "application/octet-stream"}),
            (
                "v2/models/{}/infer",
                b"{}",
                {"content-type": "application/octet-stream", "inference-header-content-length": "2"},
            ),
            (
                "v2/models/{}/infer",
                b"{}",
                {"content-type": "application/octet-stream", "inference-header-content-length": "two"},
            ),
            (
                "v2/models/{}/infer",
                b'{"inputs":[{"name":"prompt","shape":[1],"datatype":"BYTES","parameters":{"binary_data_size":9}}]}\xff',
                {"content-type": "application/octet-stream", "inference-header-content-length": "97"},
            ),
            ("v1/models/{}:predict", b"{", {}),
            ("v1/models/{}:predict", b"[]", {}),
            ("v1/models/{}:predict", b"null", {}),
            ("v1/models/{}:predict", b"", {}),
            ("v1/models/{}:predict", b"text", {"content-type": "text/plain"}),
            ("v1/models/{}:predict", b"{}", {"ce-id": "1", "ce-source": "a", "ce-type": "b", "ce-specversion": "9"}),
            (
                "v1/models/{}:predict",
                b"\xff",
                {"ce-id": "1", "ce-source": "a", "ce-type": "b", "ce-specversion": "1.0"},
            ),
            ("v1/models/{}:predict", b"", {"ce-id": "1", "ce-source": "a", "ce-type": "b", "ce-specversion": "1.0"}),
        ],
    )
    async def test_what_cannot_be_read_is_400_with_a_reason(
        self, http: httpx.AsyncClient, path: str, body: bytes, headers: dict[str, str]
    ) -> None:
        response = await http.post(
            path.format(NAME), content=body, headers={"content-type": "application/json", **headers}
        )
        assert response.status_code == 400, response.text
        assert isinstance(response.json()["error"], str)
        assert len(response.json()["error"]) < 300


class TestCloudEvents:
    EVENT = {"ce-id": "7", "ce-source": "/tests", "ce-type": "prompts", "ce-specversion": "1.0"}  # noqa: RUF012

    async def test_a_binary_event_is_answered_by_one(self, http: httpx.AsyncClient, texts: list[str]) -> None:
        response = await http.post(
            f"/v1/models/{NAME}:predict",
            json={"instances": PROMPTS, "parameters": CHOSEN},
            headers={**self.EVENT, "content-type": "application/json; charset=utf-8"},
        )
        assert response.status_code == 200, response.text
        assert response.headers["ce-specversion"] == "1.0"
        assert response.headers["ce-type"] == "io.kserve.inference.response"
        assert response.headers["ce-source"] == f"io.kserve.inference.{NAME}"
        assert response.headers["ce-id"]
        assert [prediction["text"] for prediction in response.json()["predictions"]] == texts

    async def test_a_structured_event_is_answered_by_one(self, http: httpx.AsyncClient, texts: list[str]) -> None:
        event = {"specversion": "1.0", "id": "7", "source": "/tests", "type": "prompts"}
        event |= {"time": "2026-01-01T00:00:00Z", "data": {"instances": PROMPTS, "parameters": CHOSEN}}
        response = await http.post(
            f"/v1/models/{NAME}:predict", json=event, headers={"content-type": "application/cloudevents+json"}
        )
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "application/cloudevents+json"
        answer = response.json()
        assert answer["type"] == "io.kserve.inference.response"
        assert [prediction["text"] for prediction in answer["data"]["predictions"]] == texts

    async def test_infer_takes_a_binary_event_too(self, http: httpx.AsyncClient, texts: list[str]) -> None:
        prompts = {"name": "prompt", "shape": [2], "datatype": "BYTES", "data": PROMPTS}
        response = await http.post(
            f"/v2/models/{NAME}/infer", json={"inputs": [prompts], "parameters": CHOSEN}, headers=self.EVENT
        )
        assert response.status_code == 200, response.text
        assert response.headers["ce-type"] == "io.kserve.inference.response"
        outputs = {output["name"]: output["data"] for output in response.json()["outputs"]}
        assert outputs["text"] == texts

    async def test_an_answer_may_keep_what_the_event_said(
        self, kserve_python: str, head: ServerProcess, tmp_path: Path
    ) -> None:
        prompts = {"name": "prompt", "shape": [2], "datatype": "BYTES", "data": PROMPTS}
        calls = {"v2/models/{}/infer": {"inputs": [prompts]}, "v1/models/{}:predict": {"instances": PROMPTS}}
        headers = {**self.EVENT, "ce-traceparent": "00-1-2-01"}
        async with (
            KServeServer(kserve_python, head.base_url, tmp_path, CE_MERGE="true") as server,
            httpx.AsyncClient(base_url=server.address, timeout=120, trust_env=False) as http,
        ):
            for path, sent in calls.items():
                response = await http.post(path.format(NAME), json=sent, headers=headers)
                assert response.status_code == 200, response.text
                assert response.headers["ce-traceparent"] == "00-1-2-01"
                assert response.headers["ce-id"] != "7", "another event"

    async def test_a_bad_event_is_400(self, http: httpx.AsyncClient) -> None:
        response = await http.post(f"/v1/models/{NAME}:predict", json={"instances": []}, headers=self.EVENT)
        assert response.status_code == 400
        assert response.json() == {"error": "there is no prompt; give one at least"}


@pytest.mark.parametrize("prefix", ["/openai/v1", "/v1"])
class TestOpenAI:
    async def test_the_official_client_gets_what_the_head_says(
        self, server: KServeServer, texts: list[str], prefix: str
    ) -> None:
        async with AsyncOpenAI(base_url=server.address + prefix, api_key="none") as openai:
            assert [model.id async for model in openai.models.list()] == [MODEL]
            whole = await openai.completions.create(model=MODEL, prompt=PROMPTS, max_tokens=8, temperature=0)
            assert [choice.text for choice in whole.choices] == texts
            pieces = await openai.completions.create(
                model=MODEL, prompt=PROMPTS[0], max_tokens=8, temperature=0, stream=True
            )
            streamed = [piece.choices[0].text async for piece in pieces]
            assert len(streamed) == 8, "one piece a token, not one for all"
            assert "".join(streamed) == texts[0]

    async def test_chats_stream_too(self, server: KServeServer, prefix: str) -> None:
        async with AsyncOpenAI(base_url=server.address + prefix, api_key="none") as openai:
            asked = {"model": MODEL, "max_tokens": 8, "temperature": 0}
            message = {"role": "user", "content": "What is the capital of France?"}
            whole = await openai.chat.completions.create(messages=[message], **asked)  # type: ignore[call-overload]
            pieces = await openai.chat.completions.create(  # type: ignore[call-overload]
                messages=[message], stream=True, **asked
            )
            streamed = "".join([piece.choices[0].delta.content or "" async for piece in pieces if piece.choices])
            assert streamed == whole.choices[0].message.content
            assert "Paris" in streamed

    async def test_a_refusal_is_the_heads_own(self, server: KServeServer, prefix: str) -> None:
        async with AsyncOpenAI(base_url=server.address + prefix, api_key="none") as openai:
            with pytest.raises(BadRequestError, match="temperature"):
                await openai.completions.create(model=MODEL, prompt="a", temperature=-1)


class TestRest:
    async def test_metrics_are_the_heads(self, http: httpx.AsyncClient) -> None:
        assert "vllm:num_requests_running" in (await http.get("/metrics")).text

    async def test_the_control_api_is_not_here(self, http: httpx.AsyncClient) -> None:
        for path in ("/midstream/v1/status", "/v1/midstream/v1/status", "/openai/midstream/v1/status"):
            assert (await http.get(path)).status_code == 404

    async def test_an_infer_request_ends_with_its_client(self, http: httpx.AsyncClient, head: ServerProcess) -> None:
        prompts = {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["Once upon a time"]}
        body = {"inputs": [prompts], "parameters": {"max_tokens": 1500, "ignore_eos": True}}
        asking = asyncio.ensure_future(http.post(f"/v2/models/{NAME}/infer", json=body))
        await running_at(head, 1)
        asking.cancel()
        await running_at(head, 0)


async def running_at(head: ServerProcess, wanted: int) -> None:
    """Wait until that many requests run in the head's engine."""
    end = time.monotonic() + DEADLINE_S
    async with httpx.AsyncClient(base_url=head.base_url, trust_env=False) as client:
        while True:
            lines = (await client.get("/metrics")).text.splitlines()
            (line,) = (line for line in lines if line.startswith("vllm:num_requests_running"))
            if float(line.rpartition(" ")[2]) == wanted:
                return
            assert time.monotonic() < end, line
            await asyncio.sleep(0.1)
