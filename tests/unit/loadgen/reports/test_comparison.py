from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loadgen.reports.bootstrap import clustered_quantile_draws, quantile_draws, rate_draws, stretch_draws
from loadgen.reports.comparison import ComparedFigure, Verdict, compare
from loadgen.reports.student import t_quantile
from loadgen.results.errors import NotComparable
from loadgen.results.manifest import Slo
from loadgen.results.reader import Run
from tests.unit.loadgen.results.runs import Simulation, Stream, run_of

CLAIMS = (Verdict.BETTER, Verdict.WORSE)


def simulated(simulation: Simulation, draw: int, folder: str, **changes: object) -> Run:
    run = simulation.run(draw)
    return replace(run, folder=Path(folder), manifest=run.manifest.model_copy(update=changes))


def by_name(a: list[Run], b: list[Run], **options: int) -> dict[str, ComparedFigure]:
    return {figure.name: figure for figure in compare(a, b, **options).figures}


class TestCalibration:
    def test_of_equal_runs_a_difference_is_claimed_in_about_one_of_twenty(self):
        simulation, pairs = Simulation(requests=500, tokens=20, rate_per_s=25), 60
        claims: Counter[str] = Counter()
        for n in range(pairs):
            found = by_name([simulated(simulation, 2 * n, "a")], [simulated(simulation, 2 * n + 1, "b")], draws=200)
            claims.update(name for name, figure in found.items() if figure.verdict in CLAIMS)
        assert sum(claims.values()) / (pairs * 18) < 0.065
        # Of one figure, more than 9 of 60 would come by chance in one of a thousand at 5 %.
        assert max(claims.values()) <= 9

    def test_of_equal_arms_whose_repeats_differ_too(self):
        """Each repeat is slower or faster as a whole, which no bootstrap of streams can see."""
        pairs, claims, figures = 40, 0, 0
        draw = np.random.default_rng(5)

        def arm(name: str, first: int) -> list[Run]:
            scales = draw.lognormal(0, 0.08, 3)
            return [
                simulated(
                    Simulation(requests=150, tokens=12, rate_per_s=25, scale=scale), first + n, f"{name}{n}", arm=name
                )
                for n, scale in enumerate(scales)
            ]

        for n in range(pairs):
            found = by_name(arm("a", 10 * n), arm("b", 10 * n + 5), draws=100)
            claims += sum(figure.verdict in CLAIMS for figure in found.values())
            figures += len(found)
        assert claims / figures < 0.06

    def test_a_tenth_more_is_found_with_enough_data(self):
        simulation = Simulation(requests=2_000, tokens=20, rate_per_s=50)
        slower = replace(simulation, scale=1.1)
        found = by_name([simulated(simulation, 1, "a")], [simulated(slower, 2, "b")])
        for name in ("TTFT p50", "TTFT p90", "TPOT p50", "TPOT p90", "ITL p50", "largest gap p50", "E2E p50"):
            assert found[name].verdict is Verdict.WORSE, name
            assert found[name].low <= 1.1 <= found[name].high, name
        assert found["output tokens"].verdict is Verdict.WITHIN_NOISE  # an open loop brings the same tokens

    def test_a_tenth_less_is_better_and_repeats_find_it_too(self):
        simulation = Simulation(requests=600, tokens=20, rate_per_s=50)
        faster = replace(simulation, scale=0.9)
        a = [simulated(simulation, n, f"a{n}") for n in range(4)]
        b = [simulated(faster, 10 + n, f"b{n}") for n in range(4)]
        found = by_name(a, b)
        assert found["TTFT p50"].verdict is Verdict.BETTER
        assert found["ITL p50"].verdict is Verdict.BETTER

    def test_more_throughput_is_better(self):
        slow, fast = (Simulation(requests=3_000, tokens=20, rate_per_s=rate) for rate in (40, 50))
        found = by_name([simulated(slow, 1, "a")], [simulated(fast, 2, "b")])
        assert found["output tokens"].verdict is Verdict.BETTER
        assert found["finished requests"].verdict is Verdict.BETTER

    def test_a_stall_shows_in_the_largest_gap_and_not_in_the_median(self):
        simulation = Simulation(requests=2_000, tokens=40, rate_per_s=50)
        stalled = replace(simulation, stall_at_s=20.0, stall_ms=800.0)
        found = by_name([simulated(simulation, 1, "a")], [simulated(stalled, 1, "b")])
        assert found["largest gap p99"].verdict is Verdict.WORSE
        assert found["ITL p50"].verdict is Verdict.WITHIN_NOISE


