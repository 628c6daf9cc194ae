"""Arrivals: the rate asked for, as bursty as asked for, at the same moments for the same seed."""

from itertools import islice, pairwise, takewhile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from loadgen.workloads.arrivals import Arrivals, arrival_times_ns
from loadgen.workloads.randomness import Purpose, stream

ADAPTER: TypeAdapter[Arrivals] = TypeAdapter(Arrivals)
RATES = st.floats(0.01, 1000)


def moments(description, count, seed=1):
    arrivals = ADAPTER.validate_python(description)
    return list(islice(arrival_times_ns(arrivals, stream(seed, Purpose.ARRIVALS)), count))


def until(description, seconds, seed=1):
    arrivals = ADAPTER.validate_python(description)
    times = arrival_times_ns(arrivals, stream(seed, Purpose.ARRIVALS))
    return [moment / 1e9 for moment in takewhile(lambda moment: moment < seconds * 1e9, times)]


def every_kind():
    changing = st.sampled_from(["poisson", "even"])
    steps = st.lists(st.tuples(st.floats(0.1, 20), st.one_of(st.just(0.0), RATES)), max_size=4)
    return st.one_of(
        st.fixed_dictionaries({"kind": st.sampled_from(["constant", "poisson"]), "rate": RATES}),
        st.fixed_dictionaries({"kind": st.just("gamma"), "rate": RATES, "cv": st.floats(0.1, 10)}),
        st.fixed_dictionaries(
            {
                "kind": st.just("ramp"),
                "from_rate": st.floats(0, 1000),
                "to_rate": RATES,
                "over_s": st.floats(0.1, 100),
                "timing": changing,
            }
        ),
        st.fixed_dictionaries(
            {
                "kind": st.just("sine"),
                "rate": RATES,
                "amplitude": st.floats(0, 1),
                "period_s": st.floats(0.1, 1000),
                "timing": changing,
            }
        ),
        st.tuples(RATES, steps, changing).map(
            lambda drawn: {
                "kind": "step",
                "steps": [{"at_s": 0, "rate": drawn[0]}]
                + [
                    {"at_s": float(at_s), "rate": rate}
                    for at_s, (_, rate) in zip(np.cumsum([gap for gap, _ in drawn[1]]), drawn[1], strict=True)
                ],
                "timing": drawn[2],
            }
        ),
    )


@settings(deadline=None)
@given(every_kind(), st.integers(0, 2**32))
def test_arrivals_never_go_back_and_follow_from_the_seed(description, seed):
    first = moments(description, 600, seed)
    assert first == moments(description, 600, seed)
    assert all(before <= after for before, after in pairwise(first))
    assert not first or first[0] >= 0


def test_constant_arrivals_are_exact_even_after_a_million():
    assert moments({"kind": "constant", "rate": 3}, 4) == [0, 333333333, 666666667, 1000000000]
    assert moments({"kind": "constant", "rate": 1000}, 100_001)[-1] == 100_000_000_000


