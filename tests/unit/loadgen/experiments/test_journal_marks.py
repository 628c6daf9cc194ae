import json
from typing import TYPE_CHECKING, Any, cast

import httpx
import pytest

from loadgen.clock import now_ns, unix_offset_ns
from loadgen.errors import ControlError, MeasurementError
from loadgen.experiments.axis import Axis
from loadgen.experiments.journal_marks import BrokerReader, JournalReader, broker_mark, journal_mark
from loadgen.experiments.schema import BrokerMarks, JournalMarks
from loadgen.results.columns import MarkRow

if TYPE_CHECKING:
    from loadgen.experiments.tally import Tally
    from loadgen.experiments.target_control import TargetControl

EVENTS = JournalMarks(kind="journal").events
AXIS = Axis(now_ns() - 100 * 1_000_000_000)  # a run that began 100 s ago
MS = 1_000_000


def unix(at_s: float) -> float:
    """Return unix seconds of a moment of the run."""
    return (AXIS.zero_ns + at_s * 1e9 + unix_offset_ns()) / 1e9


def entry(event: str, at_s: float, subject: str = "pipeline", **details: Any) -> dict[str, Any]:
    return {"at": unix(at_s), "subject": subject, "event": event, **details}


class Marks:
    """Stands in for a tally: keeps marks."""

    def __init__(self) -> None:
        self.rows: list[MarkRow] = []

    def mark(self, row: MarkRow) -> None:
        self.rows.append(row)


def test_what_took_time_spans_it_and_ends_where_it_was_told():
    row = journal_mark(entry("recovered", 50, "recovery-1", total_ms=200.0), EVENTS, AXIS, set())
    assert row is not None
    assert (row.name, row.kind, row.source) == ("recovery-1 recovered", "recovery", "journal")
    assert row.end_ns - row.start_ns == 200 * MS
    assert row.end_ns == pytest.approx(50e9, abs=5 * MS)


def test_a_moment_is_an_instant():
    row = journal_mark(entry("asleep", 50), EVENTS, AXIS, set())
    assert row is not None
    assert (row.name, row.kind, row.start_ns) == ("asleep", "asleep", row.end_ns)


def test_a_change_by_somebody_else_is_marked_and_our_own_is_not_marked_twice():
    ended = entry("ended", 50, "change-3", total_ms=100.0, state="committed", steps_ms={"cutover": 9.0})
    row = journal_mark(ended, EVENTS, AXIS, set())
    assert row is not None
    assert (row.name, row.kind) == ("change-3", "reconfigure")
    assert json.loads(row.detail)["state"] == "committed"
    assert journal_mark(ended, EVENTS, AXIS, {"change-3"}) is None


def test_what_was_before_the_run_and_what_nobody_wants_is_left_out():
    assert journal_mark(entry("asleep", -1), EVENTS, AXIS, set()) is None
    assert journal_mark(entry("prepare", 50, "change-3"), EVENTS, AXIS, set()) is None


def test_the_end_of_a_request_is_no_mark():
    assert journal_mark(entry("ended", 50, "cmpl-7", tokens=3), EVENTS, AXIS, set()) is None


async def test_the_journal_is_read_again_and_again_and_each_entry_marked_once():
    told: list[dict[str, Any]] = []

    class Control:
        async def story(self) -> list[dict[str, Any]]:
            if not told:
                raise ControlError("the server restarts")
            return told

    marks = Marks()
    reader = JournalReader(cast("TargetControl", Control()), EVENTS, AXIS, cast("Tally", marks), set())
    await reader.read()
    told.append(entry("asleep", 40))
    await reader.read()
    told.append(entry("awake", 45, total_ms=700.0))
    await reader.read()
    assert [row.name for row in marks.rows] == ["asleep", "awake"]


def ring(kind: str, at_s: float, **data: Any) -> dict[str, Any]:
    return {"sequence": 1, "at": unix(at_s), "event": {"type": kind, "id": "e", "source": "s", "data": data}}


def test_an_event_is_marked_by_its_type():
    row = broker_mark(ring("dev.midstream.reconfiguration.committed", 50, total_ms=264.2), AXIS)
    assert row is not None
    assert (row.name, row.kind, row.source) == ("dev.midstream.reconfiguration.committed", "reconfigure", "broker")
    assert row.end_ns - row.start_ns == 264_200_000
    other = broker_mark(ring("dev.midstream.intent.submitted", 50, total_ms=True), AXIS)
    assert other is not None
    assert (other.kind, other.start_ns) == ("intent", other.end_ns)


def test_an_event_before_the_run_is_left_out():
    assert broker_mark(ring("a.b.c", -5), AXIS) is None


def broker(pages: list[dict[str, Any]], asked: list[dict[str, str]]) -> httpx.MockTransport:
    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(dict(request.url.params))
        return httpx.Response(200, json=pages.pop(0))

    return httpx.MockTransport(answer)


async def test_only_what_comes_from_now_on_is_marked_and_nothing_twice():
    marks, asked = Marks(), list[dict[str, str]]()
    pages = [
        {"events": [], "next": 41, "missed": False},
        {"events": [ring("a.b.c", 50)], "next": 42, "missed": False},
        {"events": [], "next": 42, "missed": False},
    ]
    source = BrokerMarks(kind="broker", subject="default")
    async with BrokerReader(source, AXIS, cast("Tally", marks), broker(pages, asked)) as reader:
        await reader.read()
        await reader.read()
    assert [row.name for row in marks.rows] == ["a.b.c"]
    assert [query["after"] for query in asked] == ["latest", "41", "42"]
    assert asked[1]["subject"] == "default"


async def test_events_that_were_lost_end_the_run_because_marks_would_be_missing():
    pages = [{"events": [], "next": 41, "missed": False}, {"events": [], "next": 2, "missed": True}]
    source = BrokerMarks(kind="broker")
    async with BrokerReader(source, AXIS, cast("Tally", Marks()), broker(pages, [])) as reader:
        with pytest.raises(MeasurementError, match="marks would be missing"):
            await reader.read()


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"error": 1}'])
async def test_what_is_no_broker_is_named(content: str):
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=content))
    with pytest.raises(MeasurementError, match=r"http://127\.0\.0\.1:8090"):
        async with BrokerReader(BrokerMarks(kind="broker"), AXIS, cast("Tally", Marks()), transport):
            pass
