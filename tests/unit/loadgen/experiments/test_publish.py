import json
import re
from pathlib import Path
from typing import Any

import pytest

from loadgen.errors import OptionsError
from loadgen.experiments import publish as module
from loadgen.experiments.analysis.kinds import WaysToChange
from loadgen.experiments.analysis.tables import findings_of
from loadgen.experiments.publish import general, publish
from loadgen.results.errors import ResultsError
from loadgen.results.manifest import RunManifest
from tests.unit.loadgen.experiments.analysis.made_runs import change, steady, write_run

SECRETS = ("/home/someone", "someone@", "build-host-7", "registry.corp.example", "10.1.2.3")


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Write a finished experiment of two arms whose settings, marks and findings name places."""
    folder = tmp_path / "finished"
    write_run(folder, "quiet", [steady(0, 200)])
    write_run(folder, "way", [steady(0, 200, stall=(100, 40))], [change(1000, 1100, log="/home/someone/a.log")])
    places = {
        "command": ["/home/someone/bin/serve", "--index=https://registry.corp.example/simple"],
        "base_url": "http://10.1.2.3:8000",
        "layers": "15@edge-1,15@edge-2",
    }
    for arm in ("quiet", "way"):
        run = folder / arm / "0"
        manifest = RunManifest.read(run)
        machine = {**manifest.machine, "platform": "Linux-6.1.2-corp-77-x86_64-with-glibc2.36"}
        manifest.model_copy(update={"target": {**manifest.target, **places}, "machine": machine}).write(run)
    document = {"repeats": 1, "arms": [{"name": arm, "target": places} for arm in ("quiet", "way")]}
    (folder / "experiment.json").write_text(json.dumps(document))
    found = findings_of(WaysToChange(kind="ways_to_change", quiet="quiet"), folder, ["quiet", "way"])
    found.write(folder)
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_the_report_the_findings_the_figures_and_one_plot_are_published_and_no_tokens(experiment: Path, tmp_path: Path):
    written = publish(experiment, tmp_path / "results")
    files = contents(tmp_path / "results")
    assert set(files) == {
        "report.html",
        "findings.md",
        "findings.json",
        "experiment.json",
        "plot.svg",
        "quiet/0/summary.json",
        "way/0/summary.json",
    }
    assert len(written) == len(files)
    assert "What each way costs" in files["report.html"]
    assert files["plot.svg"].startswith("<?xml")
    document = json.loads(files["experiment.json"])
    assert document["machine"]["cpus"] == 2
    assert [(run["arm"], run["seed"]) for run in document["runs"]] == [("quiet", 1), ("way", 1)]


def test_nothing_published_names_a_path_a_host_or_a_registry(experiment: Path, tmp_path: Path):
    publish(experiment, tmp_path / "results")
    for name, content in contents(tmp_path / "results").items():
        for secret in (*SECRETS, str(tmp_path), "corp"):
            assert secret not in content, name
    (summary,) = (json.loads((tmp_path / "results" / "way" / "0" / "summary.json").read_text()),)
    target = summary["run"]["target"]
    assert target["command"] == [".../serve", "--index=https://HOST"]
    assert target["layers"] == "15@edge-1,15@edge-2"  # nodes, no mailbox
    assert summary["run"]["machine"]["platform"] == "Linux-6.1.2-x86_64-with-glibc2.36"


def test_the_figures_are_those_of_the_experiment(experiment: Path, tmp_path: Path):
    publish(experiment, tmp_path / "results")
    ours, theirs = (json.loads((folder / "findings.json").read_text()) for folder in (experiment, tmp_path / "results"))
    assert ours["figures"] == theirs["figures"]
    assert ours["headline"] == theirs["headline"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/someone/models/tiny", ".../tiny"),
        ("--model=/srv/m/tiny", "--model=.../tiny"),
        ("~/models/tiny", ".../tiny"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000"),
        ("https://user:key@models.example:8443/v1?x=1", "https://HOST"),
        ("from 10.1.2.3", "from ADDRESS"),
        ("ask someone@example.org", "ask MAILBOX"),
        ("15@edge-1,15@edge-2", "15@edge-1,15@edge-2"),
        ("tokens/s, p50/p99 and 1/2", "tokens/s, p50/p99 and 1/2"),
        ({"/home/a/b": ["/opt/x", 3, None]}, {".../b": [".../x", 3, None]}),
    ],
)
def test_what_names_a_place_is_made_general(value: Any, shown: Any):
    assert general(value) == shown


def test_this_machine_and_its_user_are_nobody(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module.socket, "gethostname", lambda: "build-host-7")
    monkeypatch.setattr(module.getpass, "getuser", lambda: "gerda")
    assert general("ran on Build-Host-7 by gerda, not gerdas") == "ran on HOST by HOST, not gerdas"


def test_what_slipped_through_ends_it_before_anything_is_written(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "general", lambda value: value)
    with pytest.raises(ResultsError, match=r"report\.html names a path: .*/home/someone"):
        publish(experiment, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_page_that_is_too_large_for_a_repository_is_refused(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "MOST_BYTES", 10_000)
    with pytest.raises(ResultsError, match=re.compile("would have .* bytes, 10,000 is the most")):
        publish(experiment, tmp_path / "results")


def test_only_what_is_finished_is_published(experiment: Path, tmp_path: Path):
    with pytest.raises(OptionsError, match="is inside"):
        publish(experiment, experiment / "results")
    with pytest.raises(OptionsError, match=r"is no experiment's folder"):
        publish(tmp_path, tmp_path / "results")
    document = json.loads((experiment / "experiment.json").read_text())
    (experiment / "experiment.json").write_text(json.dumps({**document, "repeats": 2}))
    with pytest.raises(OptionsError, match="not finished: quiet 2, way 2; go on with load run --resume"):
        publish(experiment, tmp_path / "results")
    assert not (tmp_path / "results").exists()
