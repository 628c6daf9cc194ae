"""Fewer or more KV blocks, requests and tokens at once, while requests run: no token changes."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from runtime.engine.capacity import Capacity, CapacityOrder
from runtime.migration.errors import ChangeRefused
from tests.integration.engine.harness import Harness, Prompt, tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("default")]

PROMPTS = {
    f"r{i}": Prompt(f"the number {i} and what came of it", {"max_tokens": 60, "temperature": 0.8 * (i % 2), "seed": i})
    for i in range(4)
}
ALL = 24


@pytest.fixture
def harness_with_room(two_stages: Harness) -> Iterator[Harness]:
    """The shared engine; its limits are as before afterwards."""
    yield two_stages
    while two_stages.engine.has_unfinished_requests():
        two_stages.engine.step()
    change(two_stages, kv_blocks=ALL, max_requests=16, max_batch_tokens=64)


def capacity_of(harness: Harness) -> Capacity:
    capacity = harness.pipeline.depth.capacity
    assert capacity is not None
    return capacity


def change(harness: Harness, **limits: Any) -> dict[str, Any]:
    """Change limits as the control API does; with batches in flight it happens a step later."""
    capacity_of(harness).ask(CapacityOrder(**limits))
    harness.pipeline.depth.change_capacity()
    while capacity_of(harness).waits:
        harness.engine.step()
    return capacity_of(harness).report()


def used_blocks(harness: Harness) -> set[int]:
    pool = harness.core.scheduler.kv_cache_manager.block_pool
    return {block.block_id for block in pool.blocks if block.ref_cnt > 0 and not block.is_null}


@pytest.mark.parametrize("layout", ["3,3", "3@a,3@b"])
def test_blocks_in_use_move_when_the_pool_shrinks_and_no_token_changes(harness_with_room: Harness, layout: str) -> None:
    harness = harness_with_room
    undisturbed = harness.run(PROMPTS)
    if layout != "3,3":
        harness.change(layout)
    harness.engine.reset_prefix_cache()
    harness.run({"before": Prompt("so that blocks in front are free later " * 4)})  # blocks are taken in turn
    moved = []

    def between(steps: int) -> None:
        if steps == 20:
            last = change(harness, kv_blocks=14)["last"]
            moved.append(last["moved_blocks"])
            assert max(used_blocks(harness)) < 14
        elif steps == 40:
            assert change(harness, kv_blocks=ALL)["kv_blocks"] == ALL

    assert tokens(harness.run(PROMPTS, between)) == tokens(undisturbed)
    assert moved[0] > 0
    assert tokens(harness.run(PROMPTS)) == tokens(undisturbed)


def test_pages_beyond_the_end_go_back_to_the_system(harness_with_room: Harness) -> None:
    harness = harness_with_room
    harness.run({f"r{i}": Prompt(f"{i} fills the pool " * 20, {"max_tokens": 30}) for i in range(8)})
    descriptor = harness.pipeline.nodes.get("local")._descriptor
    before = os.fstat(descriptor).st_blocks
    change(harness, kv_blocks=4)
    assert os.fstat(descriptor).st_blocks < before / 2


def test_a_prefix_in_a_block_that_moved_is_still_found(harness_with_room: Harness) -> None:
    harness = harness_with_room
    long = Prompt("and so on and on " * 8, {"max_tokens": 60})
    first = harness.run({"r": long})["r"]
    harness.engine.reset_prefix_cache()
    harness.run({"before": Prompt("so that blocks in front are free later " * 6)})
    harness.engine.reset_prefix_cache()
    moved = []

    def between(steps: int) -> None:
        if steps == 10:
            moved.append(change(harness, kv_blocks=9)["last"]["moved_blocks"])

    harness.run({"r": long}, between)
    assert moved[0] > 0
    second = harness.run({"r": long})["r"]
    assert second.num_cached_tokens > 0
    assert list(second.outputs[0].token_ids) == list(first.outputs[0].token_ids)


def test_what_does_not_fit_is_refused_and_nothing_changes(harness_with_room: Harness) -> None:
    harness = harness_with_room
    undisturbed = harness.run(PROMPTS)
    harness.engine.reset_prefix_cache()

    def between(steps: int) -> None:
        if steps == 30:
            report = change(harness, kv_blocks=3)
            assert report["last"]["state"] == "refused"
            assert "KV blocks are in use, but only 2 would be left" in report["last"]["reason"]
            assert report["kv_blocks"] == ALL

    assert tokens(harness.run(PROMPTS, between)) == tokens(undisturbed)


def test_the_youngest_are_preempted_if_that_is_asked_for(harness_with_room: Harness) -> None:
    harness = harness_with_room
    undisturbed = harness.run(PROMPTS)
    harness.engine.reset_prefix_cache()
    preempted = []

    def between(steps: int) -> None:
        if steps == 30:
            preempted.append(change(harness, kv_blocks=6, preempt=True)["last"]["preempted_requests"])

    assert tokens(harness.run(PROMPTS, between)) == tokens(undisturbed)
    assert 0 < preempted[0] < len(PROMPTS)


def test_a_stage_may_be_lost_and_the_layout_changed_in_a_pool_that_has_shrunk(harness_with_room: Harness) -> None:
    harness = harness_with_room
    undisturbed = harness.run(PROMPTS)
    harness.engine.reset_prefix_cache()

    def between(steps: int) -> None:
        if steps == 15:
            change(harness, kv_blocks=14)
        elif steps == 18:
            os.kill(harness.pipeline.serving.assembly.stages[1].pid, signal.SIGKILL)
        elif steps == 25:
            harness.recovered()
            harness.begin("3@a,3@b")

    assert tokens(harness.run(PROMPTS, between)) == tokens(undisturbed)
    harness.idle()


def test_fewer_requests_and_smaller_batches_at_once(harness_with_room: Harness) -> None:
    harness = harness_with_room
    undisturbed = harness.run(PROMPTS)
    change(harness, max_requests=2, max_batch_tokens=8)
    most = []

    def between(_: int) -> None:
        most.append(len(harness.core.scheduler.running))

    harness.pipeline.dispatcher.trace.clear()
    assert tokens(harness.run(PROMPTS, between)) == tokens(undisturbed)
    assert max(most) == 2
    assert max(batch.tokens for batch in harness.pipeline.dispatcher.trace) <= 8


@pytest.mark.parametrize(
    "limits", [{"kv_blocks": 1}, {"kv_blocks": 25}, {"max_requests": 17}, {"max_batch_tokens": 65}]
)
def test_limits_that_the_server_was_not_started_for_are_refused(
    harness_with_room: Harness, limits: dict[str, int]
) -> None:
    with pytest.raises(ChangeRefused, match="the server was started for"):
        capacity_of(harness_with_room).ask(CapacityOrder(**limits))
    assert not capacity_of(harness_with_room).waits
