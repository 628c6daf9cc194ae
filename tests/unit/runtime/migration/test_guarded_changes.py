"""I5: at which moments of a change the guard is asked, and what its refusal does there."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from runtime.migration.coordinator import Change, Coordinator
from runtime.migration.desk import Desk, Order
from runtime.migration.errors import ChangeForbidden, GuardAsked, GuardSilent
from runtime.migration.guard import Permission, Question
from runtime.migration.journal import Journal
from runtime.migration.protocol import Fallback, Method
from runtime.migration.stop_rule import CopyRound
from tests.unit.runtime.migration.fake_effects import DEADLINE_S, FakeEffects
from tests.unit.runtime.migration.fake_guard import FakeGuard

STALE, FITS = CopyRound(1000, 1.0, 600), CopyRound(600, 1.0, 0)


@dataclass
class Bench:
    effects: FakeEffects
    guard: FakeGuard
    coordinator: Coordinator
    desk: Desk

    def asked(self, ask: Callable[[], Change]) -> Change:
        """Ask until the guard has ruled, as the head does; returns the change once it has ended."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                change = ask()
            except GuardAsked:
                assert time.monotonic() < deadline
                time.sleep(0.001)
            else:
                assert change.ended.wait(DEADLINE_S)
                return change

    def change(self, layers: str, **how: object) -> Change:
        return self.asked(lambda: self.desk.reconfigure(Order(layers, **how))[0])

    def forbid_from(self, question: int, node: str) -> None:
        """Let the node be forbidden from this question about KV on."""

        def forbid(_: Question) -> None:
            if sum(each.state == "kv" for each in self.guard.asked) >= question:
                self.guard.nodes.add(node)

        self.guard.before_answer = forbid


@pytest.fixture
def bench() -> Iterator[Bench]:
    effects, guard = FakeEffects("2@a,2@b"), FakeGuard()
    effects.rounds = [STALE, FITS]
    coordinator = Coordinator(effects, Journal(), permission=Permission(guard, "smollm", "head"))
    desk = Desk(coordinator, effects.layout, lambda wanted: wanted)
    yield Bench(effects, guard, coordinator, desk)
    effects.open_all()
    coordinator.close()


def state(change: Change) -> tuple[str, str]:
    report = change.report()
    return report["state"], report["reason"] or ""


def test_an_allowed_change_is_asked_about_in_the_plan_before_each_round_and_before_the_cutover(bench: Bench):
    assert state(bench.change("2@a,2@c")) == ("committed", "")
    assert [each.state for each in bench.guard.asked] == ["kv", "prompts"] * 4
    assert bench.effects.calls.count("copy_stale") == 2


def test_without_a_guard_nobody_is_asked():
    effects = FakeEffects("2@a,2@b")
    effects.rounds = [FITS]
    coordinator = Coordinator(effects, Journal())
    assert coordinator.request("2@a,2@c").ended.wait(DEADLINE_S)
    coordinator.close()


# -- plan ------------------------------------------------------------------------------------------------------------


def test_a_forbidden_change_is_refused_before_anything_is_touched(bench: Bench):
    bench.guard.nodes.add("c")
    with pytest.raises(ChangeForbidden, match="c is in the US"):
        bench.change("2@a,2@c")
    assert set(bench.effects.calls) == {"plan"}
    assert bench.coordinator.last is None


def test_its_key_gets_the_same_refusal_again(bench: Bench):
    bench.guard.nodes.add("c")
    for _ in range(2):
        with pytest.raises(ChangeForbidden):
            bench.change("2@a,2@c", key="a#1")
    assert len(bench.guard.asked) == 1


def test_a_refusal_for_want_of_the_guard_is_not_remembered(bench: Bench):
    bench.guard.known = False
    with pytest.raises(GuardSilent):
        bench.change("2@a,2@c", key="a#1")
    assert set(bench.effects.calls) == {"plan"}
    bench.guard.known = True
    assert state(bench.change("2@a,2@c", key="a#1")) == ("committed", "")


