import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from runtime.layout import LayoutError
from runtime.migration.coordinator import Change, Coordinator, Leases
from runtime.migration.errors import ChangeBusy, ChangeRefused, ChangeUnknown, NotMovableError
from runtime.migration.journal import Journal
from runtime.migration.protocol import Cancelled, Failed, Settled
from runtime.migration.stop_rule import CopyRound
from tests.unit.runtime.migration.fake_effects import DEADLINE_S, FakeEffects

SHORT_S = 0.02  # a lease that a test wants to see lapse


@dataclass
class Bench:
    """A coordinator over fake effects."""

    effects: FakeEffects
    journal: Journal
    coordinator: Coordinator

    def request(self, text: str = "1,3") -> Change:
        return self.coordinator.request(text)

    def lease(self, **leases: float) -> None:
        self.coordinator._leases = Leases(**leases)

    def change(self, text: str = "1,3") -> Change:
        return ended(self.request(text))

    def first_result_after_flip(self) -> None:
        """Let requests run: the first result of the new chain comes as soon as the route is flipped."""
        self.effects.idle = False
        self.effects.on_switch = self.coordinator.settled

    def no_result_after_flip(self) -> None:
        """Let requests run whose results never come."""
        self.effects.idle = False


@pytest.fixture
def bench() -> Iterator[Bench]:
    effects, journal = FakeEffects(), Journal()
    coordinator = Coordinator(effects, journal)
    yield Bench(effects, journal, coordinator)
    effects.open_all()
    coordinator.close()


def ended(change: Change) -> Change:
    assert change.ended.wait(DEADLINE_S), f"{change.id} did not end; its story: {change.machine.story}"
    return change


def state(change: Change) -> tuple[str, str | None]:
    report = change.report()
    return report["state"], report["reason"]


# -- commit ------------------------------------------------------------------------------------------------------------


def test_a_change_prepares_flips_and_releases_in_this_order(bench: Bench):
    bench.first_result_after_flip()
    change = bench.change()
    assert state(change) == ("committed", None)
    assert bench.effects.calls == ["plan", "prepare", "switch", "release"]
    assert str(bench.effects.serving) == "1,3"
    assert bench.coordinator.current is None


def test_an_idle_pipeline_commits_without_a_first_result(bench: Bench):
    assert state(bench.change()) == ("committed", None)


def test_a_change_between_nodes_copies_in_rounds_and_flips_with_the_delta(bench: Bench):
    bench.effects.rounds = [CopyRound(1000, 1.0, 600), CopyRound(600, 1.0, 0)]
    change = bench.change("2,2@b")
    assert bench.effects.calls == ["plan", "prepare", "copy_stale", "copy_stale", "switch and copy", "release"]
    assert (change.report()["rounds"], change.report()["bytes_moved"]) == (2, 1600)


def test_the_first_result_may_overtake_the_answer_of_the_switch(bench: Bench):
    bench.first_result_after_flip()
    gate = bench.effects.block("switch")
    change = bench.request()
    gate.wait_until_entered()
    assert state(change)[0] == "running"
    gate.open()
    assert state(ended(change)) == ("committed", None)


def test_a_first_result_of_another_epoch_commits_nothing(bench: Bench):
    bench.no_result_after_flip()
    bench.effects.on_switch = lambda epoch: bench.coordinator.settled(epoch - 1)
    bench.lease(cutover_s=SHORT_S)
    assert state(bench.change()) == ("aborted", "in step cutover: cutover took too long")


def test_a_change_commits_whatever_epochs_earlier_attempts_used_up(bench: Bench):
    """An attempt that is aborted after its chain was connected has used up an epoch."""
    bench.effects.fail("switch", RuntimeError("no"))
    bench.change()
    bench.first_result_after_flip()
    change = bench.change()
    assert state(change) == ("committed", None)
    assert change.report()["epoch"] == bench.effects.epochs


