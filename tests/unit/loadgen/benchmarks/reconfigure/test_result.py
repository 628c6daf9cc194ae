"""From records made by hand to the reported figures: every expected value can be read off the records."""

from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from loadgen.benchmarks.disturbance import Repeat
from loadgen.benchmarks.passes import DisturbedPass, Pass, Restart
from loadgen.benchmarks.reconfigure.options import ReconfigureOptions
from loadgen.benchmarks.reconfigure.result import Measured, summarise
from loadgen.benchmarks.reconfigure.table import render
from loadgen.control import ChangeReport
from loadgen.gaps import Window
from loadgen.machine import CpuUse
from loadgen.records import Outcome, StreamRecord
from tests.unit.loadgen.streams import MS, stream

OPTIONS = ReconfigureOptions(streams=2, tokens=60, repeat=1)
NAMES = ("stream-0", "stream-1")


def steady(gap_ms: float = 10.0) -> tuple[StreamRecord, ...]:
    """Two streams of 60 tokens, one each `gap_ms`, the first after one such gap."""
    return tuple(stream([gap_ms * n for n in range(1, 61)], name=name) for name in NAMES)


def stalled(stall_ms: float, *, after_gap_ms: float = 10.0) -> tuple[StreamRecord, ...]:
    """Tokens each 10 ms until 300 ms, then a gap of 10 + `stall_ms`, then tokens each `after_gap_ms`."""
    first = [10.0 * n for n in range(1, 31)]
    second = [310 + stall_ms + after_gap_ms * n for n in range(30)]
    return tuple(stream(first + second, name=name) for name in NAMES)


def report(**fields: Any) -> ChangeReport:
    figures = {"total_ms": 55.0, "bytes_moved": 1000, "rounds": 2, "peak_extra_bytes": 4000}
    given = {"id": "change-1", "state": "committed", "from_layers": "15,15", "to_layers": "8,12,10"} | figures | fields
    return ChangeReport(**given)


def repeat(
    records: tuple[StreamRecord, ...] | None = None,
    *,
    reference: tuple[StreamRecord, ...] | None = None,
    stock: tuple[StreamRecord, ...] | None = None,
    change: tuple[float, float] = (275, 335),
    cutover_ms: float | None = 305,
    **fields: Any,
) -> Repeat:
    return Repeat(
        reference=Pass(steady() if reference is None else reference),
        disturbed=DisturbedPass(
            records=stalled(50) if records is None else records,
            change=Window(round(change[0] * MS), round(change[1] * MS)),
            cutover_ns=None if cutover_ms is None else round(cutover_ms * MS),
            report=report(**fields),
        ),
        stock=None if stock is None else Pass(stock),
    )


def measured(*repeats: Repeat, **fields: Any) -> Measured:
    return Measured(
        **{
            "options": OPTIONS,
            "vllm_version": "1.2.3",
            "repeats": repeats or (repeat(),),
            "restart": None,
            "stock_missing": "no stock",
            "restart_missing": "no restart",
        }
        | fields
    )


class TestPause:
    def test_it_is_the_worst_stream_of_all_repeats(self):
        result = summarise(measured(repeat(stalled(50)), repeat(stalled(80)), repeat(stalled(30))))
        assert result["pause_ms"] == 80
        assert result["pause_ms_p50"] == 50
        assert result["pause_ms_each"] == [50, 50, 80, 80, 30, 30]
        assert result["pauses_without_figure"] == 0

    def test_the_noise_beside_it_comes_from_the_quiet_pass(self):
        hiccup = tuple(
            stream([10.0 * n for n in range(1, 26)] + [265.0 + 10 * n for n in range(35)], name=name) for name in NAMES
        )  # 15 ms between tokens 25 and 26
        result = summarise(measured(repeat(reference=hiccup)))
        assert result["pause_ms_undisturbed"] == 5

    def test_a_slow_step_elsewhere_in_the_change_is_no_pause_at_the_cutover(self):
        result = summarise(measured(repeat(cutover_ms=285)))
        assert (result["pause_ms"], result["pause_ms_at_cutover"]) == (50, 0)

    def test_without_a_cutover_moment_the_pause_at_it_is_missing(self):
        result = summarise(measured(repeat(cutover_ms=None)))
        assert result["pause_ms_at_cutover"] is None
        assert "pause_ms_at_cutover" in result["not_measured"]

    def test_a_broken_stream_leaves_no_pause_to_report(self):
        good, bad = stalled(50)
        bad = replace(bad, tokens=bad.tokens[:30], outcome=Outcome.DISCONNECTED)
        result = summarise(measured(repeat((good, bad))))
        assert result["pause_ms"] is None
        assert result["not_measured"]["pause_ms"].startswith("1 streams broke during a change")
        assert (result["streams_broken"], result["tokens_lost"], result["outputs_identical"]) == (1, 30, False)

    def test_an_aborted_change_is_told_but_has_no_pause(self):
        result = summarise(measured(repeat(state="aborted", reason="no memory")))
        assert (result["pause_ms"], result["total_ms"], result["changes_committed"]) == (None, None, 0)
        assert result["not_measured"]["pause_ms"] == "no change was committed: no memory"
        assert result["changes"][0]["reason"] == "no memory"

    def test_a_renewed_stream_is_measured_by_its_clients_earlier_rhythm(self):
        early = tuple(stream([10.0 * n for n in range(1, 28)], name=name) for name in NAMES)
        late = tuple(
            stream([295, 305, 375, *[385.0 + 10 * n for n in range(20)]], name=name, started_ms=285) for name in NAMES
        )
        result = summarise(measured(repeat((*early, *late), change=(272, 380))))
        assert result["pause_ms"] == 60
        assert (result["requests_begun_during_change"], result["ttft_ms_max_during_change"]) == (2, 10)


