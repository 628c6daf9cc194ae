"""What a head's journal tells, as events."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from runtime.events.catalogue import Type
from runtime.events.envelope import Event, read_http
from runtime.events.from_journal import from_journal, from_report
from runtime.migration.coordinator import Change, Coordinator
from runtime.migration.journal import Entry, Journal
from runtime.migration.protocol import Step
from tests.unit.runtime.migration.fake_effects import DEADLINE_S, FakeEffects

RECONFIGURATIONS = {
    Type.RECONFIGURATION_PLANNED,
    Type.RECONFIGURATION_COMMITTED,
    Type.RECONFIGURATION_ABORTED,
}


class Head:
    """A real coordinator over effects in memory, and the events of its journal."""

    def __init__(self) -> None:
        self.effects, self.journal = FakeEffects(), Journal()
        self.coordinator = Coordinator(self.effects, self.journal)
        self.events: list[Event] = []
        self.journal.listen(self.hear)

    def hear(self, entry: Entry) -> None:
        event = from_journal(entry, "smollm", self.coordinator.boot)
        if event is not None:
            self.events.append(event)

    @property
    def reconfigurations(self) -> list[Event]:
        return [event for event in self.events if event.type in RECONFIGURATIONS]

    def change(self, text: str, request: str | None = None) -> Change:
        change = self.coordinator.request(text, request=request)
        assert change.ended.wait(DEADLINE_S)
        return change


@pytest.fixture
def head() -> Iterator[Head]:
    head = Head()
    yield head
    head.effects.open_all()
    head.coordinator.close()


def test_a_change_that_succeeds_is_planned_and_committed(head: Head):
    report = head.change("1,3", "/me#a%20request").report()
    planned, committed = head.reconfigurations
    boot = head.coordinator.boot
    assert (planned.type, planned.id) == (Type.RECONFIGURATION_PLANNED, f"{boot}.change-1.planned")
    assert (committed.type, committed.id) == (Type.RECONFIGURATION_COMMITTED, f"{boot}.change-1.committed")
    assert planned.source == committed.source == "/midstream/pipelines/smollm"
    assert planned.subject == committed.subject == "smollm"
    assert planned.data["steps_ms"].keys() == {Step.PLAN}
    assert committed.data == {
        "pipeline": "smollm",
        "change": "change-1",
        "from": "2,2",
        "to": "1,3",
        "state": "committed",
        "reason": None,
        "total_ms": report["total_ms"],
        "steps_ms": report["steps_ms"],
        "bytes_moved": report["bytes_moved"],
        "rounds": 0,
        "requests_carried": report["requests_carried"],
        "epoch": report["epoch"],
        "request": "a request",
        "unchanged": False,
        "pause_ms": report["pause_ms"],
    }
    assert committed.time.timestamp() == pytest.approx(report["ended_at"], abs=1e-5)


def test_a_change_that_fails_is_planned_and_aborted_with_the_reason(head: Head):
    head.effects.fail("prepare", RuntimeError("x" * 10_000))
    head.change("1,3")
    planned, aborted = head.reconfigurations
    assert (planned.data["reason"], planned.data["request"]) == (None, None)
    assert (aborted.type, aborted.data["state"]) == (Type.RECONFIGURATION_ABORTED, "aborted")
    assert aborted.data["reason"].startswith("in step prepare: xxx")
    assert len(aborted.data["reason"]) == 4000


def test_who_has_the_report_makes_the_same_event(head: Head):
    report = head.change("1,3", "/me#1").report()
    assert from_report(report, "smollm") == head.events[-1]


def test_changes_of_another_start_of_the_head_have_other_ids(head: Head):
    other = Head()
    for one in (head, other):
        one.change("1,3")
    other.coordinator.close()
    assert not {event.id for event in head.events} & {event.id for event in other.events}


@pytest.mark.parametrize(
    ("key", "request_id"), [("/me#1", "1"), ("/a%23b#c%23d", "c#d"), ("by hand", "by hand"), ("#", "")]
)
def test_a_change_names_the_event_that_asked_for_it(head: Head, key: str, request_id: str):
    head.change("1,3", key)
    assert {event.data["request"] for event in head.reconfigurations} == {request_id}


def test_between_the_two_stages_come_and_go(head: Head):
    head.effects.idle, head.effects.on_switch = False, head.coordinator.settled
    head.change("2,1,1")
    assert [(event.type, event.data.get("stage")) for event in head.events] == [
        (Type.RECONFIGURATION_PLANNED, None),
        (Type.STAGE_PREPARED, 1),
        (Type.STAGE_PREPARED, 2),
        (Type.STAGE_RELEASED, 1),
        (Type.RECONFIGURATION_COMMITTED, None),
    ]
    assert len({event.key for event in head.events}) == 5


@pytest.mark.parametrize(
    ("event", "kind"), [("stage prepared", Type.STAGE_PREPARED), ("stage released", Type.STAGE_RELEASED)]
)
def test_stages_that_come_and_go(event: str, kind: Type):
    told = from_journal(Entry(5.0, "change-2", event, {"stage": 1, "node": "edge-1", "ms": 81.5}), "smollm", "b007")
    assert told is not None
    assert (told.type, told.subject) == (kind, "smollm")
    assert told.id == f"b007.change-2.stage-1.{kind.rpartition('.')[2]}"
    assert told.data == {"pipeline": "smollm", "stage": 1, "node": "edge-1", "change": "change-2", "ms": 81.5}


def test_nodes_that_come_and_go_are_subjects_of_their_own():
    entries = [
        Entry(1.0, "pipeline", "node ready", {"node": "edge-1", "weights_were_warm": False}),
        Entry(2.0, "pipeline", "node lost", {"node": "edge-1", "reason": "no heartbeat for 5 s"}),
        Entry(3.0, "pipeline", "node ready", {"node": "edge-1", "weights_were_warm": True}),
    ]
    told = [event for entry in entries if (event := from_journal(entry, "smollm", "b007"))]
    assert [event.type for event in told] == [Type.NODE_JOINED, Type.NODE_LOST, Type.NODE_JOINED]
    assert {event.subject for event in told} == {"edge-1"}
    assert [event.id for event in told] == [
        "b007.edge-1.1000000.joined",
        "b007.edge-1.2000000.lost",
        "b007.edge-1.3000000.joined",
    ]
    assert told[1].data["reason"] == "no heartbeat for 5 s"
    assert told == [from_journal(replace(entry), "smollm", "b007") for entry in entries]


def test_everything_else_is_nobodys_business():
    journal = Journal()
    journal.tell("chatcmpl-1", "started", epoch=1, prompt_tokens=5)
    journal.tell("chatcmpl-1", "ended", epoch=1)
    journal.tell("change-1", "cutover")
    journal.tell("pipeline", "node still lost", node="edge-1", reason="no")
    journal.tell("pipeline", "serving", layers="2,2", epoch=1)
    assert [from_journal(entry, "smollm", "b007") for entry in journal.story()] == [None] * 5


def test_what_is_told_can_be_read_by_whoever_hears_it(head: Head):
    head.change("1,3")
    for event in head.events:
        assert read_http(*event.to_http_binary()) == event == read_http(*event.to_http_structured())