@pytest.mark.parametrize("generation", [7, None])
def test_a_forbidden_generation_was_not_accepted(bench: Bench, generation: int | None):
    bench.guard.nodes.add("c")
    with pytest.raises(ChangeForbidden):
        bench.change("2@a,2@c", generation=generation)
    assert (bench.desk.generation, str(bench.desk.wanted())) == (0, "2@a,2@b")


def test_a_stage_does_not_come_to_a_forbidden_node(bench: Bench):
    bench.guard.nodes.add("c")
    with pytest.raises(ChangeForbidden):
        bench.asked(lambda: bench.desk.attach(1, "c", key="a#1"))  # type: ignore[arg-type, return-value]
    assert set(bench.effects.calls) == {"plan"}
    assert str(bench.desk.wanted()) == "2@a,2@b"


def test_a_stage_does_not_leave_its_layers_to_a_forbidden_node(bench: Bench):
    bench.guard.nodes.add("a")
    with pytest.raises(ChangeForbidden):
        bench.asked(lambda: bench.desk.release(1))  # type: ignore[arg-type, return-value]
    assert set(bench.effects.calls) == {"plan"}
    assert not bench.desk.is_away(1)


# -- on the way ------------------------------------------------------------------------------------------------------


def test_what_is_forbidden_after_the_plan_copies_nothing(bench: Bench):
    bench.forbid_from(2, "c")
    outcome, reason = state(bench.change("2@a,2@c"))
    assert (outcome, "in step pre_copy" in reason, "c is in the US" in reason) == ("aborted", True, True)
    assert bench.effects.calls == [*["plan"] * bench.effects.count("plan"), "prepare", "interrupt", "roll_back"]
    assert str(bench.effects.serving) == "2@a,2@b"


def test_what_is_forbidden_between_two_rounds_copies_no_more(bench: Bench):
    bench.forbid_from(3, "c")
    outcome, reason = state(bench.change("2@a,2@c"))
    assert (outcome, "in step pre_copy" in reason) == ("aborted", True)
    assert bench.effects.count("copy_stale") == 1
    assert bench.effects.calls[-2:] == ["interrupt", "roll_back"]


def test_what_is_forbidden_right_before_the_cutover_is_not_cut_over(bench: Bench):
    bench.forbid_from(4, "c")
    outcome, reason = state(bench.change("2@a,2@c"))
    assert (outcome, "in step cutover" in reason, "c is in the US" in reason) == ("aborted", True, True)
    assert bench.effects.count("copy_stale") == 2
    assert bench.effects.count("switch and copy") == 0
    assert str(bench.effects.serving) == "2@a,2@b"
    bench.guard.nodes.clear()
    bench.guard.before_answer = lambda _: None
    bench.effects.rounds = [FITS]
    assert state(bench.change("2@a,2@c")) == ("committed", "")


def test_a_guard_that_falls_silent_on_the_way_aborts_the_change(bench: Bench):
    gate = bench.effects.block("prepare")

    def fall_silent(_: Question) -> None:
        bench.guard.known = not bench.effects.count("prepare")

    bench.guard.before_answer = fall_silent
    gate.open()
    outcome, reason = state(bench.change("2@a,2@c"))
    assert (outcome, "nobody allows smollm on a, c" in reason) == ("aborted", True)


# -- leaving a node that has become forbidden --------------------------------------------------------------------------


def test_no_kv_comes_from_a_forbidden_node_but_it_can_be_left_by_computing_again(bench: Bench):
    bench.guard.nodes.add("b")
    with pytest.raises(ChangeForbidden):
        bench.change("4@a", method=Method.PRE_COPY, fallback=Fallback.RECOMPUTE)
    assert state(bench.change("4@a", method=Method.RECOMPUTE)) == ("committed", "")
    assert str(bench.effects.serving) == "4@a"
