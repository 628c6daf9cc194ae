import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import MeasurementError
from loadgen.experiments.analysis.growth import analyse, fit, tokens_held
from loadgen.experiments.analysis.kinds import Growth
from tests.unit.loadgen.experiments.analysis.made_runs import MS, change, read, steady, write_run

points = st.lists(
    st.tuples(st.integers(0, 10_000), st.floats(-1e4, 1e4)), min_size=3, max_size=20, unique_by=lambda point: point[0]
)


@given(points)
def test_the_line_is_the_one_of_least_squares(each: list[tuple[int, float]]):
    x, y = [float(a) for a, _ in each], [b for _, b in each]
    line = fit(x, y)
    assert line is not None
    slope, intercept = np.polyfit(x, y, 1)
    assert line.slope == pytest.approx(slope, rel=1e-6, abs=1e-6)
    assert line.intercept == pytest.approx(intercept, rel=1e-5, abs=1e-3)
    assert line.low <= line.slope <= line.high


@given(
    st.lists(st.integers(0, 1000), min_size=3, max_size=20, unique=True),
    st.integers(-100, 100),
    st.integers(-100, 100),
)
def test_points_on_a_line_give_that_line_without_doubt(x: list[int], slope: int, intercept: int):
    line = fit(x, [slope * each + intercept for each in x])
    assert line is not None
    assert line.slope == pytest.approx(slope, abs=1e-6)
    assert line.high - line.low < 1e-4
    if slope:
        assert line.grows is (slope > 0)
        assert line.r_squared == pytest.approx(1)


def test_the_interval_holds_the_true_slope_as_often_as_it_says():
    draw = np.random.default_rng(3)
    x = np.arange(9.0)
    held = 0
    for _ in range(400):
        line = fit(x, (2 * x + draw.normal(0, 3, 9)).tolist())
        assert line is not None
        held += line.low <= 2 <= line.high
    assert held / 400 == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize(("x", "y"), [([1, 2], [1, 2]), ([3, 3, 3], [1, 2, 3]), ([], [])])
def test_too_little_has_no_line(x: list[float], y: list[float]):
    assert fit(x, y) is None


def test_nothing_grows_when_the_interval_holds_zero():
    line = fit([1, 2, 3, 4], [5, 1, 5, 1])
    assert line is not None
    assert line.grows is None


def test_the_kv_of_a_moment_is_that_of_open_streams(tmp_path: Path):
    write_run(tmp_path, "a", [steady(0, 10, prompt=100), steady(50, 10, prompt=200), steady(1000, 5, prompt=400)])
    (run,) = read(tmp_path, "a")
    # At 95 ms the first has tokens at 20, 30, ... 90: 8; the second at 70, 80, 90: 3.
    assert tokens_held(run.streams, 95 * MS) == (100 + 8 + 200 + 3, 2)
    assert tokens_held(run.streams, 0) == (0, 0)


def test_groups_are_fitted_each_by_itself(tmp_path: Path):
    arms = []
    for group, slope in (("near-", 0.0), ("far-", 0.05)):
        for prompt in (100, 200, 400, 800):
            arm = f"{group}{prompt}"
            streams = [steady(0, 60, prompt=prompt, stall=(30, 5 + slope * prompt))]
            write_run(tmp_path, arm, streams, [change(315, 316 + prompt, bytes_moved=prompt * 1000)])
            arms.append(arm)
    found = analyse(Growth(kind="growth", groups=("near-", "far-")), read(tmp_path, *arms))
    lines = found.figures["groups"]["far-"]["lines"]
    assert lines["pause_ms"]["slope"] == pytest.approx(0.05, rel=1e-6)
    assert lines["bytes_moved"]["slope"] == pytest.approx(1000)
    assert found.figures["groups"]["near-"]["lines"]["pause_ms"]["slope"] == pytest.approx(0, abs=1e-9)
    assert len(found.rows) == 6
    assert all(len(row) == len(found.columns) for row in found.rows)
    assert not math.isnan(lines["total_ms"]["low"])


def test_a_group_without_a_change_is_named(tmp_path: Path):
    write_run(tmp_path, "near-1", [steady(0, 60)])
    with pytest.raises(MeasurementError, match="no arm that begins with 'near-' has a change"):
        analyse(Growth(kind="growth", groups=("near-",)), read(tmp_path, "near-1"))


def test_the_band_holds_the_line_and_is_narrowest_in_the_middle():
    line = fit([0, 1, 2, 3, 4], [0.1, 0.9, 2.2, 2.8, 4.1])
    assert line is not None
    widths = []
    for x in (0.0, 2.0, 4.0):
        y, low, high = line.at(x)
        assert low < y < high
        widths.append(high - low)
    assert widths[1] < widths[0] == pytest.approx(widths[2])
    # At x = 0 the reach is t * s * sqrt(1/n + mean² / spread), with t = 3.182 for three degrees of freedom.
    residuals = [y - (0.04 + 0.99 * x) for x, y in enumerate([0.1, 0.9, 2.2, 2.8, 4.1])]
    s = (sum(r * r for r in residuals) / 3) ** 0.5
    assert widths[0] / 2 == pytest.approx(3.182 * s * (1 / 5 + 4 / 10) ** 0.5, rel=1e-3)