class TestVerdicts:
    def test_a_percentile_with_too_few_beyond_it_is_not_compared(self):
        few = Simulation(requests=60, tokens=20)
        found = by_name([simulated(few, 1, "a")], [simulated(replace(few, scale=3.0), 2, "b")])
        assert found["TTFT p50"].verdict is Verdict.WORSE
        assert found["TTFT p99"].verdict is Verdict.TOO_FEW
        assert (found["TTFT p99"].low, found["TTFT p99"].high) == (None, None)
        assert found["TTFT p99"].ratio is not None

    def test_less_than_a_percent_is_never_claimed(self):
        exact = Simulation(requests=400, tokens=20, spread=0.0)
        found = by_name([simulated(exact, 1, "a")], [simulated(replace(exact, scale=1.005), 1, "b")])
        assert found["TTFT p50"].ratio == pytest.approx(1.005, abs=1e-4)
        assert found["TTFT p50"].verdict is Verdict.WITHIN_NOISE

    def test_nothing_to_divide_by_is_too_few(self):
        a = run_of([Stream([float(n)], sent=float(n)) for n in range(50)])
        found = by_name([a], [replace(a, folder=Path("b"))])
        assert found["TTFT p50"].verdict is Verdict.TOO_FEW
        assert found["TPOT p50"].verdict is Verdict.TOO_FEW

    def test_the_same_seed_gives_the_same_intervals(self):
        a, b = (simulated(Simulation(), n, str(n)) for n in (1, 2))
        assert compare([a], [b], seed=3) == compare([a], [b], seed=3)
        assert compare([a], [b], seed=3) != compare([a], [b], seed=4)

    def test_the_interval_holds_the_ratio(self):
        for figure in compare([simulated(Simulation(), 1, "a")], [simulated(Simulation(), 2, "b")]).figures:
            if figure.low is not None:
                assert figure.low <= figure.ratio <= figure.high


class TestRefusals:
    GOOD = Simulation(requests=50)

    def refused(self, a: list[Run], b: list[Run]) -> str:
        with pytest.raises(NotComparable) as error:
            compare(a, b)
        return str(error.value)

    def test_the_same_run_on_both_sides(self):
        run = simulated(self.GOOD, 1, "a")
        assert self.refused([run], [run]) == "a is on both sides: give two different runs"

    def test_a_running_run(self):
        running = replace(simulated(self.GOOD, 1, "a"), state="running")
        assert "A (a) is still running" in self.refused([running], [simulated(self.GOOD, 2, "b")])

    def test_nothing_finished(self):
        nothing = run_of([Stream([1, 2], outcome="disconnected")])
        assert "B (test) has no finished request" in self.refused([simulated(self.GOOD, 1, "a")], [nothing])

    def test_a_side_without_runs(self):
        assert self.refused([], [simulated(self.GOOD, 1, "a")]) == "A holds no run"

    def test_a_mixture_of_arms(self):
        mixed = [simulated(self.GOOD, n, str(n), arm=arm) for n, arm in enumerate(("static", "dynamic"))]
        assert "B is a mixture of test/dynamic, test/static" in self.refused([simulated(self.GOOD, 9, "a")], mixed)


