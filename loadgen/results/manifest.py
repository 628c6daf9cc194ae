"""`run.json`: what was run, on what, and how it ended.

It is written when the run begins (`state: running`), so that a killed run can be told from one that goes on, and
again when it is closed. It is replaced as a whole, never edited in place: a reader sees the old one or the new one.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loadgen.results.columns import MANIFEST_FILE, SCHEMA_VERSION
from loadgen.results.errors import ResultsError

RunState = Literal["running", "finished", "interrupted"]


class Slo(BaseModel):
    """The service level that a request must meet to count as good; None: not asked for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ttft_ms: float | None = Field(default=None, gt=0)
    tpot_ms: float | None = Field(default=None, gt=0)
    e2e_ms: float | None = Field(default=None, gt=0)

    @property
    def stated(self) -> bool:
        """Whether anything is asked for."""
        return any(value is not None for value in (self.ttft_ms, self.tpot_ms, self.e2e_ms))


class RunManifest(BaseModel):
    """What is known of a run apart from its measurements.

    Attributes:
        schema_version: Version of the run folder's layout.
        name: Name of the experiment, or of the run if it has none.
        arm: Name of the arm; None for a run outside an experiment with arms.
        repeat: Number of the repeat, from 0.
        seed: Seed of the workload.
        slo: Service level that goodput is counted by.
        workload: The resolved workload.
        workload_notes: What became of the workload while it was read: rows of a trace that were left out, for example.
        target: What was measured, without secrets.
        experiment: The whole resolved experiment; None for a run without one.
        machine: As `loadgen.machine.machine_facts` gives it.
        versions: Package or program name -> version.
        started_unix_ns: Unix time of the axis's zero.
        state: How far the run has come.
        error: Why it was interrupted.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: int = SCHEMA_VERSION
    name: str
    arm: str | None = None
    repeat: int = 0
    seed: int
    slo: Slo = Slo()
    workload: dict[str, Any] = Field(default_factory=dict)
    workload_notes: dict[str, Any] = Field(default_factory=dict)
    target: dict[str, Any] = Field(default_factory=dict)
    experiment: dict[str, Any] | None = None
    machine: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    started_unix_ns: int
    state: RunState = "running"
    error: str | None = None

    @property
    def title(self) -> str:
        """Name, arm and repeat as people would say them."""
        arm = "" if self.arm is None else f" / {self.arm}"
        repeat = f" (repeat {self.repeat + 1})" if self.repeat else ""
        return f"{self.name}{arm}{repeat}"

    def write(self, folder: Path) -> None:
        """Replace the folder's `run.json` by this, whole or not at all."""
        write_atomically(folder / MANIFEST_FILE, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the folder's `run.json`.

        Raises:
            ResultsError: it is missing, is not what it should be, or is of a later version.
        """
        path = folder / MANIFEST_FILE
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ResultsError(f"{folder} is no run: it holds no {MANIFEST_FILE}") from None
        except (OSError, ValueError) as error:
            raise ResultsError(f"{path} cannot be read: {error}") from error
        version = document.get("schema_version") if isinstance(document, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise ResultsError(
                f"{path} is of schema version {version}, this program knows up to {SCHEMA_VERSION}: use a newer one"
            )
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the document"
            raise ResultsError(f"{path}: {where}: {first['msg']}") from error


def write_atomically(path: Path, content: str) -> None:
    """Replace the file by one with this content, on disk before it takes the name."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
