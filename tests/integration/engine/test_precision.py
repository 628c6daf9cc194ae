"""The precision of the weights changes while requests stream: no token is lost, and the KV stays where it is.

Across such a change a tolerance replaces identity (I6). What is said in bfloat16 is compared, position by position, to
an engine that was started in bfloat16 and reads the same text: every token must be its favourite, or nearly so.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from runtime.engine import planning
from runtime.migration.errors import ChangeRefused, ChangeUnneeded
from runtime.migration.protocol import Step
from tests.integration.engine.harness import Harness, Outputs, Prompt, tokens

if TYPE_CHECKING:
    from runtime.engine.pipeline import Pipeline

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("default")]

PROMPTS = {f"r{i}": Prompt(f"the number {i}", {"max_tokens": 60}) for i in range(3)}
PROMPTS["seeded"] = Prompt("the lighthouse", {"max_tokens": 60, "temperature": 0.9, "seed": 7})
TOLERANCE = 0.15  # of a log-probability; bfloat16 has 8 bits, and the KV before the change has more


@pytest.fixture
def pipeline(two_stages: Harness) -> Pipeline:
    yield two_stages.pipeline
    two_stages.settle("3,3")


def run_through(
    harness: Harness, prompts: dict[str, Prompt], at: dict[int, tuple[str, str]]
) -> tuple[Outputs, dict[str, int]]:
    """Run requests; before some batches, change to (layers, precision). All changes must commit.

    Returns the outputs, and how many tokens each request had before the first change took effect, at least.
    """
    changes: list[str] = []
    told: dict[str, int] = {}

    def between(steps: int) -> None:
        if steps in at:
            layers, precision = at[steps]
            if not told:
                requests = harness.core.scheduler.requests.values()
                told.update({request.request_id.split("-")[0]: request.num_output_tokens for request in requests})
                assert min(told.values()) > 5
            changes.append(harness.begin(layers, precision=precision))

    outputs = harness.run(prompts, between)
    harness.idle()
    reports = [harness.pipeline.coordinator.find(change).report() for change in changes]
    assert [report["state"] for report in reports] == ["committed"] * len(at), reports
    return outputs, told


def until_given_up(pipeline: Pipeline, *left: str) -> None:
    deadline = time.monotonic() + 30
    while set(pipeline.status()["weights_bytes"]) != set(left):
        assert time.monotonic() < deadline, pipeline.status()["weights_bytes"]
        time.sleep(0.01)


def test_streams_go_to_bfloat16_and_back_on_the_kv_that_is_there(two_stages: Harness, pipeline: Pipeline) -> None:
    undisturbed = tokens(two_stages.run(PROMPTS))
    two_stages.settle("3,3")
    batches = len(pipeline.dispatcher.trace)
    disturbed, told = run_through(two_stages, PROMPTS, {12: ("", "bfloat16"), 40: ("2,2,2", "float32")})
    for name, ((before,), (now,)) in {name: (undisturbed[name], tokens(disturbed)[name]) for name in PROMPTS}.items():
        assert len(now) == 60, name
        assert now[: told[name]] == before[: told[name]], name
    there, back = (pipeline.coordinator.find(f"change-{number}").report() for number in last_two(pipeline))
    assert (there["from"], there["from_precision"], there["to"], there["to_precision"]) == (
        "3,3",
        "float32",
        "3,3",
        "bfloat16",
    )
    assert (back["from_precision"], back["to"], back["to_precision"]) == ("bfloat16", "2,2,2", "float32")
    for report in (there, back):
        assert (report["bytes_moved"], report["carried_by"], report["requests_carried"]) == (0, "nothing", len(PROMPTS))
    decoded = list(pipeline.dispatcher.trace)[batches + 3 :]  # the prompts take the first batches
    assert max(traced.tokens for traced in decoded) <= len(PROMPTS), "a prompt was computed again"
    assert pipeline.status()["precision"] == "float32"
    until_given_up(pipeline, "float32")


def last_two(pipeline: Pipeline) -> tuple[int, int]:
    assert pipeline.coordinator.last is not None
    number = int(pipeline.coordinator.last.id.removeprefix("change-"))
    return number - 1, number


def test_what_is_said_after_the_change_is_what_an_engine_in_that_precision_would_say(
    two_stages: Harness, pipeline: Pipeline
) -> None:
    greedy = {name: Prompt(p.text, p.params | {"logprobs": 1}) for name, p in PROMPTS.items() if name != "seeded"}
    in_float32 = two_stages.run(greedy)
    two_stages.settle("3,3")
    outputs, told = run_through(two_stages, greedy, {20: ("", "bfloat16")})
    texts = [[*output.prompt_token_ids, *output.outputs[0].token_ids] for output in outputs.values()]
    program = [sys.executable, "-m", "tests.integration.engine.started_in_bfloat16"]
    run = subprocess.run(
        [*program, two_stages.engine.vllm_config.model_config.model],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    said = dict(zip(outputs, json.loads(run.stdout.splitlines()[-1]), strict=True))
    different = 0  # of 120
    for name, output in outputs.items():
        generated = said[name][-60:]
        for position in range(20, 60):
            logprob, best = generated[position]
            assert logprob >= best - TOLERANCE, (name, position)
            assert chosen(output, position) == pytest.approx(logprob, abs=TOLERANCE), (name, position)
            different += chosen(output, position) != chosen(in_float32[name], position)
        for position in range(told[name]):  # before the change
            assert chosen(output, position) == pytest.approx(chosen(in_float32[name], position), abs=1e-4)
    assert different > 30, "this was computed in float32"


def chosen(output: object, position: int) -> float:
    """Return the log-probability of a generated token, as it was told with it."""
    completion = output.outputs[0]
    return completion.logprobs[position][completion.token_ids[position]].logprob


def test_prefixes_that_float32_computed_are_found_in_bfloat16(two_stages: Harness, pipeline: Pipeline) -> None:
    prompt = {"long": Prompt("a long story about the sea " * 4, {"max_tokens": 4})}
    two_stages.run(prompt)
    two_stages.change("", precision="bfloat16")
    again = two_stages.run(prompt)["long"]
    assert again.num_cached_tokens >= 32


def test_i3_a_stage_that_is_lost_is_replaced_in_the_precision_that_serves(
    two_stages: Harness, pipeline: Pipeline
) -> None:
    two_stages.change("", precision="bfloat16")
    undisturbed = tokens(two_stages.run(PROMPTS))
    two_stages.engine.reset_prefix_cache()
    killed: list[int] = []

    def between(steps: int) -> None:
        if steps == 10:
            two_stages.use_up_spares()
            killed.append(pipeline.serving.assembly.stages[1].pid)
            os.kill(killed[0], signal.SIGKILL)

    assert tokens(two_stages.run(PROMPTS, between)) == undisturbed
    two_stages.recovered(*killed)
    assert {stage.precision for stage in pipeline.serving.assembly.stages} == {"bfloat16"}
    assert pipeline.status()["precision"] == "bfloat16"


def test_stages_that_come_back_from_zero_have_the_precision_that_served(
    two_stages: Harness, pipeline: Pipeline
) -> None:
    two_stages.change("", precision="bfloat16")
    undisturbed = tokens(two_stages.run(PROMPTS))
    two_stages.idle()
    while two_stages.core.scheduler.has_requests():
        two_stages.engine.step()
    two_stages.wait_for_spares()
    pipeline.mender.end_stages()
    pipeline.mender.bring_stages_back()
    assert {stage.precision for stage in pipeline.serving.assembly.stages} == {"bfloat16"}
    two_stages.engine.reset_prefix_cache()
    assert tokens(two_stages.run(PROMPTS)) == undisturbed


def test_a_change_of_layers_keeps_the_precision(two_stages: Harness, pipeline: Pipeline) -> None:
    two_stages.change("", precision="bfloat16")
    two_stages.change("2,2,2")
    assert {stage.precision for stage in pipeline.serving.assembly.stages} == {"bfloat16"}
    until_given_up(pipeline, "bfloat16")


@pytest.mark.parametrize("how", ["cancelled while loading", "a new stage is killed"])
def test_i4_a_change_that_fails_leaves_the_old_precision_serving(
    two_stages: Harness, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    undisturbed = tokens(two_stages.run(PROMPTS))
    two_stages.settle("3,3")
    until_given_up(pipeline, "float32")  # else there is nothing to load
    asked: list[str] = []
    if how == "a new stage is killed":
        connect = pipeline.assembler.connect

        def kill_then_connect(*args: object, **kwargs: object) -> object:
            if pipeline.serving.target is not None and pipeline.serving.target.stages:
                os.kill(pipeline.serving.target.stages[0].pid, signal.SIGKILL)
            return connect(*args, **kwargs)

        monkeypatch.setattr(pipeline.assembler, "connect", kill_then_connect)

    def between(steps: int) -> None:
        if steps != 10:
            return
        change = pipeline.coordinator.request("", precision="bfloat16")
        asked.append(change.id)
        if how == "cancelled while loading":
            until_loading(pipeline)
            pipeline.coordinator.cancel(change.id)
            assert change.ended.wait(30)
        while change.machine.step in {Step.PLAN, Step.PREPARE}:
            change.ended.wait(0.01)

    assert tokens(two_stages.run(PROMPTS, between)) == undisturbed
    two_stages.idle()
    assert pipeline.coordinator.find(asked[0]).report()["state"] == "aborted"
    assert pipeline.layout().precision == "float32"
    until_given_up(pipeline, "float32")


def until_loading(pipeline: Pipeline) -> None:
    deadline = time.monotonic() + 30
    assert pipeline.fleet.weights is not None
    while pipeline.fleet.weights._loading is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("precision", ["int8", "bf16", "float64", "BFLOAT16"])
def test_a_precision_that_there_is_not_is_refused_with_those_that_there_are(
    two_stages: Harness, pipeline: Pipeline, precision: str
) -> None:
    with pytest.raises(ChangeRefused, match=f"'{precision}' .*it can be float32, bfloat16, float16"):
        two_stages.change("", precision=precision)
    assert pipeline.coordinator.current is None


def test_the_precision_that_serves_is_no_change(two_stages: Harness, pipeline: Pipeline) -> None:
    with pytest.raises(ChangeUnneeded, match="already has the layout 3,3, in float32"):
        two_stages.change("", precision="float32")
    with pytest.raises(ChangeUnneeded, match="already has the layout 3,3, in float32"):
        two_stages.change("3,3")


def test_without_memory_for_other_weights_nothing_is_touched(
    two_stages: Harness, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = pipeline.changing.planner.extra_bytes(pipeline.layout().in_precision("bfloat16"))
    weights = pipeline.status()["weights_bytes"]["float32"]
    assert weights > 0
    assert needed >= weights // 2 + 2 * planning._PROCESS_BYTES
    monkeypatch.setattr(planning, "available_bytes", lambda: needed - 1)
    with pytest.raises(ChangeRefused, match="'3,3' in bfloat16: the new stages need"):
        two_stages.change("", precision="bfloat16")
    monkeypatch.setattr(planning, "available_bytes", lambda: needed)
    two_stages.change("", precision="bfloat16")