class TestLatencies:
    def test_before_and_after_are_apart(self):
        result = summarise(measured(repeat(stalled(50, after_gap_ms=14))))
        assert (result["itl_ms_p50_before"], result["itl_ms_p50_after"]) == (10, 14)

    def test_several_repeats_give_their_median_and_spread(self):
        repeats = [repeat(reference=steady(gap)) for gap in (10, 12, 20)]
        result = summarise(measured(*repeats))
        assert result["itl_ms_p50"] == 12
        assert result["spread"]["itl_ms_p50"] == {"each": [10, 12, 20], "iqr": 5}

    def test_the_throughput_dip_is_what_is_missing_during_the_change(self):
        # 200 tokens/s before; in the 80 ms of the change 3 per stream (280, 290, 300) instead of 8
        assert summarise(measured(repeat(change=(270, 350))))["throughput_dip"] == pytest.approx(5 / 8)

    def test_time_to_first_token_is_of_the_quiet_pass(self):
        assert summarise(measured())["ttft_ms_p50"] == 10


class TestTokens:
    def test_equal_streams_lose_nothing(self):
        result = summarise(measured())
        assert (result["tokens_lost"], result["tokens_repeated"], result["outputs_identical"]) == (0, 0, True)
        assert result["server_token_count_agrees"] is True
        assert result["stream_identity_kept"] is True

    def test_losses_and_repetitions_are_summed_over_streams_and_repeats(self):
        one, two = stalled(50)
        without = replace(one, tokens=one.tokens[:40] + one.tokens[41:])
        twice = replace(two, tokens=two.tokens[:41] + two.tokens[40:])
        result = summarise(measured(repeat((without, twice)), repeat((without, two))))
        assert (result["tokens_lost"], result["tokens_repeated"], result["outputs_identical"]) == (2, 1, False)
        assert result["server_token_count_agrees"] is False

    def test_quiet_passes_that_differ_from_each_other_show_that_the_change_is_not_to_blame(self):
        other = tuple(replace(r, tokens=(*r.tokens[:59], replace(r.tokens[59], token_id=7))) for r in steady())
        result = summarise(measured(repeat(), repeat(reference=other)))
        assert result["references_identical"] is False
        assert summarise(measured(repeat(), repeat()))["references_identical"] is True
        assert summarise(measured(repeat()))["references_identical"] is None


class TestChanges:
    def test_sizes_are_the_largest_and_times_the_median(self):
        repeats = [repeat(total_ms=t, bytes_moved=b) for t, b in ((50.0, 10), (70.0, 30), (60.0, 20))]
        result = summarise(measured(*repeats))
        assert (result["total_ms"], result["bytes_moved"], result["rounds"]) == (60, 30, 2)
        assert result["total_ms_seen_by_client"] == 60

    def test_a_figure_the_server_left_out_is_null_with_a_reason(self):
        result = summarise(measured(repeat(peak_extra_bytes=None)))
        assert result["peak_extra_bytes"] is None
        assert result["not_measured"]["peak_extra_bytes"] == "the server did not report it"


class TestStock:
    def test_the_ratio_is_taken_repeat_by_repeat(self):
        repeats = [repeat(reference=steady(a), stock=steady(b)) for a, b in ((10, 8), (20, 10), (12, 8))]
        result = summarise(measured(*repeats, stock_missing=None))
        assert result["stock_itl_ms_p50"] == 8
        assert result["spread"]["itl_ratio"]["each"] == [1.25, 2, 1.5]
        assert result["itl_ratio"] == 1.5
        assert result["outputs_identical_to_stock"] is True

    def test_stock_that_dropped_out_leaves_nulls_with_the_reason(self):
        result = summarise(measured(repeat(stock=steady()), stock_missing="it died"))
        for name in ("stock_itl_ms_p50", "itl_ratio"):
            assert result[name] is None
            assert result["not_measured"][name] == "it died"

    def test_a_restart_is_compared_with_the_worst_pause(self):
        restart = Restart(
            downtime_ms=5000, stop_ms=900, start_ms=4000, broken_streams=2, cpus=CpuUse(idle_server=0.0, foreign=0.4)
        )
        result = summarise(measured(restart=restart, restart_missing=None))
        assert (result["restart_downtime_ms"], result["restart_ratio"]) == (5000, 100)
        assert (result["restart_stop_ms"], result["restart_start_ms"], result["restart_broken_streams"]) == (
            900,
            4000,
            2,
        )
        assert result["restart_foreign_cpus"] == 0.4

    def test_without_a_restart_the_ratio_is_missing_too(self):
        result = summarise(measured())
        assert result["not_measured"]["restart_ratio"] == "no restart"

    def test_the_busiest_pass_tells_how_idle_the_machine_was(self):
        quiet = Pass(steady(), CpuUse(idle_server=0.1, foreign=0.2))
        noisy = Pass(steady(), CpuUse(idle_server=0.3, foreign=0.1))
        result = summarise(measured(replace(repeat(), reference=quiet, stock=noisy), stock_missing=None))
        assert (result["stock_idle_cpus_max"], result["midstream_idle_cpus_max"]) == (0.1, 0.3)
        assert result["foreign_cpus_max"] == 0.2


def test_every_null_has_a_reason_and_every_reason_a_null():
    result = summarise(measured(repeat(state="aborted", reason="no memory", cutover_ms=None)))
    assert {name for name, value in result.items() if value is None} == set(result["not_measured"])


def test_the_table_shows_figures_and_reasons():
    result = summarise(measured()) | {"machine": {"cpus": 2, "python": "3.11"}, "log_dir": "logs"}
    console = Console(width=160)
    with console.capture() as shown:
        console.print(render(result))
    assert "50 ms" in shown.get()
    assert "no restart" in shown.get()
