"""Says what a prepared folder must hold, so that a later start can trust it without reading it.

`midstream-manifest.json` is the last file written. It names the recipe that made the folder and, for each file,
its size, its sha256 and its modification time. The check at every start is stat(2) only: same recipe, sizes and
times, so nobody has written since the digests were taken. Where a time differs but the size does not (a copied
or unpacked cache), the digests decide, and the new times are noted.

Caveat: a file changed in place with its old time put back passes the quick check. `find_damage` reads everything.
"""

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import msgspec

from runtime.model.cache import flush_to_disk
from runtime.model.progress import Advance, Report

FILENAME = "midstream-manifest.json"
CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class Recipe:
    """What a folder was made from and by which version of the conversion; equal recipes make equal folders."""

    distribution: str
    version: str
    source_sha256: str
    conversion: int


@dataclass(frozen=True)
class FileRecord:
    """One file as it was when its digest was taken; `mtime_ns` is nanoseconds since 1970."""

    size_bytes: int
    sha256: str
    mtime_ns: int


@dataclass(frozen=True)
class Manifest:
    """A recipe and the files it made, by name."""

    recipe: Recipe
    files: dict[str, FileRecord]


class FolderState(Enum):
    """What the quick check found."""

    UNUSABLE = "missing, incomplete, or made by another recipe"
    TOUCHED = "complete, but modification times differ: only the digests can tell"
    READY = "complete and unchanged"


def seal(folder: Path, recipe: Recipe, report: Report) -> None:
    """Flush every file of a finished folder to disk and write its manifest."""
    paths = sorted(folder.iterdir())
    files = {}
    with report.step("Taking checksums", sum(path.stat().st_size for path in paths)) as advance:
        for path in paths:
            flush_to_disk(path)
            files[path.name] = _record(path, advance)
    _write(folder, Manifest(recipe, files))


def inspect(folder: Path, recipe: Recipe) -> FolderState:
    """Compare a folder with its manifest by stat(2) alone."""
    manifest = _read(folder)
    if manifest is None or manifest.recipe != recipe:
        return FolderState.UNUSABLE
    state = FolderState.READY
    for name, record in manifest.files.items():
        try:
            status = (folder / name).stat()
        except FileNotFoundError:
            return FolderState.UNUSABLE
        if status.st_size != record.size_bytes:
            return FolderState.UNUSABLE
        if status.st_mtime_ns != record.mtime_ns:
            state = FolderState.TOUCHED
    return state


def find_damage(folder: Path, report: Report) -> list[str]:
    """Read every file of a folder that `inspect` found complete; return the names whose digest is wrong.

    When none is, the manifest takes over the present modification times, if the folder can be written.
    """
    manifest = _read(folder)
    if manifest is None:
        return [FILENAME]
    found: dict[str, FileRecord] = {}
    total = sum(record.size_bytes for record in manifest.files.values())
    with report.step(f"Verifying {folder.name}", total) as advance:
        for name in manifest.files:
            with suppress(FileNotFoundError):  # Another process is replacing the folder at this moment.
                found[name] = _record(folder / name, advance)
    damaged = [name for name, record in manifest.files.items() if not _same_bytes(record, found.get(name))]
    if not damaged and found != manifest.files:
        with suppress(OSError):  # A read-only cache is sound too; its next start reads the files again.
            _write(folder, Manifest(manifest.recipe, found))
    return damaged


def _record(path: Path, advance: Advance) -> FileRecord:
    """Read a file. Its time is taken first: a write during the reading then shows at the next check."""
    status = path.stat()
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            sha256.update(chunk)
            advance(len(chunk))
    return FileRecord(status.st_size, sha256.hexdigest(), status.st_mtime_ns)


def _same_bytes(expected: FileRecord, found: FileRecord | None) -> bool:
    return found is not None and found.sha256 == expected.sha256


def _read(folder: Path) -> Manifest | None:
    try:
        return msgspec.json.decode((folder / FILENAME).read_bytes(), type=Manifest)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None


def _write(folder: Path, manifest: Manifest) -> None:
    new = folder / f".{FILENAME}.{os.getpid()}"
    new.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
    flush_to_disk(new)
    new.replace(folder / FILENAME)
    flush_to_disk(folder)
