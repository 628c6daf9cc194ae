"""What a head's word means for an object that was proposed, and which events are a head's."""

from __future__ import annotations

from typing import Any

import pytest

from controller.platform.local.head_status import (
    ChangeReport,
    HeadStatus,
    outcome,
    read_report,
    read_status,
    read_told,
)
from controller.platform.local.state import Applied, Proposed
from runtime.events.errors import EventError
from tests.unit.controller.platform.small_platform import committed, told

WAITS = Proposed("r", "/s#r", "8,12,10", Applied(5, {}))


def report(state: str, request: str | None = "/s#r") -> ChangeReport:
    return ChangeReport("change-1", state, "8,12,10", request)


@pytest.mark.parametrize(
    ("says", "serves"),
    [
        ({"last_change": report("committed")}, True),
        ({"last_change": report("aborted"), "generation": 5}, False),
        ({"last_change": report("running"), "change": "change-1", "generation": 5}, None),
        ({"last_change": report("committed", "/other#r")}, None),
        ({"last_change": report("committed", None)}, None),
        ({"wanted": "8,12,10", "generation": 5}, True),
        ({"wanted": "8,12,10", "generation": 6}, True),
        ({"wanted": "8,12,10", "generation": 6, "change": "change-2"}, None),
        ({"wanted": "8,12,10", "generation": 4}, None),
        ({"wanted": "15,15", "generation": 5}, None),
        ({"wanted": "15,15", "generation": 6}, False),
        ({}, None),
    ],
)
def test_what_became_of_a_proposed_object(says: dict[str, Any], serves: bool | None):
    assert outcome(WAITS, HeadStatus("boot", **says)) is serves


def test_the_end_of_its_change_counts_although_others_came_after_it():
    later = HeadStatus("boot", wanted="15,15", generation=6, last_change=report("aborted", "/s#r2"))
    assert outcome(WAITS, later, [report("committed", None), report("committed")]) is True


@pytest.mark.parametrize("answer", [None, [], "x", {}, {"boot": 3}, {"boot": "b", "last_change": {"id": 1}}])
def test_an_answer_that_makes_no_sense_is_none(answer: object):
    assert read_status(answer) is None
    assert read_report(answer) is None


def test_of_an_answer_only_what_is_needed_is_read():
    last = {"id": "change-1", "state": "running", "to": "30", "request": None, "epoch": 3}
    status = read_status({"boot": "b", "wanted": "30", "generation": 2, "layers": "30", "last_change": last})
    assert status == HeadStatus("b", "30", 2, None, ChangeReport("change-1", "running", "30"))


def test_only_a_heads_events_are_read():
    event = read_told(committed("30").event, "small")
    assert event is not None
    assert event.data["to"] == "30"
    assert read_told(committed("30").event, "other") is None
    assert read_told(told("dev.midstream.stage.prepared", {}).event, "small") is None


@pytest.mark.parametrize("data", [None, "text", [], {}, {"to": 3}])
def test_what_says_that_it_is_a_heads_but_is_not_is_an_error(data: object):
    with pytest.raises(EventError):
        read_told(told("dev.midstream.reconfiguration.committed", data).event, "small")
