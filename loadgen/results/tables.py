"""Tables on disk: Arrow IPC streams while a run goes on, Parquet afterwards.

A stream of Arrow batches can be read at any time up to its last whole batch. A process that is killed in the middle
of a write leaves a last batch that is cut off: it is left out and said so. Every other irregularity (bytes that are
no message, a column that is missing or of another type, a null where none may be) is damage, and an error, because
figures of half a table would look like figures.

How the two are told apart: a cut-off batch is one that wants more bytes than the file has, and what there is of it
is no larger than a writer's largest batch (`MAX_BATCH_BYTES`).
"""

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from loadgen.results.columns import STREAM_SUFFIX, TABLE_SUFFIX, TABLES
from loadgen.results.errors import ResultsError

MAX_BATCH_BYTES = 16 * 2**20
_ROW_GROUP = 1_000_000


def stream_path(folder: Path, table: str) -> Path:
    """Return where the table's stream lies while the run goes on."""
    return folder / f"{table}{STREAM_SUFFIX}"


def parquet_path(folder: Path, table: str) -> Path:
    """Return where the table lies once the run is closed."""
    return folder / f"{table}{TABLE_SUFFIX}"


def stream_batches(path: Path) -> Generator[pa.RecordBatch, None, int]:
    """Yield the whole batches of an Arrow stream; return the number of bytes cut off at its end.

    Raises:
        ResultsError: the file is no such stream, or damaged elsewhere than at its end.
    """
    with pa.memory_map(str(path)) if path.stat().st_size else pa.BufferReader(b"") as source:
        size = source.size()
        whole = 0
        try:
            reader = pa.ipc.open_stream(source)
            while True:
                whole = source.tell()
                batch = reader.read_next_batch()
                batch.validate(full=True)
                yield batch
        except StopIteration:
            if source.tell() == size:
                return 0
            raise ResultsError(_damage(path, source.tell(), "an end, with more behind it")) from None
        except (pa.ArrowInvalid, OSError) as error:
            if source.tell() < size or size - whole > MAX_BATCH_BYTES:
                raise ResultsError(_damage(path, whole, str(error))) from error
            return int(size - whole)


def _damage(path: Path, at: int, what: str) -> str:
    return f"{path} is damaged at byte {at}: {what}. Take it from a copy, or run again"


def read_table(folder: Path, table: str) -> tuple[pa.Table, str | None]:
    """Return a table of the run and, if its end is cut off, a sentence that says so.

    Raises:
        ResultsError: it is missing or damaged.
    """
    for _ in range(2):  # a run that is just being closed moves from the one to the other
        with contextlib.suppress(FileNotFoundError):
            return _checked(_read_parquet(parquet_path(folder, table)), table, parquet_path(folder, table)), None
        with contextlib.suppress(FileNotFoundError):
            return _read_stream(stream_path(folder, table), table)
    raise ResultsError(f"{folder} holds neither {table}{TABLE_SUFFIX} nor {table}{STREAM_SUFFIX}: the run is not whole")


def _read_parquet(path: Path) -> pa.Table:
    try:
        return pyarrow.parquet.ParquetFile(path).read()
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ResultsError(f"{path} is damaged: {error}. Take it from a copy, or run again") from error


def _read_stream(path: Path, table: str) -> tuple[pa.Table, str | None]:
    batches: list[pa.RecordBatch] = []
    batch_iterator = stream_batches(path)
    while True:
        try:
            batches.append(next(batch_iterator))
        except StopIteration as end:
            cut = end.value
            break
    read = pa.Table.from_batches(batches) if batches else TABLES[table].empty_table()
    note = None
    if cut:
        note = f"the last batch of {path.name} is cut off ({cut} bytes): {read.num_rows} rows before it were read"
    return _checked(read, table, path), note


def _checked(read: pa.Table, table: str, path: Path) -> pa.Table:
    schema = TABLES[table]
    for field in schema:
        if field.name not in read.schema.names:
            raise ResultsError(f"{path} has no column {field.name!r}: it is not the table of {table} of a run")
        column = read.column(field.name)
        if column.type != field.type:
            raise ResultsError(f"{path}: column {field.name!r} is {column.type}, not {field.type}")
        if not field.nullable and column.null_count:
            raise ResultsError(f"{path}: column {field.name!r} has {column.null_count} nulls, and may have none")
    return read.select(schema.names).cast(schema).combine_chunks()


def to_parquet(folder: Path) -> None:
    """Turn the folder's streams into Parquet (zstd), one row group at a time, and remove them.

    A stream is removed only after its table has its name, so an interruption loses nothing; calling again goes on.

    Raises:
        ResultsError: a stream is damaged, or the disk is full.
    """
    for table, schema in TABLES.items():
        source, target = stream_path(folder, table), parquet_path(folder, table)
        if not source.exists():
            continue
        temporary = target.with_suffix(".parquet.part")
        moments = [field.name for field in schema if field.name.endswith("_ns")]
        try:
            with pyarrow.parquet.ParquetWriter(
                temporary,
                schema,
                compression="zstd",
                use_dictionary=[field.name for field in schema if field.type == pa.string()],
                column_encoding=dict.fromkeys(moments, "DELTA_BINARY_PACKED"),
            ) as parquet:
                for part in _row_groups(source):
                    parquet.write_table(part, row_group_size=_ROW_GROUP)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise ResultsError(f"{target} cannot be written: {error}") from error
        temporary.replace(target)
        source.unlink()


def _row_groups(source: Path) -> Iterator[pa.Table]:
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in stream_batches(source):
        waiting.append(batch)
        rows += batch.num_rows
        if rows >= _ROW_GROUP:
            yield pa.Table.from_batches(waiting)
            waiting, rows = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting)
