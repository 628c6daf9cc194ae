"""The whole experiment, with two mock servers as child processes in place of Midstream and stock vLLM."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from loadgen.benchmarks.reconfigure.bench import ReconfigureOptions, render, run
from loadgen.errors import ChangeRefusedError, LoadgenError, MeasurementError, ServerDiedError
from tests.unit.loadgen.streams import eventually

MOCK = (sys.executable, "-m", "loadgen.mock")
PROMISED = {
    *("vllm_version", "streams", "itl_ms_p50_before", "itl_ms_p50_after", "ttft_ms_p50", "pause_ms", "pause_ms_each"),
    *("pause_ms_p50", "total_ms", "bytes_moved", "rounds", "peak_extra_bytes", "tokens_lost", "tokens_repeated"),
    *("outputs_identical", "stock_itl_ms_p50", "itl_ratio", "restart_downtime_ms", "restart_ratio"),
    *("throughput_dip", "machine", "not_measured"),
}


def options(tmp_path: Path, *behaviour: str, **changed: Any) -> ReconfigureOptions:
    given = {
        "model": "any",
        "streams": 2,
        "tokens": 60,
        "repeat": 1,
        "log_dir": tmp_path,
        "start_deadline_s": 60.0,
        "change_deadline_s": 20.0,
        "settle_s": 0.01,
        "midstream_command": (*MOCK, "--itl-ms", "4", *behaviour),
        "stock_command": (*MOCK, "--itl-ms", "4"),
    }
    return ReconfigureOptions(**(given | changed))


def own_servers() -> list[psutil.Process]:
    """Return the mock servers that are alive below this process (an engine of other tests may live there too)."""
    alive = [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    return [p for p in alive if "loadgen.mock" in p.cmdline()]


async def test_a_change_that_stalls_the_streams_is_found_with_its_cost(tmp_path):
    said: list[str] = []
    result = await run(options(tmp_path, "--change-stall-ms", "400", repeat=2), say=said.append)

    assert set(result) >= PROMISED
    assert 390 < result["pause_ms"] < 3000
    assert 390 < result["pause_ms_at_cutover"] <= result["pause_ms"]
    assert result["pause_ms_undisturbed"] < result["pause_ms"]
    assert len(result["pause_ms_each"]) == 4
    assert (result["tokens_lost"], result["tokens_repeated"], result["outputs_identical"]) == (0, 0, True)
    assert (result["bytes_moved"], result["rounds"], result["peak_extra_bytes"]) == (4096, 1, 8192)
    assert result["changes_committed"] == 2
    assert [c["from"] for c in result["changes"]] == ["15,15", "15,15"]  # each was changed back
    assert 0 < result["throughput_dip"] < 1
    assert result["itl_ms_p50_before"] == pytest.approx(4, abs=1)
    assert result["stock_itl_ms_p50"] == pytest.approx(4, abs=1)
    assert result["itl_ratio"] > 0
    assert result["outputs_identical_to_stock"] is True
    assert result["restart_downtime_ms"] > 0
    assert result["restart_broken_streams"] == 2
    assert set(result["not_measured"]) <= {"ttft_ms_max_during_change"}
    assert result["machine"]["cpus"] >= 1
    assert any("repeat 2 of 2" in line for line in said)
    assert render(result).row_count > 10
    assert own_servers() == []


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("lose", {"tokens_lost": 1, "tokens_repeated": 0, "streams_diverged": 0}),
        ("repeat", {"tokens_lost": 0, "tokens_repeated": 1, "streams_diverged": 0}),
        ("replace", {"tokens_lost": 0, "tokens_repeated": 0, "streams_diverged": 1}),
    ],
)
async def test_a_token_that_the_change_harmed_is_found(tmp_path, fault, found):
    result = await run(options(tmp_path, "--change-fault", fault, compare_stock=False))
    assert {name: result[name] for name in found} == found
    assert result["outputs_identical"] is False


async def test_a_stream_that_the_change_broke_leaves_no_pause(tmp_path):
    result = await run(options(tmp_path, "--change-fault", "disconnect", compare_stock=False))
    assert (result["pause_ms"], result["streams_broken"]) == (None, 1)
    assert "broke" in result["not_measured"]["pause_ms"]


async def test_without_stock_its_figures_are_null_with_the_reason(tmp_path):
    result = await run(options(tmp_path, compare_stock=False))
    for name in ("stock_itl_ms_p50", "itl_ratio", "restart_downtime_ms", "restart_ratio"):
        assert result[name] is None
        assert "switched off" in result["not_measured"][name]
    assert result["pause_ms"] is not None


async def test_stock_that_does_not_start_leaves_the_rest_measured(tmp_path):
    result = await run(options(tmp_path, stock_command=(sys.executable, "-c", "raise SystemExit('no such model')")))
    assert "no such model" in result["not_measured"]["stock_itl_ms_p50"]
    assert result["pause_ms"] is not None


async def test_stock_that_breaks_on_the_way_leaves_the_rest_measured(tmp_path):
    breaking = (*MOCK, "--fault", "disconnect:30")  # past the warm-up's tokens
    result = await run(options(tmp_path, stock_command=breaking, repeat=2))
    assert "disconnected" in result["not_measured"]["stock_itl_ms_p50"]
    assert "disconnected" in result["not_measured"]["restart_downtime_ms"]
    assert result["changes_committed"] == 2


async def test_stock_that_does_not_come_back_leaves_all_but_the_restart_measured(tmp_path):
    once = (
        "import os, pathlib, sys; pathlib.Path(sys.argv[1]).touch(exist_ok=False); "
        "os.execv(sys.executable, [sys.executable, '-m', 'loadgen.mock', *sys.argv[2:]])"
    )
    result = await run(options(tmp_path, stock_command=(sys.executable, "-c", once, str(tmp_path / "ran"))))
    assert "FileExistsError" in result["not_measured"]["restart_downtime_ms"]
    assert result["stock_itl_ms_p50"] > 0


async def test_without_a_model_stock_gets_the_folder_of_the_default_one(tmp_path):
    command = (sys.executable, "-c", "print('a log line'); print('/models/default')")
    echo = (sys.executable, "-c", "import sys; sys.exit(' '.join(sys.argv[1:]))")
    result = await run(options(tmp_path, model=None, model_folder_command=command, stock_command=echo))
    assert "--model /models/default --host" in result["not_measured"]["stock_itl_ms_p50"]


async def test_a_default_model_that_cannot_be_had_is_the_reason(tmp_path):
    command = (sys.executable, "-c", "raise SystemExit('disk full')")
    result = await run(options(tmp_path, model=None, model_folder_command=command))
    assert "names no model folder: disk full" in result["not_measured"]["stock_itl_ms_p50"]


async def test_an_aborted_change_is_told_and_the_layout_not_changed_back(tmp_path):
    result = await run(options(tmp_path, "--change-outcome", "abort", compare_stock=False))
    assert result["changes_committed"] == 0
    assert "no change was committed: the mock server aborts" in result["not_measured"]["pause_ms"]


@pytest.mark.parametrize(
    ("behaviour", "error", "message"),
    [
        (("--change-outcome", "refuse"), ChangeRefusedError, "422"),
        (("--refuse", "503"), MeasurementError, "broke with nothing disturbing it"),
        (("--itl-ms", "fast"), ServerDiedError, "Invalid value for '--itl-ms'"),
    ],
)
async def test_midstream_that_cannot_be_measured_is_an_error_that_names_the_logs(tmp_path, behaviour, error, message):
    with pytest.raises(error, match=message) as raised:
        await run(options(tmp_path, *behaviour, compare_stock=False))
    assert isinstance(raised.value, LoadgenError)
    assert str(tmp_path) in str(raised.value)
    assert own_servers() == []


async def test_sigterm_stops_the_servers_too(tmp_path):
    experiment = asyncio.create_task(run(options(tmp_path, "--change-outcome", "hang", compare_stock=False)))
    await eventually(own_servers)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(asyncio.CancelledError):
        await experiment
    assert own_servers() == []
