import errno
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadgen.experiments.file import Document, check
from loadgen.load_commands import BAD_INPUT, FAILED, app, numbered_folder, quick_experiment
from tests.unit.loadgen.experiments.analysis.made_runs import steady, write_run
from tests.unit.loadgen.experiments.texts import DEMO

command = CliRunner()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give an experiment with -f FILE, or a server with --url"),
        (["--url", "http://127.0.0.1:9"], "--kind: give closed, open, sessions or trace"),
        (["--url", "http://127.0.0.1:9", "--kind", "closed"], "--users: is missing"),
        (["--url", "ftp://x", "--kind", "closed", "--users", "1"], "--url: is 'ftp://x': must be an address such as"),
        (["--url", "http://127.0.0.1:9", "--kind", "closed", "--users", "0"], "--users: is 0: Input should be"),
        (
            ["--url", "http://127.0.0.1:9", "--kind", "closed", "--users", "1", "--rate", "2"],
            "--rate: is for --kind open or sessions, not closed",
        ),
        (
            ["--url", "http://127.0.0.1:9", "--kind", "open", "--rate", "2", "--arrivals", "gamma"],
            "--arrivals: give constant or poisson; others by --set workload.arrivals",
        ),
        (["--url", "http://127.0.0.1:9", "--kind", "trace", "--trace-format", "azure"], "--trace-format: is 'azure'"),
        (["-f", "gone.yaml"], "gone.yaml: cannot be read"),
        (["-f", "no-such-experiment"], "nor one of the experiments burst-and-scale, growth"),
        (["-f", "growth", "--users", "3"], "--users: with a file, change what it says by --set"),
        (["-f", "growth", "--resume", "--start-over"], "contradict each other"),
        (["-f", "growth", "--set", "repeats=many"], "--set repeats: is 'many'"),
        (["-f", "growth", "--mark", "here"], "--mark 'here': write NAME@SECONDS"),
        (["-f", "growth", "--mark", "here@-1"], "--mark 'here@-1': write NAME@SECONDS"),
    ],
)
def test_bad_input_is_told_in_one_message_and_exit_code_2(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    result = command.invoke(app, ["run", *arguments])
    assert result.exit_code == BAD_INPUT
    assert told in " ".join(result.stderr.split())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_an_experiment_is_not_touched_unasked(tmp_path: Path):
    (tmp_path / "demo.yaml").write_text(DEMO)
    (tmp_path / "out").mkdir()
    write_run(tmp_path / "out", "a", [steady(0, 4)])
    (tmp_path / "out" / "experiment.json").write_text("{}")
    result = command.invoke(app, ["run", "-f", str(tmp_path / "demo.yaml"), "--out", str(tmp_path / "out")])
    assert result.exit_code == BAD_INPUT
    assert "--resume" in result.stderr
    assert "--start-over" in result.stderr


def test_options_make_the_same_experiment_as_a_file_would():
    given = {
        "url": "http://127.0.0.1:9/v1",
        "api_key_env": "MY_KEY",
        "kind": "open",
        "rate": 2.5,
        "arrivals": "constant",
        "duration": 10.0,
        "input_tokens": 64,
    }
    (arm,) = check(Document(quick_experiment(given), "the command line")).arms
    workload = arm.settings.workload.model_dump()
    assert workload["arrivals"] == {"kind": "constant", "rate": 2.5}
    assert workload["duration_s"] == 10.0
    assert (workload["input_tokens"]["value"], workload["output_tokens"]["value"]) == (64, 64)
    assert arm.settings.target.kind == "endpoint"


def test_results_are_shown_and_compared_from_their_folders(tmp_path: Path):
    write_run(tmp_path, "a", [steady(100 * n, 40) for n in range(10)])
    write_run(tmp_path, "b", [steady(100 * n, 40, 20.0) for n in range(10)])
    shown = command.invoke(app, ["show", str(tmp_path), "--json"])
    assert shown.exit_code == 0
    assert len(json.loads(shown.stdout)["runs"]) == 2
    compared = command.invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"])
    assert compared.exit_code == 0
    figures = {figure["name"]: figure for figure in json.loads(compared.stdout)["figures"]}
    assert any(figure["ratio"] == pytest.approx(2, rel=0.01) for figure in figures.values() if figure["ratio"])
    assert "TPOT" in command.invoke(app, ["show", str(tmp_path / "a")]).stdout


def test_what_holds_no_run_is_named(tmp_path: Path):
    for arguments in (["show", str(tmp_path)], ["compare", str(tmp_path), str(tmp_path)]):
        result = command.invoke(app, arguments)
        assert result.exit_code == FAILED
        assert str(tmp_path) in "".join(result.stderr.splitlines())


def test_an_address_without_its_scheme_is_one_of_http():
    given = {"url": "127.0.0.1:9", "kind": "closed", "users": 1, "requests": 1}
    (arm,) = check(Document(quick_experiment(given), "the command line")).arms
    assert arm.settings.target.base_url == "http://127.0.0.1:9"


def test_runs_without_a_file_do_not_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert numbered_folder(going_on=False) == "run-1"
    for number in (1, 2):
        (tmp_path / "load-results" / f"run-{number}").mkdir(parents=True)
    assert numbered_folder(going_on=False) == "run-3"
    assert numbered_folder(going_on=True) == "run-2"


def test_a_finished_experiment_is_published_and_one_that_is_not_is_refused(tmp_path: Path):
    write_run(tmp_path / "out", "a", [steady(0, 40)])
    (tmp_path / "out" / "experiment.json").write_text('{"repeats": 1, "arms": [{"name": "a"}]}')
    done = command.invoke(app, ["publish", str(tmp_path / "out"), str(tmp_path / "results")])
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "results" / "report.html").is_file()
    refused = command.invoke(app, ["publish", str(tmp_path / "results"), str(tmp_path / "again")])
    assert refused.exit_code != 0


def test_a_disk_that_is_full_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "report.html")

    write_run(tmp_path, "a", [steady(0, 40)])
    monkeypatch.setattr("loadgen.experiments.analysis.page.write_experiment_report", full)
    result = command.invoke(app, ["show", str(tmp_path), "--page"])
    assert result.exit_code == FAILED
    assert "No space left on device" in result.stderr
