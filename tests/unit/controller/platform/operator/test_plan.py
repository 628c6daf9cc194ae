"""What is decided about a pipeline: a table of situations, and what holds in all of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.platform.operator.head import ChangeReport, HeadAway, HeadReport, Refusal
from controller.platform.operator.plan import (
    PATIENCE_S,
    Memory,
    Observed,
    Trouble,
    back_off,
    decide,
)
from controller.platform.operator.status import rejected, terminating

NOW = 1_800_000_000.0
KEY = "/midstream/operator#u1/2"
ASKED = Memory(generation=2, boot="b1", state="asked", at=NOW - 1)
LATE = Memory(generation=2, boot="b1", state="asked", at=NOW - PATIENCE_S)
SETTLED = Memory(generation=2, boot="b1", state="settled")
OLD_ASKED = Memory(generation=1, boot="b1", state="asked")
OLD_SETTLED = Memory(generation=1, boot="b1", state="settled")
OTHER_BOOT = Memory(generation=2, boot="b0", state="settled")


def head(layers: str = "2,2", **facts: Any) -> HeadReport:
    return HeadReport(boot="b1", epoch=3, phase=facts.pop("phase", "serving"), layers=layers, total_layers=4, **facts)


def report(state: str = "committed", request: str | None = KEY, **facts: Any) -> ChangeReport:
    return ChangeReport(id="change-1", boot="b1", state=state, request=request, **facts)


def observed(**facts: Any) -> Observed:
    seen = {"head": head(), "wanted": "1,2,1", "pod_started": True, **facts}
    return Observed(uid="u1", generation=2, now=NOW, **seen)


def condition(status: dict[str, Any], kind: str) -> tuple[str, str]:
    (told,) = (told for told in status["conditions"] if told["type"] == kind)
    return told["status"], told["reason"]


@pytest.mark.parametrize(
    ("facts", "act", "reconfigured", "memory"),
    [
        # Nothing was asked for this generation.
        ({}, "request", ("Unknown", "Requested"), ASKED),
        ({"wanted": "2,2"}, None, ("True", "Serving"), SETTLED),
        ({"memory": OLD_SETTLED}, "request", ("Unknown", "Requested"), ASKED),
        ({"memory": OLD_SETTLED, "wanted": "2,2"}, None, ("True", "Serving"), SETTLED),
        ({"memory": OLD_ASKED, "wanted": "2,2"}, "request", ("Unknown", "Requested"), ASKED),
        ({"memory": OTHER_BOOT}, "request", ("Unknown", "Requested"), ASKED),
        ({"head": head(change="change-7")}, None, ("Unknown", "Waiting"), None),
        # It was asked for.
        ({"memory": ASKED}, None, ("Unknown", "Requested"), None),
        ({"memory": LATE}, "inquire", ("Unknown", "Requested"), None),
        ({"memory": ASKED, "event_failed": True}, "inquire", ("Unknown", "Requested"), None),
        ({"memory": LATE, "head": head(change="change-1")}, None, ("Unknown", "Changing"), None),
        ({"memory": ASKED, "head": head("1,2,1", last_change=report())}, None, ("True", "Serving"), SETTLED),
        ({"memory": ASKED, "head": head(last_change=report("aborted"))}, None, ("False", "Aborted"), SETTLED),
        ({"memory": ASKED, "head": head(last_change=report(request="k"))}, None, ("Unknown", "Requested"), None),
        ({"memory": LATE, "head": head(last_change=report(request=None))}, "inquire", ("Unknown", "Requested"), None),
        # The head has answered.
        ({"memory": LATE, "answer": report()}, None, ("True", "Serving"), SETTLED),
        ({"memory": LATE, "answer": report("running")}, None, ("Unknown", "Requested"), None),
        ({"memory": LATE, "answer": Refusal("unchanged", "m")}, None, ("True", "Serving"), SETTLED),
        ({"memory": LATE, "answer": Refusal("invalid", "m")}, None, ("False", "Refused"), SETTLED),
        ({"memory": LATE, "answer": Refusal("superseded", "m")}, None, ("False", "Superseded"), SETTLED),
        ({"memory": LATE, "answer": Refusal("forbidden", "m")}, None, ("False", "Forbidden"), SETTLED),
        ({"memory": LATE, "answer": Refusal("busy", "m")}, None, ("Unknown", "Waiting"), None),
        ({"memory": LATE, "answer": HeadAway("Unreachable", "m")}, None, ("Unknown", "Requested"), None),
        # It was settled: it is not asked for again.
        ({"memory": SETTLED}, None, ("True", "ChangedSince"), None),
        ({"memory": SETTLED, "wanted": "2,2"}, None, ("True", "Serving"), None),
        # It cannot be asked for.
        ({"wanted": None, "unwanted": "no such node"}, None, ("False", "Impossible"), None),
        ({"wanted": None}, None, ("Unknown", "HeadAway"), None),
        ({"head": HeadAway("Unreachable", "gone")}, None, ("Unknown", "HeadAway"), None),
        ({"restarting": True}, None, ("Unknown", "HeadAway"), None),
    ],
)
def test_how_an_edit_becomes_a_change(
    facts: dict[str, Any], act: str | None, reconfigured: tuple[str, str], memory: Memory | None
) -> None:
    decision = decide(observed(**facts))
    assert (decision.request is not None, decision.inquire is not None) == (act == "request", act == "inquire")
    assert condition(decision.status, "Reconfigured") == reconfigured
    if memory is not None:
        assert decision.memory is not None
        kept = decision.memory
        assert (kept.state, kept.generation, kept.boot) == (memory.state, memory.generation, memory.boot)
    else:
        assert decision.memory is None
    asked = decision.request or decision.inquire
    if asked is not None:
        assert (asked.key, asked.layers, asked.generation) == (KEY, facts.get("wanted", "1,2,1"), 2)


def test_a_refusal_is_repeated_until_the_next_edit() -> None:
    refused = decide(observed(memory=LATE, answer=Refusal("invalid", "no memory"))).status
    later = decide(observed(memory=SETTLED, status=refused))
    assert condition(later.status, "Reconfigured") == ("False", "Refused")
    assert later.request is None
    assert later.inquire is None
    assert later.status == refused
    edited = decide(dataclasses.replace(observed(memory=SETTLED, status=refused), generation=3))
    assert edited.request is not None


@pytest.mark.parametrize(
    ("facts", "phase", "ready"),
    [
        ({"wanted": "2,2"}, "Serving", ("True", "Serving")),
        ({"memory": ASKED}, "Changing", ("Unknown", "Requested")),
        ({"memory": ASKED, "head": head(change="change-1", phase="copying")}, "Changing", ("Unknown", "Changing")),
        ({"wanted": "2,2", "head": head(phase="asleep")}, "Asleep", ("True", "Asleep")),
        ({"wanted": "2,2", "head": head(phase="waking")}, "Waking", ("False", "Waking")),
        ({"wanted": "2,2", "head": head(phase="recovering")}, "Recovering", ("False", "Recovering")),
        ({"wanted": "2,2", "head": head(phase="forbidden")}, "Forbidden", ("False", "Forbidden")),
        ({"wanted": "2,2", "head": head(phase="failed")}, "Failed", ("False", "HeadFailed")),
        ({"head": HeadAway("Unreachable", "gone")}, "Failed", ("False", "HeadUnreachable")),
        ({"head": HeadAway("Starting", "soon"), "pod_started": False}, "Starting", ("False", "Starting")),
        (
            {"head": HeadAway("Starting", "soon"), "pod_started": False, "pod_trouble": "CrashLoopBackOff"},
            "Failed",
            ("False", "HeadFailed"),
        ),
        (
            {"head": HeadAway("Starting", "-"), "pod_started": False, "applied": Trouble("Unplaced", "no node")},
            "Pending",
            ("False", "Unplaced"),
        ),
        ({"restarting": True}, "Starting", ("False", "Restarting")),
    ],
)
def test_phase_and_ready(facts: dict[str, Any], phase: str, ready: tuple[str, str]) -> None:
    status = decide(observed(**facts)).status
    assert status["phase"] == phase
    assert condition(status, "Ready") == ready


def test_what_was_seen_last_stays_while_the_head_is_away() -> None:
    stages = ()
    before = decide(observed(head=head(last_change=report(pause_ms=12.5), stages=stages), wanted="2,2")).status
    after = decide(observed(head=HeadAway("Unreachable", "gone"), status=before)).status
    for field in ("layout", "epoch", "stages", "stageCount", "lastChange", "lastPauseMs"):
        assert after[field] == before[field]


def test_times_of_conditions_are_those_of_their_last_change() -> None:
    before = decide(observed(wanted="2,2")).status
    later = dataclasses.replace(observed(wanted="2,2", memory=SETTLED, status=before), now=NOW + 60)
    assert decide(later).status == before
    lost = decide(dataclasses.replace(later, head=HeadAway("Unreachable", "gone"))).status
    times = {told["type"]: told["lastTransitionTime"] for told in lost["conditions"]}
    assert times["Applied"] < times["Available"]


def test_a_head_that_cannot_be_reached_is_asked_less_and_less() -> None:
    waits = [decide(observed(head=HeadAway("Unreachable", "gone"), failures=n)).retry_s for n in (0, 1, 3, 10)]
    assert waits == [1.0, 2.0, 8.0, 60.0]
    assert [back_off(n) for n in (0, 1, 3, 10, 1000)] == [1.0, 2.0, 8.0, 60.0, 60.0]


def test_ends_and_rejections_are_never_ready() -> None:
    before = decide(observed(wanted="2,2")).status
    for status in (terminating(before, 2, "bye", NOW), rejected(before, 2, "no", NOW)):
        assert condition(status, "Ready")[0] == "False"
    assert terminating(before, 2, "bye", NOW)["phase"] == "Terminating"
    assert rejected(before, 2, "no", NOW)["layout"] == "2,2"


_PHASES = ["serving", "planned", "copying", "asleep", "waking", "recovering", "failed"]
_LAYOUTS = ["2,2", "1,2,1", "4"]
_WORDS = ["forbidden", "invalid", "superseded", "unchanged", "busy", "access_denied", None]
_memories = st.none() | st.builds(
    Memory,
    generation=st.integers(1, 3),
    boot=st.sampled_from(["b0", "b1"]),
    state=st.sampled_from(["asked", "settled"]),
    at=st.floats(NOW - 100, NOW),
)
_reports = st.builds(
    ChangeReport,
    id=st.just("change-1"),
    boot=st.just("b1"),
    state=st.sampled_from(["running", "committed", "aborted"]),
    request=st.sampled_from([KEY, "k", None]),
)
_away = st.builds(HeadAway, st.sampled_from(["Unreachable", "Refused", "Unknown", "Starting"]), st.just("away"))
_heads = st.builds(
    HeadReport,
    boot=st.just("b1"),
    epoch=st.integers(1, 9),
    phase=st.sampled_from(_PHASES),
    layers=st.sampled_from(_LAYOUTS),
    total_layers=st.just(4),
    change=st.sampled_from([None, "change-1"]),
    last_change=st.none() | _reports,
)
_worlds = st.builds(
    Observed,
    uid=st.just("u1"),
    generation=st.just(2),
    now=st.just(NOW),
    head=_heads | _away,
    wanted=st.none() | st.sampled_from(_LAYOUTS),
    unwanted=st.none() | st.just("no such node"),
    applied=st.none() | st.builds(Trouble, st.just("Rejected"), st.just("no"), st.booleans()),
    restarting=st.booleans(),
    pod_started=st.booleans(),
    pod_trouble=st.none() | st.just("CrashLoopBackOff"),
    memory=_memories,
    answer=st.none() | _away | _reports | st.builds(Refusal, st.sampled_from(_WORDS), st.just("no")),
    event_failed=st.booleans(),
    failures=st.integers(0, 20),
)


@given(_worlds, _worlds)
def test_ready_is_never_claimed_when_it_is_not(before: Observed, now: Observed) -> None:
    seen = dataclasses.replace(now, status=decide(before).status)
    status = decide(seen).status
    conditions = {told["type"]: told["status"] for told in status["conditions"]}
    if conditions["Ready"] == "True":
        assert set(conditions.values()) == {"True"}
        assert isinstance(seen.head, HeadReport)
        assert seen.head.phase not in {"waking", "recovering", "failed"}
        assert seen.applied is None
        assert not seen.restarting
        assert seen.unwanted is None
        assert status["phase"] in {"Serving", "Changing", "Asleep"}
    parts = [conditions[kind] for kind in ("Applied", "Available", "Reconfigured")]
    assert (conditions["Ready"] == "False") == ("False" in parts)


@given(_worlds)
def test_it_asks_only_a_head_that_is_there_and_never_hot(seen: Observed) -> None:
    decision = decide(seen)
    assert decision.request is None or decision.inquire is None
    if decision.request or decision.inquire:
        assert isinstance(seen.head, HeadReport)
        assert seen.head.change is None
        assert not seen.restarting
        assert seen.unwanted is None
    if decision.request:
        assert decision.memory is not None
        assert decision.memory.state == "asked"
        # What is written down is enough not to ask again.
        assert decide(dataclasses.replace(seen, memory=decision.memory)).request is None
    assert decision.retry_s >= 1.0
    for told in decision.status["conditions"]:
        assert told["message"]
        assert told["observedGeneration"] == 2
