"""The judgement over a soak, from records made by hand: what is allowed, what is not, and what the table says."""

from dataclasses import replace
from typing import Any

import pytest

from loadgen.benchmarks.soak.options import SoakOptions
from loadgen.benchmarks.soak.result import Done, Soak, summarise
from loadgen.benchmarks.soak.schedule import Kind, Setting, Step, schedule
from loadgen.benchmarks.soak.table import render
from loadgen.benchmarks.soak.usage import Usage
from loadgen.gaps import Window
from loadgen.records import Identity, Outcome, StreamRecord
from tests.unit.loadgen.streams import MS, stream

HELD = Usage(processes=5, threads=50, descriptors=100, shared_files=2, shared_bytes=1 << 20, private_bytes=1 << 20)
REFERENCE = (stream([0, 10, 20, 30], name="greedy-0"), stream([0, 10, 20], name="seeded-0", ids=[7, 8, 9]))
REFUSED = "HTTP 503: the pipeline is still recovering"


def step(kind: Kind, number: int = 1) -> Step:
    first = next(schedule(1, Setting(("edge-1", "edge-2"), 30, ("pre_copy",))))
    return replace(first, kind=kind, number=number)


def window(start_ms: float, end_ms: float) -> Window:
    return Window(round(start_ms * MS), round(end_ms * MS))


def done(kind: Kind, start_ms: float, end_ms: float, what: str | None = "it", number: int = 1) -> Done:
    return Done(step(kind, number), round(start_ms * MS), round(end_ms * MS), what)


def soak(*records: StreamRecord, **changed: Any) -> Soak:
    given: dict[str, Any] = {
        "options": SoakOptions(),
        "vllm_version": "1",
        "link": {"kind": "loopback"},
        "reference": REFERENCE,
        "records": records,
        "done": (),
        "recoveries": {},
        "changes": {},
        "none_left": (),
        "back_ms": {"node": [], "link": []},
        "problems": (),
        "before": {"head": HELD},
        "after": {"head": HELD},
        "completed": True,
        "seconds": 60.0,
    }
    return Soak(**(given | changed))


def broken(outcome: Outcome, detail: str, *, ids: tuple[int, ...] = (), end_ms: float = 500) -> StreamRecord:
    arrivals = [100.0 + 10 * n for n in range(len(ids))]
    record = stream(arrivals, name="seeded-0", ids=ids, started_ms=100, ended_ms=end_ms, outcome=outcome)
    return replace(record, detail=detail)


def test_answers_that_are_as_they_were_pass():
    result = summarise(soak(*REFERENCE, *REFERENCE))
    assert (result["passed"], result["violations"], result["answers"], result["tokens"]) == (True, [], 4, 14)


def test_an_answer_that_differs_is_a_violation_and_is_shown_with_the_steps_it_lived_through():
    wrong = stream([0, 10, 20], name="seeded-0", ids=[7, 5, 9], started_ms=0)
    steps = (done(Kind.STAGE, 5, 15, number=3), done(Kind.NODE, 100, 200, number=4))
    result = summarise(soak(wrong, done=steps))
    assert result["violations"] == ["1 answers differ"]
    (difference,) = result["differences"]
    assert (difference["name"], difference["diverged_at"], difference["steps"]) == ("seeded-0", 1, [3])


def test_what_arrived_of_a_broken_answer_must_be_right():
    assert summarise(soak(broken(Outcome.ERROR, "it failed", ids=(7, 8))))["different"] == 0
    assert summarise(soak(broken(Outcome.ERROR, "it failed", ids=(7, 9))))["different"] == 1


