"""The drift loop as a state machine: inputs in, instructions out."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema

from intents.proof.drift import (
    Changed,
    ChangeKind,
    Close,
    Closed,
    Drift,
    Input,
    Instruction,
    Observe,
    Phase,
    Planned,
    Replan,
    Seen,
    Settled,
    Violated,
    event_data,
)
from intents.proof.report import Check, Report

GOOD = Report((Check("chat", "rule", ("n1",), True, "fine", "i"),))
LACK = Check("chat -> store", "rule", ("s1 > s2",), False, "cannot be reached", "i")
BREACH = Check("chat", "rule", ("n3",), False, "runs in the US", "i", breach=True)
LACKING = Report((LACK,))
BREACHED = Report((LACK, BREACH))


def seen(report: Report, at_s: float, state: str = "1") -> Seen:
    return Seen(at_s - 0.1, at_s, report, state)


def told(drift: Drift, *given: Input) -> tuple[Drift, list[Instruction]]:
    """Feed inputs; return the instructions of the last one."""
    instructions: tuple[Instruction, ...] = ()
    for each in given:
        drift, instructions = drift.handle(each)
    return drift, list(instructions)


FAILED = Changed(5.0, ChangeKind.LINK_FAILED, "s1-s2")


def test_a_change_makes_it_look():
    assert told(Drift(), FAILED)[1] == [Observe()]


def test_what_holds_asks_for_nothing():
    drift, instructions = told(Drift(), FAILED, seen(GOOD, 6))
    assert (drift.phase, instructions, drift.changes) == (Phase.WATCHING, [], ())


def test_what_does_not_hold_is_told_and_planned_anew():
    drift, instructions = told(Drift(), FAILED, seen(LACKING, 6))
    assert drift.phase is Phase.REPLANNING
    assert instructions == [Violated("i", "chat -> store: cannot be reached", ("s1 > s2",)), Replan()]


def test_a_breach_is_closed_before_planning():
    _, instructions = told(Drift(), FAILED, seen(BREACHED, 6))
    assert instructions[1:] == [Close((BREACH,)), Replan()]


def test_a_plan_that_was_applied_is_confirmed_by_looking():
    drift, instructions = told(Drift(), FAILED, seen(LACKING, 6), Planned(7, found=True, applied=True))
    assert (drift.phase, instructions) == (Phase.CONFIRMING, [Observe()])
    drift, instructions = told(drift, seen(GOOD, 8))
    assert drift.phase is Phase.WATCHING
    assert instructions == [Settled("re-established", ("link_failed: s1-s2",), detect_s=1.0, compliant_s=3.0)]


def test_without_a_dated_change_time_counts_from_when_it_last_held():
    drift, _ = told(Drift(), seen(GOOD, 2), seen(LACKING, 6), Planned(7, found=True, applied=True))
    assert told(drift, seen(GOOD, 8))[1] == [Settled("re-established", (), detect_s=6 - 1.9, compliant_s=8 - 1.9)]


def test_without_a_plan_all_that_is_not_proven_is_closed():
    drift, instructions = told(Drift(), FAILED, seen(BREACHED, 6), Planned(7, found=False, applied=False))
    assert (drift.phase, instructions) == (Phase.CLOSED, [Close((LACK, BREACH))])
    drift, instructions = told(drift, Closed(8, done=True))
    assert instructions == [Settled("closed", ("link_failed: s1-s2",), detect_s=1.0, compliant_s=3.0), Observe()]


def test_a_plan_is_tried_so_many_times():
    drift, instructions = told(Drift(attempts=2), seen(LACKING, 6), Planned(7, found=True, applied=False))
    assert instructions == [Replan()]
    drift, _ = told(drift, Planned(8, found=True, applied=True))
    drift, instructions = told(drift, seen(LACKING, 9))
    assert (drift.phase, instructions) == (Phase.CLOSED, [Close((LACK,))])


def test_closed_stays_closed_until_the_snapshot_changes():
    drift, _ = told(Drift(), seen(LACKING, 6), Planned(7, found=False, applied=False), Closed(8, done=True))
    drift, instructions = told(drift, seen(LACKING, 9))
    assert (drift.phase, instructions) == (Phase.CLOSED, [])
    drift, instructions = told(drift, seen(LACKING, 10, state="2"))
    assert (drift.phase, instructions) == (Phase.REPLANNING, [Replan()])


def test_a_breach_in_what_was_closed_is_closed_again():
    drift, _ = told(Drift(), seen(LACKING, 6), Planned(7, found=False, applied=False), Closed(8, done=True))
    drift, instructions = told(drift, seen(BREACHED, 9))
    assert instructions == [Close((LACK, BREACH))]
    assert told(drift, Closed(10, done=True))[1] == []


def test_closing_is_tried_again_then_with_the_next_look():
    drift, _ = told(Drift(attempts=2), seen(BREACHED, 6), Planned(7, found=False, applied=False))
    drift, instructions = told(drift, Closed(8, done=False))
    assert instructions == [Close((LACK, BREACH))]
    drift, instructions = told(drift, Closed(9, done=False))
    assert instructions == []
    assert told(drift, seen(BREACHED, 10))[1] == [Close((LACK, BREACH))]


def test_what_heals_by_itself_is_opened_by_nobody_else():
    drift, _ = told(Drift(), FAILED, seen(LACKING, 6), Planned(7, found=False, applied=False), Closed(8, done=True))
    drift, instructions = told(drift, seen(GOOD, 20))
    assert drift.phase is Phase.WATCHING
    assert instructions == [Settled("healed", ("link_failed: s1-s2",), detect_s=1.0, compliant_s=15.0)]


def test_a_change_during_reading_is_kept_for_the_next_look():
    late = Changed(5.95, ChangeKind.POD_MOVED, "chat")
    drift, _ = told(Drift(), late, seen(GOOD, 6))
    assert drift.changes == (late,)


def test_an_unreadable_state_is_every_intents_violation():
    broken = Report((*GOOD.checks, Check("snapshot", "is current", (), False, "out of date", breach=True)))
    _, instructions = told(Drift(), seen(broken, 6))
    assert instructions[0] == Violated("i", "snapshot: out of date", ())


def test_the_event_has_the_shape_that_its_schema_asks_for():
    file = Path(__file__).parents[4] / "runtime" / "events" / "schemas" / "dev.midstream.intent.violated.json"
    long = Check("chat", "rule", tuple("x" * 300 + str(n) for n in range(2000)), False, "y" * 5000, "i")
    _, instructions = told(Drift(), seen(Report((long,)), 6))
    assert isinstance(instructions[0], Violated)
    jsonschema.validate(event_data(instructions[0], "pipeline-1"), json.loads(file.read_text()))
