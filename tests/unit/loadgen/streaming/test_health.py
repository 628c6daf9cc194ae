import resource
import time
from itertools import pairwise

import pytest

from loadgen.clock import now_ns
from loadgen.streaming.deadlines import Deadlines
from loadgen.streaming.health import Health, HealthProbe, descriptors_for_streams
from tests.unit.loadgen.streaming.support import MS, Kept


def health(**changed: object) -> Health:
    calm = {"p50": 0.1, "p99": 0.5, "max": 3.0}
    given = {"lag_ms": calm, "late_send_ms": calm, "held_back": 0, "places": 8, "places_by": "max_in_flight"}
    return Health(**(given | {"cpu": 0.2, "cpu_max": 0.3, "cpu_wait": 0.25, "rss_mb": 80.0} | changed))


def test_a_calm_run_has_nothing_to_say():
    assert not health().fell_behind
    assert health().warnings == ()


@pytest.mark.parametrize("name", ["lag_ms", "late_send_ms"])
def test_a_99th_percentile_above_5_ms_is_said_with_its_figures_and_the_machines_part(name):
    late = health(**{name: {"p50": 1.0, "p99": 5.1, "max": 44.0}})
    assert late.fell_behind
    assert "44.0 ms" in late.warnings[0]
    assert "waited for a processor 25% of the time" in late.warnings[0]
    assert not health(**{name: {"p50": 1.0, "p99": 5.0, "max": 44.0}}).fell_behind


async def test_probes_that_were_missed_count_each_with_its_own_lateness():
    kept = Kept()
    with Deadlines() as deadlines:
        origin = now_ns()
        probe = HealthProbe(deadlines, kept, origin, lambda: 0)
        probe.start()
        time.sleep(0.1)  # noqa: ASYNC251 - the loop stands still
        found = probe.stop(1, "max_in_flight")
    lags = [value for _, _, value in kept.samples]
    moments = [at for _, at, _ in kept.samples]
    assert len(lags) >= 9
    assert lags == sorted(lags, reverse=True)
    assert {later - earlier for earlier, later in pairwise(moments)} == {10 * MS}
    assert found.lag_ms["max"] >= 85


def test_the_limit_of_open_files_is_raised_as_far_as_it_may():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
        room = descriptors_for_streams()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
        assert 0 < room < hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
