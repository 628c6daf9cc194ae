"""Writes what a run measures while it runs.

The event loop that reads token streams must not wait for a disk, or the arrival times of the next tokens are wrong.
It appends to memory under a lock (a token is 24 bytes, packed by one call); a thread of its own takes what is there
every quarter of a second, and appends it to the tables as one Arrow batch each. So a process that is killed has on
disk all but the last fraction of a second. (A machine that loses its power loses more: nothing is synced.)

Memory is bounded. Back-pressure would have to stop the event loop, and a measurement that stands still to wait for its
own disk is worth nothing; so a disk that cannot follow is an error, with what was written so far kept.

Tokens are written before the rows of their requests: of a killed run, a request with a row has all its tokens.
"""

import fcntl
import os
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from loadgen.results.columns import MANIFEST_FILE, MARK_SOURCES, OUTCOMES, TABLES, MarkRow, RequestRow
from loadgen.results.errors import ResultsError
from loadgen.results.manifest import RunManifest, RunState
from loadgen.results.tables import parquet_path, stream_path, to_parquet

_TOKEN = struct.Struct("<iiqii")
_TOKEN_DTYPE = np.dtype([("request", "<i4"), ("index", "<i4"), ("at_ns", "<i8"), ("chunk", "<i4"), ("token_id", "<i4")])
_NO_ID = -1
_MAX_DETAIL = 2_000  # characters; keeps a batch well below the reader's limit
_TOKEN_ROWS, _OTHER_ROWS = 65_536, 1_024  # rows of a batch at most


