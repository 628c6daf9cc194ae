"""Reading the public traces of LLM requests, row by row, in constant memory.

    azure2023   Azure LLM inference 2023: CSV, TIMESTAMP,ContextTokens,GeneratedTokens; 2023-11-16 18:15:46.6805900
    azure2024   Azure LLM inference 2024: the same columns; 2024-05-10 00:00:00.009930+00:00
    burstgpt    BurstGPT: CSV, Timestamp (s),Model,Request tokens,Response tokens,Total tokens,Log Type; later releases
                have more columns. Requests that failed have 0 response tokens
    mooncake    Mooncake: JSON lines, timestamp (ms), input_length, output_length, hash_ids: one hash for each 512
                tokens of the prompt (the last block may be shorter); equal hashes stand for equal tokens

Columns are found by their names, in any order; others are ignored. Both Azure formats take both spellings of time; a
moment without an offset is taken as UTC. Files may be gzip-compressed (found by content, not by name) and may begin
with a UTF-8 byte order mark.

A row that cannot be right (not a number, negative, earlier than the row before it, hashes that do not fit the length)
comes out as a `BadRow` with its line and reason: whether that ends the run is the caller's decision. What makes the
whole file useless (missing, empty, wrong columns, damaged compression, another encoding) raises `TraceError`.
"""

import csv
import gzip
import io
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TextIO

import msgspec

from loadgen.workloads.errors import TraceError

TraceFormat = Literal["azure2023", "azure2024", "burstgpt", "mooncake"]
MOONCAKE_BLOCK_TOKENS = 512
_MOST_TOKENS = 100_000_000  # beyond any context; a larger number is a wrong column
_MOST_DIGITS = 18  # longer numbers are not worth converting
_SHOWN = 60  # characters of a wrong value in a message


