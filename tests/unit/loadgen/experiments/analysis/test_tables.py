import json
from pathlib import Path

import pytest

from loadgen.experiments.analysis.findings import FINDINGS_FILE, FINDINGS_TEXT, ms, published, size
from loadgen.experiments.analysis.kinds import StaticAgainstDynamic, WaysToChange
from loadgen.experiments.analysis.tables import findings_of
from loadgen.results.columns import MarkRow
from tests.unit.loadgen.experiments.analysis.made_runs import MS, Made, change, steady, write_run

BUSY = [("stage.0.busy", 500, 0.4), ("stage.1.busy", 500, 0.6)]
CUTOVER = MarkRow("reconfigure.cutover", "cutover", 1015 * MS, 1025 * MS, "experiment")


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Write the four arms: a change of 100 ms at 1 s that holds one of two streams for 40 ms, and a restart."""
    quiet = [steady(0, 200), steady(0, 200)]
    write_run(tmp_path, "static-a", quiet, samples=BUSY)
    write_run(tmp_path, "static-b", [steady(0, 200, 12.0), steady(0, 200, 12.0)])
    disturbed = [steady(0, 200, stall=(100, 40)), steady(0, 200)]
    made = change(1000, 1100, pause_ms=30.0, bytes_moved=0, rounds=0, peak_extra_bytes=5_000_000)
    write_run(tmp_path, "dynamic", disturbed, [made, CUTOVER])
    broken = [Made(0, [20 + 10 * n for n in range(98)], outcome="disconnected") for _ in range(2)]
    after = [Made(1100, [], outcome="unreachable"), steady(3000, 50)]
    write_run(tmp_path, "restart", [*broken, *after], [change(1000, 2900, kind="restart")])
    return tmp_path


ARMS = ("static-a", "static-b", "dynamic", "restart")


def test_the_seed_papers_table_has_our_figures_beside_the_published_ones(experiment: Path):
    found = findings_of(StaticAgainstDynamic(kind="static_against_dynamic"), experiment, ARMS)
    arms = found.figures["arms"]
    assert arms["dynamic"]["downtime_ms"] == pytest.approx(40)
    assert arms["dynamic"]["downtime_p50_ms"] == pytest.approx(20)
    assert arms["dynamic"]["cutover_pause_ms"] == pytest.approx(40)
    assert arms["dynamic"]["change_ms"] == pytest.approx(100)
    assert arms["dynamic"]["server_pause_ms"] == 30.0
    assert arms["static-a"]["downtime_ms"] == pytest.approx(0)
    assert arms["static-a"]["change_ms"] is None
    assert (arms["static-a"]["busy"], arms["static-a"]["busiest"]) == (pytest.approx(0.5), pytest.approx(0.6))
    assert (arms["static-a"]["tpot_ms"], arms["static-b"]["tpot_ms"]) == (pytest.approx(10), pytest.approx(12))
    assert arms["dynamic"]["tpot_ms_around_over_static"] == pytest.approx(10.1 / 11, rel=0.01)
    assert any("2602.16100" in each.source for each in found.published)


def test_a_restarts_downtime_is_the_time_without_any_token(experiment: Path):
    found = findings_of(StaticAgainstDynamic(kind="static_against_dynamic"), experiment, ARMS)
    restart = found.figures["arms"]["restart"]
    assert restart["downtime_ms"] == pytest.approx(3020 - 990)
    assert (restart["broken"], restart["unanswered"]) == (2, 1)


def test_every_row_of_a_table_has_a_cell_for_each_column(experiment: Path):
    for analysis in (
        StaticAgainstDynamic(kind="static_against_dynamic"),
        WaysToChange(kind="ways_to_change", quiet="static-a"),
    ):
        found = findings_of(analysis, experiment, ARMS)
        assert found.rows
        assert {len(row) for row in found.rows} == {len(found.columns)}


def test_each_way_to_change_stands_beside_the_noise_of_its_own_place(experiment: Path):
    found = findings_of(WaysToChange(kind="ways_to_change", quiet="static-a"), experiment, ARMS)
    ways = found.figures["ways"]
    assert list(ways) == ["dynamic", "restart"]
    assert ways["dynamic"]["pause_ms"] == pytest.approx(40)
    assert ways["dynamic"]["noise_ms"] == pytest.approx(0)
    assert ways["dynamic"]["tpot_ratio"] == pytest.approx((20 * 10 + 40) / 20 / 10, rel=0.06)
    assert ways["restart"]["silence_ms"] == pytest.approx(2030)


def test_the_worst_pause_of_all_repeats_is_told_and_the_median_of_the_rest(tmp_path: Path):
    for repeat, stall in enumerate((10.0, 50.0, 20.0)):
        streams = [steady(0, 200, stall=(100, stall))]
        write_run(tmp_path, "way", streams, [change(1000, 1000 + stall)], repeat=repeat)
    ways = findings_of(WaysToChange(kind="ways_to_change"), tmp_path, ["way"]).figures["ways"]
    assert ways["way"]["pause_ms"] == pytest.approx(50)
    assert ways["way"]["change_ms"] == pytest.approx(20)


def test_findings_are_written_for_programs_and_for_people(experiment: Path):
    found = findings_of(StaticAgainstDynamic(kind="static_against_dynamic"), experiment, ARMS)
    found.write(experiment)
    data = json.loads((experiment / FINDINGS_FILE).read_text())
    assert data["figures"]["arms"]["dynamic"]["downtime_ms"] == pytest.approx(40)
    text = (experiment / FINDINGS_TEXT).read_text()
    assert "| downtime, worst stream | 0.0 ms |" in text
    assert "| downtime | < 50 ms |" in text


@pytest.mark.parametrize("topic", ["static_against_dynamic", "ways_to_change", "growth"])
def test_published_figures_say_where_they_are_from_and_how_far_that_was_read(topic: str):
    found = published(topic)
    assert found
    for each in found:
        assert each.source
        assert each.setup
        assert each.read_from in {"abstract", "repository", "digest"}


def test_figures_are_readable():
    assert (ms(None), ms(3.14159), ms(314.159), ms(31415.9)) == ("-", "3.1 ms", "314 ms", "31.4 s")
    assert (size(None), size(0), size(84_000_000)) == ("-", "0", "84.0 MB")
