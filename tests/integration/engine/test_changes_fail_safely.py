"""A change that fails leaves no trace: killed stages, refused plans, bad frames (I1, I2, I4, I7)."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from runtime.layout import LayoutError
from runtime.migration.errors import ChangeBusy, ChangeRefused
from runtime.migration.precopy import PreCopy
from runtime.transport.frames import Batch, Call
from tests.integration.engine.harness import Harness, Prompt, tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from runtime.engine.pipeline import Pipeline

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("default")]

PROMPTS = {
    f"r{i}": Prompt(f"the number {i}", {"max_tokens": 60, "temperature": 0.8 * (i % 2), "seed": i}) for i in range(4)
}


def _kill_newest(pipeline: Pipeline) -> None:
    """Kill -9 a stage that only the target layout has."""
    assert pipeline.serving.target is not None
    newest = [stage for stage in pipeline.serving.target.stages if stage.name not in pipeline.serving.target.kept][-1]
    os.kill(newest.pid, signal.SIGKILL)


def _owner_of(pipeline: Pipeline, name: str) -> tuple[object, str]:
    """Return who does `name`: the part of the pipeline before the dot."""
    part, _, method = name.rpartition(".")
    return getattr(pipeline, part), method


def _before(pipeline: Pipeline, name: str, monkeypatch: pytest.MonkeyPatch, kill: Callable[[Pipeline], None]) -> None:
    """Kill a new stage right before the pipeline does `name` for the first time during a change."""
    owner, name = _owner_of(pipeline, name)
    original = getattr(owner, name)
    done = []

    def kill_then_go_on(*args: object, **kwargs: object) -> object:
        if not done and pipeline.serving.target is not None and pipeline.serving.target.stages:
            done.append(kill(pipeline))
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, kill_then_go_on)


def _after(pipeline: Pipeline, name: str, monkeypatch: pytest.MonkeyPatch, kill: Callable[[Pipeline], None]) -> None:
    owner, name = _owner_of(pipeline, name)
    original = getattr(owner, name)
    done = []

    def go_on_then_kill(*args: object, **kwargs: object) -> object:
        result = original(*args, **kwargs)
        if not done:
            done.append(kill(pipeline))
        return result

    monkeypatch.setattr(owner, name, go_on_then_kill)


@pytest.mark.parametrize(
    ("when", "steps"),
    [
        ((_before, "assembler.prepare"), {"prepare"}),
        ((_before, "assembler.bind"), {"prepare"}),
        ((_after, "assembler.bind"), {"prepare"}),
        ((_before, "assembler.connect"), {"prepare"}),
        ((_before, "assembler._probe"), {"prepare"}),
        ((_before, "changing.copy_stale"), {"pre_copy", "cutover"}),  # the loss is heard of a moment later
        ((_before, "changing._flip"), {"cutover"}),
        ((_after, "changing._flip"), {"cutover"}),
    ],
    ids=lambda value: (
        " ".join([value[0].__name__.strip("_"), value[1].rpartition(".")[2].strip("_")])
        if isinstance(value, tuple)
        else "-"
    ),
)
def test_i4_kill_9_of_a_new_stage_before_commit_leaves_the_old_layout_serving(
    two_stages: Harness, monkeypatch: pytest.MonkeyPatch, when: tuple[Callable[..., None], str], steps: set[str]
) -> None:
    place, name = when
    undisturbed = two_stages.run(PROMPTS)
    if name in {"assembler.prepare", "assembler.bind"}:
        two_stages.use_up_spares()
    place(two_stages.pipeline, name, monkeypatch, _kill_newest)
    asked: list[str] = []

    def between(steps: int) -> None:
        if steps == 5:
            asked.append(two_stages.begin("2@a,2@b,2" if name == "changing.copy_stale" else "2,2,2"))

    disturbed = two_stages.run(PROMPTS, between)
    two_stages.idle()
    report = two_stages.pipeline.coordinator.find(asked[0]).report()
    assert report["state"] == "aborted"
    assert any(f"in step {step}:" in report["reason"] for step in steps)
    assert tokens(disturbed) == tokens(undisturbed)
    assert str(two_stages.pipeline.layout()) == "3,3"
    events = [entry.event for entry in two_stages.pipeline.journal.story(asked[0])]
    assert events[-2:] == ["aborted", "ended"]
    monkeypatch.undo()
    two_stages.change("2,2,2")
    assert tokens(two_stages.run(PROMPTS)) == tokens(undisturbed)


@pytest.mark.parametrize("guarded_by", ["the last copy", "the stage"])
def test_i2_kv_that_did_not_arrive_to_the_token_is_noticed_and_the_old_layout_serves_on(
    two_stages: Harness, monkeypatch: pytest.MonkeyPatch, guarded_by: str
) -> None:
    """Take one token from what the new node claims to hold of one layer and block, and see who notices."""
    undisturbed = two_stages.run(PROMPTS)
    pipeline = two_stages.pipeline
    mismatches = PreCopy.mismatches
    lost: list[int] = []

    def lose_a_token_then_compare(pre_copy: PreCopy) -> Mapping[int, int]:
        carried = pipeline.dispatcher.ledger.carried(next(iter(pipeline.dispatcher.ledger)))
        block = carried.block_ids[0][(carried.computed_tokens - 1) // 32]
        lost.append(block)
        pipeline.nodes.get("b").pool.watermark[4, block] -= 1
        return mismatches(pre_copy) if guarded_by == "the last copy" else {}

    monkeypatch.setattr(PreCopy, "mismatches", lose_a_token_then_compare)
    asked: list[str] = []

    def between(steps: int) -> None:
        if steps == 5:
            asked.append(two_stages.begin("3@b,3@b"))

    disturbed = two_stages.run(PROMPTS, between)
    two_stages.idle()
    report = pipeline.coordinator.find(asked[0]).report()
    assert report["state"] == "aborted"
    expected = "watermarks differ" if guarded_by == "the last copy" else f"layer 4, block {lost[0]} is valid for"
    assert expected in report["reason"]
    assert tokens(disturbed) == tokens(undisturbed)


def test_i1_a_stage_rejects_a_batch_of_an_epoch_it_does_not_serve(two_stages: Harness) -> None:
    undisturbed = two_stages.run(PROMPTS)
    dropped = two_stages.pipeline.dispatcher.counters.dropped_frames
    first = two_stages.pipeline.serving.assembly.stages[0]

    def between(steps: int) -> None:
        if steps == 5:
            first.outbox.send(Batch(epoch=10_000, sequence=1, buffers=1), [b"\x80"])

    assert tokens(two_stages.run(PROMPTS, between)) == tokens(undisturbed)
    assert two_stages.pipeline.dispatcher.counters.dropped_frames == dropped + 1


def test_i8_a_stage_survives_messages_that_are_not_frames(two_stages: Harness) -> None:
    undisturbed = two_stages.run(PROMPTS)
    first = two_stages.pipeline.serving.assembly.stages[0]

    def between(steps: int) -> None:
        if steps == 5:
            first.outbox._socket.send_multipart([b"\x80\x04\x95cposix\nsystem\n", b"x"])
            first.outbox._socket.send_multipart([b""])
            first.outbox.send(Call(999_999, "no such call"), [b"\x80"])

    assert tokens(two_stages.run(PROMPTS, between)) == tokens(undisturbed)


def test_a_second_change_is_refused_with_the_first_ones_id(two_stages: Harness) -> None:
    coordinator = two_stages.pipeline.coordinator
    first = coordinator.request("2,2,2")
    with pytest.raises(ChangeBusy, match=first.id):
        coordinator.request("1,5")
    two_stages.idle()
    assert str(two_stages.pipeline.layout()) == "2,2,2"


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("3,4", "add up to 7, but the model has 6 layers; '3,3' would work"),
        ("3,0,3", "stage 1 is empty"),
        ("1,1,1,1,1,1,1", "only 6 layers"),
        ("three", "a stage is a number of layers"),
    ],
)
def test_a_plan_that_does_not_fit_the_model_is_refused_before_anything_is_touched(
    two_stages: Harness, layers: str, message: str
) -> None:
    stages = [stage.pid for stage in two_stages.pipeline.serving.assembly.stages]
    with pytest.raises(LayoutError, match=message):
        two_stages.pipeline.coordinator.request(layers)
    assert [stage.pid for stage in two_stages.pipeline.serving.assembly.stages] == stages
    assert two_stages.pipeline.coordinator.current is None


def test_a_plan_that_does_not_fit_in_memory_is_refused_by_how_much(
    two_stages: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_stages.use_up_spares()
    monkeypatch.setattr("runtime.engine.planning.available_bytes", lambda: 1 << 20)
    with pytest.raises(ChangeRefused, match=r"only 1 MiB are free; free \d+ MiB"):
        two_stages.pipeline.coordinator.request("2,2,2")


def test_a_change_that_finds_spares_starts_no_process_and_gives_its_old_stages_back(two_stages: Harness) -> None:
    undisturbed = two_stages.run(PROMPTS)
    for layout in ("2,2,2", "3,3", "2,2,2", "3,3"):  # until there are spares for both layouts
        two_stages.change(layout)
        two_stages.wait_for_spares()
    before = {stage.pid for stage in two_stages.pipeline.fleet.stages()}
    assert tokens(two_stages.run_with_changes(PROMPTS, "2,2,2", "3,3")) == tokens(undisturbed)
    assert {stage.pid for stage in two_stages.pipeline.fleet.stages()} == before


def test_stages_that_do_not_change_are_kept(two_stages: Harness) -> None:
    before = two_stages.pipeline.status()["stages"]
    two_stages.change("3,2,1")
    after = two_stages.pipeline.status()["stages"]
    assert after[0]["pid"] == before[0]["pid"]
    assert before[1]["pid"] not in {stage["pid"] for stage in after}
    assert tokens(two_stages.run(PROMPTS)).keys() == PROMPTS.keys()


def test_a_change_can_be_cancelled_before_it_is_committed(two_stages: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = two_stages.pipeline
    two_stages.use_up_spares()
    _before(pipeline, "assembler.bind", monkeypatch, lambda p: p.coordinator.cancel(p.coordinator.current.id) and None)
    change = pipeline.coordinator.request("2,2,2")
    two_stages.idle()
    assert change.report()["state"] == "aborted"
    assert "cancelled" in change.report()["reason"]
    assert str(pipeline.layout()) == "3,3"


def test_a_change_after_nothing_but_prefill_rehearses_no_batch_that_is_too_large(two_stages: Harness) -> None:
    for number in range(8):  # the latest batches are all of 64 tokens; sixteen requests are the most there can be
        two_stages.run({"prefill": Prompt(f"{number} " + "and so on " * 30, {"max_tokens": 1})})
    two_stages.use_up_spares()
    two_stages.change("2,2,2")
