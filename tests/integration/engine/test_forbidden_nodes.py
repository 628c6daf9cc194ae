"""I5 in a recovery: what was lost is not placed again on a node that the intents forbid meanwhile."""

from __future__ import annotations

import itertools
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from runtime.engine.brake import Brake
from runtime.engine.dispatcher import Dispatcher
from runtime.migration.errors import GuardAsked
from runtime.migration.guard import Permission
from runtime.migration.protocol import Method, Step
from tests.integration.engine.harness import Harness, Prompt, tokens
from tests.unit.runtime.migration.fake_effects import DEADLINE_S
from tests.unit.runtime.migration.fake_guard import FakeGuard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runtime.migration.coordinator import Change

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


@pytest.mark.parametrize(
    ("forbidden", "spares"),
    [(True, False), (True, True), (False, False)],
    ids=["forbidden", "forbidden, with spares there", "allowed"],
)
def test_a_lost_stage_comes_back_only_where_it_may(
    two_stages: Harness, guard: FakeGuard, forbidden: bool, spares: bool
) -> None:
    node = f"abroad-{next(_numbers)}"
    undisturbed = two_stages.run(PROMPTS)
    two_stages.change(f"3@{node},3")
    if forbidden and spares:
        two_stages.wait_for_spares()
    two_stages.engine.reset_prefix_cache()
    pipeline = two_stages.pipeline
    pool = pipeline.nodes.get(node).pool
    (pid,) = [stage.pid for stage in pipeline.serving.assembly.stages if stage.node == node]

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


@pytest.fixture
def brake(two_stages: Harness, guard: FakeGuard) -> Iterator[Brake]:
    """Has the shared pipeline ask this guard where it serves, when a test says so."""
    pipeline = two_stages.pipeline
    permission = pipeline.coordinator._permission = Permission(guard, "smollm", "local")
    pipeline.brake = Brake(permission, pipeline.serving.now, pipeline.journal, pipeline._status.show_phase)
    yield pipeline.brake
    guard.nodes.clear()
    pipeline.brake = pipeline.coordinator._permission = None


