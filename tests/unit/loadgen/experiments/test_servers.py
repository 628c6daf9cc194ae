import asyncio
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from loadgen.errors import MeasurementError, ServerError
from loadgen.experiments.load import prompt_source
from loadgen.experiments.schema import Settings
from loadgen.experiments.servers import command_line, running
from loadgen.experiments.targets import EndpointTarget, Target, has_control
from loadgen.workloads.errors import PromptError

TARGET: TypeAdapter[Any] = TypeAdapter(Target)


def target(**fields: Any) -> Any:
    return TARGET.validate_python(fields)


def test_midstream_is_served_with_its_layers_and_flags_on_loopback():
    wanted = target(kind="midstream", layers="15,15", model="some/model", args=["--dtype", "float32"])
    assert command_line(wanted, 8123) == [
        *(sys.executable, "-m", "controller.cli", "serve", "--model", "some/model", "--layers", "15,15"),
        *("--host", "127.0.0.1", "--port", "8123", "--dtype", "float32"),
    ]


def test_stock_vllm_has_the_same_flags_unless_told_otherwise():
    midstream, stock = target(kind="midstream", layers="15,15"), target(kind="vllm")
    assert stock.args == midstream.args
    assert stock.env == midstream.env
    assert command_line(stock, 8123, "/model")[-len(stock.args) - 6 :][:2] == ["--model", "/model"]


def test_another_command_can_stand_in():
    assert command_line(target(kind="mock", command=["my-mock"], args=["--itl-ms", "5"]), 8123) == [
        *("my-mock", "--port", "8123", "--layers", "15,15", "--itl-ms", "5")
    ]


def test_only_what_speaks_the_control_api_is_changed():
    assert has_control(target(kind="midstream", layers="15,15"))
    assert has_control(target(kind="endpoint", url="http://127.0.0.1:8000", midstream=True))
    assert not has_control(target(kind="endpoint", url="http://127.0.0.1:8000"))
    assert not has_control(target(kind="vllm"))


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://user:key@host", "http://host/?key=1"])
def test_an_address_is_a_plain_one(url: str):
    with pytest.raises(ValidationError):
        target(kind="endpoint", url=url)


def test_an_address_may_end_with_the_api_s_path():
    assert target(kind="endpoint", url="http://host:8000/v1/").base_url == "http://host:8000"


@pytest.mark.parametrize("name", ["MIDSTREAM_CONTROL_TOKEN", "OPENAI_API_KEY", "my_secret", "DB_PASSWORD"])
def test_secrets_do_not_go_into_files(name: str):
    with pytest.raises(ValidationError, match="looks like a secret"):
        target(kind="mock", env={name: "x"})


async def test_an_endpoint_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ServerError, match=r"http://127\.0\.0\.1:9 does not answer: .*; is it running\?"):
        async with running(EndpointTarget(kind="endpoint", url="http://127.0.0.1:9"), tmp_path, lambda _: None):
            pass


async def test_a_key_that_is_not_set_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    wanted = EndpointTarget(kind="endpoint", url="http://127.0.0.1:9", api_key_env="MY_KEY")
    with pytest.raises(ServerError, match="the environment variable MY_KEY, which is to hold the API key, is not set"):
        async with running(wanted, tmp_path, lambda _: None):
            pass


async def test_the_mock_is_started_restarted_on_the_same_port_and_ended(tmp_path: Path):
    wanted = target(kind="mock", layers="15,15")
    said: list[str] = []
    async with running(wanted, tmp_path, said.append) as started:
        assert started.control is not None
        assert (await started.control.status()).layers == "15,15"
        first, server = started.base_url, started.server
        assert server is not None
        before = server.pid
        await started.restart(layers="8,22", args=None, grace_s=5)
        assert started.server is not None
        assert started.server.pid != before
        assert started.base_url == first
        assert (await started.control.status()).layers == "8,22"
        await started.put_back(wanted)
        assert (await started.control.status()).layers == "15,15"
        await started.control.change("10,20", 5)
        await started.put_back(wanted)
        assert (await started.control.status()).layers == "15,15"
    assert said == ["starting the mock server with layers 15,15"]
    with pytest.raises(ServerError, match="does not answer"):
        async with running(EndpointTarget(kind="endpoint", url=first), tmp_path, said.append):
            pass


async def test_a_model_that_is_not_served_is_named_with_those_that_are(tmp_path: Path):
    async with running(target(kind="mock"), tmp_path, lambda _: None) as started:
        wanted = EndpointTarget(kind="endpoint", url=started.base_url, model="other")
        with pytest.raises(MeasurementError, match="does not serve 'other'; it serves mock-model"):
            async with running(wanted, tmp_path, lambda _: None):
                pass


async def test_a_server_that_cannot_start_is_told_with_its_last_lines(tmp_path: Path):
    failing = target(kind="mock", command=[sys.executable, "-c", "raise SystemExit('no room')"])
    with pytest.raises(ServerError, match="no room"):
        async with running(failing, tmp_path, lambda _: None):
            pass


async def one_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer `/v1/models` with a model, and everything else with a page."""
    try:
        while line := await reader.readline():
            path = line.split()[1]
            while (await reader.readline()).strip():
                pass
            body = b'{"data": [{"id": "odd"}]}' if path == b"/v1/models" else b"<html>welcome</html>"
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    finally:
        writer.close()


async def test_a_server_that_answers_a_page_where_vllm_has_its_version_is_used(tmp_path: Path):
    server = await asyncio.start_server(one_answer, "127.0.0.1", 0)
    async with server:
        wanted = EndpointTarget(kind="endpoint", url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        async with running(wanted, tmp_path, lambda _: None) as started:
            assert (started.model, started.facts["vllm_version"]) == ("odd", None)


async def test_a_server_without_a_tokenizer_gets_token_ids_and_the_run_says_so(tmp_path: Path):
    said: list[str] = []
    document = {"target": {"kind": "mock"}, "workload": {"kind": "closed", "users": 1, "requests": 1}}
    document["workload"] |= {"input_tokens": 8, "output_tokens": 4}
    async with running(target(kind="mock"), tmp_path, lambda _: None) as mock:
        document["target"] = {"kind": "endpoint", "url": mock.base_url}
        settings = Settings.model_validate(document)
        async with running(settings.target, tmp_path, said.append) as started:
            prompts = await prompt_source(settings, started, said.append)
            assert prompts.prompt(np.arange(8)).token_ids == tuple(range(100, 108))
            assert started.facts["prompts"] == "token ids from 100 to 999"
            assert any("has no tokenizer to ask; prompts are token ids" in line for line in said)
            chat = Settings.model_validate({**document, "client": {"endpoint": "chat"}})
            started.prompts = None
            with pytest.raises(PromptError, match="A chat endpoint takes no token ids: --set prompts="):
                await prompt_source(chat, started, said.append)
