from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import MeasurementError
from loadgen.experiments.agreement_result import agreement, figures_of_vllm

values = st.lists(st.floats(0.1, 1e4), min_size=1, max_size=6)


@given(values, st.randoms())
def test_swapping_the_sides_turns_the_ratio_around(ours: list[float], random: Any):
    theirs = [value * random.uniform(0.5, 2) for value in ours]
    there, back = agreement("x", ours, theirs), agreement("x", theirs, ours)
    assert there.ratio * back.ratio == pytest.approx(1)
    assert (there.verdict == "differ") == (back.verdict == "differ") or abs(there.ratio - 1) < 0.05


def test_equal_figures_agree_and_clearly_different_ones_differ():
    assert agreement("x", [10, 11, 12], [10, 11, 12]).verdict == "agree"
    assert agreement("x", [10, 10.3, 9.9, 10.1], [10.2, 10, 10.1, 9.8]).verdict == "agree"
    assert agreement("x", [20, 22, 24.1], [10, 11, 12]).verdict == "differ"


def test_rounds_that_vary_widely_show_nothing():
    noisy = agreement("x", [10, 14, 9, 30], [12, 11, 11, 10])
    assert noisy.low is not None
    assert noisy.high is not None
    assert noisy.low < 1 < noisy.high
    assert noisy.verdict == "too noisy"


def test_one_round_has_no_interval():
    assert agreement("x", [10], [10.1]).low is None
    assert agreement("x", [10], [10.1]).verdict == "agree"
    assert agreement("x", [10], [12]).verdict == "too noisy"


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1], [0]), ([1, 2], [1]), ([-1], [1])])
def test_what_cannot_be_compared_is_refused(ours: list[float], theirs: list[float]):
    with pytest.raises(MeasurementError, match="cannot be compared"):
        agreement("x", ours, theirs)


RESULT: dict[str, Any] = {
    "failed": 0,
    "errors": ["", ""],
    "output_lens": [3, 1],
    "ttfts": [0.1, 0.3],
    "latencies": [0.5, 0.3],
    "itls": [[0.15, 0.25], []],
    "start_times": [100.0, 101.0],
}


def test_vllms_result_is_read_by_our_definitions():
    assert figures_of_vllm(RESULT) == {
        "ttft_ms_p50": pytest.approx(200),
        "ttft_ms_mean": pytest.approx(200),
        "tpot_ms_p50": pytest.approx(200),
        "tpot_ms_mean": pytest.approx(200),
        "itl_ms_p50": pytest.approx(200),
        "tokens_per_s": pytest.approx(4 / 1.3),
    }


@pytest.mark.parametrize("broken", [{"failed": 1}, {"ttfts": []}, {"itls": None}])
def test_a_result_that_is_none_is_refused(broken: dict[str, Any]):
    with pytest.raises(MeasurementError):
        figures_of_vllm(RESULT | broken)
    with pytest.raises(MeasurementError):
        figures_of_vllm({})
