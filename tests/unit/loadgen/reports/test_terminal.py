import io

import numpy as np
import pytest
from rich.console import Console

from loadgen.reports.arms import arms_of
from loadgen.reports.comparison import compare
from loadgen.reports.live import LiveCounters, LiveView, line
from loadgen.reports.numbers import count, milliseconds, number, percentile
from loadgen.reports.terminal import plain, show, show_comparison, sparkline
from loadgen.results.figures import distribution
from tests.unit.loadgen.results.runs import Simulation, Stream, mark, run_of

RUN = Simulation(requests=200, broken=2, marks=[mark(5_000, 5_200)])
COUNTERS = LiveCounters(
    elapsed_s=12.4,
    planned=500,
    duration_s=None,
    sent=120,
    running=20,
    finished=98,
    errors=2,
    tokens_per_s=812.3,
    ttft_p50_ms=201.0,
    largest_gap_ms=954.2,
    lag_ms=0.42,
)


def printed(function, *arguments, terminal: bool = False) -> str:
    out = io.StringIO()
    function(*arguments, Console(file=out, width=160, force_terminal=terminal, color_system=None))
    return out.getvalue()


class TestShow:
    def test_headline_warnings_marks_and_a_histogram(self):
        text = printed(show, arms_of([RUN.run(1)]))
        assert "TTFT, median" in text
        assert "n = 198 requests" in text
        assert "! 2 of 200 streams broke (2 disconnected)" in text
        assert "change-1 (reconfigure)" in text
        assert "gaps from" in text
        assert "█" in text

    def test_arms_side_by_side(self):
        text = printed(show, arms_of([RUN.run(1, arm="static"), RUN.run(2, arm="dynamic")]))
        assert "Side by side" in text
        assert "Marked moments: dynamic" in text

    @pytest.mark.parametrize("run", [run_of([]), run_of([Stream([])]), run_of([Stream([5])])])
    def test_poor_runs(self, run):
        assert "requests" in printed(show, arms_of([run]))

    def test_names_from_outside_change_nothing_on_the_screen(self):
        evil = "[bold red]x[/] \x1b[2J\x1b]0;title\x07 \u202e"
        run = Simulation(requests=50, marks=[mark(2_000, name=evil)]).run(1, name=evil)
        text = printed(show, arms_of([run]))
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "\u202e" not in text
        assert "[bold red]x[/]" in text

    def test_a_comparison(self):
        a, b = Simulation().run(1, arm="a"), Simulation(scale=2).run(2, arm="b")
        object.__setattr__(b, "folder", a.folder / "other")
        text = printed(show_comparison, compare([a], [b]))
        assert "b against a" in text
        assert "worse" in text
        assert "! one run on a side" in text


class TestText:
    def test_a_sparkline_tells_zero_from_little(self):
        assert sparkline([0, 0.1, 4, 8]) == " ▁▅█"
        assert sparkline([0, 0]) == "▁▁"
        assert sparkline([]) == ""

    def test_spaces_stay(self):
        assert plain("a b\u202fc\nd") == "a b\u202fc\ufffdd"

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (None, "\u2013"),
            (float("nan"), "\u2013"),
            (0, "0"),
            (0.1234, "0.123"),
            (12.345, "12.3"),
            (999.6, "1\u202f000"),
            (48_000, "48\u202f000"),
            (-2.5, "-2.50"),
        ],
    )
    def test_three_digits_that_matter(self, value, text):
        assert number(value) == text

    def test_durations(self):
        assert [milliseconds(value) for value in (None, 1.5, 9_999, 12_000)] == [
            "\u2013",
            "1.50 ms",
            "9\u202f999 ms",
            "12.0 s",
        ]
        assert count(None) == "\u2013"

    def test_a_percentile_of_too_few_is_marked(self):
        assert percentile(distribution(np.arange(1.0, 51.0)), "p99").startswith("≈ ")
        assert not percentile(distribution(np.arange(1.0, 201.0)), "p99").startswith("≈")
        assert percentile(None, "p99") == "\u2013"


class TestLive:
    def test_one_line_says_everything(self):
        assert line(COUNTERS) == (
            "12 s, 120 of 500 sent, sent 120, running 20, finished 98, errors 2, tokens/s 812, TTFT p50 201 ms, "
            "largest gap 954 ms, own lag p99 0.420 ms"
        )

    def test_without_a_terminal_a_line_every_few_seconds_and_one_at_the_end(self):
        now = [100.0]
        out = io.StringIO()
        with LiveView("test", Console(file=out, width=60), line_every_s=5, clock=lambda: now[0]) as view:
            for second in range(12):
                now[0] = 100.0 + second
                view.update(
                    COUNTERS.__class__(**{n: getattr(COUNTERS, n) for n in COUNTERS.__slots__} | {"sent": second})
                )
        lines = out.getvalue().splitlines()
        assert [text.split(" of ")[0] for text in lines] == [f"test: 12 s, {n}" for n in (0, 5, 10, 11)]

    def test_the_last_line_is_not_said_twice(self):
        out = io.StringIO()
        with LiveView("test", Console(file=out), clock=lambda: 0.0) as view:
            view.update(COUNTERS)
        assert len(out.getvalue().splitlines()) == 1

    def test_on_a_terminal_one_block_is_redrawn(self):
        out = io.StringIO()
        console = Console(file=out, width=100, force_terminal=True)
        with LiveView("test", console) as view:
            view.update(COUNTERS)
            view.update(COUNTERS)
        assert "largest gap" in out.getvalue()
        assert "954 ms" in out.getvalue()

    def test_a_view_that_saw_nothing_says_nothing(self):
        out = io.StringIO()
        with LiveView("test", Console(file=out)):
            pass
        assert out.getvalue() == ""

    def test_what_happens_at_the_moment(self):
        now = LiveCounters(
            **{n: getattr(COUNTERS, n) for n in COUNTERS.__slots__} | {"note": "kill\x1b stage", "duration_s": 60}
        )
        assert line(now).startswith("12 s of 60 s, sent 120")
        assert line(now).endswith("now kill\ufffd stage")
