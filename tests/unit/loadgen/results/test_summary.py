import json
import time
from dataclasses import replace

import pytest

from loadgen.results.errors import ResultsError
from loadgen.results.summary import read_summary, summarise
from tests.unit.loadgen.results.runs import Simulation, Stream, mark, run_of

GOOD = Stream([10, 20, 30])


def warnings_of(*streams: Stream, **changes: object) -> list[str]:
    return summarise(run_of(streams, **changes)).warnings


class TestWarnings:
    def test_a_good_run_has_none(self):
        assert warnings_of(GOOD) == []

    def test_a_generator_that_was_late_itself(self):
        summary = summarise(run_of([GOOD], lag_ms=7.0))
        assert summary.generator.fell_behind
        assert summary.warnings == [
            "the generator fell behind: its own timestamps are up to 7.0 ms late (p99, worst 7.0 ms)"
        ]

    def test_five_milliseconds_are_not_yet_late(self):
        assert not summarise(run_of([GOOD], lag_ms=5.0)).generator.fell_behind

    def test_requests_that_were_sent_late(self):
        summary = summarise(run_of([Stream([50, 60], due=0, sent=20)]))
        assert summary.generator.fell_behind
        assert summary.warnings[0].startswith("the generator fell behind: requests were sent up to 20.0 ms after")

    def test_a_lateness_that_nobody_measured(self):
        assert "not sampled" in warnings_of(GOOD, lag_ms=None)[0]

    def test_broken_streams_by_how_they_broke(self):
        broken = [Stream([10], outcome="disconnected"), Stream([], outcome="refused"), Stream([], outcome="refused")]
        (warning,) = warnings_of(GOOD, *broken)
        assert warning == "3 of 4 streams broke (1 disconnected, 2 refused): they are in no latency"

    def test_a_killed_run_and_why_it_ended(self):
        assert warnings_of(GOOD, state="killed")[0] == "this run is killed"
        interrupted = run_of([GOOD], state="interrupted", error="Ctrl-C")
        assert summarise(interrupted).warnings == ["this run is interrupted: Ctrl-C"]

    def test_rows_of_a_trace_that_were_left_out(self):
        notes = {
            "rows": 9,
            "rows_bad": 2,
            "first_bad_rows": ["line 3: x is no number", "line 5: y"],
            "rows_without_tokens": 1,
        }
        assert warnings_of(GOOD, workload_notes=notes) == [
            "2 of 9 rows of the trace cannot be right and were left out; line 3: x is no number; line 5: y",
            "1 of 9 rows of the trace have no tokens and were left out",
        ]

    def test_what_the_reader_noticed(self):
        run = replace(run_of([GOOD]), notes=("the last batch of tokens.arrows is cut off",))
        assert summarise(run).warnings == ["the last batch of tokens.arrows is cut off"]

    @pytest.mark.parametrize(
        ("stream", "said"),
        [
            (Stream([10, 20], known=False), "1 streams had not ended"),
            (Stream([], ended=50, outcome="cancelled"), "1 requests had no first token when the run ended"),
            (Stream([10, 20], reported=5), "the server counted other tokens than arrived in 1 finished streams"),
        ],
    )
    def test_what_is_in_no_figure(self, stream, said):
        assert any(warning.startswith(said) for warning in warnings_of(GOOD, stream))

    def test_no_request_at_all(self):
        assert warnings_of() == ["no request has ended: there are no latencies"]


class TestDocument:
    def test_it_comes_back_as_it_was(self, tmp_path):
        run = run_of([replace(GOOD, phase="first")], [mark(15, 25)], arm="dynamic", seed=7)
        written = summarise(run)
        written.write(tmp_path)
        assert read_summary(tmp_path) == written
        assert written.manifest.arm == "dynamic"
        assert json.loads((tmp_path / "summary.json").read_text())["figures"]["ttft_ms"]["p50"] == 10.0

    def test_one_that_is_missing(self, tmp_path):
        with pytest.raises(ResultsError, match=r"holds no summary.json"):
            read_summary(tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [("{", "cannot be read"), ("{}", "schema_version"), ('{"schema_version": 9}', "is of schema version 9")],
    )
    def test_one_that_is_none(self, tmp_path, content, message):
        (tmp_path / "summary.json").write_text(content)
        with pytest.raises(ResultsError, match=message):
            read_summary(tmp_path)


def test_the_average_of_the_generators_own_load():
    run = run_of([GOOD], samples=[("client.cpu", 0, 0.2), ("client.cpu", 1_000, 0.4)])
    assert summarise(run).generator.cpu == pytest.approx(0.3)


def test_a_million_tokens_take_less_than_three_seconds():
    marks = [mark(5_000 * n, 5_000 * n + 300) for n in range(1, 11)]
    run = Simulation(requests=5_000, tokens=200, rate_per_s=60, marks=marks).run()
    started = time.process_time()
    summary = summarise(run)
    assert time.process_time() - started < 3
    assert summary.figures.output_tokens == 1_000_000
    assert len(summary.marks) == 10