def test_a_report_has_the_agreed_fields(bench: Bench):
    before = time.time()
    bench.first_result_after_flip()
    report = bench.change().report()
    assert before <= report["started_at"] <= report["cutover_at"] <= report["ended_at"] <= time.time()
    assert set(report["steps_ms"]) == {"plan", "prepare", "cutover", "release"}
    assert report["total_ms"] >= 0
    agreed = {
        "id": "change-1",
        "state": "committed",
        "step": "committed",
        "from": "2,2",
        "to": "1,3",
        "epoch": 3,
        "reason": None,
        "rounds": 0,
        "bytes_moved": 0,
        "peak_extra_bytes": 4096,
        "requests_carried": 3,
    }
    assert {key: report[key] for key in agreed} == agreed


def test_a_change_under_way_reports_its_step_and_no_end(bench: Bench):
    gate = bench.effects.block("prepare")
    change = bench.request()
    gate.wait_until_entered()
    report = change.report()
    assert (report["state"], report["step"]) == ("running", "prepare")
    assert (report["ended_at"], report["cutover_at"]) == (None, None)
    assert bench.coordinator.current is change


def test_the_journal_tells_the_story_of_a_change(bench: Bench):
    bench.first_result_after_flip()
    change = bench.change()
    story = bench.journal.story(change.id)
    assert [entry.event for entry in story] == [
        "planned",
        "prepare",
        "stage prepared",
        "stage prepared",
        "cutover",
        "release",
        "stage released",
        "stage released",
        "committed",
        "ended",
    ]
    assert [(e.details["stage"], e.details["layers"]) for e in story if e.event == "stage prepared"] == [
        (0, "0-0"),
        (1, "1-3"),
    ]
    planned = {"from": "2,2", "to": "1,3", "state": "running", "ended_at": None}
    assert {key: story[0].details[key] for key in planned} == planned
    assert story[-1].details == change.report()
    assert story[-1].details["state"] == "committed"


# -- refused -----------------------------------------------------------------------------------------------------------


def test_a_second_change_is_refused_with_the_id_of_the_first(bench: Bench):
    gate = bench.effects.block("prepare")
    first = bench.request()
    with pytest.raises(ChangeBusy, match="change-1 is under way") as busy:
        bench.request("3,1")
    assert busy.value.change == first.id
    gate.open()
    assert state(ended(first))[0] == "committed"
    assert bench.effects.count("prepare") == 1


@pytest.mark.parametrize(("text", "error"), [("2,2", ChangeRefused), ("2,3", LayoutError), ("x", LayoutError)])
def test_a_refused_plan_leaves_nothing_behind_and_the_next_change_works(
    bench: Bench, text: str, error: type[Exception]
):
    with pytest.raises(error):
        bench.request(text)
    assert bench.coordinator.current is None
    assert bench.coordinator.last is None
    assert bench.journal.story() == []
    assert bench.effects.calls == ["plan"]
    assert state(bench.change()) == ("committed", None)


def test_an_unknown_change_is_told_apart(bench: Bench):
    with pytest.raises(ChangeUnknown, match="no change 'change-9'; known are: none yet"):
        bench.coordinator.find("change-9")
    change = bench.change()
    assert bench.coordinator.find("change-1") is change
    with pytest.raises(ChangeUnknown, match="known are: change-1"):
        bench.coordinator.cancel("change-9")


# -- aborted -----------------------------------------------------------------------------------------------------------


def test_i4_a_failed_preparation_is_interrupted_and_rolled_back_exactly_once(bench: Bench):
    bench.effects.fail("prepare", RuntimeError("stage-4 was ended by signal 9"))
    change = bench.change()
    assert state(change) == ("aborted", "in step prepare: stage-4 was ended by signal 9")
    assert bench.effects.calls == ["plan", "prepare", "interrupt", "roll_back"]
    assert str(bench.effects.serving) == "2,2"


