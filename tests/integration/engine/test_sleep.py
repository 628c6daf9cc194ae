"""Scale to zero and back, on a real engine: no process is left, and what comes back still has its KV."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from runtime.engine.sleep import Sleep
from runtime.migration.guard import Permission
from tests.integration.engine.harness import Harness, Prompt, tokens
from tests.unit.runtime.migration.fake_guard import FakeGuard

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("default")]

PROMPTS = {
    "greedy": Prompt("a long story about the sea " * 3, {"max_tokens": 12}),
    "seeded": Prompt("the lighthouse", {"max_tokens": 12, "temperature": 0.9, "seed": 7}),
}


@pytest.fixture
def sleeper(two_stages: Harness, monkeypatch: pytest.MonkeyPatch) -> Harness:
    """The shared engine, which now sleeps after half a second."""
    pipeline = two_stages.pipeline
    sleep = Sleep(
        0.5,
        pipeline.dispatcher,
        pipeline.coordinator,
        pipeline.journal,
        pipeline.mender.end_stages,
        pipeline.mender.bring_stages_back,
        pipeline._fail,
    )
    monkeypatch.setattr(pipeline, "sleep", sleep)
    yield two_stages
    assert sleep.wait_awake(60)
    sleep.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def fall_asleep(harness: Harness) -> None:
    """Let the engine do nothing until it sleeps, stepping it as its own loop would."""
    while harness.core.scheduler.has_requests():
        harness.engine.step()
    harness.pipeline.sleep.start()
    until(lambda: harness.pipeline.status()["phase"] == "asleep" and not harness.pipeline.fleet.stages())


def test_a_sleeping_pipeline_has_no_stage_and_wakes_with_its_prefix_cache(sleeper: Harness) -> None:
    undisturbed = sleeper.run(PROMPTS)
    pids = [stage.pid for stage in sleeper.pipeline.fleet.stages()]
    fall_asleep(sleeper)
    until(lambda: not any(map(psutil.pid_exists, pids)))
    assert sleeper.pipeline.status()["stages"] == []
    woken = sleeper.run(PROMPTS)
    assert tokens(woken) == tokens(undisturbed)
    cached = woken["greedy"].num_cached_tokens
    assert cached is not None
    assert cached >= 64, "the KV of the prompt was meant to be found again"
    assert sleeper.pipeline.status()["phase"] == "serving"
    assert str(sleeper.pipeline.layout()) == "3,3"


def test_a_node_that_is_lost_in_the_sleep_is_done_without_and_its_kv_is_not_found(sleeper: Harness) -> None:
    undisturbed = sleeper.run(PROMPTS)
    sleeper.change("3,3@lost-asleep")
    sleeper.run(PROMPTS)  # fills the prefix cache
    fall_asleep(sleeper)
    pool = sleeper.pipeline.nodes.get("lost-asleep").pool
    sleeper.pipeline.lose_node("lost-asleep", "it was unplugged")
    pool.watermark[:] = 0
    assert tokens(sleeper.run(PROMPTS)) == tokens(undisturbed)
    assert "lost-asleep" not in sleeper.pipeline.layout().nodes
    assert tokens(sleeper.run(PROMPTS)) == tokens(undisturbed)  # from the cache again


def test_i5_a_pipeline_wakes_only_where_it_may(sleeper: Harness) -> None:
    pipeline, guard = sleeper.pipeline, FakeGuard()
    undisturbed = sleeper.run(PROMPTS)
    sleeper.change("3,3@abroad-asleep")
    sleeper.run(PROMPTS)  # fills the prefix cache
    fall_asleep(sleeper)
    pool = pipeline.nodes.get("abroad-asleep").pool
    assert pool.watermark[3:].any()
    pipeline.nodes._permission = Permission(guard, "smollm", "local")
    guard.nodes.add("abroad-asleep")
    try:
        assert tokens(sleeper.run(PROMPTS)) == tokens(undisturbed)
        assert "abroad-asleep" not in pipeline.layout().nodes
        assert not pool.watermark.any()
    finally:
        pipeline.nodes._permission = None


def test_a_change_wakes_a_sleeping_pipeline(sleeper: Harness) -> None:
    undisturbed = sleeper.run(PROMPTS)
    fall_asleep(sleeper)
    asked = [{"layers": "2,2,2"}]
    assert sleeper.executor._control.call("midstream.reconfigure", asked)[0]["refused"] == "asleep"
    assert sleeper.pipeline.sleep.wait_awake(60)
    report = sleeper.executor._control.call("midstream.reconfigure", asked)[0]
    sleeper.idle()
    assert sleeper.pipeline.coordinator.find(report["id"]).report()["state"] == "committed"
    assert tokens(sleeper.run(PROMPTS)) == tokens(undisturbed)


def test_a_stage_that_is_lost_on_waking_is_started_again(sleeper: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = sleeper.run(PROMPTS)
    fall_asleep(sleeper)
    pipeline, killed = sleeper.pipeline, []
    bind = pipeline.assembler.bind

    def kill_one_then_bind(stages):  # type: ignore[no-untyped-def]
        if not killed:
            killed.append(stages[0].pid)
            os.kill(stages[0].pid, signal.SIGKILL)
        bind(stages)

    monkeypatch.setattr(pipeline.assembler, "bind", kill_one_then_bind)
    assert tokens(sleeper.run(PROMPTS)) == tokens(undisturbed)
    assert len(killed) == 1


def test_a_pipeline_with_requests_never_sleeps(sleeper: Harness) -> None:
    undisturbed = sleeper.run(PROMPTS)
    journal = sleeper.pipeline.journal
    asleep: list[int] = []

    def count() -> None:
        asleep.append(sum(entry.event == "asleep" for entry in journal.story("pipeline")))

    def between(steps: int) -> None:
        if steps == 5:
            count()
            sleeper.pipeline.sleep.start()
            time.sleep(1.0)  # twice as long as it takes to fall asleep, with requests waiting
            count()

    assert tokens(sleeper.run(PROMPTS, between)) == tokens(undisturbed)
    assert asleep[0] == asleep[1]
