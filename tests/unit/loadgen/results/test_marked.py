import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen import gaps as reference
from loadgen.gaps import PauseStatus
from loadgen.records import Outcome
from loadgen.results.marked import STATUSES, mark_figures, pauses
from loadgen.results.streams import streams_of
from tests.unit.loadgen.results.runs import MS, Stream, mark, ns, run_of
from tests.unit.loadgen.results.streams_made import made_streams
from tests.unit.loadgen.streams import stream as record_of

STEADY = [10.0 * n for n in range(1, 13)]  # 12 tokens, one each 10 ms, the last at 120 ms
STALLED = [*STEADY, 200.0, 210.0]


CHANGE = mark(150, 190)


def marked(*streams: Stream, marks=(CHANGE,)):
    return mark_figures(streams_of(run_of(streams)), marks)[0]


class TestPauses:
    @settings(deadline=None, max_examples=300)
    @given(made_streams(), st.integers(-50, 600), st.integers(0, 200))
    def test_they_are_those_of_the_definition_stream_by_stream(self, made, start, length):
        made = [replace(s, known=True, outcome="finished" if s.outcome == "cancelled" else s.outcome) for s in made]
        window = reference.Window(start * MS, (start + length) * MS)
        found = pauses(streams_of(run_of(made)), window.start_ns, window.end_ns, min_quiet_gaps=3)
        for n, one in enumerate(made):
            record = record_of(one.arrivals, started_ms=one.sent, ended_ms=one.ended_ms, outcome=Outcome(one.outcome))
            expected = reference.pause(record, window, min_quiet_gaps=3)
            assert STATUSES[found.status[n]] == expected.status
            for ours, theirs in (
                (found.ms[n], expected.ms),
                (found.largest_ms[n], expected.largest_gap_ms),
            ):
                assert math.isnan(ours) if theirs is None else ours == pytest.approx(theirs)
            if expected.status is PauseStatus.MEASURED:
                assert found.quiet_ms[n] == pytest.approx(expected.quiet_gap_ms)

    def test_eight_quiet_gaps_are_enough_and_seven_are_not(self):
        enough, few = Stream([*STEADY[:9], 200.0]), Stream([*STEADY[:8], 200.0])
        found = marked(enough, few, marks=[mark(95, 190)])
        assert (found.excess_ms.n, found.too_few_quiet_gaps) == (1, 1)


class TestOfOneMark:
    def test_the_streams_that_overlap_it_are_counted_by_what_they_saw(self):
        found = marked(
            Stream(STALLED),  # a gap of 80
            Stream([at + 1 for at in [*STEADY, 140.0, 220.0, 230.0]]),  # also 80, from 141 on
            Stream(STEADY),  # ended before
            Stream(STEADY, ended=180, outcome="disconnected"),
            Stream([140, 200], sent=130),  # no quiet time
        )
        assert found.streams == 4
        assert (found.excess_ms.n, found.excess_ms.max, found.broke, found.too_few_quiet_gaps) == (2, 70, 1, 1)
        assert found.largest_gap_ms == 80
        assert found.worst_request in (0, 1)

    def test_silence_is_the_time_in_which_no_stream_had_a_token(self):
        found = marked(Stream(STALLED), Stream([at + 1 for at in [*STEADY, 180.0, 190.0]]))
        assert found.silence_ms == 60  # from 121 (the second's last) to 181

    def test_no_stream_at_all(self):
        found = marked(Stream(STEADY), marks=[mark(500, 600)])
        assert (found.streams, found.excess_ms, found.largest_gap_ms, found.worst_request) == (0, None, None, None)
        assert found.silence_ms is None

    def test_a_stream_cancelled_while_it_waited_gives_a_lower_bound(self):
        found = marked(Stream(STEADY, ended=420, outcome="cancelled"))
        assert (found.excess_ms.max, found.censored, found.broke) == (290, 1, 0)

    def test_a_stream_that_has_not_ended_counts_with_the_gaps_it_has(self):
        found = marked(Stream(STALLED, known=False))
        assert (found.excess_ms.max, found.broke, found.censored) == (70, 0, 0)

    def test_an_instant_is_what_the_gap_around_it_is(self):
        found = marked(Stream(STALLED), marks=[mark(150)])
        assert (found.duration_ms, found.excess_ms.max, found.silence_ms) == (0, 70, 80)

    def test_an_equal_stretch_before_it_shows_what_is_usual(self):
        restless = Stream([n * 10.0 + 5 * (n % 4 == 3) for n in range(1, 200)])
        found = marked(restless, marks=[mark(1_000, 1_100)])
        assert found.usual_excess_ms.n == 1
        assert (
            found.usual_excess_ms.max == found.excess_ms.max == 5
        )  # the largest of ten gaps lies above the median although nothing happened


class TestOfSeveralMarks:
    def test_they_come_in_order_of_time_with_what_was_recorded(self):
        marks = [mark(300, name="b"), mark(150, 190, name="a", kind="kill_stage", source="experiment")]
        found = mark_figures(streams_of(run_of([Stream(STALLED)])), marks)
        assert [(f.name, f.kind, f.source) for f in found] == [
            ("a", "kill_stage", "experiment"),
            ("b", "reconfigure", "journal"),
        ]
        assert (found[0].start_s, found[0].duration_ms) == (0.15, 40)

    def test_a_run_without_tokens_has_marks_all_the_same(self):
        found = mark_figures(streams_of(run_of([])), [mark(5)])
        assert (found[0].streams, found[0].silence_ms) == (0, None)

    @settings(deadline=None)
    @given(made_streams(), st.integers(-50, 600), st.integers(0, 200))
    def test_silence_is_that_of_all_tokens_taken_together(self, made, start, length):
        streams = streams_of(run_of(made))
        one = mark(start, start + length)
        found = mark_figures(streams, [one])[0]
        seen = pauses(streams, one.start_ns, one.end_ns)
        touched = [STATUSES[code] is not PauseStatus.NO_OVERLAP for code in seen.status]
        rank = {int(request): n for n, request in enumerate(streams.request)}
        at = sorted(ns(a) for n, s in enumerate(made) if n in rank and touched[rank[n]] for a in s.arrivals)
        gaps = [(b - a) / MS for a, b in pairwise(at) if a < one.end_ns and one.start_ns < b]
        assert found.silence_ms == (max(gaps) if gaps else None)
