"""Distributions: their moments, their bounds, and the short form of a fixed value."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from loadgen.workloads.distributions import Distribution, nanoseconds, tokens
from loadgen.workloads.randomness import Purpose, stream

ADAPTER: TypeAdapter[Distribution] = TypeAdapter(Distribution)


def drawn(description, count=20_000, seed=1, least=1):
    generator = stream(seed, Purpose.INPUT_TOKENS)
    return np.array(list(islice(tokens(ADAPTER.validate_python(description), generator, least=least), count)))


def test_a_bare_number_is_a_fixed_value():
    assert ADAPTER.validate_python(512) == ADAPTER.validate_python({"kind": "fixed", "value": 512})
    assert set(drawn(512, 300)) == {512}


def test_uniform_has_both_ends_and_everything_between_alike():
    values, counts = np.unique(drawn({"kind": "uniform", "min": 3, "max": 6}), return_counts=True)
    assert values.tolist() == [3, 4, 5, 6]
    assert counts == pytest.approx([5000] * 4, rel=0.1)


@pytest.mark.parametrize("kind", ["normal", "lognormal"])
def test_mean_and_std_are_those_of_the_values(kind):
    values = drawn({"kind": kind, "mean": 1000, "std": 300})
    assert values.mean() == pytest.approx(1000, rel=0.02)
    assert values.std() == pytest.approx(300, rel=0.05)


def test_lognormal_leans_to_the_right():
    values = drawn({"kind": "lognormal", "mean": 1000, "std": 1000})
    assert np.median(values) == pytest.approx(1000 / 2**0.5, rel=0.03)


@settings(deadline=None)
@given(
    st.sampled_from(["normal", "lognormal"]),
    st.floats(1, 1e4),
    st.floats(0, 1e4),
    st.integers(0, 50),
    st.integers(1, 60),
)
def test_bounds_and_least_hold(kind, mean, std, low, least):
    values = drawn({"kind": kind, "mean": mean, "std": std, "min": low, "max": low + 100}, 300, least=least)
    assert values.min() >= max(low, least)
    assert values.max() <= max(low + 100, least)


def test_choice_follows_the_weights():
    values, counts = np.unique(drawn({"kind": "choice", "values": [10, 99], "weights": [3, 1]}), return_counts=True)
    assert values.tolist() == [10, 99]
    assert counts[0] / counts[1] == pytest.approx(3, rel=0.1)


def test_a_value_of_weight_0_is_never_drawn_and_not_the_least():
    choice = ADAPTER.validate_python({"kind": "choice", "values": [0, 5], "weights": [0, 1]})
    assert choice.stated_least == 5


def test_seconds_become_nanoseconds():
    think = nanoseconds(ADAPTER.validate_python(1.5), stream(1, Purpose.THINK))
    assert next(think) == 1_500_000_000


@pytest.mark.parametrize(
    ("description", "told"),
    [
        (-1, "greater than or equal to 0"),
        (True, "should be a number, or a distribution"),
        ("512", "should be a number, or a distribution"),
        (None, "should be a number, or a distribution"),
        ({"kind": "uniform", "min": 5, "max": 4}, r"max \(4\) is below min \(5\)"),
        ({"kind": "normal", "mean": 5, "std": 1, "min": 9, "max": 4}, r"max \(4\) is below min \(9\)"),
        ({"kind": "choice", "values": []}, "at least 1 item"),
        ({"kind": "choice", "values": [1, 2], "weights": [1]}, "1 weights for 2 values"),
        ({"kind": "choice", "values": [1, 2], "weights": [0, 0]}, "all weights are 0"),
        ({"kind": "zipf"}, "does not match any of the expected tags"),
    ],
)
def test_impossible_distributions_are_refused(description, told):
    with pytest.raises(ValidationError, match=told):
        ADAPTER.validate_python(description)
