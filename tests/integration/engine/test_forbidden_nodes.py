"""I5 in a recovery: what was lost is not placed again on a node that the intents forbid meanwhile."""

from __future__ import annotations

import itertools
import os
import signal
from typing import TYPE_CHECKING

import pytest

from runtime.migration.guard import Permission
from tests.integration.engine.harness import Harness, Prompt, tokens
from tests.unit.runtime.migration.fake_guard import FakeGuard

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("default")]

PROMPTS = {
    "greedy": Prompt("a long story about the sea"),
    "seeded": Prompt("the lighthouse", {"temperature": 0.9, "seed": 7}),
    "prefill": Prompt("and so on " * 15, {"max_tokens": 20}),
}
_numbers = itertools.count(1)


@pytest.fixture
def guard(two_stages: Harness) -> Iterator[FakeGuard]:
    """Bounds the shared pipeline for the time of one test."""
    guard = FakeGuard()
    two_stages.pipeline.nodes._permission = Permission(guard, "smollm", "local")
    yield guard
    two_stages.pipeline.nodes._permission = None


@pytest.mark.parametrize("forbidden", [True, False], ids=["forbidden", "allowed"])
def test_a_lost_stage_comes_back_only_where_it_may(two_stages: Harness, guard: FakeGuard, forbidden: bool) -> None:
    node = f"abroad-{next(_numbers)}"
    undisturbed = two_stages.run(PROMPTS)
    two_stages.change(f"3@{node},3")
    two_stages.engine.reset_prefix_cache()
    pipeline = two_stages.pipeline
    pool = pipeline.nodes.get(node).pool
    (pid,) = [stage.pid for stage in pipeline._assembly.stages if stage.node == node]

    def between(steps: int) -> None:
        if steps == 7:
            assert pool.watermark[:3].any()
            if forbidden:
                guard.nodes.add(node)
            os.kill(pid, signal.SIGKILL)

    assert tokens(two_stages.run(PROMPTS, between)) == tokens(undisturbed)
    two_stages.recovered(pid)
    assert (node in pipeline.layout().nodes) == (not forbidden)
    if forbidden:  # and nothing of the streams is left there
        assert not pool.watermark.any()
        block_bytes = pool.shape.layer_bytes // pool.shape.blocks  # stages rehearse in block 0, which no stream has
        assert not any(any(pool.layer_memory(layer)[block_bytes:]) for layer in range(pool.shape.layers))
        assert [stage for stage in pipeline.fleet.stages() if stage.node == node] == []