def asked_for(harness: Harness, layers: str) -> Change:
    """Ask for a change until the guard has answered; returns it."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            return harness.pipeline.coordinator.request(layers, Method.RECOMPUTE)
        except GuardAsked:
            time.sleep(0.01)
    pytest.fail("the guard has not answered")


class Stop:
    """Forbids where a pipeline serves while requests run; lets it stand for some steps, then does something."""

    def __init__(self, harness: Harness, guard: FakeGuard, then: Callable[[], None], at: int = 7) -> None:
        self.pipeline, self.guard, self.then, self.at = harness.pipeline, guard, then, at
        self.batches: set[int] = set()
        self.phases: set[str] = set()

    def __call__(self, steps: int) -> None:
        brake, batches = self.pipeline.brake, self.pipeline.dispatcher.counters.batches
        assert brake is not None
        if steps == self.at:
            self.guard.nodes.add("local")
            brake.look()
            assert brake.stopped == "the intents forbid smollm on local: local is in the US"
        elif self.at < steps <= self.at + 5:
            self.batches.add(batches)
            self.phases.add(self.pipeline.status()["phase"])
        if steps == self.at + 5:
            self.then()


def test_what_is_forbidden_computes_nothing_until_it_is_allowed_and_then_goes_on(
    two_stages: Harness, guard: FakeGuard, brake: Brake
) -> None:
    undisturbed = two_stages.run(PROMPTS)
    pipeline = two_stages.pipeline

    def allow() -> None:
        guard.nodes.clear()
        brake.look()

    stop = Stop(two_stages, guard, allow)
    assert tokens(two_stages.run(PROMPTS, stop)) == tokens(undisturbed)
    assert (len(stop.batches), stop.phases) == (1, {"forbidden"})
    assert pipeline.status()["stopped"] is None


def test_a_request_that_ends_meanwhile_is_ended_and_one_that_comes_waits(
    two_stages: Harness, guard: FakeGuard, brake: Brake
) -> None:
    pipeline = two_stages.pipeline
    late = {"late": Prompt("the late one", {"max_tokens": 8})}
    alone = two_stages.run(late)
    two_stages.engine.reset_prefix_cache()
    names: dict[str, str] = {}
    outputs: dict[str, Any] = {}

    def end_one() -> None:
        (greedy,) = [name for name in two_stages.core.scheduler.requests if name.startswith("greedy")]
        two_stages.engine.abort_request([greedy], internal=True)
        names.update(two_stages.add(late))

    stop = Stop(two_stages, guard, end_one)

    def between(steps: int) -> None:
        stop(steps)
        if steps == stop.at + 8:
            assert pipeline.dispatcher.counters.batches in stop.batches
            assert not [name for name in pipeline.dispatcher.snapshot() if name.startswith("greedy")]
            guard.nodes.clear()
            brake.look()

    two_stages.add(PROMPTS)
    for steps in itertools.count():
        between(steps)
        for output in two_stages.engine.step():
            outputs[names.get(output.request_id, output.request_id)] = output
        if not two_stages.engine.has_unfinished_requests():
            break
    assert tokens({"late": outputs["late"]}) == tokens(alone)


def test_a_change_to_where_it_may_be_begins_while_nothing_is_computed_and_ends_the_stop(
    two_stages: Harness, guard: FakeGuard, brake: Brake
) -> None:
    node = f"home-{next(_numbers)}"
    undisturbed = two_stages.run(PROMPTS)
    two_stages.engine.reset_prefix_cache()
    pipeline = two_stages.pipeline
    changes: list[Change] = []

    def leave() -> None:
        changes.append(asked_for(two_stages, f"6@{node}"))
        while changes[0].machine.step in {Step.PLAN, Step.PREPARE, Step.PRE_COPY}:
            changes[0].ended.wait(0.01)

    stop = Stop(two_stages, guard, leave)
    assert tokens(two_stages.run(PROMPTS, stop)) == tokens(undisturbed)
    two_stages.idle()
    report = changes[0].report()
    assert (report["state"], report["bytes_moved"], len(stop.batches)) == ("committed", 0, 1)
    assert (set(pipeline.layout().nodes), pipeline.status()["stopped"]) == ({node}, None)


def test_a_change_away_that_fails_leaves_it_stopped(two_stages: Harness, guard: FakeGuard, brake: Brake) -> None:
    undisturbed = two_stages.run(PROMPTS)
    two_stages.engine.reset_prefix_cache()
    pipeline = two_stages.pipeline
    node = f"home-{next(_numbers)}"
    stood: list[bool] = []

    def fail() -> None:
        change = asked_for(two_stages, f"6@{node}")
        pipeline.coordinator.cancel(change.id)
        assert change.ended.wait(DEADLINE_S)
        stood.append(brake.stopped is not None)
        guard.nodes.clear()
        brake.look()

    assert tokens(two_stages.run(PROMPTS, Stop(two_stages, guard, fail))) == tokens(undisturbed)
    assert stood == [True]
    assert node not in pipeline.layout().nodes


def test_a_chain_that_is_fallen_back_to_is_stopped_as_before_though_the_guard_is_silent(
    two_stages: Harness, guard: FakeGuard, brake: Brake, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = two_stages.run(PROMPTS)
    two_stages.engine.reset_prefix_cache()
    pipeline = two_stages.pipeline
    switch = Dispatcher.switch
    stood: list[tuple[str, str | None]] = []

    def lose_the_new_stage_at_the_flip(self: Dispatcher, *arguments: Any) -> Any:
        assert pipeline.serving.target is not None
        guard.known = False
        os.kill(pipeline.serving.target.stages[0].pid, signal.SIGKILL)
        return switch(self, *arguments)

    def leave_in_vain() -> None:
        monkeypatch.setattr(Dispatcher, "switch", lose_the_new_stage_at_the_flip)
        change = asked_for(two_stages, f"6@home-{next(_numbers)}")
        assert change.ended.wait(DEADLINE_S)
        brake.look()
        stood.append((change.report()["state"], brake.stopped))
        guard.known = True
        guard.nodes.clear()
        brake.look()

    assert tokens(two_stages.run(PROMPTS, Stop(two_stages, guard, leave_in_vain))) == tokens(undisturbed)
    assert stood == [("aborted", "the intents forbid smollm on local: local is in the US")]
