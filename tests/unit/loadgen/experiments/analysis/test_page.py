import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from loadgen.experiments.analysis.findings import Findings
from loadgen.experiments.analysis.kinds import Growth, StaticAgainstDynamic, WaysToChange
from loadgen.experiments.analysis.page import section_of, write_experiment_report
from loadgen.experiments.analysis.tables import findings_of
from loadgen.results.errors import ResultsError
from tests.unit.loadgen.experiments.analysis.made_runs import Made, change, steady, write_run

ARMS = ("static-a", "static-b", "dynamic", "restart")
EVIL = "<script>alert(1)</script>"


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    write_run(tmp_path, "static-a", [steady(0, 200), steady(0, 200)])
    write_run(tmp_path, "static-b", [steady(0, 200), steady(0, 200)])
    write_run(tmp_path, "dynamic", [steady(0, 200, stall=(100, 24)), steady(0, 200)], [change(1000, 1100)])
    broken = [Made(0, [20 + 10 * n for n in range(98)], outcome="disconnected") for _ in range(4)]
    write_run(tmp_path, "restart", [*broken, steady(30_000, 50)], [change(1000, 29_900, kind="restart")])
    return tmp_path


def static_against_dynamic(folder: Path) -> Findings:
    return findings_of(StaticAgainstDynamic(kind="static_against_dynamic"), folder, ARMS)


def growing(folder: Path) -> Findings:
    arms = [f"far-{prompt}" for prompt in (100, 200, 400, 800)]
    for arm in arms:
        prompt = int(arm.removeprefix("far-"))
        streams = [steady(0, 60, prompt=prompt, stall=(30, 5 + 0.05 * prompt))]
        write_run(folder, arm, streams, [change(315, 316 + prompt, bytes_moved=0)])
    return findings_of(Growth(kind="growth", groups=("far-",)), folder, arms)


def test_the_headline_can_be_quoted(experiment: Path):
    assert static_against_dynamic(experiment).headline == (
        "A live change cost the worst stream 24.0 ms of pause (0.0 ms is what the same definition finds where nothing "
        "happens) and broke no streams; the restart cost everyone 29.0 s without any token and broke 4 streams."
    )
    ways = findings_of(WaysToChange(kind="ways_to_change", quiet="static-a"), experiment, ARMS)
    assert ways.headline == (
        "The worst stream's pause, and no stream broken: dynamic 24.0 ms (where nothing happens: 0.0 ms). restart "
        "broke 4 streams and left everyone 29.0 s without a token."
    )


def test_the_headline_of_growth_says_how_sure_it_is(tmp_path: Path):
    told = growing(tmp_path).headline
    assert re.match(
        r"far: pause of the worst stream, 10\.0 ms to 45\.0 ms, grows by 50\.0 ms per 1000 tokens of KV", told
    )


def test_a_pause_that_could_not_be_measured_is_no_small_one(tmp_path: Path):
    for arm in ("static-a", "static-b"):
        write_run(tmp_path, arm, [steady(0, 100)])
    write_run(tmp_path, "dynamic", [steady(0, 5)], [change(25, 30)])
    write_run(tmp_path, "restart", [steady(0, 5)], [change(25, 30, kind="restart")])
    assert "a pause that could not be measured" in static_against_dynamic(tmp_path).headline


@pytest.mark.parametrize("made", [static_against_dynamic, growing])
def test_what_was_found_stands_first_on_the_page_with_its_plot_and_the_published_figures(
    experiment: Path, tmp_path: Path, made: type
):
    found = made(experiment)
    found.write(experiment)
    page = write_experiment_report(experiment).read_text()
    shown = [
        page.index(part) for part in (found.headline, "<svg", "Beside it: figures of others", "The runs behind it")
    ]
    assert shown == sorted(shown)
    assert page.index(f"<h2>{found.title}</h2>") < page.index("Arrivals and tokens over time")
    for published in found.published:
        assert published.value.replace("<", "&lt;") in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(svg)  # noqa: S314 - our own page


def test_findings_are_escaped(experiment: Path):
    found = static_against_dynamic(experiment)
    rows = ((EVIL, *found.rows[0][1:]),)
    replace(found, title=EVIL, headline=EVIL, notes=(EVIL,), columns=(EVIL, *ARMS), rows=rows).write(experiment)
    page = write_experiment_report(experiment).read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)") >= 5


def test_findings_are_read_again_as_they_were_written(experiment: Path):
    found = static_against_dynamic(experiment)
    found.write(experiment)
    again = Findings.read(experiment)
    assert again is not None
    assert (again.headline, again.rows, again.published) == (found.headline, found.rows, found.published)
    drawn, first = section_of(again).plot, section_of(found).plot
    assert drawn is not None
    assert first is not None
    assert drawn.rows == first.rows


def test_damaged_findings_are_one_error(experiment: Path):
    (experiment / "findings.json").write_text('{"kind": 3}')
    with pytest.raises(ResultsError, match=r"findings\.json cannot be read"):
        write_experiment_report(experiment)


def test_without_findings_the_page_is_that_of_the_runs(experiment: Path):
    page = write_experiment_report(experiment).read_text()
    assert "The runs behind it" not in page
    assert "The worst gap between two tokens: " in page
