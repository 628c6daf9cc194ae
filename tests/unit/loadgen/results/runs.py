"""Runs made by hand or simulated, so that the truth of a figure is in the test."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from loadgen.records import Outcome
from loadgen.results.columns import CANCELLED, LAG_SAMPLE, TABLES, MarkRow, RequestRow
from loadgen.results.manifest import RunManifest, Slo
from loadgen.results.reader import Run

MS = 1_000_000


@dataclass(frozen=True)
class Stream:
    """One stream; moments in ms. Each arrival is a chunk of its own unless `chunks` says which chunk it is of."""

    arrivals: Sequence[float]
    sent: float = 0.0
    due: float | None = None
    ended: float | None = None
    outcome: str = Outcome.FINISHED.value
    chunks: Sequence[int] | None = None
    known: bool = True
    phase: str | None = None
    reported: int | None = None
    prompt_tokens: int | None = 4
    user: int | None = None

    @property
    def ended_ms(self) -> float:
        return self.ended if self.ended is not None else max([self.sent, *self.arrivals])


def manifest(**changes: object) -> RunManifest:
    return RunManifest.model_validate({"name": "test", "seed": 1, "started_unix_ns": 0, "state": "finished"} | changes)


def ns(ms: float) -> int:
    return round(ms * MS)


def request_row(index: int, stream: Stream) -> RequestRow:
    return RequestRow(
        request=index,
        user=stream.user,
        turn=0,
        phase=stream.phase,
        due_ns=None if stream.due is None else ns(stream.due),
        sent_ns=ns(stream.sent),
        first_token_ns=ns(stream.arrivals[0]) if stream.arrivals else None,
        ended_ns=ns(stream.ended_ms),
        prompt_tokens=stream.prompt_tokens,
        max_tokens=64,
        output_tokens=len(stream.arrivals),
        reported_tokens=len(stream.arrivals) if stream.reported is None else stream.reported,
        chunks=len(set(stream.chunks if stream.chunks is not None else range(len(stream.arrivals)))),
        outcome=stream.outcome,
        finish_reason="length" if stream.outcome == "finished" else None,
        detail=None,
    )


def run_of(
    streams: Iterable[Stream],
    marks: Iterable[MarkRow] = (),
    samples: Iterable[tuple[str, float, float]] = (),
    *,
    slo: Slo | None = None,
    state: str = "finished",
    lag_ms: float | None = 0.1,
    **changes: object,
) -> Run:
    """A run with these streams; samples are (name, ms, value)."""
    rows, tokens = [], []
    for index, stream in enumerate(streams):
        if stream.known:
            rows.append(request_row(index, stream))
        chunks = stream.chunks if stream.chunks is not None else range(len(stream.arrivals))
        for n, (at, chunk) in enumerate(zip(stream.arrivals, chunks, strict=True)):
            tokens.append((ns(at), index, n, chunk))
    tokens.sort()  # by arrival, as a client records them
    samples = [*samples, *([] if lag_ms is None else [(LAG_SAMPLE, 0.0, lag_ms)])]
    return Run(
        folder=Path("made-by-hand"),
        manifest=manifest(slo=slo or Slo(), **changes),
        state=state,
        requests=pa.Table.from_pylist(
            [{name: getattr(row, name) for name in TABLES["requests"].names} for row in rows], TABLES["requests"]
        ),
        tokens=pa.Table.from_pylist(
            [{"request": r, "index": n, "at_ns": at, "chunk": c, "token_id": None} for at, r, n, c in tokens],
            TABLES["tokens"],
        ),
        marks=pa.Table.from_pylist([{k: getattr(m, k) for k in TABLES["marks"].names} for m in marks], TABLES["marks"]),
        samples=pa.Table.from_pylist(
            [{"name": name, "at_ns": ns(at), "value": float(value)} for name, at, value in samples], TABLES["samples"]
        ),
    )


def mark(start_ms: float, end_ms: float | None = None, name: str = "change-1", **changes: str) -> MarkRow:
    values = {"kind": "reconfigure", "source": "journal"} | changes
    return MarkRow(name=name, start_ns=ns(start_ms), end_ns=ns(start_ms if end_ms is None else end_ms), **values)


@dataclass(frozen=True)
class Simulation:
    """An open-loop run of random streams, made with numpy: seconds and millions of tokens cost milliseconds."""

    requests: int = 400
    tokens: int = 40
    rate_per_s: float = 10.0
    ttft_ms: float = 200.0
    itl_ms: float = 40.0
    scale: float = 1.0  # multiplies every latency
    spread: float = 0.3  # of a stream's own rhythm and of TTFT, standard deviation of the logarithm
    broken: int = 0
    cancelled: int = 0
    stall_at_s: float | None = None
    stall_ms: float = 0.0
    marks: Sequence[MarkRow] = ()
    stages: int = 0
    slo: Slo = field(default_factory=lambda: Slo(ttft_ms=400, tpot_ms=80))

    def run(self, seed: int = 0, **changes: object) -> Run:
        draw = np.random.default_rng(seed)
        n, t = self.requests, self.tokens
        due = np.sort(draw.uniform(0, n / self.rate_per_s, n)) * 1e9
        ttft = self.scale * self.ttft_ms * 1e6 * draw.lognormal(0, self.spread, n)
        rhythm = self.scale * self.itl_ms * 1e6 * draw.lognormal(0, self.spread, n)
        gaps = rhythm[:, None] * draw.lognormal(0, 0.2, (n, t - 1))
        at = (due + ttft)[:, None] + np.concatenate((np.zeros((n, 1)), np.cumsum(gaps, axis=1)), axis=1)
        if self.stall_at_s is not None:
            stall, until = self.stall_at_s * 1e9, self.stall_at_s * 1e9 + self.stall_ms * 1e6
            wait = np.clip(until - np.maximum(due, stall), 0, None)[
                :, None
            ]  # a request due in the stall waits for its rest
            at = np.where(at > stall, at + wait, at)
        at = at.astype(np.int64)
        request = np.repeat(np.arange(n, dtype=np.int32), t)
        index = np.tile(np.arange(t, dtype=np.int32), n)
        order = np.argsort(at.ravel(), kind="stable")
        outcome = np.full(n, "finished", dtype=object)
        outcome[: self.broken] = "disconnected"
        outcome[n - self.cancelled :] = CANCELLED
        sent = (due + np.abs(draw.normal(0, 0.2e6, n))).astype(np.int64)
        ended = at[:, -1] + 100_000
        requests = pa.table(
            {
                "request": pa.array(np.arange(n, dtype=np.int32)),
                "user": pa.nulls(n, pa.int32()),
                "turn": pa.array(np.zeros(n, dtype=np.int32)),
                "phase": pa.nulls(n, pa.string()),
                "due_ns": pa.array(due.astype(np.int64)),
                "sent_ns": pa.array(sent),
                "first_token_ns": pa.array(at[:, 0]),
                "ended_ns": pa.array(ended),
                "prompt_tokens": pa.array(np.full(n, 100, dtype=np.int32)),
                "max_tokens": pa.array(np.full(n, t, dtype=np.int32)),
                "output_tokens": pa.array(np.full(n, t, dtype=np.int32)),
                "reported_tokens": pa.array(np.full(n, t, dtype=np.int32)),
                "chunks": pa.array(np.full(n, t, dtype=np.int32)),
                "outcome": pa.array(outcome, pa.string()),
                "finish_reason": pa.array(["length"] * n),
                "detail": pa.nulls(n, pa.string()),
                "attempt": pa.array(np.zeros(n, dtype=np.int16)),
            },
            schema=TABLES["requests"],
        )
        tokens = pa.table(
            {
                "request": pa.array(request[order]),
                "index": pa.array(index[order]),
                "at_ns": pa.array(at.ravel()[order]),
                "chunk": pa.array(index[order]),
                "token_id": pa.array(index[order] % 50_000),
            },
            schema=TABLES["tokens"],
        )
        end_s = float(ended.max()) / 1e9
        samples = [(LAG_SAMPLE, at_s, abs(draw.normal(0, 0.3))) for at_s in np.arange(0, end_s, 0.05)]
        samples += [("client.cpu", at_s, 0.2) for at_s in np.arange(0, end_s, 1.0)]
        for stage in range(self.stages):
            samples += [
                (f"stage.{stage}.busy", at_s, float(np.clip(0.4 + 0.15 * stage + draw.normal(0, 0.05), 0, 1)))
                for at_s in np.arange(0, end_s, 0.5)
            ]
        return Run(
            folder=Path("simulated"),
            manifest=manifest(slo=self.slo, **changes),
            state="finished",
            requests=requests,
            tokens=tokens,
            marks=pa.Table.from_pylist(
                [{k: getattr(m, k) for k in TABLES["marks"].names} for m in self.marks], TABLES["marks"]
            ),
            samples=pa.Table.from_pylist(
                [{"name": name, "at_ns": round(at_s * 1e9), "value": value} for name, at_s, value in samples],
                TABLES["samples"],
            ),
        )
