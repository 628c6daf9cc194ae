"""What the runner does where the disk ends; whole experiments are in tests/integration/loadgen."""

import errno
from pathlib import Path
from typing import Any

import pytest

from loadgen.experiments import runner as module
from loadgen.experiments.file import parse_experiment
from loadgen.experiments.folders import ExperimentFolder
from loadgen.experiments.progress import Progress
from loadgen.experiments.runner import Runner
from loadgen.results.errors import ResultsError
from loadgen.results.summary import RunSummary
from tests.unit.loadgen.experiments.analysis.made_runs import steady, write_run
from tests.unit.loadgen.experiments.texts import DEMO


def runner(tmp_path: Path) -> Runner:
    experiment = parse_experiment(DEMO, "x.yaml")
    folder = ExperimentFolder(tmp_path / "out", experiment)
    folder.open("refuse")
    return Runner(experiment, folder, Progress(say=lambda _: None))


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(_summary: RunSummary, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    monkeypatch.setattr(RunSummary, "write", write)


async def test_a_summary_that_finds_no_room_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def measure(_run: Any, _target: Any, folder: Path, *_: Any, **__: Any) -> None:
        write_run(folder.parent.parent, folder.parent.name, [steady(0, 5)])

    monkeypatch.setattr(module, "measure", measure)
    full_disk(monkeypatch)
    subject = runner(tmp_path)
    with pytest.raises(ResultsError, match=r"cannot be written: .*No space left on device"):
        await subject._one(subject._experiment.runs()[0], None, tmp_path)  # type: ignore[arg-type]


async def test_why_a_run_ended_is_told_even_if_its_summary_finds_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async def measure(_run: Any, _target: Any, folder: Path, *_: Any, **__: Any) -> None:
        write_run(folder.parent.parent, folder.parent.name, [steady(0, 5)], state="interrupted")
        raise ResultsError("the first thing that went wrong")

    monkeypatch.setattr(module, "measure", measure)
    full_disk(monkeypatch)
    subject = runner(tmp_path)
    with pytest.raises(ResultsError, match="the first thing that went wrong"):
        await subject._one(subject._experiment.runs()[0], None, tmp_path)  # type: ignore[arg-type]
