"""All runs of an experiment, one after another, each with its target, and the report in the end.

What is finished stays finished: the runner can be killed at any moment and go on with the rest. A target that a run
leaves behind for the next one (`keep_target`) is put back to what it was; any other is ended with its run.
"""

import asyncio
import contextlib
import json
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loadgen.errors import ControlError, LoadgenError, OptionsError, ServerError
from loadgen.experiments.analysis.findings import Findings
from loadgen.experiments.analysis.page import write_experiment_report
from loadgen.experiments.analysis.tables import findings_of
from loadgen.experiments.folders import ExperimentFolder
from loadgen.experiments.progress import Progress
from loadgen.experiments.schema import Experiment, Run
from loadgen.experiments.servers import AnyTarget, RunningTarget, described, running
from loadgen.experiments.single_run import measure
from loadgen.results.columns import MANIFEST_FILE, MarkRow
from loadgen.results.errors import ResultsError
from loadgen.results.reader import read_run
from loadgen.results.summary import RunSummary, read_summary, summarise


@dataclass(slots=True)
class Outcome:
    """What came of an experiment.

    Attributes:
        folder: Where it is kept.
        summaries: Of all finished runs, in the order of arms and repeats.
        findings: The table that it is for; None if it is for none.
    """

    folder: Path
    summaries: list[RunSummary] = field(default_factory=list)
    findings: Findings | None = None

    @property
    def fell_behind(self) -> bool:
        """Whether the generator fell behind in a run."""
        return any(summary.generator.fell_behind for summary in self.summaries)

    def as_data(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "folder": str(self.folder),
            "fell_behind": self.fell_behind,
            "runs": [json.loads(summary.json()) for summary in self.summaries],
            "findings": None if self.findings is None else asdict(self.findings),
        }


class Runner:
    """Makes the runs of an experiment.

    Args:
        experiment: What to do.
        folder: Its folder, opened.
        progress: Told what is going on.
        marks: Marks that every run gets.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: ExperimentFolder,
        progress: Progress,
        *,
        marks: tuple[MarkRow, ...] = (),
    ) -> None:
        self._experiment, self._folder, self._progress = experiment, folder, progress
        self._marks = marks
        self._data = json.loads(json.dumps(experiment.as_data()))

    async def run(self) -> Outcome:
        """Make all runs that are not finished, and the reports.

        Raises:
            LoadgenError: a run could not be made. What is finished, and what the run measured, is kept.
        """
        runs = self._experiment.runs()
        self._progress.runs = len(runs)
        todo = [run for run in runs if not self._folder.is_finished(run)]
        self._progress.done = len(runs) - len(todo)
        if self._progress.done:
            self._progress.say(f"{self._progress.done} of {len(runs)} runs are finished already")
        async with AsyncExitStack() as stack:
            target: RunningTarget | None = None
            started_as: AnyTarget | None = None
            for run in todo:
                self._progress.name = f"{run.arm.name} {run.repeat + 1}/{self._experiment.header.repeats}"
                wanted = run.arm.settings.target
                if target is not None and (not self._experiment.header.keep_target or started_as != wanted):
                    self._progress.tell(f"ending {described(target.wanted)}")
                    await stack.aclose()
                    target = None
                if target is None:
                    logs = self._folder.logs / f"{run.arm.name}-{run.repeat}"
                    logs.mkdir(parents=True, exist_ok=True)
                    target = await stack.enter_async_context(running(wanted, logs, self._progress.tell))
                    started_as = wanted
                else:
                    await target.put_back(wanted)
                await self._one(run, target, logs)
                self._progress.done += 1
        return await asyncio.to_thread(self._reported)

    async def _one(self, run: Run, target: RunningTarget, logs: Path) -> None:
        aside = self._folder.make_way(run)
        if aside is not None:
            self._progress.say(f"what there was of {self._progress.name} is in {aside}")
        folder = self._folder.run(run)
        try:
            await measure(run, target, folder, logs, self._progress, experiment=self._data, marks=self._marks)
        except BaseException as error:
            # Why it ended is what must be told, not that there is no room for a summary either.
            with contextlib.suppress(LoadgenError):
                await asyncio.shield(asyncio.to_thread(_summarise, folder))
            if isinstance(error, ServerError | ControlError):
                raise type(error)(f"{run.arm.name}, repeat {run.repeat}: {error} (logs: {logs})") from error
            raise
        await asyncio.to_thread(_summarise, folder)
        self._progress.tell("done")

    def _reported(self) -> Outcome:
        outcome = Outcome(self._folder.path)
        for arm in self._experiment.arms:
            for run in self._experiment.runs():
                if run.arm == arm:
                    outcome.summaries.append(read_summary(self._folder.run(run)))
        if self._experiment.header.analysis is not None:
            names = [arm.name for arm in self._experiment.arms]
            outcome.findings = findings_of(self._experiment.header.analysis, self._folder.path, names)
            outcome.findings.write(self._folder.path)
        write_experiment_report(self._folder.path)
        return outcome


def _summarise(folder: Path) -> None:
    """Write the figures of a run, also of one that was interrupted.

    Raises:
        ResultsError: the run is damaged, or the folder cannot be written.
    """
    if (folder / MANIFEST_FILE).is_file():
        summary = summarise(read_run(folder))
        try:
            summary.write(folder)
        except OSError as error:
            raise ResultsError(f"{folder} cannot be written: {error}") from error


def marks_given(texts: list[str]) -> tuple[MarkRow, ...]:
    """Return the marks of `name@seconds` texts.

    Raises:
        OptionsError: a text is none.
    """
    rows = []
    for text in texts:
        name, separator, at = text.rpartition("@")
        try:
            at_ns = round(float(at) * 1e9)
        except (ValueError, OverflowError):
            at_ns = -1
        if not separator or not name or at_ns < 0:
            raise OptionsError(f"--mark {text!r}: write NAME@SECONDS since the start of the run, such as deploy@12.5")
        rows.append(MarkRow(name, "mark", at_ns, at_ns, "cli"))
    return tuple(rows)
