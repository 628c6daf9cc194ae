"""Reads run folders: of a run that goes on, that was killed, or that is closed."""

import contextlib
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from loadgen.results.columns import MANIFEST_FILE
from loadgen.results.errors import ResultsError
from loadgen.results.manifest import RunManifest
from loadgen.results.tables import read_table, to_parquet

SeenState = Literal["running", "killed", "finished", "interrupted"]


@dataclass(frozen=True, slots=True)
class Run:
    """What a run folder holds; columns as in `loadgen.results.columns`.

    Attributes:
        folder: Where it lies.
        manifest: What was run.
        state: As in the manifest, but for a run that says "running" and that no process writes: it was killed.
        requests: Requests that have ended.
        tokens: Every token, in order of arrival.
        marks: Marked moments.
        samples: Named series.
        notes: What a reader of figures must know about the files, in sentences.
    """

    folder: Path
    manifest: RunManifest
    state: SeenState
    requests: pa.Table
    tokens: pa.Table
    marks: pa.Table
    samples: pa.Table
    notes: tuple[str, ...] = ()


def read_run(folder: Path) -> Run:
    """Read a run.

    Raises:
        ResultsError: it is no run folder, or damaged. The cut-off last batch of a killed run is no damage, but a note.
    """
    manifest = RunManifest.read(folder)
    state: SeenState = manifest.state
    if manifest.state == "running" and not _is_written(folder):
        manifest = RunManifest.read(folder)  # it may have been closed between the two looks
        state = "killed" if manifest.state == "running" else manifest.state
    tables, notes = {}, []
    for name in ("requests", "tokens", "marks", "samples"):  # a request's tokens are written before its row
        tables[name], note = read_table(folder, name)
        if note is not None and state != "running":  # a running run is just writing that batch
            notes.append(note)
    return Run(folder=folder, manifest=manifest, state=state, notes=tuple(notes), **tables)


def find_runs(folder: Path) -> list[Path]:
    """Return the run folders in `folder`: itself, or all below it (an experiment's `<arm>/<repeat>/`), in order.

    Raises:
        ResultsError: there is none.
    """
    if (folder / MANIFEST_FILE).is_file():
        return [folder]
    found = sorted((path.parent for path in folder.glob(f"**/{MANIFEST_FILE}")), key=_natural)
    if not found:
        raise ResultsError(f"{folder} is no run and holds none: no {MANIFEST_FILE} in it or below it")
    return found


def read_runs(folder: Path) -> list[Run]:
    """Read all runs that `find_runs` finds."""
    return [read_run(path) for path in find_runs(folder)]


def seal_run(folder: Path, error: str = "the process that wrote it was killed") -> None:
    """Close a killed run in its stead: its tables become Parquet, and `run.json` says "interrupted".

    Raises:
        ResultsError: it is running, closed already, or damaged.
    """
    manifest = RunManifest.read(folder)
    if manifest.state != "running":
        raise ResultsError(f"{folder} is closed already ({manifest.state})")
    if _is_written(folder):
        raise ResultsError(f"{folder} is still being written: end that run first")
    to_parquet(folder)
    manifest.model_copy(update={"state": "interrupted", "error": error}).write(folder)


def _is_written(folder: Path) -> bool:
    """Whether a living process holds the writer's lock on the folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    return False


def _natural(path: Path) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in path.parts]
