"""Kill -9 of stages that serve: streams go on, token for token, whatever the stage was doing."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

from runtime.migration.errors import ChangeBusy
from runtime.migration.protocol import Method, Step
from tests.integration.engine.harness import Harness, Outputs, Prompt, tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.migration.coordinator import Change

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("default")]

PROMPTS = {
    "greedy": Prompt("a long story about the sea"),
    "seeded": Prompt("the lighthouse", {"temperature": 0.9, "seed": 7}),
    "prefill": Prompt("and so on " * 15, {"max_tokens": 20}),  # several chunks of 64 tokens
    "logprobs": Prompt("never again " * 16, {"max_tokens": 8, "prompt_logprobs": 2, "logprobs": 1}),
}


def kill(harness: Harness, rank: int) -> None:
    os.kill(harness.pipeline.serving.assembly.stages[rank].pid, signal.SIGKILL)


def prompt_logprobs(outputs: Outputs) -> list[dict[int, float]]:
    told = outputs["logprobs"].prompt_logprobs
    assert told is not None
    return [{token: entry.logprob for token, entry in (position or {}).items()} for position in told]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("step", [1, 3, 5, 9, 20], ids=lambda step: f"after batch {step}")
def test_i3_a_lost_stage_costs_no_token(two_stages: Harness, rank: int, step: int) -> None:
    undisturbed = two_stages.run(PROMPTS)
    two_stages.engine.reset_prefix_cache()
    recoveries = two_stages.pipeline.recovery.count

    def between(steps: int) -> None:
        if steps == step:
            kill(two_stages, rank)

    disturbed = two_stages.run(PROMPTS, between)
    assert tokens(disturbed) == tokens(undisturbed)
    for was, now in zip(prompt_logprobs(undisturbed), prompt_logprobs(disturbed), strict=True):
        assert now == pytest.approx(was, abs=1e-4)
    two_stages.recovered()
    assert two_stages.pipeline.recovery.count == recoveries + 1
    assert str(two_stages.pipeline.layout()) == "3,3"


def test_a_stage_that_is_lost_while_nothing_runs_is_replaced(two_stages: Harness) -> None:
    undisturbed = two_stages.run(PROMPTS)
    lost = two_stages.pipeline.serving.assembly.stages[0].pid
    kill(two_stages, 0)
    two_stages.recovered(lost)
    assert tokens(two_stages.run(PROMPTS)) == tokens(undisturbed)


@pytest.mark.parametrize("spares", [True, False], ids=["onto spares", "without spares"])
def test_all_stages_may_be_lost_at_once(two_stages: Harness, spares: bool) -> None:
    undisturbed = two_stages.run(PROMPTS)
    two_stages.engine.reset_prefix_cache()
    two_stages.wait_for_spares()
    if not spares:
        two_stages.use_up_spares()

    def between(steps: int) -> None:
        if steps == 8:
            kill(two_stages, 0)
            kill(two_stages, 1)

    assert tokens(two_stages.run(PROMPTS, between)) == tokens(undisturbed)
    two_stages.recovered()


def test_a_spare_that_is_lost_on_the_way_to_replace_another_is_replaced_itself(
    two_stages: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = two_stages.run(PROMPTS)
    two_stages.engine.reset_prefix_cache()
    pipeline = two_stages.pipeline
    connect, killed = pipeline.assembler.connect, []

    def kill_the_replacement_then_connect(layout, stages, **how):  # type: ignore[no-untyped-def]
        if len(killed) < 2:
            killed.append(stages[1].pid)
            os.kill(killed[-1], signal.SIGKILL)
        return connect(layout, stages, **how)

    def between(steps: int) -> None:
        if steps == 8:
            monkeypatch.setattr(pipeline.assembler, "connect", kill_the_replacement_then_connect)
            kill(two_stages, 1)

    assert tokens(two_stages.run(PROMPTS, between)) == tokens(undisturbed)
    two_stages.recovered()
    assert len(set(killed)) == 2
    assert len(pipeline.recovery.last["stages"]) >= 2


@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("assembler.make_ready", "2,2,2"),
        ("assembler._probe", "2,2,2"),
        ("assembler._probe", "3,2,1"),  # the lost stage belongs to both layouts
        ("changing.copy_stale", "2@a,2@b,2"),
        ("changing._flip", "2,2,2"),
        ("changing._flip", "3,2,1"),
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_change_is_undone_and_the_old_layout_recovers_when_it_loses_a_stage(
    two_stages: Harness, monkeypatch: pytest.MonkeyPatch, place: str, target: str, when: str
) -> None:
    undisturbed = two_stages.run(PROMPTS)
    two_stages.engine.reset_prefix_cache()
    pipeline = two_stages.pipeline
    if place == "assembler.make_ready":
        two_stages.use_up_spares()
    part, _, method = place.rpartition(".")
    owner = getattr(pipeline, part)
    original: Callable[..., object] = getattr(owner, method)
    asked: list[str] = []
    lost: list[int] = []

    def disturbed_place(*arguments: object, **named: object) -> object:
        def lose() -> None:
            if not lost and pipeline.coordinator.current is not None:
                lost.append(pipeline.serving.assembly.stages[0].pid)
                os.kill(lost[0], signal.SIGKILL)

        if when == "before":
            lose()
            time.sleep(0.05)
        result = original(*arguments, **named)
        if when == "after":
            lose()
        return result

    monkeypatch.setattr(owner, method, disturbed_place)

    def between(steps: int) -> None:
        if steps == 5:
            asked.append(pipeline.coordinator.request(target).id)

    assert tokens(two_stages.run(PROMPTS, between)) == tokens(undisturbed)
    two_stages.idle()
    two_stages.recovered(*lost)
    report = pipeline.coordinator.find(asked[0]).report()
    serving = {"aborted": "3,3", "committed": target}[report["state"]]
    assert str(pipeline.layout()) == serving
    # A stage that only the old layout had is no loss once nothing is in flight there.
    # One of both layouts may have passed its first batch on just after the flip: then that is answered, and committed.
    may_be_committed = when == "after" and (target != "3,2,1" or place == "changing._flip")
    assert report["state"] == "aborted" or may_be_committed, report
    assert lost[0] not in {stage.pid for stage in pipeline.serving.assembly.stages}


def test_no_change_is_made_during_a_recovery(two_stages: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = two_stages.pipeline
    refusals: list[str] = []
    connect = pipeline.assembler.connect

    def ask_for_a_change_then_connect(layout, stages, **how):  # type: ignore[no-untyped-def]
        if pipeline.recovery.running and not refusals:
            with pytest.raises(ChangeBusy) as refusal:
                pipeline.coordinator.request("2,2,2")
            refusals.append(str(refusal.value))
        return connect(layout, stages, **how)

    monkeypatch.setattr(pipeline.assembler, "connect", ask_for_a_change_then_connect)
    lost = pipeline.serving.assembly.stages[0].pid
    kill(two_stages, 0)
    two_stages.recovered(lost)
    assert refusals[0].startswith(f"recovery-{pipeline.recovery.count} is under way; wait for it to end")


def test_i3_no_token_is_lost_over_twenty_random_kills_and_changes(two_stages: Harness) -> None:
    chance = random.Random(3)
    undisturbed = two_stages.run(PROMPTS)
    pipeline, kills = two_stages.pipeline, 0
    recoveries = pipeline.recovery.count

    def between(steps: int) -> None:
        nonlocal kills
        if steps and steps % 5 == 0:
            stages = pipeline.serving.assembly.stages
            try:
                os.kill(chance.choice(stages).pid, signal.SIGKILL)
            except ProcessLookupError:
                return
            kills += 1
        elif steps % 3 == 0 and pipeline.coordinator.current is None and not pipeline.recovery.running:
            layout = chance.choice(["3,3", "2,2,2", "1,5", "6"])
            if layout != str(pipeline.layout()):
                pipeline.coordinator.request(layout)

    while kills < 20:
        two_stages.engine.reset_prefix_cache()
        assert tokens(two_stages.run(PROMPTS, between)) == tokens(undisturbed)
    two_stages.idle()
    two_stages.recovered()
    assert pipeline.recovery.count > recoveries + 5


@pytest.mark.timeout(100)  # such a change may hold batches back for longer, if nobody tells it that it waits in vain
@pytest.mark.parametrize("method", [Method.RECOMPUTE, Method.STOP_AND_COPY])
def test_a_change_that_waits_for_a_batch_of_a_lost_stage_waits_no_longer(
    two_stages: Harness, monkeypatch: pytest.MonkeyPatch, method: Method
) -> None:
    undisturbed = two_stages.run(PROMPTS)
    two_stages.engine.reset_prefix_cache()
    pipeline = two_stages.pipeline
    changes: list[Change] = []

    def change_and_kill(pid: int) -> None:
        changes.append(pipeline.coordinator.request("2@a,2@b,2", method))
        while changes[0].machine.step in {Step.PLAN, Step.PREPARE}:
            changes[0].ended.wait(0.01)
        os.kill(pid, signal.SIGKILL)

    def between(steps: int) -> None:
        if steps == 8:
            pid = pipeline.serving.assembly.stages[1].pid
            os.kill(pid, signal.SIGSTOP)  # the next batch stays in flight
            threading.Thread(target=change_and_kill, args=(pid,), daemon=True).start()

    assert tokens(two_stages.run(PROMPTS, between)) == tokens(undisturbed)
    two_stages.idle()
    two_stages.recovered()
    assert changes[0].report()["state"] == "aborted"
    assert str(pipeline.layout()) == "3,3"
