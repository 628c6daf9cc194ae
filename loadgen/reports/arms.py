"""What a report is about: one run, or the arms of an experiment with their repeats."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadgen.results.columns import MarkRow
from loadgen.results.figures import counted_streams, ttft_ms
from loadgen.results.reader import Run, read_runs
from loadgen.results.streams import Floats, Streams, streams_of
from loadgen.results.summary import RunSummary, marks_of, summarise


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm and its repeats, in order; a run outside an experiment is an arm of one.

    Attributes:
        name: To tell it from the others.
        runs, streams, summaries: Of each repeat.
    """

    name: str
    runs: Sequence[Run]
    streams: Sequence[Streams]
    summaries: Sequence[RunSummary]

    @property
    def first(self) -> RunSummary:
        """The summary of the first repeat, which stands for the arm in plots over time."""
        return self.summaries[0]

    @property
    def marks(self) -> list[MarkRow]:
        """Marks of the first repeat."""
        return marks_of(self.runs[0])

    def ttft_ms(self) -> Floats:
        """TTFT of all repeats' streams that have one and are not broken."""
        return _there([ttft_ms(streams)[counted_streams(streams)] for streams in self.streams])

    def chunk_gaps_ms(self) -> Floats:
        """All gaps between chunks, of all repeats' streams that are not broken."""
        gaps = []
        for streams in self.streams:
            counted = counted_streams(streams)[streams.gaps.stream] & ~streams.gaps.in_chunk
            gaps.append(streams.gaps.ns[counted] / 1e6)
        return np.concatenate(gaps)


def arms_of(runs: Sequence[Run]) -> list[Arm]:
    """Group runs by experiment and arm, in the order in which they come.

    Raises:
        ResultsError: the tables of a run contradict themselves.
    """
    groups: dict[tuple[str, str | None], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.manifest.name, run.manifest.arm), []).append(run)
    several = len({name for name, _ in groups}) > 1
    arms = []
    for (name, arm), members in groups.items():
        ordered = sorted(members, key=lambda run: run.manifest.repeat)
        streams = [streams_of(run) for run in ordered]
        label = name if arm is None else f"{name} / {arm}" if several else arm
        arms.append(Arm(label, ordered, streams, [summarise(r, s) for r, s in zip(ordered, streams, strict=True)]))
    return arms


def load_arms(folder: Path) -> list[Arm]:
    """Read a run folder, or an experiment's; the arm that was run first comes first.

    Raises:
        ResultsError: there is no run, or one is damaged.
    """
    return arms_of(sorted(read_runs(folder), key=lambda run: run.manifest.started_unix_ns))


def _there(values: Sequence[Floats]) -> Floats:
    together: Floats = np.concatenate(values)
    there: Floats = together[~np.isnan(together)]
    return there
