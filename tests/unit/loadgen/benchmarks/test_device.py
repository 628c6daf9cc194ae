"""The experiment with host memory: the same processes and steps as on a GPU."""

import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest

from loadgen.benchmarks.device import DeviceOptions, render, run
from loadgen.benchmarks.device_process import WorkerProcess
from loadgen.errors import MeasurementError, OptionsError
from loadgen.records import Token
from runtime.warm.device_pool import PoolHandle
from runtime.warm.device_worker import Worker
from runtime.warm.kv_pool import KVPool

SMALL = DeviceOptions(device="host", layers=2, blocks=20, context=40, tokens=40, repeat=1, deadline_s=120)
UNTIL = SMALL.context + SMALL.tokens
START = {"layers": 2, "block_tokens": 16, "tokens": UNTIL}


@pytest.fixture
def descriptors() -> Iterator[list[int]]:
    opened = [KVPool.new_descriptor(name) for name in ("kv", "target")]
    yield opened
    for descriptor in opened:
        os.close(descriptor)


@pytest.fixture
def owner(descriptors: list[int]) -> Worker:
    worker = Worker("host", descriptors)
    worker.start(**START)
    return worker


@pytest.fixture
def handles(owner: Worker) -> list[PoolHandle]:
    made = owner.create(layers=2, blocks=SMALL.blocks)
    owner.fill(SMALL.request, SMALL.context, seed=1)
    return made


@pytest.fixture
async def attached(handles: list[PoolHandle], descriptors: list[int]) -> AsyncIterator[WorkerProcess]:
    async with WorkerProcess.running("host", descriptors, SMALL.deadline_s) as worker:
        await worker.ask("start", **START)
        await worker.ask("attach", handles=handles)
        yield worker


# -- the whole experiment ----------------------------------------------------------------------------------------------


async def test_attach_copy_kill_and_flip_are_measured_and_no_byte_is_lost():
    said: list[str] = []
    result = await run(SMALL, say=said.append)
    assert (result["outputs_identical"], result["state_intact"]) == (True, True)
    assert (result["device_name"], result["layers"], result["block_bytes"]) == ("host memory", 2, 1 << 16)
    assert {name: len(values) for name, values in result["each"].items()} == {
        "import_ms": 3, "device_ms": 3, "warm_up_ms": 3, "attach_ms": 3,
        "undisturbed_ms": 1, "pause_ms": 1, "kill_stall_ms": 1,
    }  # fmt: skip
    assert [(row["blocks"], row["bytes"]) for row in result["copy"]] == [(1, 1 << 16), (4, 4 << 16), (16, 16 << 16)]
    assert result["not_measured"][-1] == "device memory and CUDA IPC: host memory was asked for"
    assert render(result).row_count == 11
    assert said


async def test_without_a_gpu_the_experiment_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # also where there is one
    result = await run(DeviceOptions())
    assert (result["device"], result["skipped"]) == ("cuda", "no NVIDIA GPU: torch.cuda.is_available() is False")
    assert render(result).row_count == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"device": "tpu"}, "no device 'tpu', only cuda and host"),
        ({"layers": 0}, "layers is 0, but must be at least 1"),
        ({"tokens": 8}, "tokens is 8, but must be at least 32"),
        ({"blocks": 5}, "5 blocks do not hold 80 tokens; needs 6"),
    ],
)
def test_options_that_make_no_sense_are_refused(changed: dict[str, Any], message: str):
    with pytest.raises(OptionsError, match=message):
        replace(SMALL, **changed)


def test_the_request_lies_in_scattered_blocks_but_never_in_the_null_block():
    request = SMALL.request
    assert len(set(request)) == len(request) == 5
    assert 0 not in request
    assert request != sorted(request)


# -- its processes -----------------------------------------------------------------------------------------------------


async def decoded(
    worker: WorkerProcess, token: int = 1, position: int = SMALL.context, stop_after: int = 99
) -> list[int]:
    tokens: list[int] = []

    def arrived(token: Token) -> bool:
        tokens.append(token.token_id)
        return len(tokens) != stop_after

    assert await worker.decode(SMALL.request, token, position, UNTIL, arrived)
    return tokens


async def test_tokens_and_digest_depend_on_the_context(owner: Worker, attached: WorkerProcess):
    tokens = await decoded(attached)
    assert len(tokens) == SMALL.tokens
    assert len(set(tokens)) > SMALL.tokens // 4
    before = owner.digest(SMALL.request, UNTIL)
    owner.fill(SMALL.request, SMALL.context, seed=2)
    assert await decoded(attached) != tokens
    assert owner.digest(SMALL.request, UNTIL) != before
    owner.fill(SMALL.request, SMALL.context, seed=1)
    assert (await decoded(attached), owner.digest(SMALL.request, UNTIL)) == (tokens, before)


async def test_a_stopped_run_goes_on_where_it_was(owner: Worker, attached: WorkerProcess):
    tokens = await decoded(attached)
    owner.fill(SMALL.request, SMALL.context, seed=1)
    begun = await decoded(attached, stop_after=10)
    assert 10 <= len(begun) < SMALL.tokens
    assert begun + await decoded(attached, begun[-1], SMALL.context + len(begun)) == tokens


async def test_a_stop_that_crosses_the_last_token_is_no_answer_to_the_next_command(
    owner: Worker, attached: WorkerProcess
):
    await decoded(attached, stop_after=SMALL.tokens)
    assert await attached.ask("digest", request=SMALL.request, tokens=UNTIL) == owner.digest(SMALL.request, UNTIL)


async def test_a_process_does_not_compute_on_kv_that_is_not_there(attached: WorkerProcess):
    with pytest.raises(MeasurementError, match="41 tokens were promised, but KV is missing"):
        await decoded(attached, position=SMALL.context + 1)


async def test_a_handle_that_does_not_fit_is_an_error_and_the_process_lives(
    handles: list[PoolHandle], attached: WorkerProcess
):
    with pytest.raises(MeasurementError, match="another pool than these tables"):
        await attached.ask("attach", handles=handles[::-1])
    assert (await attached.ask("attach", handles=handles))["attach_ms"] > 0


async def test_a_killed_process_is_seen(attached: WorkerProcess):
    attached.kill()
    assert not await attached.decode(SMALL.request, 1, SMALL.context, UNTIL, lambda token: True)