@pytest.mark.parametrize(("effect", "step"), [("copy_stale", "pre_copy"), ("switch and copy", "cutover")])
def test_i4_a_failure_in_a_later_step_is_rolled_back_as_well(bench: Bench, effect: str, step: str):
    bench.effects.rounds = [CopyRound(1000, 1.0, 0)]
    bench.effects.fail(effect, RuntimeError("the link is down"))
    assert state(bench.change("2,2@b")) == ("aborted", f"in step {step}: the link is down")
    assert bench.effects.calls[-2:] == ["interrupt", "roll_back"]
    assert bench.effects.count("roll_back") == 1
    assert bench.effects.count("release") == 0


def test_i7_a_request_that_cannot_be_moved_aborts_the_change_with_its_words(bench: Bench):
    bench.effects.fail("switch", NotMovableError("request r-1 is computing prompt logprobs"))
    assert state(bench.change()) == ("aborted", "in step cutover: request r-1 is computing prompt logprobs")
    assert bench.effects.count("roll_back") == 1


def test_i4_a_stage_lost_after_the_flip_and_before_the_first_result_brings_the_old_chain_back(bench: Bench):
    bench.no_result_after_flip()
    bench.effects.on_switch = lambda _: bench.coordinator.post(Failed("stage-4 is gone"))
    assert state(bench.change()) == ("aborted", "in step cutover: stage-4 is gone")
    assert bench.effects.calls == ["plan", "prepare", "switch", "interrupt", "roll_back"]


def test_a_first_result_that_comes_just_after_the_abort_changes_nothing(bench: Bench):
    def lose_stage_then_settle(epoch: int) -> None:
        bench.coordinator.post(Failed("stage-4 is gone"))
        bench.coordinator.settled(epoch)

    bench.no_result_after_flip()
    bench.effects.on_switch = lose_stage_then_settle
    assert state(bench.change()) == ("aborted", "in step cutover: stage-4 is gone")
    assert bench.effects.calls == ["plan", "prepare", "switch", "interrupt", "roll_back"]


def test_a_stage_lost_after_the_commit_undoes_nothing(bench: Bench):
    bench.first_result_after_flip()
    gate = bench.effects.block("release")
    change = bench.request()
    gate.wait_until_entered()
    bench.coordinator.post(Failed("an old stage is gone"))
    gate.open()
    assert state(ended(change)) == ("committed", None)
    assert bench.effects.count("roll_back") == 0


@pytest.mark.parametrize("effect", ["prepare", "switch"])
def test_i4_cancelling_interrupts_the_effect_under_way_and_rolls_back(bench: Bench, effect: str):
    gate = bench.effects.block(effect)
    change = bench.request()
    gate.wait_until_entered()
    assert bench.coordinator.cancel(change.id) is change
    step = {"prepare": "prepare", "switch": "cutover"}[effect]
    assert state(ended(change)) == ("aborted", f"in step {step}: it was cancelled")
    assert bench.effects.calls[-2:] == ["interrupt", "roll_back"]


def test_cancelling_twice_or_after_the_end_does_nothing(bench: Bench):
    change = bench.change()
    calls = list(bench.effects.calls)
    bench.coordinator.cancel(change.id)
    bench.coordinator.cancel(change.id)
    assert state(change) == ("committed", None)
    assert bench.effects.calls == calls
    assert state(bench.change("3,1")) == ("committed", None)


def test_a_misfortune_without_a_change_under_way_stops_no_later_change(bench: Bench):
    for event in (Failed("a stage of nobody"), Cancelled("too late"), Settled()):
        bench.coordinator.post(event)
    bench.coordinator.settled(7)
    assert state(bench.change()) == ("committed", None)


