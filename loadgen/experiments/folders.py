"""The folder of an experiment: what is in it, what may be gone on with, and what is kept of runs that did not finish.

    experiment.json          the experiment as it was read, with all defaults
    ARM/REPEAT/              one run each (`loadgen.results`)
    logs/                    of what was started
    findings.json, .md       the table that the experiment is for, if it is for one
    report.html              the report

A run that was killed or interrupted keeps what it measured. To go on, it is moved to a folder beside
(`NAME-unfinished/`), so that the experiment's own folder never mixes it with whole runs, and is made anew.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from loadgen.errors import OptionsError
from loadgen.experiments.analysis.findings import FINDINGS_FILE, FINDINGS_TEXT
from loadgen.experiments.schema import Experiment, Run
from loadgen.results.columns import FINISHED, MANIFEST_FILE, REPORT_FILE
from loadgen.results.errors import ResultsError
from loadgen.results.manifest import RunManifest, write_atomically
from loadgen.results.reader import seal_run

EXPERIMENT_FILE = "experiment.json"
LOGS = "logs"
Existing = Literal["refuse", "resume", "start_over"]


class ExperimentFolder:
    """The folder that an experiment writes to."""

    def __init__(self, path: Path, experiment: Experiment) -> None:
        self.path = path
        self._experiment = experiment

    @property
    def logs(self) -> Path:
        """Where logs go."""
        return self.path / LOGS

    @property
    def holds_runs(self) -> bool:
        """Whether anything was measured, be it finished or not."""
        return any(self.path.glob(f"*/*/{MANIFEST_FILE}"))

    def open(self, existing: Existing) -> None:
        """Make the folder ready to be written to.

        Raises:
            OptionsError: it is there already and nothing was said about it, it holds another experiment, or it is not
                one of an experiment.
        """
        wanted = json.loads(json.dumps(self._experiment.as_data()))
        there = self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))
        if there and not (self.path / EXPERIMENT_FILE).is_file():
            raise OptionsError(f"{self.path} is there and is no experiment's folder: give another one with --out")
        if there and existing == "refuse" and not self.holds_runs:
            existing = "start_over"  # nothing was measured yet: there is nothing to lose
        if there and existing == "refuse":
            raise OptionsError(
                f"{self.path} holds an experiment already: --resume goes on with what is not finished, --start-over "
                "removes it and begins anew"
            )
        if there and existing == "resume":
            found = self._written()
            differences = differing(found, wanted)
            if differences:
                raise OptionsError(
                    f"{self.path} holds another experiment ({'; '.join(differences[:5])}): --start-over begins anew, "
                    "--out writes elsewhere"
                )
            return
        if there:
            self._clear()
        self.logs.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / EXPERIMENT_FILE, json.dumps(wanted, indent=2) + "\n")

    def run(self, run: Run) -> Path:
        """Return a run's folder."""
        return self.path / run.arm.name / str(run.repeat)

    def is_finished(self, run: Run) -> bool:
        """Whether a run need not be made again."""
        folder = self.run(run)
        return (folder / MANIFEST_FILE).is_file() and RunManifest.read(folder).state == FINISHED

    def make_way(self, run: Run) -> Path | None:
        """Move what there is of a run aside; return where it is now, None if there was nothing.

        Raises:
            ResultsError: another process is writing it.
        """
        folder = self.run(run)
        if not folder.exists():
            return None
        if (folder / MANIFEST_FILE).is_file() and RunManifest.read(folder).state == "running":
            seal_run(folder)
        beside = self.path.with_name(f"{self.path.name}-unfinished")
        number = 1
        while (target := beside / f"{run.arm.name}-{run.repeat}-{number}").exists():
            number += 1
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.rename(target)
        except OSError as error:
            raise ResultsError(f"{folder} cannot be moved to {target}: {error}") from error
        return target

    def _written(self) -> dict[str, Any]:
        path = self.path / EXPERIMENT_FILE
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OptionsError(f"{path} cannot be read: {error}; --start-over begins anew") from error
        return found if isinstance(found, dict) else {}

    def _clear(self) -> None:
        """Remove what an experiment wrote here, and nothing else."""
        try:
            arms = [str(arm["name"]) for arm in self._written().get("arms", [])]
        except (OptionsError, KeyError, TypeError):
            arms = []
        for name in {*arms, *(arm.name for arm in self._experiment.arms), LOGS}:
            if Path(name).name == name:
                shutil.rmtree(self.path / name, ignore_errors=True)
        for name in (EXPERIMENT_FILE, FINDINGS_FILE, FINDINGS_TEXT, REPORT_FILE):
            (self.path / name).unlink(missing_ok=True)


def differing(found: Any, wanted: Any, at: str = "") -> list[str]:
    """Return where two experiments differ in what they measure, in words; the description does not count."""
    if at == "metadata.description" or found == wanted:
        return []
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        names = dict.fromkeys([*found, *wanted])
        return [
            each
            for name in names
            for each in differing(found.get(name), wanted.get(name), f"{at}.{name}".removeprefix("."))
        ]
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        pairs = enumerate(zip(found, wanted, strict=True))
        return [each for number, (a, b) in pairs for each in differing(a, b, f"{at}[{number}]")]
    return [f"{at or 'it'} was {_short(found)}, is {_short(wanted)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
