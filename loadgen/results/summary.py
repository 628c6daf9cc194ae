"""`summary.json`: the figures of one run, with everything a reader needs to judge them.

The generator is judged too. Its event loop samples how late it is itself (`client.lag_ms`), which bounds the error of
every timestamp, and an open-loop plan says when each request should have been sent. If the 99th percentile of either
is above 5 ms, the generator fell behind: the figures are kept, and `generator.fell_behind` and a warning say that they
are not the server's alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute

from loadgen.results.columns import CPU_SAMPLE, LAG_SAMPLE, SCHEMA_VERSION, SUMMARY_FILE, MarkRow
from loadgen.results.errors import ResultsError
from loadgen.results.figures import Distribution, Figures, GapHistogram, distribution, figures, gap_histogram
from loadgen.results.figures import phase_figures as figures_of_phases
from loadgen.results.manifest import RunManifest, Slo, write_atomically
from loadgen.results.marked import MarkFigures, mark_figures
from loadgen.results.reader import Run
from loadgen.results.streams import NONE, Floats, Streams, streams_of

LATE_MS = 5.0  # the generator's own p99 error must stay below
_NAMED_ROWS = 3
FELL_BEHIND = "the generator fell behind"


class GeneratorFigures(msgspec.Struct, frozen=True, kw_only=True):
    """How well the generator itself kept up.

    Attributes:
        lag_ms: Lateness of its event loop; None if it was not sampled.
        late_ms: Time from when requests were due to when they were sent; None without due times.
        cpu: CPUs it used on average; None if it was not sampled.
        fell_behind: Whether the 99th percentile of either lateness is above `LATE_MS`.
    """

    lag_ms: Distribution | None
    late_ms: Distribution | None
    cpu: float | None
    fell_behind: bool


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a run; see `loadgen.results.figures` and `marked` for their definitions.

    Attributes:
        schema_version: Of this document.
        run: What was run: the run's manifest without the experiment it was taken from.
        state: running, killed, finished or interrupted.
        figures: Of all requests.
        phases: Of the requests of each phase of the workload; empty without phases.
        gaps: Histogram of the gaps between chunks.
        marks: What each marked moment did.
        generator: How well the generator kept up.
        warnings: What makes the figures less than they seem, in sentences; empty is good.
    """

    schema_version: int
    run: dict[str, Any]
    state: str
    figures: Figures
    phases: dict[str, Figures]
    gaps: GapHistogram
    marks: list[MarkFigures]
    generator: GeneratorFigures
    warnings: list[str]

    @property
    def manifest(self) -> RunManifest:
        """What was run."""
        return RunManifest.model_validate(self.run)

    def json(self) -> str:
        """Return the document."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode() + "\n"

    def write(self, folder: Path) -> None:
        """Write `summary.json`, whole or not at all."""
        write_atomically(folder / SUMMARY_FILE, self.json())


def read_summary(folder: Path) -> RunSummary:
    """Read the folder's `summary.json`.

    Raises:
        ResultsError: it is missing, is not a summary, or is of a later version.
    """
    path = folder / SUMMARY_FILE
    try:
        document = path.read_bytes()
        version = msgspec.json.decode(document, type=_Versioned).schema_version
        if version > SCHEMA_VERSION:
            raise ResultsError(
                f"{path} is of schema version {version}, this program knows up to {SCHEMA_VERSION}: use a newer one"
            )
        return msgspec.json.decode(document, type=RunSummary)
    except FileNotFoundError:
        raise ResultsError(f"{folder} holds no {SUMMARY_FILE}") from None
    except (OSError, msgspec.DecodeError) as error:
        raise ResultsError(f"{path} cannot be read: {error}") from error


class _Versioned(msgspec.Struct):
    schema_version: int


def summarise(run: Run, streams: Streams | None = None) -> RunSummary:
    """Return the figures of a run.

    Args:
        run: The run.
        streams: Its streams, if the caller has them already.

    Raises:
        ResultsError: the tables contradict themselves.
    """
    streams = streams_of(run) if streams is None else streams
    slo: Slo = run.manifest.slo
    total = figures(streams, slo)
    generator = generator_figures(run, streams)
    return RunSummary(
        schema_version=SCHEMA_VERSION,
        run=run.manifest.model_dump(mode="json", exclude={"experiment"}),
        state=run.state,
        figures=total,
        phases=dict(figures_of_phases(streams, slo)),
        gaps=gap_histogram(streams),
        marks=mark_figures(streams, marks_of(run)),
        generator=generator,
        warnings=_warnings(run, streams, total, generator),
    )


def marks_of(run: Run) -> list[MarkRow]:
    """Return the marks of a run.

    Raises:
        ResultsError: a mark ends before it starts.
    """
    marks = [MarkRow(**row) for row in run.marks.to_pylist()]
    for mark in marks:
        if mark.end_ns < mark.start_ns:
            raise ResultsError(f"{run.folder}: mark {mark.name!r} ends before it starts")
    return marks


def sampled(run: Run, name: str) -> tuple[Floats, Floats]:
    """Return moments (in seconds) and values of a named series, in order of time."""
    rows = run.samples.filter(pa.compute.equal(run.samples.column("name"), name))
    at_s = rows.column("at_ns").to_numpy() / 1e9
    order = np.argsort(at_s, kind="stable")
    values: Floats = rows.column("value").to_numpy()[order]
    return at_s[order], values


def generator_figures(run: Run, streams: Streams) -> GeneratorFigures:
    """Return how well the generator kept up in a run."""
    lag = distribution(sampled(run, LAG_SAMPLE)[1])
    planned = (streams.due_ns != NONE) & (streams.sent_ns != NONE)
    late = distribution((streams.sent_ns[planned] - streams.due_ns[planned]) / 1e6)
    cpu = sampled(run, CPU_SAMPLE)[1]
    return GeneratorFigures(
        lag_ms=lag,
        late_ms=late,
        cpu=float(cpu.mean()) if len(cpu) else None,
        fell_behind=any(lateness is not None and lateness.p99 > LATE_MS for lateness in (lag, late)),
    )


def _warnings(run: Run, streams: Streams, total: Figures, generator: GeneratorFigures) -> list[str]:
    found = list(run.notes)
    if run.state != "finished":
        why = f": {run.manifest.error}" if run.manifest.error else ""
        found.append(f"this run is {run.state}{why}")
    found += _told_of_rows(run.manifest.workload_notes)
    lag, late = generator.lag_ms, generator.late_ms
    if lag is not None and lag.p99 > LATE_MS:
        found.append(f"{FELL_BEHIND}: its own timestamps are up to {lag.p99:.1f} ms late (p99, worst {lag.max:.1f} ms)")
    if late is not None and late.p99 > LATE_MS:
        found.append(
            f"{FELL_BEHIND}: requests were sent up to {late.p99:.1f} ms after they were due "
            f"(p99, worst {late.max:.1f} ms)"
        )
    if lag is None:
        found.append("the generator's own lateness was not sampled: the error of its timestamps is not known")
    if not total.requests:
        found.append("no request has ended: there are no latencies")
    if total.broken:
        how = ", ".join(
            f"{count} {name}" for name, count in total.outcomes.items() if name not in ("finished", "cancelled")
        )
        found.append(f"{total.broken} of {total.requests} streams broke ({how}): they are in no latency")
    if total.unended:
        found.append(f"{total.unended} streams had not ended: they have gaps, but no TTFT")
    if total.no_first_token:
        found.append(
            f"{total.no_first_token} requests had no first token when the run ended: their TTFT, longer than what they "
            "waited, is in no figure"
        )
    if total.miscounted:
        found.append(f"the server counted other tokens than arrived in {total.miscounted} finished streams")
    wrong = int((streams.known & (streams.output_tokens != streams.count)).sum())
    if wrong:
        found.append(f"{wrong} requests have other tokens in their row than in the table of tokens")
    return found


def _told_of_rows(notes: Mapping[str, Any]) -> list[str]:
    """Return what of a trace was not replayed although it was meant to be."""
    found = []
    if bad := notes.get("rows_bad"):
        named = "".join(f"; {each}" for each in notes.get("first_bad_rows", ())[:_NAMED_ROWS])
        found.append(f"{bad} of {notes.get('rows')} rows of the trace cannot be right and were left out{named}")
    if empty := notes.get("rows_without_tokens"):
        found.append(f"{empty} of {notes.get('rows')} rows of the trace have no tokens and were left out")
    return found
