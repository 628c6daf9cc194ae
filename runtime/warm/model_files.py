"""What a model folder consists of, so that a node can take the files from anywhere and know that they are right.

Problem: a node gets the list of a model's files from a peer and writes files by these names. A list that is wrong or
hostile must not reach beyond the folder it is meant for; and taking the digests of ten gigabytes at every start is
too slow.

Protocol: `describe` lists a folder; `ModelFile` and `ModelFiles` travel as plain data. They check themselves whenever
they are made, also by a decoder, so one that exists is safe to use as file names. `DigestCache` remembers digests in
a folder of its own, one small file for each path, with what stat(2) said at that moment: inode, size, modification
and change time. The latter cannot be set back, so a file that was written since shows.

Caveats: `describe` follows links to files (a hub cache consists of them) but none to folders. A write of equal length
within one tick of the file system's clock (some milliseconds) after the digest was taken goes unseen.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from runtime.model import manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_FILES = 4096
MAX_SIZE = 1 << 48
"""Bytes of one file, far beyond any model: a larger number is an error or an attack."""
_MAX_PATH_BYTES = 1024
_MAX_NAME_BYTES = 255
_SHA256 = re.compile("[0-9a-f]{64}")
_UNFINISHED = (".lock", ".incomplete", ".part", ".tmp")


class ModelStoreError(RuntimeError):
    """A description, a file, or the store of a node is not as it should be; the message says what to do."""


class ModelFile(msgspec.Struct, frozen=True):
    """One file: its `path` below the model folder (with "/"), its `size` in bytes, its SHA-256 in lower-case hex.

    Raises:
        ModelStoreError: the path could name something else than a file below the folder, or a value is no size or
            digest.

    """

    path: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        names = self.path.split("/")
        if not self.path.isprintable() or "\\" in self.path or any(not n or n.startswith(".") for n in names):
            raise ModelStoreError(
                f"the path {self.path!r} is not a plain relative path: no absolute or hidden names, no '..', no "
                "unprintable characters. Rename the file and describe the folder again"
            )
        if len(self.path.encode()) > _MAX_PATH_BYTES or any(len(n.encode()) > _MAX_NAME_BYTES for n in names):
            raise ModelStoreError(
                f"the path {self.path[:40]!r}... is longer than {_MAX_PATH_BYTES} bytes, or one of its names than "
                f"{_MAX_NAME_BYTES}. Rename the file and describe the folder again"
            )
        if not 0 <= self.size <= MAX_SIZE:
            raise ModelStoreError(f"{self.path} cannot have {self.size} bytes: 0 to {MAX_SIZE} are accepted")
        if not _SHA256.fullmatch(self.sha256):
            raise ModelStoreError(
                f"{self.path} has the digest {self.sha256[:80]!r}, which is no SHA-256 (64 lower-case hex digits)"
            )


class ModelFiles(msgspec.Struct, frozen=True):
    """All files of the model `name`.

    Raises:
        ModelStoreError: none or too many files, a path that is there twice or is also a folder, or one digest with
            two sizes.

    """

    name: str
    files: tuple[ModelFile, ...]

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable() or len(self.name.encode()) > _MAX_NAME_BYTES:
            raise ModelStoreError(
                f"{self.name[:80]!r} is no name for a model: 1 to {_MAX_NAME_BYTES} bytes, all printable"
            )
        if not 1 <= len(self.files) <= MAX_FILES:
            raise ModelStoreError(f"{self.name} has {len(self.files)} files: 1 to {MAX_FILES} are accepted")
        paths: set[str] = set()
        sizes: dict[str, int] = {}
        for file in self.files:
            if file.path in paths:
                raise ModelStoreError(f"{self.name} names {file.path!r} twice; describe the folder again")
            paths.add(file.path)
            if sizes.setdefault(file.sha256, file.size) != file.size:
                raise ModelStoreError(
                    f"{self.name} gives the digest of {file.path!r} two sizes, {sizes[file.sha256]} and {file.size} "
                    "bytes; describe the folder again"
                )
        for path in paths:
            end = path.rfind("/")
            while end > 0:
                if path[:end] in paths:
                    raise ModelStoreError(f"{self.name} names {path[:end]!r} both as a file and as a folder")
                end = path.rfind("/", 0, end)

    def distinct(self) -> list[ModelFile]:
        """Return one file of each content, in order: what there is to fetch and to keep."""
        return list({file.sha256: file for file in reversed(self.files)}.values())[::-1]

    def identity(self) -> str:
        """Return a digest that two descriptions share if and only if they name the same files."""
        files = sorted((file.path, file.sha256) for file in self.files)
        return hashlib.sha256(msgspec.json.encode(files)).hexdigest()


class _Stamp(msgspec.Struct, frozen=True):
    """What changes when a file is written or replaced."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class _Entry(msgspec.Struct, frozen=True):
    stamp: _Stamp
    sha256: str


