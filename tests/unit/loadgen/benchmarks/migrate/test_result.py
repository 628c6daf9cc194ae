"""From hand-made records to the reported figures of a migration: every expected value can be read off the records."""

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from loadgen.benchmarks.disturbance import Repeat
from loadgen.benchmarks.migrate.options import MigrateOptions
from loadgen.benchmarks.migrate.result import Migrations, summarise
from loadgen.benchmarks.migrate.table import render
from loadgen.benchmarks.passes import DisturbedPass, Pass
from loadgen.control import ChangeReport
from loadgen.gaps import Window
from loadgen.records import Outcome, StreamRecord
from tests.unit.loadgen.streams import MS, stream

OPTIONS = MigrateOptions(streams=2, tokens=60, repeat=1, methods=("pre_copy", "recompute"))
NAMES = ("stream-0", "stream-1")
LINK = {"kind": "1gbit", "measured_mbit_per_s": {"near_to_far": 950.0, "far_to_near": 950.0}}
BEFORE = [10.0 * n for n in range(1, 31)]
COPYING = [320.0, 340, 360, 380, 400]
AFTER = [500.0 + 10 * n for n in range(21)]


def reference() -> Pass:
    return Pass(tuple(stream([10.0 * n for n in range(1, 57)], name=name) for name in NAMES))


def disturbed() -> tuple[StreamRecord, ...]:
    """Gaps of 10 ms until 300 ms, of 20 ms until 400 ms, one of 100 ms, then of 10 ms again."""
    return tuple(stream(BEFORE + COPYING + AFTER, name=name) for name in NAMES)


def report(**fields: Any) -> ChangeReport:
    given = {
        "id": "change-1",
        "state": "committed",
        "from_layers": "a",
        "to_layers": "b",
        "method": "pre_copy",
        "total_ms": 200.0,
        "steps_ms": {"pre_copy": 100.0, "cutover": 90.0},
        "bytes_moved": 1000,
        "rounds": 2,
        "peak_extra_bytes": 4000,
        "stop_reason": "fits the pause",
    }
    return ChangeReport(**(given | fields))


def repeat(
    *more: StreamRecord, records: tuple[StreamRecord, ...] | None = None, cutover_ms: float = 405, **fields: Any
) -> Repeat:
    """A change from 300 to 505 ms whose cutover step takes 90 ms."""
    seen = (disturbed() if records is None else records) + more
    change = Window(300 * MS, 505 * MS)
    return Repeat(reference(), DisturbedPass(seen, change, round(cutover_ms * MS), report(**fields)), None)


def result(*repeats: Repeat, wire: dict[str, Any] | None = None) -> dict[str, Any]:
    changes = {"pre_copy": repeats or (repeat(),), "recompute": (repeat(method="recompute", stop_reason=None),)}
    return summarise(Migrations(OPTIONS, "1.2.3", LINK, [reference()], changes, wire))


def pre_copy(*repeats: Repeat) -> dict[str, Any]:
    figures: dict[str, Any] = result(*repeats)["methods"]["pre_copy"]
    return figures


class TestOverhead:
    def test_tokens_that_arrive_while_copying_are_compared_with_those_before(self):
        found = pre_copy()
        assert (found["itl_ratio"], found["tpot_ratio"]) == (2, 2)

    def test_what_longer_contexts_cost_is_not_put_down_to_the_change(self):
        """Tokens of the quiet pass take twice as long from the 31st on, too: the change costs nothing."""
        slow = [300.0 + 20 * n for n in range(1, 27)]
        quiet = Pass(tuple(stream(BEFORE + slow, name=name) for name in NAMES))
        found = pre_copy(replace(repeat(), reference=quiet))
        assert (found["itl_ratio"], found["tpot_ratio"]) == (1, 1)

    def test_the_cutover_is_in_the_second_figure_only(self):
        assert pre_copy()["tpot_ratio_with_cutover"] == pytest.approx((5 * 20 + 100) / 6 / 10, abs=0.001)

    def test_throughput_is_that_of_the_whole_change(self):
        assert pre_copy()["throughput_dip"] == pytest.approx(1 - (6 / 205) / (29 / 290), abs=0.001)

    def test_a_stream_with_too_few_gaps_before_has_no_ratio(self):
        late = tuple(stream([250, 260, 270, 280, 290, *COPYING, *AFTER], name=name) for name in NAMES)
        found = pre_copy(repeat(records=late))
        assert (found["tpot_ratio"], found["itl_ratio"]) == (None, 2)  # together they have enough for a median
        assert found["not_measured"]["tpot_ratio"].startswith("the streams were not all")