@pytest.mark.parametrize(
    ("record", "none_left", "excused"),
    [
        (broken(Outcome.REFUSED, REFUSED), [window(200, 300)], True),
        (broken(Outcome.REFUSED, REFUSED), [window(0, 50), window(450, 900)], True),
        (broken(Outcome.REFUSED, REFUSED), [window(0, 50), window(600, 900)], False),
        (broken(Outcome.REFUSED, REFUSED), [], False),
        (broken(Outcome.REFUSED, "HTTP 500: Internal Server Error"), [window(200, 300)], False),
        (broken(Outcome.ERROR, "HTTP 503"), [window(200, 300)], False),
        (broken(Outcome.DISCONNECTED, "peer closed"), [window(200, 300)], False),
    ],
)
def test_only_a_503_while_no_node_was_left_is_allowed(record, none_left, excused):
    result = summarise(soak(record, none_left=tuple(none_left)))
    assert result["refused_without_nodes"] == int(excused)
    assert result["errors"] == ({} if excused else {str(record.outcome): 1})
    assert result["passed"] is excused
    assert [found["detail"] for found in result["error_details"]] == ([] if excused else [record.detail])


def test_a_stream_that_changes_its_identity_is_a_violation():
    two = (Identity("cmpl-1", 0, "m"), Identity("cmpl-2", 0, "m"))
    assert summarise(soak(replace(REFERENCE[0], identities=two)))["violations"] == ["1 streams changed their identity"]


def test_problems_leaks_and_what_is_left_are_violations():
    grown = replace(HELD, processes=6, descriptors=400)
    result = summarise(soak(after={"head": grown}, problems=("a change had no end",), left=["process 7", "file x"]))
    assert result["violations"] == [
        "a change had no end",
        "more at the idle point than before: head: processes 5 -> 6",
        "more at the idle point than before: head: descriptors 100 -> 400",
        "left in the end: process 7",
        "left in the end: file x",
    ]


def test_a_soak_that_was_given_up_has_not_passed():
    result = summarise(soak(after=None, completed=False))
    assert (result["violations"], result["idle_point"]["head"]["after"]) == (["not completed"], None)
    assert render({**result, "machine": {"cpus": 2, "python": "3"}, "log_dir": "logs"}).row_count == len(Kind)


def test_kills_stalls_and_recoveries_are_counted_by_kind():
    slow = stream([0, 10, 400, 410], name="greedy-0")
    steps = (
        done(Kind.STAGE, 50, 100, number=1),
        done(Kind.STAGE, 402, 405, number=2),
        done(Kind.STAGE, 500, 510, what=None, number=3),
        done(Kind.CHANGE, 200, 300, number=4),
    )
    result = summarise(soak(slow, done=steps, recoveries={"recovery-1": (90 * MS, 33.0), "recovery-2": (1, 44.0)}))
    stage = result["disturbances"]["stage"]
    assert (result["kills"], result["steps"]) == (2, 4)
    assert (stage["made"], stage["nothing_to_hit"]) == (2, 1)
    assert stage["stall_ms"] == {"p50": 200.0, "max": 390.0}
    assert stage["recovery_ms"] == {"p50": 33.0, "max": 33.0}
    assert result["disturbances"]["change"]["stall_ms"] == {"p50": 390.0, "max": 390.0}
    assert result["disturbances"]["node"]["stall_ms"] is None
    assert result["recovery_ms"] == {"p50": 38.5, "max": 44.0}


def test_the_table_has_a_row_for_every_kind_and_the_judgement_below():
    result = summarise(soak(*REFERENCE, done=(done(Kind.NODE, 5, 15),), changes={"committed": 2}))
    table = render({**result, "machine": {"cpus": 2, "python": "3"}, "log_dir": "logs"})
    assert table.row_count == len(Kind)
    assert "1 kills under 4 clients" in str(table.title)
    assert "changes: 2 committed" in str(table.caption)
    assert "\npassed\n" in str(table.caption)
    failed = summarise(soak(left=["file x"]))
    caption = render({**failed, "machine": {"cpus": 2, "python": "3"}, "log_dir": "logs"}).caption
    assert "FAILED: left in the end: file x" in str(caption)
