import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.gaps import (
    PauseStatus,
    Window,
    full_load,
    gaps,
    inter_token_latencies_ms,
    largest_gap,
    pause,
    percentile,
    time_to_first_token_ms,
    tokens_per_second,
)
from loadgen.records import Outcome
from tests.unit.loadgen.streams import MS, stream

STEADY = [10.0 * n for n in range(1, 21)]  # 20 tokens, one each 10 ms, the last at 200 ms


def window(start_ms: float, end_ms: float) -> Window:
    return Window(round(start_ms * MS), round(end_ms * MS))


class TestLatencies:
    def test_time_to_first_token_counts_from_the_request(self):
        assert time_to_first_token_ms(stream([130, 140], started_ms=100)) == 30

    def test_a_stream_without_tokens_has_no_time_to_first_token(self):
        assert time_to_first_token_ms(stream([], outcome=Outcome.EMPTY)) is None

    def test_gaps_are_between_consecutive_tokens(self):
        assert inter_token_latencies_ms(stream([10, 15, 35])) == [5, 20]

    def test_tokens_of_one_chunk_are_no_time_apart(self):
        assert inter_token_latencies_ms(stream([10, 10, 30])) == [0, 20]

    def test_only_gaps_wholly_inside_a_window_are_taken(self):
        assert inter_token_latencies_ms(stream([0, 10, 30, 60, 100]), window(10, 60)) == [20, 30]

    def test_the_largest_gap_of_a_window_may_reach_beyond_it(self):
        record = stream([0, 10, 60, 70, 200])
        assert largest_gap(record, window(50, 65)) == window(10, 60)
        assert largest_gap(record) == window(70, 200)
        assert largest_gap(stream([5])) is None


class TestWindow:
    def test_windows_that_only_touch_do_not_overlap(self):
        assert not window(0, 10).overlaps(window(10, 20))
        assert window(0, 11).overlaps(window(10, 20))

    def test_an_instant_overlaps_what_it_lies_inside_of(self):
        assert window(5, 5).overlaps(window(0, 10))
        assert not window(10, 10).overlaps(window(0, 10))

    def test_a_window_that_ends_before_it_starts_is_refused(self):
        with pytest.raises(ValueError, match="ends before it starts"):
            Window(2, 1)


class TestPause:
    """The largest gap that overlaps the change, minus the median gap of the same stream before it."""

    def test_it_is_the_gap_in_the_change_minus_the_median_before(self):
        stalled = [*STEADY[:12], 200.0, 210.0, 220.0]  # 120 -> 200 ms: a gap of 80
        measured = pause(stream(stalled), window(150, 190))
        assert measured.status is PauseStatus.MEASURED
        assert (measured.ms, measured.largest_gap_ms, measured.quiet_gap_ms) == (70, 80, 10)
        assert measured.at_ms == -30  # the gap began 30 ms before the change

    def test_a_larger_gap_outside_the_change_is_no_pause_of_it(self):
        slow_later = [*STEADY[:12], 130.0, 140.0, 400.0]
        assert pause(stream(slow_later), window(121, 131)).ms == 0

    def test_a_larger_gap_before_the_change_does_not_move_the_median(self):
        hiccup = [10.0, 110.0, *[110 + 10.0 * n for n in range(1, 12)], 300.0]
        assert pause(stream(hiccup), window(230, 290)).quiet_gap_ms == 10

    def test_too_few_quiet_gaps_are_reported_and_not_guessed(self):
        measured = pause(stream([10, 20, 30, 200]), window(35, 100))
        assert (measured.status, measured.ms, measured.largest_gap_ms) == (PauseStatus.TOO_FEW_QUIET_GAPS, None, 170)

    def test_eight_quiet_gaps_are_enough_and_seven_are_not(self):
        nine = [*STEADY[:9], 200.0]
        assert pause(stream(nine), window(95, 100)).status is PauseStatus.MEASURED
        assert pause(stream(nine[1:]), window(95, 100)).status is PauseStatus.TOO_FEW_QUIET_GAPS

    def test_a_gap_that_is_open_when_the_change_begins_is_not_a_quiet_one(self):
        measured = pause(stream([*STEADY[:9], 200.0]), window(95, 100))
        assert measured.quiet_gap_ms == 10

    def test_a_stream_that_ended_before_the_change_does_not_overlap(self):
        assert pause(stream(STEADY), window(300, 400)).status is PauseStatus.NO_OVERLAP

    def test_a_stream_that_broke_in_the_change_has_no_pause_but_a_break(self):
        broken = stream(STEADY, ended_ms=260, outcome=Outcome.DISCONNECTED)
        measured = pause(broken, window(195, 250))
        assert (measured.status, measured.ms) == (PauseStatus.BROKEN, None)

    def test_a_stream_that_broke_before_any_token_is_a_break_too(self):
        broken = stream([], started_ms=200, ended_ms=260, outcome=Outcome.UNREACHABLE)
        assert pause(broken, window(195, 250)).status is PauseStatus.BROKEN

    def test_a_stream_that_broke_long_after_the_change_still_has_its_pause(self):
        broken = stream(STEADY, ended_ms=260, outcome=Outcome.DISCONNECTED)
        assert pause(broken, window(101, 119)).status is PauseStatus.MEASURED

    def test_a_late_stream_is_judged_by_the_rhythm_its_client_saw_before(self):
        renewed = stream([230, 240, 340], started_ms=210)
        assert pause(renewed, window(205, 300)).status is PauseStatus.TOO_FEW_QUIET_GAPS
        measured = pause(renewed, window(205, 300), predecessors=[stream(STEADY)])
        assert (measured.status, measured.ms) == (PauseStatus.MEASURED, 90)

    def test_an_instant_takes_its_rhythm_from_before_the_change_around_it(self):
        slowed = [*STEADY[:12], 160.0, 200.0, 240.0, 340.0, 380.0]
        at_cutover = pause(stream(slowed), window(300, 300), quiet_before_ns=121 * MS)
        assert (at_cutover.quiet_gap_ms, at_cutover.ms) == (10, 90)


