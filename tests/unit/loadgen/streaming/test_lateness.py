from hypothesis import given
from hypothesis import strategies as st

from loadgen.gaps import percentile
from loadgen.streaming.lateness import Lateness


def counted(values: list[int]) -> Lateness:
    lateness = Lateness()
    for value in values:
        lateness.add(value)
    return lateness


def test_nothing_counted_is_not_late():
    assert Lateness().figures() == {"p50": 0.0, "p99": 0.0, "max": 0.0}


def test_early_counts_as_not_late():
    assert counted([-5_000_000, -1]).figures()["max"] == 0.0


@given(st.lists(st.integers(0, 900_000_000), min_size=1, max_size=300))
def test_a_percentile_is_that_of_the_values_rounded_up_to_ten_microseconds(values):
    lateness = counted(values)
    for q in (50, 99, 100):
        exact = sorted(values)[max(0, -(-len(values) * q // 100) - 1)] / 1e6
        assert exact <= lateness.percentile_ms(q) <= exact + 0.01 + 1e-9
    assert lateness.max_ms == percentile(values, 100) / 1e6


def test_what_is_later_than_the_last_bin_is_never_made_smaller():
    assert counted([5_000_000_000]).percentile_ms(50) == 5000