@dataclass(slots=True)
class _Pending:
    tokens: bytearray = field(default_factory=bytearray)
    requests: list[RequestRow] = field(default_factory=list)
    marks: list[MarkRow] = field(default_factory=list)
    samples: list[tuple[str, int, float]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return len(self.requests) + len(self.marks) + len(self.samples)


class RunWriter:
    """Appends to the tables of one run; may be called from any thread.

    Args:
        folder: Where to write; made if it is not there. It must not hold a run already.
        manifest: Written as `run.json` at once, and again by `close`.
        flush_s: Seconds between two writes.
        max_pending_bytes: Tokens that may wait for the disk (24 bytes each); the thread may hold as much again.
        max_pending_rows: Requests, marks and samples that may wait, in all.

    Raises:
        ResultsError: the folder holds a run, or cannot be written. Every other method raises it too, once the disk has
            failed or fallen behind.
    """

    def __init__(
        self,
        folder: Path,
        manifest: RunManifest,
        *,
        flush_s: float = 0.25,
        max_pending_bytes: int = 64 * 2**20,
        max_pending_rows: int = 500_000,
    ) -> None:
        self._folder, self._manifest = folder, manifest
        self._flush_s, self._max_bytes, self._max_rows = flush_s, max_pending_bytes, max_pending_rows
        self._lock = threading.Lock()
        self._pending = _Pending()
        self._failure: str | None = None
        self._stop = threading.Event()
        self._closed = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._claim = _claim(folder)
        except OSError as error:
            raise ResultsError(f"{folder} cannot be written: {error}") from error
        try:
            self._sinks = {table: pa.OSFile(str(stream_path(folder, table)), "wb") for table in TABLES}
            self._streams = {table: pa.ipc.new_stream(self._sinks[table], schema) for table, schema in TABLES.items()}
            manifest.write(folder)
        except OSError as error:
            os.close(self._claim)
            raise ResultsError(f"{folder} cannot be written: {error}") from error
        self._thread = threading.Thread(target=self._write_until_stopped, name="results", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._closed:
            return
        if error is None:
            self.close()
        else:
            self.close("interrupted", error=str(error) or type(error).__name__)

    def tokens(
        self,
        request: int,
        first_index: int,
        at_ns: Sequence[int],
        chunk: Sequence[int],
        ids: Sequence[int] | None = None,
    ) -> None:
        """Add consecutive tokens of one request, the first of which has the position `first_index` in the answer.

        Args:
            request: The request's index in the plan.
            first_index: Position of the first token, from 0.
            at_ns: Arrival of each.
            chunk: Chunk of each.
            ids: Id of each; None if the server gives none.
        """
        if len(chunk) != len(at_ns) or (ids is not None and len(ids) != len(at_ns)):
            raise ValueError(f"request {request}: {len(at_ns)} arrivals, {len(chunk)} chunks, ids {ids!r}")
        rows = b"".join(
            _TOKEN.pack(request, first_index + n, at, chunk[n], _NO_ID if ids is None else ids[n])
            for n, at in enumerate(at_ns)
        )
        with self._lock:
            self._accept(len(rows))
            self._pending.tokens += rows

    def token(self, request: int, index: int, at_ns: int, chunk: int, token_id: int = _NO_ID) -> None:
        """Add one token: the same as `tokens`, for the usual chunk of one; -1 is no id."""
        row = _TOKEN.pack(request, index, at_ns, chunk, token_id)
        with self._lock:
            self._accept(len(row))
            self._pending.tokens += row

    def request(self, row: RequestRow) -> None:
        """Add a request that has ended, after all its tokens."""
        if row.outcome not in OUTCOMES:
            raise ValueError(f"request {row.request}: outcome {row.outcome!r} is none of {', '.join(OUTCOMES)}")
        with self._lock:
            self._accept()
            self._pending.requests.append(row)

    def mark(self, row: MarkRow) -> None:
        """Add a marked moment or stretch."""
        if row.source not in MARK_SOURCES:
            raise ValueError(f"mark {row.name!r}: source {row.source!r} is none of {', '.join(MARK_SOURCES)}")
        if row.end_ns < row.start_ns:
            raise ValueError(f"mark {row.name!r} ends before it starts: {row.start_ns} ns to {row.end_ns} ns")
        with self._lock:
            self._accept()
            self._pending.marks.append(row)

    def sample(self, name: str, at_ns: int, value: float) -> None:
        """Add one value of a named series."""
        with self._lock:
            self._accept()
            self._pending.samples.append((name, at_ns, value))

    def note_workload(self, notes: Mapping[str, Any]) -> None:
        """Keep what became of the workload, for `run.json` as `close` writes it."""
        self._manifest = self._manifest.model_copy(update={"workload_notes": dict(notes)})

    def close(self, state: RunState = "finished", *, error: str | None = None) -> None:
        """Write the rest, turn the tables into Parquet and say in `run.json` how the run ended.

        Takes about a second per few million tokens: call it from a thread if an event loop must go on.

        Raises:
            ResultsError: not everything could be written; `run.json` says so too, if that much can be written.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._stop.set()
        self._thread.join()
        try:
            self._close_streams()
            if self._failure is None:
                to_parquet(self._folder)
        except (ResultsError, OSError) as failure:
            self._failure = self._failure or f"{self._folder}: {failure}"
        try:
            if self._failure is None:
                self._manifest.model_copy(update={"state": state, "error": error}).write(self._folder)
                return
            ended = self._manifest.model_copy(update={"state": "interrupted", "error": self._failure})
            try:
                ended.write(self._folder)
            except OSError as failure:
                raise ResultsError(f"{self._failure}; nor can {MANIFEST_FILE} be written: {failure}") from failure
            raise ResultsError(self._failure)
        finally:
            os.close(self._claim)

    def _accept(self, size: int = 0) -> None:
        if self._closed:
            raise ResultsError(f"{self._folder}: the run is closed")
        if self._failure is not None:
            raise ResultsError(self._failure)
        waiting = len(self._pending.tokens) + size
        if waiting > self._max_bytes or self._pending.rows >= self._max_rows:
            self._failure = (
                f"{self._folder}: the disk is too slow: {waiting / 2**20:.1f} MiB of tokens and {self._pending.rows} "
                "other rows wait to be written. Give a folder on a faster disk; what was written before is kept"
            )
            raise ResultsError(self._failure)

    def _close_streams(self) -> None:
        for table, stream in self._streams.items():
            stream.close()
            self._sinks[table].close()

    def _write_until_stopped(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop.wait(self._flush_s)
            with self._lock:
                pending, self._pending = self._pending, _Pending()
            try:
                self._write(pending)
            except (OSError, pa.ArrowException, OverflowError, TypeError) as error:
                with self._lock:
                    self._failure = (
                        self._failure
                        or f"{self._folder}: results cannot be written: {error}; what was written before is kept"
                    )
                return

    def _write(self, pending: _Pending) -> None:
        tokens = np.frombuffer(pending.tokens, dtype=_TOKEN_DTYPE)
        for start in range(0, len(tokens), _TOKEN_ROWS):
            self._streams["tokens"].write_batch(_token_batch(tokens[start : start + _TOKEN_ROWS]))
        others: tuple[tuple[str, list[Any]], ...] = (
            ("marks", [(m.name, m.kind, m.start_ns, m.end_ns, m.source, m.detail) for m in pending.marks]),
            ("samples", pending.samples),
            ("requests", [_request_values(row) for row in pending.requests]),
        )
        for table, rows in others:
            for start in range(0, len(rows), _OTHER_ROWS):
                columns = zip(*rows[start : start + _OTHER_ROWS], strict=True)
                schema = TABLES[table]
                arrays = [pa.array(column, type=kind.type) for column, kind in zip(columns, schema, strict=True)]
                self._streams[table].write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))


def _claim(folder: Path) -> int:
    """Lock the folder for as long as this process lives; a reader tells a running run from a killed one by it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ResultsError(f"{folder} is being written by another run: give another folder") from None
    taken = [path.name for table in TABLES for path in (stream_path(folder, table), parquet_path(folder, table))]
    found = [name for name in (MANIFEST_FILE, *taken) if (folder / name).exists()]
    if found:
        os.close(descriptor)
        raise ResultsError(f"{folder} holds a run already ({found[0]}): give another folder, or remove it")
    return descriptor


def _token_batch(rows: np.ndarray[Any, np.dtype[Any]]) -> pa.RecordBatch:
    ids = rows["token_id"]
    columns = [pa.array(np.ascontiguousarray(rows[name])) for name in ("request", "index", "at_ns", "chunk")]
    columns.append(pa.array(np.ascontiguousarray(ids), mask=ids == _NO_ID))
    return pa.RecordBatch.from_arrays(columns, schema=TABLES["tokens"])


def _request_values(row: RequestRow) -> tuple[object, ...]:
    detail = None if row.detail is None else row.detail[:_MAX_DETAIL]
    return (
        row.request,
        row.user,
        row.turn,
        row.phase,
        row.due_ns,
        row.sent_ns,
        row.first_token_ns,
        row.ended_ns,
        row.prompt_tokens,
        row.max_tokens,
        row.output_tokens,
        row.reported_tokens,
        row.chunks,
        row.outcome,
        row.finish_reason,
        detail,
        row.attempt,
    )