arrivals = st.lists(st.integers(0, 500), min_size=2, max_size=60).map(
    lambda steps: [float(sum(steps[: n + 1])) for n in range(len(steps))]
)
windows = st.tuples(st.integers(0, 5000), st.integers(0, 5000)).map(lambda w: window(min(w), max(w)))


class TestProperties:
    @given(arrivals)
    def test_gaps_sum_to_the_time_from_first_to_last_token(self, moments):
        assert sum(gap.ms for gap in gaps(stream(moments))) == pytest.approx(moments[-1] - moments[0])

    @given(arrivals, windows)
    def test_a_pause_is_never_longer_than_the_largest_gap_of_the_stream(self, moments, change):
        record = stream(moments)
        measured, largest = pause(record, change), largest_gap(record)
        if measured.ms is not None:
            assert largest is not None
            assert measured.ms <= largest.ms

    @given(arrivals, windows, windows)
    def test_a_longer_window_never_hides_a_gap(self, moments, one, other):
        hull = Window(min(one.start_ns, other.start_ns), max(one.end_ns, other.end_ns))
        inner, outer = largest_gap(stream(moments), one), largest_gap(stream(moments), hull)
        assert inner is None or (outer is not None and outer.ms >= inner.ms)

    @given(arrivals, windows, st.integers(-(10**6), 10**6))
    def test_where_zero_lies_on_the_axis_does_not_matter(self, moments, change, shift):
        here = pause(stream(moments), change)
        there = pause(
            stream([m + shift for m in moments], started_ms=shift),
            Window(change.start_ns + shift * MS, change.end_ns + shift * MS),
        )
        assert here == there

    @given(st.integers(9, 40), st.integers(1, 2000))
    def test_a_stall_of_known_length_is_found_exactly(self, quiet, stall_ms):
        before = [10.0 * n for n in range(quiet)]
        record = stream([*before, before[-1] + 10 + stall_ms, before[-1] + 20 + stall_ms])
        assert pause(record, window(before[-1] + 1, before[-1] + 5)).ms == stall_ms

    @given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50))
    def test_percentiles_agree_with_the_standard_library(self, values):
        expected = statistics.quantiles(values, n=100, method="inclusive")
        assert percentile(values, 50) == pytest.approx(expected[49], abs=1e-6)
        assert percentile(values, 99) == pytest.approx(expected[98], abs=1e-6)
        assert (percentile(values, 0), percentile(values, 100)) == (min(values), max(values))


@pytest.mark.parametrize(("values", "q"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_a_percentile_of_nothing_is_refused(values, q):
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, q)


class TestLoad:
    def test_full_load_is_from_the_last_first_token_to_the_first_last_token(self):
        records = [stream([10, 50, 90], name="a"), stream([30, 60, 120], name="b")]
        assert full_load(records, 2) == window(30, 90)

    def test_streams_of_one_client_count_as_one(self):
        records = [stream([10, 50], name="a"), stream([70, 110], name="a"), stream([30, 100], name="b")]
        assert full_load(records, 2) == window(30, 100)

    def test_there_is_no_full_load_without_every_client(self):
        assert full_load([stream([10, 50], name="a")], 2) is None
        assert full_load([stream([10, 50], name="a"), stream([], name="b")], 2) is None
        assert full_load([stream([10, 20], name="a"), stream([30, 40], name="b")], 2) is None

    def test_throughput_counts_all_streams_in_the_window(self):
        records = [stream([100, 200, 300]), stream([150, 250, 900])]
        assert tokens_per_second(records, window(100, 300)) == pytest.approx(4 / 0.2)
        assert tokens_per_second(records, window(100, 100)) is None
