from pathlib import Path

import pytest

from loadgen.errors import MeasurementError
from loadgen.experiments.analysis.measured import (
    broken_counts,
    busy_shares,
    first_tokens_ms,
    silence_ms,
    token_times_ms,
)
from loadgen.experiments.analysis.measured import (
    steady as steady_part,
)
from loadgen.gaps import Window
from tests.unit.loadgen.experiments.analysis.made_runs import MS, Made, change, read, steady, write_run


def test_only_finished_runs_count_and_an_arm_without_one_is_named(tmp_path: Path):
    write_run(tmp_path, "a", [steady(0, 20)], repeat=1)
    write_run(tmp_path, "a", [steady(0, 20)], repeat=0, state="interrupted")
    assert [run.repeat for run in read(tmp_path, "a")] == [1]
    with pytest.raises(MeasurementError, match="arm 'b' has no finished run yet"):
        read(tmp_path, "b")


def test_the_time_under_load_begins_when_all_first_users_have_a_token(tmp_path: Path):
    write_run(tmp_path, "a", [steady(0, 20), steady(50, 20), steady(400, 20)])
    (run,) = read(tmp_path, "a")
    assert steady_part(run.streams) == Window(70 * MS, 610 * MS)


def test_times_per_token_are_those_that_end_in_the_window_of_streams_that_did_not_break(tmp_path: Path):
    write_run(tmp_path, "a", [steady(0, 20), Made(0, [5, 6, 7], outcome="disconnected")])
    (run,) = read(tmp_path, "a")
    assert token_times_ms(run.streams, Window(20 * MS, 50 * MS)).tolist() == [10.0, 10.0, 10.0]


def test_a_wait_for_a_first_token_counts_where_it_is_waited(tmp_path: Path):
    write_run(tmp_path, "a", [steady(0, 5), steady(100, 5), steady(200, 5)])
    (run,) = read(tmp_path, "a")
    assert first_tokens_ms(run.streams, Window(110 * MS, 115 * MS)).tolist() == [20.0]


def test_silence_is_the_longest_time_without_any_token_around_a_change(tmp_path: Path):
    write_run(tmp_path, "a", [Made(0, [10, 20, 100]), Made(0, [15, 60])], [change(25, 26)])
    (run,) = read(tmp_path, "a")
    assert run.change is not None
    assert silence_ms(run.streams, run.change) == 40.0


def test_who_found_no_server_did_not_break(tmp_path: Path):
    streams = [steady(0, 5), Made(1, [2, 3], outcome="disconnected"), Made(2, [], outcome="unreachable")]
    write_run(tmp_path, "a", streams)
    (run,) = read(tmp_path, "a")
    assert broken_counts(run.streams) == (1, 1)


def test_shares_are_means_over_the_window(tmp_path: Path):
    samples = [("stage.0.busy", 1, 0.2), ("stage.0.busy", 2, 0.4), ("stage.0.busy", 9, 1.0), ("stage.0.layers", 1, 8)]
    write_run(tmp_path, "a", [steady(0, 5)], samples=samples)
    (run,) = read(tmp_path, "a")
    assert busy_shares(run.run, Window(0, 3 * MS)) == {"0": pytest.approx(0.3)}
