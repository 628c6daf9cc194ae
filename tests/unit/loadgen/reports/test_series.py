import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.reports.series import bin_means, bin_width_s, cdf_points, largest_points, rate_series

VALUES = st.lists(st.floats(0.01, 1e5), min_size=1, max_size=2_000).map(np.array)


@given(st.floats(0.001, 1e6))
def test_bins_are_round_and_few(span_s):
    width = bin_width_s(span_s)
    assert span_s / width <= 200 * (1 + 1e-6)
    assert span_s / width >= 200 / 2.5 * (1 - 1e-6)
    assert f"{width:.0e}"[0] in "125"


@given(st.lists(st.integers(0, 10**11), min_size=1), st.integers(0, 10**9))
def test_no_event_is_lost_in_bins(at, more):
    start, end = min(at) / 1e9, (max(at) + more) / 1e9
    series = rate_series(np.array(at), start, end)
    assert (series.rates * np.diff(series.edges_s)).sum() == pytest.approx(len(at))


def test_a_sliver_at_the_end_makes_no_spike():
    at = np.append(
        np.arange(100) * 10**8, 10_001_000_000
    )  # ten a second, and one more a millisecond after the last bin
    series = rate_series(at, 0.0, 10.001, 1.0)
    assert series.rates.max() < 12
    assert series.edges_s[-1] == 10.001


@given(VALUES)
def test_a_curve_has_both_ends_and_only_rises(values):
    x, y = cdf_points(values)
    assert (x[0], x[-1], y[-1]) == (values.min(), values.max(), 1)
    assert (np.diff(x) >= 0).all()
    assert (np.diff(y) > 0).all()
    assert len(x) <= 400


@given(VALUES)
def test_every_point_of_a_curve_is_true(values):
    for x, y in zip(*cdf_points(values), strict=True):
        assert (values < x).mean() < y <= (values <= x).mean() + 1e-9


class TestLargestPoints:
    def test_few_points_are_all_drawn(self):
        assert largest_points(np.arange(10.0), np.ones(10)).tolist() == list(range(10))

    @given(st.integers(0, 2**32 - 1), st.integers(1_001, 20_000))
    def test_of_many_the_largest_of_every_stretch_of_time_is_kept(self, seed, n):
        draw = np.random.default_rng(seed)
        at, values = draw.uniform(0, 100, n), draw.lognormal(0, 1, n)
        kept = largest_points(at, values)
        assert len(kept) <= 1_100
        assert len(set(kept.tolist())) == len(kept)
        bins = np.minimum((at - at.min()) / (at.max() - at.min()) * 200, 199).astype(int)
        for one in np.unique(bins):
            assert values[kept][bins[kept] == one].max() == values[bins == one].max()

    def test_all_at_one_moment(self):
        kept = largest_points(np.zeros(5_000), np.arange(5_000.0))
        assert 4_999 in kept


def test_means_of_bins():
    middles, means = bin_means(np.array([0.1, 0.2, 2.5]), np.array([1.0, 3.0, 7.0]), 1.0)
    assert (middles.tolist(), means.tolist()) == ([0.5, 2.5], [2.0, 7.0])
