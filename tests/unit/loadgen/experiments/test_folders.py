from pathlib import Path

import pytest

from loadgen.errors import OptionsError
from loadgen.experiments.file import parse_experiment
from loadgen.experiments.folders import EXPERIMENT_FILE, ExperimentFolder, differing
from loadgen.experiments.schema import Experiment
from loadgen.results.manifest import RunManifest
from loadgen.results.reader import read_run
from tests.unit.loadgen.experiments.analysis.made_runs import steady, write_run
from tests.unit.loadgen.experiments.texts import DEMO


def demo(*sets: str) -> Experiment:
    return parse_experiment(DEMO, "x.yaml", sets)


@pytest.fixture
def folder(tmp_path: Path) -> ExperimentFolder:
    folder = ExperimentFolder(tmp_path / "out", demo())
    folder.open("refuse")
    return folder


def test_a_folder_with_an_experiment_is_neither_overwritten_nor_gone_on_with_unasked(folder: ExperimentFolder):
    write_run(folder.path, "static", [steady(0, 5)], state="interrupted")
    with pytest.raises(OptionsError, match=r"--resume goes on .*, --start-over removes it"):
        folder.open("refuse")


def test_a_folder_in_which_nothing_was_measured_is_no_reason_to_ask(folder: ExperimentFolder):
    other = ExperimentFolder(folder.path, demo("seed=99"))
    other.open("refuse")
    assert '"seed": 99' in (folder.path / EXPERIMENT_FILE).read_text()


def test_what_is_finished_stays_and_the_rest_is_made_again(folder: ExperimentFolder):
    write_run(folder.path, "static", [steady(0, 5)])
    write_run(folder.path, "dynamic", [steady(0, 5)], state="interrupted")
    folder.open("resume")
    runs = demo().runs()
    assert [folder.is_finished(run) for run in runs] == [True, False, False, False]


def test_what_an_unfinished_run_measured_is_kept_beside(folder: ExperimentFolder):
    dynamic = demo().runs()[1]
    assert folder.make_way(dynamic) is None
    write_run(folder.path, "dynamic", [steady(0, 5)], state="interrupted")
    first = folder.make_way(dynamic)
    assert first is not None
    assert first.parent == folder.path.with_name("out-unfinished")
    assert len(read_run(first).tokens) == 5
    write_run(folder.path, "dynamic", [steady(0, 6)], state="interrupted")
    second = folder.make_way(dynamic)
    assert second is not None
    assert len(read_run(first).tokens) == 5
    assert len(read_run(second).tokens) == 6


def test_a_killed_run_is_sealed_when_it_is_put_aside(folder: ExperimentFolder):
    write_run(folder.path, "dynamic", [steady(0, 5)])
    at = folder.path / "dynamic" / "0"
    RunManifest.read(at).model_copy(update={"state": "running"}).write(at)
    aside = folder.make_way(demo().runs()[1])
    assert aside is not None
    assert read_run(aside).state == "interrupted"


def test_starting_over_removes_what_an_experiment_wrote_and_nothing_else(folder: ExperimentFolder):
    write_run(folder.path, "static", [steady(0, 5)])
    (folder.path / "mine.txt").write_text("keep")
    folder.open("start_over")
    assert sorted(path.name for path in folder.path.iterdir()) == [EXPERIMENT_FILE, "logs", "mine.txt"]


def test_going_on_with_another_experiment_is_refused_with_what_differs(folder: ExperimentFolder):
    other = ExperimentFolder(folder.path, demo("workload.users=3"))
    with pytest.raises(OptionsError, match=r"arms\[0\]\.workload\.users was 2, is 3.*--start-over"):
        other.open("resume")


def test_another_description_is_not_another_experiment(folder: ExperimentFolder):
    ExperimentFolder(folder.path, demo("metadata.description=better words")).open("resume")


@pytest.mark.parametrize("existing", ["refuse", "resume", "start_over"])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, existing: str):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(OptionsError, match="is no experiment's folder"):
        ExperimentFolder(tmp_path, demo()).open(existing)  # type: ignore[arg-type]
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_differences_are_named_by_their_place():
    assert differing({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == ["a[1].b was 2, is 3"]
    assert differing({"a": [1]}, {"a": [1, 2]}) == ["a was [1], is [1, 2]"]
    assert differing({"a": 1}, {"a": 1}) == []