class TraceRow(msgspec.Struct, frozen=True, gc=False):
    """One request of a trace; a struct, since there are millions.

    Attributes:
        line: Its line in the file, from 1.
        at_ns: When it arrived, on the trace's own axis.
        input_tokens: Length of the prompt.
        output_tokens: Length of the answer.
        model: Which model was asked (BurstGPT only).
        hash_ids: The hashes of the prompt's blocks (Mooncake only).
    """

    line: int
    at_ns: int
    input_tokens: int
    output_tokens: int
    model: str | None = None
    hash_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be right, and why."""

    line: int
    reason: str


def read_trace(path: Path, trace_format: TraceFormat) -> Iterator[TraceRow | BadRow]:
    """Return the rows of a trace in the order of the file; the moments of good rows never decrease.

    Raises:
        TraceError: the file is useless as a whole; at the first row, or where a damaged file breaks off.
    """
    latest = -(2**63)
    with _opened(path) as lines:
        rows = _json_rows(lines) if trace_format == "mooncake" else _csv_rows(lines, path, trace_format)
        any_row = False
        for row in rows:
            any_row = True
            if isinstance(row, TraceRow):
                if row.at_ns < latest:
                    back_s = (latest - row.at_ns) / 1e9
                    yield BadRow(row.line, f"{back_s:g} s earlier than the row before it (sort the file by time)")
                    continue
                latest = row.at_ns
            yield row
        if not any_row:
            raise TraceError(f"{path} has no rows: it is not a whole trace")


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    try:
        with path.open("rb") as start:
            magic = start.read(3)
        if not magic:
            raise TraceError(f"{path} is empty")
        if magic[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise TraceError(f"{path} is UTF-16 text: save it as UTF-8")
        # A wrong byte becomes a wrong character of one row, which is then named by its line.
        packed = magic[:2] == b"\x1f\x8b"
        with (
            path.open("rb") as file,
            gzip.open(file) if packed else file as content,
            io.TextIOWrapper(content, "utf-8-sig", "backslashreplace", newline="") as lines,
        ):
            yield lines
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TraceError(f"{path} is damaged: its gzip compression breaks off or is wrong ({error})") from error
    except OSError as error:
        raise TraceError(f"cannot read the trace {path}: {error.strerror or error}") from error


class _RowError(Exception):
    """Why a row cannot be right."""


def _csv_rows(lines: TextIO, path: Path, trace_format: TraceFormat) -> Iterator[TraceRow | BadRow]:
    columns = _COLUMNS[trace_format]
    reader = csv.reader(lines)
    try:
        header = [name.strip() for name in next(reader, [])]
        lost = [name for name in columns if name not in header]
        if lost:
            found = ", ".join(header) or "none"
            raise TraceError(
                f"{path} has no column {', '.join(map(repr, lost))}: a {trace_format} trace has "
                f"{', '.join(columns)}; found {found[:200]}"
            )
        places = [header.index(name) for name in columns]
        row_of = _azure_row if trace_format.startswith("azure") else _burstgpt_row
        for fields in reader:
            if not fields:  # an empty line, for example the last
                continue
            try:
                if len(fields) != len(header):
                    raise _RowError(f"{len(fields)} columns instead of {len(header)}")
                yield row_of(reader.line_num, [fields[place] for place in places])
            except _RowError as error:
                yield BadRow(reader.line_num, str(error))
    except csv.Error as error:
        raise TraceError(f"{path}, line {reader.line_num}: not CSV ({error})") from error


def _azure_row(line: int, fields: list[str]) -> TraceRow:
    time, context, generated = fields
    return TraceRow(line, _clock_ns(time), _count("ContextTokens", context), _count("GeneratedTokens", generated))


def _burstgpt_row(line: int, fields: list[str]) -> TraceRow:
    time, model, request, response = fields
    try:
        seconds = float(time)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise _RowError(f"Timestamp is {_shown(time)}: should be seconds of at least 0")
    return TraceRow(
        line,
        round(seconds * 1e9),
        _count("Request tokens", request),
        _count("Response tokens", response),
        model.strip(),
    )


_COLUMNS: Mapping[TraceFormat, tuple[str, ...]] = {
    "azure2023": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "azure2024": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "burstgpt": ("Timestamp", "Model", "Request tokens", "Response tokens"),
}


def _count(name: str, text: str) -> int:
    digits = text.strip()
    # int() alone would take "1_000", " 5" and other scripts' digits.
    if not (digits.isdigit() and digits.isascii() and len(digits) <= _MOST_DIGITS) or int(digits) > _MOST_TOKENS:
        raise _RowError(f"{name} is {_shown(text)}: should be a whole number from 0 to {_MOST_TOKENS}")
    return int(digits)


def _clock_ns(text: str) -> int:
    """Return a calendar moment in nanoseconds since 1970; `datetime` alone would cut off what is below 1 µs."""
    stripped = text.strip()
    whole, point, rest = stripped.partition(".")
    digits = rest
    offset = ""
    for sign in "+-Z":
        if point and sign in rest:
            digits, offset = rest[: rest.index(sign)], rest[rest.index(sign) :]
            break
    moment: datetime | None
    try:
        moment = datetime.fromisoformat(whole + offset)
    except ValueError:
        moment = None
    if moment is None or (point and not (digits.isascii() and digits.isdigit())):
        raise _RowError(f"TIMESTAMP is {_shown(text)}: should be a moment like 2024-05-10 00:00:00.009930+00:00")
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp()) * 1_000_000_000 + int(digits[:9].ljust(9, "0"))


class _MooncakeRow(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


def _json_rows(lines: TextIO) -> Iterator[TraceRow | BadRow]:
    decode: Callable[[str], _MooncakeRow] = msgspec.json.Decoder(_MooncakeRow).decode
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        try:
            yield _mooncake_row(number, decode(line))
        except msgspec.DecodeError as error:
            reason = str(error)
            yield BadRow(number, f"no Mooncake record: {reason[:1].lower()}{reason[1:]}")
        except _RowError as error:
            yield BadRow(number, str(error))


def _mooncake_row(line: int, row: _MooncakeRow) -> TraceRow:
    if not 0 <= row.timestamp < math.inf:
        raise _RowError(f"timestamp is {row.timestamp:g}: should be milliseconds of at least 0")
    for name, value in (("input_length", row.input_length), ("output_length", row.output_length)):
        if not 0 <= value <= _MOST_TOKENS:
            raise _RowError(f"{name} is {value}: should be a whole number from 0 to {_MOST_TOKENS}")
    blocks = math.ceil(row.input_length / MOONCAKE_BLOCK_TOKENS)
    if len(row.hash_ids) != blocks:
        raise _RowError(
            f"{len(row.hash_ids)} hash_ids for {row.input_length} tokens: should be {blocks}, "
            f"one for each {MOONCAKE_BLOCK_TOKENS} tokens"
        )
    if any(hash_id < 0 for hash_id in row.hash_ids):
        raise _RowError(f"hash_ids have {min(row.hash_ids)}: should be numbers of at least 0")
    return TraceRow(line, round(row.timestamp * 1e6), row.input_length, row.output_length, hash_ids=tuple(row.hash_ids))


def _shown(value: str) -> str:
    return repr(value if len(value) <= _SHOWN else value[:_SHOWN] + "...")