@pytest.mark.parametrize(
    ("lease", "effect", "step"),
    [
        ("prepare_s", "prepare", "prepare"),
        ("pre_copy_s", "copy_stale", "pre_copy"),
        ("cutover_s", "switch and copy", "cutover"),
    ],
)
def test_i4_a_lapsed_lease_interrupts_what_hangs_and_rolls_back(bench: Bench, lease: str, effect: str, step: str):
    bench.effects.rounds = [CopyRound(1000, 1.0, 0)]
    bench.lease(**{lease: SHORT_S})
    bench.effects.block(effect)
    assert state(bench.change("2,2@b")) == ("aborted", f"in step {step}: {step} took too long")
    undone = [bench.effects.count(call) for call in ("interrupt", "roll_back", "release")]
    assert undone == [1, 1, 0]


def test_i4_a_flip_without_a_first_result_is_taken_back_when_its_lease_lapses(bench: Bench):
    bench.no_result_after_flip()
    bench.lease(cutover_s=SHORT_S)
    assert state(bench.change()) == ("aborted", "in step cutover: cutover took too long")
    undone = [bench.effects.count(call) for call in ("interrupt", "roll_back", "release")]
    assert undone == [1, 1, 0]


def test_a_roll_back_has_no_lease_and_ends_the_change_even_when_it_fails(bench: Bench):
    bench.lease(prepare_s=SHORT_S, cutover_s=SHORT_S, release_s=SHORT_S)
    bench.effects.block("prepare")
    bench.effects.fail("roll_back", RuntimeError("the old stages are gone too"))
    change = bench.change()
    assert state(change)[0] == "aborted"
    failures = [entry for entry in bench.journal.story(change.id) if entry.event == "failed"]
    assert failures[-1].details == {"what": "RollBack", "error": "the old stages are gone too"}


def test_after_an_abort_the_next_change_works(bench: Bench):
    bench.effects.fail("prepare", RuntimeError("no"))
    bench.change()
    assert state(bench.change()) == ("committed", None)
    assert [bench.coordinator.find(f"change-{n}").report()["state"] for n in (1, 2)] == ["aborted", "committed"]
    assert bench.coordinator.last is bench.coordinator.find("change-2")


# -- release -----------------------------------------------------------------------------------------------------------


def test_a_failing_release_does_not_block_the_commit(bench: Bench):
    bench.effects.fail("release", RuntimeError("stage-1 does not answer"))
    change = bench.change()
    assert state(change) == ("committed", None)
    assert "stage-1 does not answer" in [e.details.get("error") for e in bench.journal.story(change.id)]


def test_a_hanging_release_is_committed_when_its_lease_lapses(bench: Bench):
    bench.lease(release_s=SHORT_S)
    bench.effects.block("release", interruptible=False)
    assert state(bench.change()) == ("committed", None)
    assert bench.effects.count("roll_back") == 0


def test_what_a_release_says_late_is_not_taken_for_the_next_change(bench: Bench):
    bench.lease(release_s=SHORT_S)
    gate = bench.effects.block("release", interruptible=False)
    bench.change("1,3")
    second = bench.request("3,1")
    bench.lease()
    gate.open()
    assert state(ended(second)) == ("committed", None)


def test_an_effect_that_begins_after_its_change_ended_does_not_answer_to_the_next(bench: Bench):
    """The release waits behind a switch that hangs after the flip; meanwhile the change is committed by its lease."""
    bench.first_result_after_flip()
    bench.lease(release_s=SHORT_S)
    gate = bench.effects.block("switch", interruptible=False)
    bench.change("1,3")
    second = bench.request("3,1")
    bench.lease()
    gate.open()
    assert state(ended(second)) == ("committed", None)


# -- many --------------------------------------------------------------------------------------------------------------