class DigestCache:
    """Digests of files anywhere, kept in `folder`. Any number of processes may share it: an entry is one file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def measure(self, path: Path, *, fresh: bool = False) -> tuple[int, str]:
        """Return size in bytes and SHA-256 of a file; it is read only if it changed since the last time, or if `fresh`.

        Raises:
            ModelStoreError: the file changed while it was read.
            OSError: it cannot be read.

        """
        with path.open("rb") as file:
            before = _stamp(os.fstat(file.fileno()))
            known = None if fresh else self._load(path)
            if known is not None and known.stamp == before:
                return before.size, known.sha256
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if _stamp(os.fstat(file.fileno())) != before:
                raise ModelStoreError(f"{path} changed while it was read; try again when nothing writes it")
        self._save(path, _Entry(before, sha256))
        return before.size, sha256

    def remember(self, path: Path, sha256: str) -> None:
        """Note the digest of a file that the caller has just written and verified."""
        self._save(path, _Entry(_stamp(path.stat()), sha256))

    def forget(self, path: Path) -> None:
        """Drop the entry of `path`, if there is one."""
        self._entry(path).unlink(missing_ok=True)

    def _entry(self, path: Path) -> Path:
        return self._folder / hashlib.sha256(os.fsencode(path.resolve())).hexdigest()

    def _load(self, path: Path) -> _Entry | None:
        try:
            return msgspec.json.decode(self._entry(path).read_bytes(), type=_Entry)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def _save(self, path: Path, entry: _Entry) -> None:
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".", delete=False) as new:
            new.write(msgspec.json.encode(entry))
        os.replace(new.name, self._entry(path))


def describe(folder: Path, name: str, digests: DigestCache) -> ModelFiles:
    """List the regular files of a model folder that an engine may need, with their digests. Nothing is written there.

    Left out are hidden names, what an unfinished download leaves, and Midstream's own manifest, which differs from
    machine to machine.

    Raises:
        ModelStoreError: the folder holds no files, a link in it leads nowhere, or it is being written.

    """
    try:
        files = tuple(
            ModelFile(path.relative_to(folder).as_posix(), *digests.measure(path)) for path in sorted(_walk(folder))
        )
    except FileNotFoundError as error:
        raise ModelStoreError(
            f"{error.filename} is listed in the model folder {folder} but cannot be found; download the model again"
        ) from error
    except OSError as error:
        raise ModelStoreError(f"cannot read the model folder {folder}: {error}") from error
    if not files:
        raise ModelStoreError(f"{folder} holds no model files; is it the right folder?")
    return ModelFiles(name, files)


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            skipped = name.startswith(".") or name.endswith(_UNFINISHED) or name == manifest.FILENAME
            if not skipped and (path.is_file() or not path.exists()):  # the latter is a link that leads nowhere
                yield path


def _stamp(status: os.stat_result) -> _Stamp:
    return _Stamp(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
