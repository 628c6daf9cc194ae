"""A whole node is lost with the KV of its layers: they are re-placed, computed again, and no token is lost."""

from __future__ import annotations

import itertools
import time

import psutil
import pytest

from tests.integration.engine.harness import Harness, Prompt, tokens

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("default")]

PROMPTS = {
    "greedy": Prompt("a long story about the sea"),
    "seeded": Prompt("the lighthouse", {"temperature": 0.9, "seed": 7}),
    "prefill": Prompt("and so on " * 15, {"max_tokens": 20}),  # several chunks of 64 tokens
    "seeded too": Prompt("once more " * 9, {"temperature": 1.2, "seed": 11, "max_tokens": 30}),
}
_numbers = itertools.count(1)


@pytest.fixture
def doomed(two_stages: Harness) -> str:
    """The name of a node that nobody used before and nobody uses afterwards."""
    return f"doomed-{next(_numbers)}"


def lose(harness: Harness, node: str) -> None:
    """Lose a node: its processes, and what is in its pool."""
    pipeline = harness.pipeline
    pool = pipeline.nodes.get(node).pool
    pids = [stage.pid for stage in pipeline.fleet.stages() if stage.node == node]
    pipeline.lose_node(node, "it was unplugged")
    eventually_gone(pids)  # what still computed would compute nonsense from what follows
    pool.watermark[:] = 0
    for layer in range(pool.shape.layers):
        pool.layer_memory(layer)[:] = b"\x7f" * pool.shape.layer_bytes


def eventually_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("step", [1, 4, 7, 12, 25], ids=lambda step: f"after batch {step}")
@pytest.mark.parametrize("layout", ["3@{},3", "3,3@{}", "2,2@{},2"])
def test_i3_a_lost_node_costs_no_token(two_stages: Harness, doomed: str, layout: str, step: int) -> None:
    undisturbed = two_stages.run(PROMPTS)
    two_stages.change(layout.format(doomed))
    two_stages.engine.reset_prefix_cache()

    def between(steps: int) -> None:
        if steps == step:
            lose(two_stages, doomed)

    assert tokens(two_stages.run(PROMPTS, between)) == tokens(undisturbed)
    two_stages.recovered()
    assert doomed not in two_stages.pipeline.layout().nodes
    assert two_stages.pipeline.layout().total_layers == 6


def test_prefixes_that_went_with_a_node_are_not_found_any_more(two_stages: Harness, doomed: str) -> None:
    """Cached blocks that no request holds are of no use without the layers of the lost node."""
    undisturbed = two_stages.run(PROMPTS)
    two_stages.change(f"3,3@{doomed}")
    two_stages.run(PROMPTS)  # fills the prefix cache
    lose(two_stages, doomed)
    two_stages.recovered()
    assert tokens(two_stages.run(PROMPTS)) == tokens(undisturbed)
    assert tokens(two_stages.run(PROMPTS)) == tokens(undisturbed)  # from the cache again


def test_requests_that_were_preempted_are_not_computed_into_blocks_of_others(two_stages: Harness, doomed: str) -> None:
    prompts = {
        f"r{i}": Prompt(
            f"the number {i} and what came of it", {"max_tokens": 110, "temperature": 0.8 * (i % 2), "seed": i}
        )
        for i in range(8)
    }
    undisturbed = two_stages.run(prompts)
    two_stages.change(f"3,3@{doomed}")
    two_stages.engine.reset_prefix_cache()
    before = two_stages.preemptions()
    lost = []

    def between(steps: int) -> None:
        if not lost and two_stages.preemptions() > before:
            lost.append(lose(two_stages, doomed))

    assert tokens(two_stages.run(prompts, between)) == tokens(undisturbed)
    assert lost
    two_stages.recovered()


def test_the_target_of_a_change_may_be_lost(two_stages: Harness, doomed: str) -> None:
    undisturbed = two_stages.run(PROMPTS)
    two_stages.engine.reset_prefix_cache()
    asked: list[str] = []

    def between(steps: int) -> None:
        if steps == 5:
            asked.append(two_stages.pipeline.coordinator.request(f"3,3@{doomed}").id)
            lose(two_stages, doomed)

    assert tokens(two_stages.run(PROMPTS, between)) == tokens(undisturbed)
    two_stages.idle()
    assert two_stages.pipeline.coordinator.find(asked[0]).report()["state"] == "aborted"
    assert str(two_stages.pipeline.layout()) == "3,3"
    two_stages.recovered()
