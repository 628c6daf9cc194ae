import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadgen.experiments.file import Document, check
from loadgen.load_commands import BAD_INPUT, FAILED, app, quick_experiment
from tests.unit.loadgen.experiments.analysis.made_runs import steady, write_run
from tests.unit.loadgen.experiments.texts import DEMO

command = CliRunner()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give an experiment with -f FILE, or a server with --url"),
        (["--url", "http://127.0.0.1:9"], "--kind: give closed, open, sessions or trace"),
        (["--url", "http://127.0.0.1:9", "--kind", "closed"], "the command line: workload.users is missing"),
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
        "duration": 10.0,
        "input_tokens": 64,
        "output_tokens": 32,
    }
    (arm,) = check(Document(quick_experiment(given, "constant"), "the command line")).arms
    workload = arm.settings.workload.model_dump()
    assert workload["arrivals"] == {"kind": "constant", "rate": 2.5}
    assert workload["duration_s"] == 10.0
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