class TestPause:
    def test_it_is_the_largest_gap_minus_the_rhythm_before(self):
        found = pre_copy()
        assert (found["pause_ms"], found["pause_ms_p50"], found["pause_ms_each"]) == (90, 90, [90, 90])

    def test_the_pause_of_the_cutover_may_begin_after_it_was_entered(self):
        """In-flight batches still bring a token after the server has begun to hold new ones."""
        found = pre_copy(repeat(cutover_ms=395))
        assert (found["pause_ms_at_cutover"], found["tpot_ratio"]) == (90, 2)

    def test_a_slow_copy_is_a_pause_but_not_one_of_the_cutover(self):
        slow = tuple(stream([*BEFORE, 380, 390, 400, *AFTER], name=name) for name in NAMES)
        found = pre_copy(repeat(records=slow, cutover_ms=502, steps_ms={"cutover": 3}))
        assert (found["pause_ms"], found["pause_ms_at_cutover"]) == (90, 0)

    def test_the_noise_is_the_same_figure_without_a_change(self):
        found = pre_copy()
        assert (found["pause_ms_undisturbed"], found["pause_ms_undisturbed_p50"]) == (0, 0)


class TestChanges:
    def test_times_bytes_and_reasons_of_all_repeats(self):
        found = pre_copy(repeat(), repeat(total_ms=300.0, bytes_moved=3000, rounds=1, stop_reason="no progress"))
        assert (found["total_ms"], found["total_ms_min"], found["total_ms_max"]) == (250, 200, 300)
        assert (found["bytes_moved"], found["rounds"]) == (3000, 2)
        assert found["stop_reasons"] == ["fits the pause", "no progress"]
        assert (found["pre_copy_ms"], found["cutover_ms"]) == (100, 90)

    def test_an_aborted_change_gives_its_reason_and_no_figures(self):
        found = pre_copy(repeat(state="aborted", reason="it does not converge"))
        assert (found["changes_committed"], found["aborted"]) == (0, ["it does not converge"])
        assert (found["pause_ms"], found["total_ms"], found["tpot_ratio"], found["total_ms_max"]) == (None,) * 4
        assert found["not_measured"]["total_ms_max"] == "no change was committed: it does not converge"

    def test_one_of_two_changes_aborted_leaves_the_other(self):
        found = pre_copy(repeat(state="aborted", reason="it does not converge"), repeat())
        assert (found["changes_committed"], found["pause_ms"], found["tpot_ratio"]) == (1, 90, 2)


class TestFirstTokens:
    def test_requests_begun_during_the_change_are_apart_from_quiet_ones(self):
        during = stream([460, 470], name="stream-0", started_ms=310)
        after = stream([600, 610], name="stream-0", started_ms=560)
        found = pre_copy(repeat(during, after))
        assert (found["requests_begun_during_change"], found["ttft_ms_during"]) == (1, 150)
        assert found["ttft_ms_quiet"] == 10  # the median of four first requests and the one after

    def test_none_begun_is_no_figure(self):
        found = pre_copy()
        assert (found["ttft_ms_during"], found["ttft_ms_quiet"]) == (None, 10)
        assert found["not_measured"]["ttft_ms_during"] == "no request began during a change"


class TestTokens:
    def test_equal_streams_are_identical(self):
        found = pre_copy()
        assert (found["tokens_lost"], found["tokens_repeated"], found["outputs_identical"]) == (0, 0, True)

    def test_a_broken_stream_is_counted_and_has_no_pause(self):
        broken = stream(BEFORE, name="stream-0", ended_ms=450, outcome=Outcome.DISCONNECTED)
        found = pre_copy(repeat(records=(broken, disturbed()[1])))
        assert (found["streams_broken"], found["outputs_identical"], found["pause_ms"]) == (1, False, None)


def test_each_method_has_its_own_figures_beside_the_link_and_the_quiet_pass():
    found = result(wire={"bytes": 1, "plaintext_found": []})
    assert list(found["methods"]) == ["pre_copy", "recompute"]
    assert found["methods"]["recompute"]["stop_reasons"] == [None]
    assert (found["link"], found["wire"]["plaintext_found"]) == (LINK, [])
    assert (found["quiet"]["itl_ms_p50"], found["quiet"]["prompt_tokens_max"]) == (10, 1)
    assert found["options"]["methods"] == ["pre_copy", "recompute"]


@pytest.mark.parametrize("wire", [None, {"bytes": 12_000, "plaintext_found": ["frame words: b'batch'"]}])
def test_the_table_has_a_column_for_each_method(wire):
    table = render(
        {
            **result(repeat(state="aborted", reason="no"), wire=wire),
            "machine": {"cpus": 2, "python": "3"},
            "log_dir": "-",
        }
    )
    assert [column.header for column in table.columns] == ["figure", "pre_copy", "recompute"]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    text = " ".join(console.export_text().split())
    assert "1gbit (950 Mbit/s measured)" in text
    assert ("b'batch'" in text) is (wire is not None)