@pytest.mark.parametrize(
    ("description", "cv"),
    [
        ({"kind": "poisson", "rate": 20}, 1),
        ({"kind": "gamma", "rate": 20, "cv": 0.25}, 0.25),
        ({"kind": "gamma", "rate": 20, "cv": 1}, 1),
        ({"kind": "gamma", "rate": 20, "cv": 3}, 3),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gaps_have_the_mean_and_the_coefficient_of_variation_asked_for(description, cv, seed):
    count = 50_000
    gaps = np.diff(moments(description, count, seed)) / 1e9
    # Five standard errors of the mean, and of the coefficient of variation by its kurtosis (at most 3 + 6 cv^2).
    assert gaps.mean() == pytest.approx(1 / 20, rel=5 * cv / count**0.5)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=5 * (1 + 3 * cv**2) ** 0.5 / count**0.5)


def test_a_burstier_load_has_more_arrivals_in_its_fullest_second():
    fullest = [
        np.bincount(np.array(until({"kind": "gamma", "rate": 20, "cv": cv}, 500)).astype(int)).max()
        for cv in (0.2, 1, 4)
    ]
    assert fullest[0] < fullest[1] < fullest[2]


def test_a_ramp_has_the_arrivals_of_its_area_and_then_stays():
    ramp = {"kind": "ramp", "from_rate": 0, "to_rate": 10, "over_s": 20, "timing": "even"}
    assert len(until(ramp, 10)) == pytest.approx(25, abs=1)
    assert len(until(ramp, 20)) == pytest.approx(100, abs=1)
    assert len(until(ramp, 30)) == pytest.approx(200, abs=1)


def test_a_ramp_down_to_nothing_ends():
    ramp = {"kind": "ramp", "from_rate": 10, "to_rate": 0, "over_s": 20, "timing": "even"}
    assert len(moments(ramp, 1000)) == pytest.approx(100, abs=1)
    assert len(until(ramp, 10)) == pytest.approx(75, abs=1)


def test_steps_are_kept_to_the_second_and_nothing_arrives_at_rate_0():
    steps = {
        "kind": "step",
        "steps": [{"at_s": 0, "rate": 0}, {"at_s": 10, "rate": 8}, {"at_s": 20, "rate": 0}, {"at_s": 30, "rate": 1}],
    }
    for timing in ("even", "poisson"):
        times = np.array(until(steps | {"timing": timing}, 100))
        assert times[0] >= 10
        assert not ((times >= 20) & (times < 30)).any()
        assert (times < 20).sum() == pytest.approx(80, abs=0 if timing == "even" else 45)
    even = until(steps | {"timing": "even"}, 33)
    assert even[0] == 10
    assert even[80:] == [30, 31, 32]


def test_steps_that_end_with_nothing_end_the_arrivals():
    steps = {"kind": "step", "steps": [{"at_s": 0, "rate": 5}, {"at_s": 2, "rate": 0}], "timing": "even"}
    assert len(moments(steps, 1000)) == 10


def test_a_sine_swings_around_its_mean():
    sine = {"kind": "sine", "rate": 10, "amplitude": 1, "period_s": 100, "timing": "even"}
    times = np.array(until(sine, 300))
    per_quarter = np.histogram(times, np.arange(0, 301, 25))[0]
    crest, trough = 250 * (1 + 2 / np.pi), 250 * (1 - 2 / np.pi)
    assert per_quarter == pytest.approx([crest, crest, trough, trough] * 3, abs=1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_changing_rate_with_poisson_timing_is_a_poisson_process(seed):
    sine = {"kind": "sine", "rate": 50, "amplitude": 0.9, "period_s": 10}
    counts = np.histogram(until(sine, 4000, seed), np.arange(0, 4001, 10))[0]  # 400 whole periods, 500 expected in each
    assert counts.mean() == pytest.approx(500, rel=5 / (500 * 400) ** 0.5)
    assert counts.var() / counts.mean() == pytest.approx(1, abs=5 * (2 / 400) ** 0.5)


@pytest.mark.parametrize(
    ("description", "told"),
    [
        ({"kind": "poisson", "rate": 0}, "greater than 0"),
        ({"kind": "poisson", "rate": float("nan")}, "finite number"),
        ({"kind": "gamma", "rate": 1, "cv": 0}, "greater than 0"),
        ({"kind": "ramp", "from_rate": 0, "to_rate": 0, "over_s": 1}, "nothing would ever arrive"),
        ({"kind": "step", "steps": [{"at_s": 1, "rate": 1}]}, "the first step is at 1 s"),
        ({"kind": "step", "steps": [{"at_s": 0, "rate": 0}]}, "every rate is 0"),
        (
            {"kind": "step", "steps": [{"at_s": 0, "rate": 1}, {"at_s": 5, "rate": 1}, {"at_s": 5, "rate": 2}]},
            "a step at 5 s follows one at 5 s",
        ),
        ({"kind": "sine", "rate": 1, "amplitude": 1.5, "period_s": 1}, "less than or equal to 1"),
    ],
)
def test_impossible_arrivals_are_refused(description, told):
    with pytest.raises(ValidationError, match=told):
        ADAPTER.validate_python(description)
