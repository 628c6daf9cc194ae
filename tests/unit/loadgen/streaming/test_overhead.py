import json
import subprocess
import sys

import pytest

from loadgen.errors import OptionsError
from loadgen.streaming.overhead import OverheadOptions, render


def test_a_small_run_reports_its_cost_and_the_error_of_its_timestamps():
    # In a process of its own, as users run it: the memory and the processor time are those of the whole process.
    argv = (
        sys.executable,
        "-m",
        "controller.cli",
        "bench",
        "load",
        "--streams",
        "20",
        "--rate",
        "50",
        "--seconds",
        "1",
    )
    result = subprocess.run([*argv, "--json"], capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["tokens"] == 20 * 50
    assert 0 < found["cpu_cores"] < 1
    assert 30 < found["rss_mb"] < 500
    errors = found["timestamp_error_ms"]
    assert 0 < errors["p50"] <= errors["p99"] <= errors["max"]
    assert errors["p50"] < 5
    assert set(found["lag_ms"]) == set(found["mock_late_ms"]) == {"p50", "p99", "max"}
    assert render(found).row_count >= 8
    assert "fell behind" in str(render(found | {"fell_behind": True}).columns[1]._cells[-1])


def test_nothing_to_stream_is_bad_input():
    with pytest.raises(OptionsError, match="at least one stream"):
        OverheadOptions(streams=0)
