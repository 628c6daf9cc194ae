"""The order of a recovery, without processes: what is stopped, repaired, told, and when it is given up."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from runtime.engine.errors import StageError
from runtime.engine.recovery import Recovery
from runtime.migration.journal import Journal
from tests.unit.runtime.engine.waiting import DEADLINE_S, eventually


class Bench:
    """A recovery over a repair that does as the test says; `events` is what happened, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.given_up: list[str] = []
        self.whole = False
        self.repair: Callable[[], list[int]] = list
        self.journal = Journal()
        self.recovery = Recovery(self._repair, lambda: self.whole, self, self.journal, self.given_up.append)  # type: ignore[arg-type]

    def _repair(self) -> list[int]:
        self.events.append("repair")
        self.whole = True
        return self.repair()

    @contextmanager
    def stopped(self, holder: str, _: str) -> Iterator[None]:
        self.events.append(f"changes stopped for {holder}")
        yield
        self.events.append("changes again")

    def lose(self, *names: str) -> None:
        for name in names:
            self.whole = False
            self.recovery.stage_lost(name, f"{name} was ended by signal 9")
        assert eventually(lambda: not self.recovery.running)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_changes_are_stopped_while_a_loss_is_repaired(bench: Bench):
    bench.repair = lambda: [7, 8]
    bench.lose("stage-1")
    assert bench.events == ["changes stopped for recovery-1", "repair", "changes again"]
    assert bench.recovery.last is not None
    assert (bench.recovery.last["stages"], bench.recovery.last["replayed_batches"]) == (["stage-1"], 2)
    assert [entry.event for entry in bench.journal.story("recovery-1")] == ["stage lost", "recovered"]


def test_what_is_lost_during_a_repair_is_repaired_in_the_same_recovery(bench: Bench):
    def lose_another_once() -> list[int]:
        if bench.events.count("repair") == 1:
            bench.whole = False
            bench.recovery.stage_lost("stage-2", "it went too")
            raise StageError("stage-2 is gone")
        return []

    bench.repair = lose_another_once
    bench.lose("stage-1")
    assert bench.events.count("repair") == 2
    assert bench.recovery.count == 1
    assert bench.recovery.last is not None
    assert bench.recovery.last["stages"] == ["stage-1", "stage-2"]
    assert bench.given_up == []


def test_a_repair_that_fails_with_nothing_else_lost_is_given_up_with_its_reason(bench: Bench):
    def fail() -> list[int]:
        raise StageError("the zygote cannot fork")

    bench.repair = fail
    bench.lose("stage-1")
    assert bench.given_up == ["lost stage-1 and could not recover: the zygote cannot fork"]


def test_late_news_of_what_was_repaired_already_repairs_nothing(bench: Bench):
    bench.whole = True
    bench.recovery.stage_lost("stage-1", "its process ended")
    assert eventually(lambda: not bench.recovery.running)
    assert "repair" not in bench.events
    assert (bench.recovery.count, bench.recovery.last) == (0, None)


def test_stages_that_are_lost_as_fast_as_they_are_replaced_are_given_up(bench: Bench):
    def lose_it_again() -> list[int]:
        bench.whole = False
        return []

    bench.repair = lose_it_again
    bench.lose("stage-1")
    assert bench.events.count("repair") == 10
    assert bench.given_up == ["stages were lost as fast as they were replaced: stage-1"]


def test_a_batch_that_takes_its_stage_along_three_times_is_given_up(bench: Bench):
    bench.repair = lambda: [41, 42]
    for name in ("stage-1", "stage-2"):
        bench.lose(name)
    assert bench.given_up == []
    bench.lose("stage-3")
    assert bench.given_up == ["batch 41 was lost with its stage 3 times: stage-3"]


@pytest.mark.parametrize("replayed", [[[1], [1], [2], [2]], [[], [], [], []]])
def test_losses_with_progress_in_between_or_nothing_in_flight_are_never_given_up(
    bench: Bench, replayed: list[list[int]]
):
    batches = iter(replayed)
    bench.repair = lambda: next(batches)
    for _ in replayed:
        bench.lose("stage-1")
    assert bench.given_up == []
    assert bench.recovery.count == len(replayed)


def test_a_failed_batch_waits_for_the_news_that_explains_it(bench: Bench):
    repairing, answered = threading.Event(), threading.Event()
    bench.repair = lambda: repairing.wait(DEADLINE_S) and []
    assert not bench.recovery.wait(lambda: False, timeout_s=0.1)
    assert bench.recovery.wait(lambda: True, timeout_s=0.1)
    bench.recovery.stage_lost("stage-1", "gone")
    threading.Timer(0.5, answered.set).start()
    assert bench.recovery.wait(answered.is_set, timeout_s=0.1), "the time of a recovery was counted"
    repairing.set()
    assert not bench.recovery.wait(lambda: False, timeout_s=0.1), "a recovery is no answer to a batch that failed"
    assert eventually(lambda: not bench.recovery.running)