class TestWarnings:
    def warnings(self, **changes: object) -> str:
        same = {
            "machine": {"cpus": 2, "load_average_1m": 0.1},
            "versions": {"vllm": "0.32.0"},
            "workload": {"kind": "open"},
        }
        simulation = Simulation(requests=30)
        a, b = simulated(simulation, 1, "a", **same), simulated(simulation, 2, "b", **same | changes)
        return "; ".join(compare([a], [b]).warnings)

    def test_one_run_a_side_is_always_said(self):
        assert self.warnings().startswith("one run on a side")
        assert "; " not in self.warnings().removeprefix("one run on a side").split("repeat both")[1]

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"seed": 2}, "seeds differ: 1 and 2"),
            ({"workload": {"kind": "closed"}}, "workloads differ in kind (open and closed)"),
            ({"machine": {"cpus": 4, "load_average_1m": 9}}, "machines differ in cpus (2 and 4)"),
            ({"versions": {"vllm": "0.33.0"}}, "versions differ: vllm (0.32.0 and 0.33.0)"),
            ({"target": {"model": "m"}}, "targets differ in model (none and m)"),
        ],
    )
    def test_what_differs(self, changes, said):
        assert said in self.warnings(**changes)

    def test_a_generator_that_fell_behind(self):
        late = run_of([Stream([50, 60], due=0, sent=40)] * 30)
        found = compare([simulated(Simulation(requests=30), 1, "a")], [late])
        assert found.warnings[0].startswith("B: the generator fell behind in made-by-hand")

    def test_other_service_levels_leave_goodput_out(self):
        a, b = Simulation(requests=200), Simulation(requests=200, slo=Slo(ttft_ms=1))
        found = compare([simulated(a, 1, "a")], [simulated(b, 2, "b")])
        assert "goodput" not in {figure.name for figure in found.figures}
        assert "service levels differ: goodput is not compared" in found.warnings

    def test_sides_of_one_name_are_told_apart_by_folder(self):
        found = compare([simulated(Simulation(), 1, "one")], [simulated(Simulation(), 2, "two")])
        assert (found.a, found.b) == ("test (one)", "test (two)")


class TestBootstrap:
    def test_the_short_cut_for_percentiles_is_what_drawing_would_give(self):
        values = np.random.default_rng(1).lognormal(0, 1, 151)
        chance = np.random.default_rng(2)
        drawn = np.percentile(values[chance.integers(0, 151, size=(20_000, 151))], 90, axis=1)
        short = quantile_draws(values, 90, 20_000, chance)
        at = np.sort(np.concatenate((drawn, short)))
        apart = np.searchsorted(np.sort(drawn), at, "right") - np.searchsorted(np.sort(short), at, "right")
        assert np.abs(apart).max() / 20_000 < 0.02  # Kolmogorov and Smirnov's distance

    def test_whole_streams_are_drawn_and_not_their_gaps(self):
        """Half of the streams are slow: the median of a draw is either rhythm, as it would never be of single gaps."""
        stream = np.repeat(np.arange(10), 100)
        gaps = np.where(stream < 5, 10.0, 20.0)
        drawn = clustered_quantile_draws(gaps, stream, (50.0,), 2_000, np.random.default_rng(1))[50.0]
        assert 0.3 < (drawn < 15).mean() < 0.7

    def test_groups_of_streams_vary_as_streams_do(self):
        chance = np.random.default_rng(1)
        rhythm = chance.lognormal(3, 0.3, 4_000)
        stream = np.repeat(np.arange(4_000), 5)
        drawn = clustered_quantile_draws(rhythm[stream], stream, (50.0,), 2_000, chance)[50.0]
        exact = quantile_draws(rhythm, 50, 2_000, chance)
        assert drawn.mean() == pytest.approx(np.median(rhythm), rel=0.005)
        assert drawn.std() == pytest.approx(exact.std(), rel=0.25)

    def test_rates_keep_the_mean(self):
        at_ns = np.sort(np.random.default_rng(1).integers(0, 10**10, 5_000))
        drawn, rates = rate_draws(at_ns, (0, 10**10), stretch_draws(4_000, np.random.default_rng(2)))
        assert rates.mean() == pytest.approx(500)
        assert drawn.mean() == pytest.approx(500, rel=0.01)

    @pytest.mark.parametrize(
        ("freedom", "expected"), [(1, 12.7062047), (2, 4.3026527), (3.7, 2.8675207), (30, 2.0422725), (500, 1.9647198)]
    )
    def test_students_quantile(self, freedom, expected):
        assert t_quantile(0.975, freedom) == pytest.approx(expected, rel=1e-5)

    def test_students_quantile_outside_its_range(self):
        with pytest.raises(ValueError, match="degrees of freedom"):
            t_quantile(0.4, 3)
