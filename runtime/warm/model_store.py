"""A node's own copies of model files: each content kept once, verified, and removed when room is needed.

Problem: before a node can load weights it needs the files, and several models, revisions and processes of one node
share them. A download can break off, a peer can send wrong bytes, a disk can flip a bit, a process can die anywhere.

    blobs/<sha256>           a complete file, verified and read-only; appears by rename
    partial/<sha256>.<size>  what has arrived so far; locked while it grows, and then its full size is reserved
    locks/<sha256>           held by the one writer of this content; the next waits for it
    views/<identity>/...     links to blobs under a model's own file names, for the engine
    leases/<id>              owner, blobs and view of one lease; locked by the process that holds it
    last_use/<sha256>        an empty file whose modification time orders the blobs for removal
    digests/                 see `DigestCache`
    lock                     held for moments by whoever changes leases, publishes or removes

Protocol: `missing` tells what to fetch; `adopt` takes it from a local folder, `writer` from anywhere else; `open`
gives the folder to load. `lease` keeps files that arrive one by one from making room for each other. A lease ends
with `release` or with its process. A blob whose stat(2) changed since it was verified is read again before it is
trusted; one that is damaged counts as missing and is replaced.

Caveats: adopted files are copied (copy-on-write where XFS or Btrfs can), never hard linked: a hard link is the same
file, so the user's next change of it would change the blob under a running engine, and the blob's protection against
writing would become the user's. A bit that flips on disk without a write shows only in `integrity`. The store needs
a file system with flock(2).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from typing import TYPE_CHECKING

from rich.filesize import decimal

from runtime.model.cache import flush_to_disk
from runtime.warm.blob_writer import BlobWriter, LockedFile
from runtime.warm.model_files import DigestCache, ModelFile, ModelFiles, ModelStoreError, describe
from runtime.warm.model_leases import Lease, Leases
from runtime.warm.model_room import Stored, what_must_go

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

MAX_READ_BYTES = 1 << 23
_SHOWN_FILES = 5


class ModelStore:
    """The store in `folder`, of at most `budget_bytes` (None: as much as the disk has). Processes may share it.

    Raises:
        ModelStoreError: the folder cannot be used.

    """

    def __init__(self, folder: Path, budget_bytes: int | None) -> None:
        self.folder = folder.absolute()
        self.budget_bytes = budget_bytes
        self._blobs, self._partial, self._locks, self._views, self._last_use = (
            self.folder / name for name in ("blobs", "partial", "locks", "views", "last_use")
        )
        try:
            for part in (self._blobs, self._partial, self._locks, self._views, self._last_use):
                part.mkdir(parents=True, exist_ok=True)
            self._leases = Leases(self.folder / "leases")
            self._digests = DigestCache(self.folder / "digests")
            with self._locked():
                self._live_leases()
        except OSError as error:
            raise ModelStoreError(
                f"cannot use {self.folder} for model files: {error}; choose another folder"
            ) from error

    def describe(self, folder: Path, name: str) -> ModelFiles:
        """List the model in a local `folder`; its digests are remembered, so the next time is quick.

        Raises:
            ModelStoreError: see `runtime.warm.model_files.describe`.

        """
        return describe(folder, name, self._digests)

    def missing(self, files: ModelFiles) -> list[ModelFile]:
        """Return what has to be fetched: one file of each content that no sound blob holds."""
        return [file for file in files.distinct() if not self._has(file)]

    def adopt(self, folder: Path, files: ModelFiles) -> list[ModelFile]:
        """Copy every missing file that lies in a local `folder`, under the same name, with the same content.

        Returns:
            What was copied.

        Raises:
            ModelStoreError: no room, or a file changed meanwhile.

        """
        adopted = []
        for file in self.missing(files):
            source = folder / file.path
            if source.is_file() and source.stat().st_size == file.size and self._is(source, file):
                with self.writer(file) as writer:
                    writer.copy_from(source)
                adopted.append(file)
        return adopted

    @contextlib.contextmanager
    def writer(self, file: ModelFile) -> Iterator[BlobWriter]:
        """Yield a writer that continues at its `offset`; publish the blob once the block ends without an error.

        Write the file's bytes from `offset` on. An error of the block leaves what has arrived for the next attempt.
        Waits while another writes this content; there may be nothing left to write then (`offset` is the size). A
        thread that holds one writer should not wait for a second: another may wait the other way round.

        Raises:
            ModelStoreError: no room; or more or fewer bytes than described, or others: then nothing is kept.

        """
        lock = self._locks / file.sha256
        with contextlib.closing(LockedFile.acquire(lock)) as turn:
            try:
                if self._has(file):
                    writer = BlobWriter(file, turn.descriptor)
                    writer.offset = file.size
                    yield writer
                else:
                    yield from self._written(file)
            finally:
                lock.unlink()

    def lease(self, files: ModelFiles, owner: str) -> None:
        """Keep the blobs of `files` in the name of `owner`: those here, and the others as soon as they arrive.

        Raises:
            ModelStoreError: the files alone are more than the budget.

        """
        self._check_total(files)
        with self._locked():
            self._leases.take(_lease(files, owner))

    def open(self, files: ModelFiles, owner: str) -> Path:
        """Return a folder with all `files` under their names, leased to `owner` until `release`.

        Raises:
            ModelStoreError: files are missing or damaged, or more than the budget.

        """
        self._check_total(files)
        lease = _lease(files, owner)
        with self._locked():
            new = self._leases.take(lease)
        try:
            if missing := self.missing(files):
                raise ModelStoreError(
                    f"{files.name} cannot be opened: {_listed(missing)} missing or damaged in {self.folder}. Fetch "
                    "what `missing` names"
                )
            with self._locked():
                self._mark_used(lease.digests)
                return self._linked(files, self._views / lease.view)
        except BaseException:
            if new:
                with self._locked():
                    self._leases.end(lease)
                    self._live_leases()
            raise

    def release(self, owner: str) -> None:
        """End every lease that this process took in the name of `owner`; none is fine."""
        with self._locked():
            for lease in self._leases.own():
                if lease.owner == owner:
                    self._mark_used(lease.digests)
                    self._leases.end(lease)
            self._live_leases()

    def used_bytes(self) -> int:
        """Return the bytes that count against the budget: blobs, leftovers, the full size of what is being written."""
        with self._locked(), contextlib.ExitStack() as idle:
            return sum(stored.reserved for stored in self._stored(idle))

    def integrity(self) -> list[str]:
        """Read every blob again; return the digests of those that are damaged, which count as missing from now on."""
        damaged = []
        for blob in sorted(self._blobs.iterdir()):
            try:
                _, sha256 = self._digests.measure(blob, fresh=True)
            except FileNotFoundError:  # removed meanwhile, to make room
                continue
            except (OSError, ModelStoreError):
                self._digests.forget(blob)
                sha256 = ""
            if sha256 != blob.name:
                damaged.append(blob.name)
        return damaged

    def read(self, files: ModelFiles, folder: Path, sha256: str, offset: int, length: int) -> bytes:
        """Return up to `length` bytes at `offset` of the file with this digest in the described local `folder`.

        Raises:
            ModelStoreError: no such file is described, it has changed since, or the range is not in it.

        """
        file = next((file for file in files.files if file.sha256 == sha256), None)
        if file is None:
            raise ModelStoreError(f"{files.name} has no file with the SHA-256 {sha256[:64]!r}; ask for a described one")
        if not 0 <= offset <= file.size or not 0 < length <= MAX_READ_BYTES:
            raise ModelStoreError(
                f"cannot read {length} bytes at {offset} of {file.path}: it has {file.size} bytes, and 1 to "
                f"{MAX_READ_BYTES} can be read at once"
            )
        path = folder / file.path
        try:
            if not self._is(path, file):
                raise ModelStoreError(f"{path} has changed since it was described; describe {folder} again")
            with path.open("rb") as source:
                return os.pread(source.fileno(), length, offset)
        except OSError as error:
            raise ModelStoreError(f"cannot read {path}: {error}; describe {folder} again") from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with contextlib.closing(LockedFile.acquire(self.folder / "lock")):
            yield

    def _is(self, path: Path, file: ModelFile) -> bool:
        return self._digests.measure(path) == (file.size, file.sha256)

    def _has(self, file: ModelFile) -> bool:
        try:
            size, sha256 = self._digests.measure(self._blobs / file.sha256)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.EIO}:  # not there, or the disk cannot read it
                return False
            raise
        if sha256 == file.sha256 and size != file.size:
            raise ModelStoreError(
                f"{file.path} is described with {file.size} bytes, but the file with this SHA-256 has {size}; describe "
                "the model again"
            )
        return sha256 == file.sha256

    def _check_total(self, files: ModelFiles) -> None:
        total = sum(file.size for file in files.distinct())
        if self.budget_bytes is not None and total > self.budget_bytes:
            raise ModelStoreError(
                f"{files.name} takes {decimal(total)}, but the model store {self.folder} may hold only "
                f"{decimal(self.budget_bytes)}; raise its budget by {decimal(total - self.budget_bytes)}"
            )

    def _written(self, file: ModelFile) -> Iterator[BlobWriter]:
        """Yield the writer of a file that no blob holds, then publish or give up what it wrote."""
        partial = self._partial / f"{file.sha256}.{file.size}"
        with self._locked():
            self._make_room(file, partial)
            locked = LockedFile.acquire(partial)
        with contextlib.closing(locked):
            writer = BlobWriter(file, locked.descriptor)
            try:
                yield writer
                writer.finish()
            except BaseException:
                if writer.refused or writer.offset == 0:
                    partial.unlink()
                raise
            blob = self._blobs / file.sha256
            with self._locked():
                partial.rename(blob)
                blob.chmod(0o444)
                flush_to_disk(self._blobs)
                self._digests.remember(blob, file.sha256)
                self._mark_used([file.sha256])

    def _mark_used(self, digests: Iterable[str]) -> None:
        """Note this moment, not the coarser one of the file system's clock."""
        now = time.time_ns()
        for sha256 in digests:
            if (self._blobs / sha256).exists():  # a lease may wait for others
                mark = self._last_use / sha256
                mark.touch()
                os.utime(mark, ns=(now, now))

    def _linked(self, files: ModelFiles, view: Path) -> Path:
        for file in files.files:
            link = view / file.path
            link.parent.mkdir(parents=True, exist_ok=True)
            target = os.path.relpath(self._blobs / file.sha256, link.parent)
            if not link.is_symlink() or os.readlink(link) != target:
                link.unlink(missing_ok=True)
                link.symlink_to(target)
        return view

    def _live_leases(self) -> list[Lease]:
        """Return the leases of living processes; remove the others, and the views that no lease is for."""
        live = self._leases.live()
        views = {lease.view for lease in live}
        for view in self._views.iterdir():
            if view.name not in views:
                shutil.rmtree(view)
        return live

    def _stored(self, idle: contextlib.ExitStack) -> list[Stored]:
        """List blobs and partial files; those that no process writes stay locked until `idle` is closed."""
        stored = []
        for path in self._blobs.iterdir():
            mark = self._last_use / path.name
            size = path.stat().st_size
            stored.append(Stored(path, size, size, mark.stat().st_mtime_ns if mark.exists() else 0))
        for path in self._partial.iterdir():
            with contextlib.suppress(FileNotFoundError):  # its writer gives it up at this moment
                unheld = LockedFile.try_acquire(path)
                if unheld is not None:
                    idle.callback(unheld.close)
                status = path.stat()
                reserved = int(path.suffix[1:]) if unheld is None else status.st_size
                stored.append(Stored(path, status.st_size, reserved, status.st_mtime_ns, writing=unheld is None))
        return stored

    def _make_room(self, file: ModelFile, partial: Path) -> None:
        """Remove what nobody holds, least recently used first, until all of `file` fits; some may be in `partial`."""
        with contextlib.ExitStack() as idle:
            self._remove(self._blobs / file.sha256)  # only a damaged one can be there
            leases = self._live_leases()
            stored = self._stored(idle)
            limit = sum(entry.size for entry in stored) + shutil.disk_usage(self.folder).free
            if self.budget_bytes is not None:
                limit = min(limit, self.budget_bytes)
            others = [entry for entry in stored if entry.path != partial]
            for entry in what_must_go(file, limit, others, leases):
                self._remove(entry.path)

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        if path.parent == self._blobs:
            (self._last_use / path.name).unlink(missing_ok=True)
            self._digests.forget(path)


def _lease(files: ModelFiles, owner: str) -> Lease:
    return Lease(owner, tuple(file.sha256 for file in files.distinct()), files.identity())


def _listed(files: Sequence[ModelFile]) -> str:
    shown = [f"{file.path} ({decimal(file.size)})" for file in files[:_SHOWN_FILES]]
    if len(files) > _SHOWN_FILES:
        shown.append(f"{len(files) - _SHOWN_FILES} more")
    return ", ".join(shown)
