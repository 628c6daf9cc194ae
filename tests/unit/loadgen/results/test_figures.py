import math
import statistics
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen import gaps as reference
from loadgen.results.errors import ResultsError
from loadgen.results.figures import Distribution, distribution, figures, gap_histogram, phase_figures
from loadgen.results.manifest import Slo
from loadgen.results.streams import streams_of
from tests.unit.loadgen.results.runs import Stream, run_of
from tests.unit.loadgen.results.streams_made import made_streams


def figures_of(*streams: Stream, slo: Slo | None = None):
    return figures(streams_of(run_of(streams)), slo or Slo())


def same(found: Distribution | None, expected: list[float]) -> None:
    """The distribution is that of the expected values, by the plain definitions."""
    assert (found is None) == (not expected)
    if found is not None:
        assert found.n == len(expected)
        assert found.mean == pytest.approx(statistics.fmean(expected))
        assert found.std == pytest.approx(statistics.pstdev(expected), abs=1e-6)
        assert (found.min, found.max) == pytest.approx((min(expected), max(expected)))
        for name, q in (("p1", 1), ("p50", 50), ("p90", 90), ("p99", 99), ("p99_9", 99.9)):
            assert getattr(found, name) == pytest.approx(reference.percentile(expected, q))


class TestDefinitions:
    def test_latencies_count_from_when_the_request_was_due(self):
        found = figures_of(Stream([130, 140, 160], sent=110, due=100, ended=170))
        assert found.ttft_ms.p50 == 30
        assert found.ttft_from_sent_ms.p50 == 20
        assert found.e2e_ms.p50 == 70
        assert found.e2e_from_sent_ms.p50 == 60

    def test_without_a_due_time_they_count_from_sending(self):
        assert figures_of(Stream([130], sent=110)).ttft_ms.p50 == 20

    def test_time_per_output_token_leaves_the_first_token_out(self):
        assert figures_of(Stream([100, 110, 140])).tpot_ms.p50 == 20

    def test_one_token_has_no_time_per_token_and_no_gap(self):
        found = figures_of(Stream([100]))
        assert (found.tpot_ms, found.itl_ms, found.largest_gap_ms) == (None, None, None)
        assert found.ttft_ms.n == 1

    def test_tokens_of_one_chunk_have_no_gap_between_them(self):
        found = figures_of(Stream([10, 10, 10, 40], chunks=[0, 0, 0, 1]))
        assert (found.itl_ms.n, found.itl_ms.p50) == (3, 0)
        assert (found.chunk_gap_ms.n, found.chunk_gap_ms.p50) == (1, 30)
        assert found.tokens_per_chunk == 2

    def test_throughput_is_over_the_time_from_the_first_due_to_the_last_end(self):
        found = figures_of(Stream([100, 200], sent=50, due=0), Stream([300, 900], sent=250, ended=2_000))
        assert found.span_s == 2.0
        assert (found.output_tokens, found.output_tokens_per_s, found.requests_per_s) == (4, 2.0, 1.0)

    def test_goodput_counts_requests_that_meet_every_part(self):
        slo = Slo(ttft_ms=100, tpot_ms=20, e2e_ms=1_000)
        found = figures_of(
            Stream([100, 120], ended=1_000),  # just meets all of it
            Stream([100.1, 120], ended=1_000),
            Stream([100, 120.1], ended=1_000),
            Stream([100, 120], ended=1_000.1),
            Stream([100], ended=1_000),  # no TPOT
            Stream([100, 120], ended=1_000, outcome="truncated"),
            slo=slo,
        )
        assert found.good == 2
        assert found.goodput_per_s == pytest.approx(2 / 1.0001)

    def test_without_a_stated_service_level_there_is_no_goodput(self):
        found = figures_of(Stream([1, 2]))
        assert (found.good, found.goodput_per_s) == (None, None)


class TestBrokenStreams:
    def test_they_are_in_no_latency_but_counted(self):
        found = figures_of(Stream([10, 20, 30]), Stream([500, 900], ended=1_500, outcome="disconnected"))
        assert found.outcomes == {"finished": 1, "disconnected": 1}
        assert found.broken == 1
        assert (found.ttft_ms.n, found.ttft_ms.max, found.itl_ms.max, found.largest_gap_ms.max) == (1, 10, 10, 10)
        assert found.output_tokens == 5

    def test_their_largest_gap_reaches_to_their_end(self):
        found = figures_of(Stream([500, 900], ended=1_500, outcome="disconnected"))
        assert found.broken_largest_gap_ms.max == 600

    def test_a_broken_stream_without_tokens_waited_from_sending(self):
        assert figures_of(Stream([], sent=100, ended=350, outcome="timed_out")).broken_largest_gap_ms.max == 250

    def test_a_stream_the_generator_cancelled_did_not_break_and_its_wait_is_a_gap(self):
        found = figures_of(Stream([10, 20, 30], ended=930, outcome="cancelled"))
        assert (found.broken, found.ttft_ms.n, found.largest_gap_ms.max) == (0, 1, 900)
        assert found.itl_ms.max == 10
        assert found.e2e_ms is None

    def test_a_request_cancelled_before_its_first_token_is_said(self):
        assert figures_of(Stream([], ended=900, outcome="cancelled")).no_first_token == 1

    def test_a_stream_that_never_ended_has_gaps_and_nothing_else(self):
        found = figures_of(Stream([10, 20, 50], known=False))
        assert (found.requests, found.unended, found.largest_gap_ms.max) == (0, 1, 30)
        assert (found.ttft_ms, found.e2e_ms) == (None, None)

    def test_a_server_that_counts_otherwise_is_noticed(self):
        assert figures_of(Stream([1, 2], reported=3), Stream([1, 2])).miscounted == 1