def test_of_many_requests_at_once_exactly_one_is_accepted(bench: Bench):
    gate = bench.effects.block("prepare")
    barrier, outcomes = threading.Barrier(8), []

    def ask() -> None:
        barrier.wait(DEADLINE_S)
        try:
            outcomes.append(bench.request().id)
        except ChangeBusy as busy:
            outcomes.append(busy)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    gate.open()
    accepted = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert accepted == ["change-1"]
    assert {outcome.change for outcome in outcomes if isinstance(outcome, ChangeBusy)} == {"change-1"}
    assert state(ended(bench.coordinator.find("change-1")))[0] == "committed"


def test_old_reports_are_forgotten_but_the_newest_hundred_stay(bench: Bench):
    for number in range(101):
        bench.change("1,3" if number % 2 == 0 else "2,2")
    assert bench.coordinator.find("change-2").report()["state"] == "committed"
    with pytest.raises(ChangeUnknown):
        bench.coordinator.find("change-1")


# -- changes held back -------------------------------------------------------------------------------------------------


def test_a_change_is_refused_while_somebody_holds_changes_back(bench: Bench):
    assert bench.coordinator.hold("falling asleep")
    with pytest.raises(ChangeBusy, match="falling asleep is under way"):
        bench.request()
    bench.coordinator.let_go()
    bench.first_result_after_flip()
    assert state(bench.change()) == ("committed", None)


def test_changes_cannot_be_held_back_during_one_nor_twice(bench: Bench):
    gate = bench.effects.block("prepare")
    change = bench.request()
    gate.wait_until_entered()
    assert not bench.coordinator.hold("falling asleep")
    gate.open()
    bench.first_result_after_flip()
    ended(change)
    assert bench.coordinator.hold("falling asleep")
    assert not bench.coordinator.hold("somebody else")


def test_stopping_changes_undoes_the_one_under_way_and_waits_for_its_end(bench: Bench):
    bench.no_result_after_flip()
    change = bench.request()
    with bench.coordinator.stopped("recovery-1", "a serving stage was lost"):
        assert change.ended.is_set()
        with pytest.raises(ChangeBusy, match="recovery-1"):
            bench.request()
    outcome, reason = state(change)
    assert outcome == "aborted"
    assert "a serving stage was lost" in (reason or "")


def test_whoever_stops_changes_waits_for_whoever_holds_them_back_and_both_let_go_of_their_own(bench: Bench):
    assert bench.coordinator.hold("falling asleep")
    entered, leave = threading.Event(), threading.Event()

    def stop() -> None:
        with bench.coordinator.stopped("recovery-1", "lost"):
            entered.set()
            leave.wait(DEADLINE_S)

    thread = threading.Thread(target=stop)
    thread.start()
    assert not entered.wait(0.05)
    bench.coordinator.let_go()
    assert entered.wait(DEADLINE_S)
    assert not bench.coordinator.hold("falling asleep")
    leave.set()
    thread.join(DEADLINE_S)
    assert bench.coordinator.hold("falling asleep")


# -- precision ---------------------------------------------------------------------------------------------------------


def test_a_change_of_the_precision_alone_replaces_every_stage(bench: Bench):
    change = ended(bench.coordinator.request("", precision="bfloat16"))
    report = change.report()
    assert (report["from"], report["from_precision"]) == ("2,2", "")
    assert (report["to"], report["to_precision"]) == ("2,2", "bfloat16")
    events = [(entry.event, entry.details.get("stage")) for entry in bench.journal.story(change.id)]
    for event in ("stage prepared", "stage released"):
        assert [stage for told, stage in events if told == event] == [0, 1]


def test_who_loads_the_model_in_another_precision_has_a_longer_lease(bench: Bench):
    bench.lease(prepare_s=SHORT_S)
    gate = bench.effects.block("prepare")
    change = bench.coordinator.request("", precision="bfloat16")
    gate.wait_until_entered()
    assert not change.ended.wait(5 * SHORT_S)
    gate.open()
    assert state(ended(change)) == ("committed", None)
    bench.effects.block("prepare")
    assert "prepare took too long" in (state(bench.change("1,3"))[1] or "")
