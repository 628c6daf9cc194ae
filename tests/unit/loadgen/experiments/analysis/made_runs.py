"""Runs with tokens at given times, in a folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadgen.experiments.analysis.measured import Measured, measured_runs
from loadgen.results.columns import MarkRow, RequestRow
from loadgen.results.manifest import RunManifest, RunState
from loadgen.results.writer import RunWriter

MS = 1_000_000


@dataclass(frozen=True)
class Made:
    """A stream: when it was sent and its tokens came, in ms; `prompt` tokens long; how it ended."""

    sent: float
    tokens: Sequence[float]
    prompt: int = 10
    outcome: str = "finished"


def steady(
    start: float, count: int, every: float = 10.0, *, prompt: int = 10, stall: tuple[int, float] | None = None
) -> Made:
    """Return a stream whose tokens come `every` ms, its token number `stall[0]` and those after it `stall[1]` later."""
    extra = [stall[1] if stall and n >= stall[0] else 0.0 for n in range(count)]
    return Made(start, [start + 20 + every * n + late for n, late in enumerate(extra)], prompt)


def change(start: float, end: float, *, kind: str = "reconfigure", **said: Any) -> MarkRow:
    """Return the mark of a change, in ms."""
    return MarkRow(kind, kind, round(start * MS), round(end * MS), "experiment", json.dumps(said))


def write_run(
    folder: Path,
    arm: str,
    streams: Sequence[Made],
    marks: Sequence[MarkRow] = (),
    *,
    repeat: int = 0,
    samples: Sequence[tuple[str, float, float]] = (),
    state: RunState = "finished",
) -> None:
    """Write a run of an experiment's folder."""
    manifest = RunManifest(
        name="made", arm=arm, repeat=repeat, seed=1, started_unix_ns=0, machine={"cpus": 2}, target={"model": "m"}
    )
    writer = RunWriter(folder / arm / str(repeat), manifest)
    for index, made in enumerate(streams):
        at = [round(moment * MS) for moment in made.tokens]
        writer.tokens(index, 0, at, list(range(len(at))))
        end = at[-1] if at else round(made.sent * MS)
        writer.request(
            RequestRow(
                request=index,
                user=index,
                turn=0,
                phase=None,
                due_ns=None,
                sent_ns=round(made.sent * MS),
                first_token_ns=at[0] if at else None,
                ended_ns=end,
                prompt_tokens=made.prompt,
                max_tokens=len(at),
                output_tokens=len(at),
                reported_tokens=None,
                chunks=len(at),
                outcome=made.outcome,
                finish_reason=None,
                detail=None,
            )
        )
    for mark in marks:
        writer.mark(mark)
    for name, at_ms, value in samples:
        writer.sample(name, round(at_ms * MS), value)
    writer.close(state)


def read(folder: Path, *arms: str) -> list[Measured]:
    """Read the finished runs of arms."""
    return measured_runs(folder, arms)