class TestAgainstTheDefinitionsWrittenOut:
    @settings(deadline=None, max_examples=200)
    @given(made_streams())
    def test_every_figure(self, made):
        found = figures_of(*made, slo=Slo(ttft_ms=50, tpot_ms=30))
        counted = [s for s in made if not s.known or s.outcome in ("finished", "cancelled")]
        finished = [s for s in made if s.known and s.outcome == "finished"]
        origin = {id(s): s.sent if s.due is None else s.due for s in made}
        timed = [s for s in counted if s.known]
        same(found.ttft_ms, [s.arrivals[0] - origin[id(s)] for s in timed if s.arrivals])
        same(found.ttft_from_sent_ms, [s.arrivals[0] - s.sent for s in timed if s.arrivals])
        tpot = {id(s): (s.arrivals[-1] - s.arrivals[0]) / (len(s.arrivals) - 1) for s in counted if len(s.arrivals) > 1}
        same(found.tpot_ms, list(tpot.values()))
        same(found.itl_ms, [b - a for s in counted for a, b in pairwise(s.arrivals)])
        chunked = [(a, b) for s in counted for a, b in pairwise(zip(s.arrivals, s.chunks, strict=True))]
        same(found.chunk_gap_ms, [b[0] - a[0] for a, b in chunked if a[1] != b[1]])
        same(found.e2e_ms, [s.ended_ms - origin[id(s)] for s in finished])
        largest = []
        for s in counted:
            own = [b - a for a, b in pairwise(s.arrivals)]
            if s.known and s.outcome == "cancelled" and s.arrivals:
                own.append(s.ended_ms - s.arrivals[-1])
            largest += [max(own)] if own else []
        same(found.largest_gap_ms, largest)
        good = [
            s
            for s in finished
            if s.arrivals and s.arrivals[0] - origin[id(s)] <= 50 and tpot.get(id(s), -math.inf) <= 30
        ]
        assert found.good == len(good)
        starts = [origin[id(s)] for s in made if s.known] + [s.arrivals[0] for s in made if s.arrivals]
        ends = [s.ended_ms for s in made if s.known] + [s.arrivals[-1] for s in made if s.arrivals]
        assert found.span_s == pytest.approx((max(ends) - min(starts)) / 1e3)
        assert found.output_tokens == sum(len(s.arrivals) for s in made)

    @given(st.lists(st.floats(0, 1e6), min_size=1))
    def test_a_distribution_is_ordered(self, values):
        found = distribution(np.array(values))
        names = ("min", "p1", "p5", "p10", "p25", "p50", "p75", "p90", "p95", "p99", "p99_9", "max")
        shown = [getattr(found, name) for name in names]
        assert shown == sorted(shown)

    @settings(deadline=None)
    @given(made_streams())
    def test_the_histogram_holds_every_gap_once(self, made):
        streams = streams_of(run_of(made))
        found = gap_histogram(streams)
        itl = figures(streams, Slo()).itl_ms
        assert sum(found.counts) + found.in_chunk + found.below + found.above == (itl.n if itl else 0)

    def test_a_bin_holds_its_lower_edge(self):
        found = gap_histogram(streams_of(run_of([Stream([0, 1.0])])))  # a gap of 1 ms
        bin_of_it = found.counts.index(1)
        assert found.edges_ms[bin_of_it] == pytest.approx(1.0)


class TestPhases:
    def test_each_has_figures_of_its_own_requests(self):
        run = run_of([Stream([10], phase="prefill"), Stream([30], phase="decode"), Stream([50], phase="decode")])
        found = phase_figures(streams_of(run), Slo())
        assert {name: f.ttft_ms.p50 for name, f in found.items()} == {"prefill": 10, "decode": 40}

    def test_without_phases_there_are_none(self):
        assert phase_figures(streams_of(run_of([Stream([10])])), Slo()) == {}


class TestTablesThatContradictThemselves:
    def test_a_request_twice(self):
        run = run_of([Stream([1]), Stream([2])])
        twice = run.requests.take([0, 0])
        with pytest.raises(ResultsError, match="request 0 has two rows"):
            streams_of(type(run)(**{n: getattr(run, n) for n in run.__slots__} | {"requests": twice}))

    def test_a_token_that_is_missing(self):
        run = run_of([Stream([1, 2, 3])])
        missing = run.tokens.filter([True, False, True])
        with pytest.raises(ResultsError, match="request 0: token 2 where token 1 should be"):
            streams_of(type(run)(**{n: getattr(run, n) for n in run.__slots__} | {"tokens": missing}))

    def test_time_that_goes_back(self):
        run = run_of([Stream([1, 2])])
        back = run.tokens.set_column(2, run.tokens.schema.field(2), [[5, 4]])
        with pytest.raises(ResultsError, match="request 0: token 1 arrived before the one before it"):
            streams_of(type(run)(**{n: getattr(run, n) for n in run.__slots__} | {"tokens": back}))

    def test_an_outcome_that_is_none(self):
        with pytest.raises(ResultsError, match="outcome 'lost' is none of finished"):
            streams_of(run_of([Stream([1], outcome="lost")]))


def test_an_empty_run_has_no_figures_and_no_error():
    found = figures_of()
    assert (found.requests, found.output_tokens, found.output_tokens_per_s, found.ttft_ms) == (0, 0, None, None)
