"""How the bytes of one model file arrive on disk: in order, resumable, by one writer at a time, verified at the end.

The store's locks are flock(2) on files that may be renamed or removed while others wait for them; `LockedFile` sees to
it that a lock is always on the file that the path names now. The kernel drops a lock when its holder dies, however it
dies: a file that can be locked belongs to nobody. A forked child would share the open file and prolong the lock, so
every forked child closes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from typing import TYPE_CHECKING, ClassVar

from runtime.warm.model_files import ModelFile, ModelStoreError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import NoReturn

_BUFFER_BYTES = 1 << 22
_COPY_BYTES = 1 << 30
_CANNOT_CLONE = {errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class LockedFile:
    """An open file under flock(2), until `close` or the death of this process."""

    _held: ClassVar[set[LockedFile]] = set()

    def __init__(self, path: Path, flags: int) -> None:
        self.descriptor = os.open(path, os.O_RDWR | flags, 0o644)
        self._held.add(self)

    @classmethod
    def acquire(cls, path: Path) -> LockedFile:
        """Lock the file at `path`, made if need be; wait while another holds it."""
        while True:
            locked = cls(path, os.O_CREAT)
            if locked._lock(path, fcntl.LOCK_EX):
                return locked

    @classmethod
    def try_acquire(cls, path: Path) -> LockedFile | None:
        """Lock the file at `path`; None if another holds it.

        Raises:
            FileNotFoundError: there is none.

        """
        locked = cls(path, 0)
        return locked if locked._lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB) else None

    def close(self) -> None:
        """Give the lock back; nothing happens in a forked child, which does not hold it."""
        if self.held:
            self._held.remove(self)
            os.close(self.descriptor)

    @property
    def held(self) -> bool:
        """Whether this process holds the lock."""
        return self in self._held

    @classmethod
    def drop_all_after_fork(cls) -> None:
        """Close a forked child's copies; the parent's locks stay."""
        for locked in cls._held:
            os.close(locked.descriptor)
        cls._held.clear()

    def _lock(self, path: Path, how: int) -> bool:
        """Lock the open file; close it and return False if another holds it or it is no longer what `path` names."""
        locked = False
        try:
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                fcntl.flock(self.descriptor, how)
                locked = os.path.samestat(os.fstat(self.descriptor), path.stat())
        finally:
            if not locked:
                self.close()
        return locked


os.register_at_fork(after_in_child=LockedFile.drop_all_after_fork)


class BlobWriter:
    """Takes the bytes of `file` in order; `offset` tells how many are there, also from an earlier attempt."""

    def __init__(self, file: ModelFile, descriptor: int) -> None:
        self.file = file
        self.refused: ModelStoreError | None = None
        self._descriptor = descriptor
        with open(descriptor, "rb", closefd=False) as earlier:
            self._digest = hashlib.file_digest(earlier, "sha256")
        self.offset = os.fstat(descriptor).st_size

    def write(self, chunk: bytes | memoryview) -> None:
        """Append `chunk`.

        Raises:
            ModelStoreError: the file would grow larger than described, and is given up; or the disk refuses.

        """
        if self.offset + len(chunk) > self.file.size:
            self._refuse(f"{self.offset + len(chunk)} bytes have arrived, but it is described with {self.file.size}")
        view = memoryview(chunk)
        while view:
            try:
                written = os.pwrite(self._descriptor, view, self.offset)
            except OSError as error:
                raise ModelStoreError(
                    f"cannot write {self.file.path} at byte {self.offset}: {error}. What has arrived is kept; make "
                    "room on the disk and try again"
                ) from error
            self._digest.update(view[:written])
            self.offset += written
            view = view[written:]

    def copy_from(self, source: Path) -> None:
        """Take the rest from a local file, sharing its blocks copy-on-write where the file system can."""
        with source.open("rb") as reader:
            before = -1
            while before < self.offset < self.file.size:  # no progress: the source is too short, `finish` will say so
                before = self.offset
                try:
                    copied = os.copy_file_range(
                        reader.fileno(),
                        self._descriptor,
                        min(self.file.size - before, _COPY_BYTES),
                        offset_src=before,
                        offset_dst=before,
                    )
                except OSError as error:
                    if error.errno not in _CANNOT_CLONE:
                        raise
                    reader.seek(before)
                    self.write(reader.read(min(self.file.size - before, _BUFFER_BYTES)))
                else:
                    self._take_over(copied)

    def finish(self) -> None:
        """Verify size and digest of the whole and put it on disk (fsync).

        Raises:
            ModelStoreError: they are not the described ones; `refused` is set, and nothing of it should be kept.

        """
        if self.refused:
            raise self.refused
        if self.offset < self.file.size:
            self._refuse(f"only {self.offset} of {self.file.size} bytes have arrived")
        if self._digest.hexdigest() != self.file.sha256:
            self._refuse(f"what arrived has the SHA-256 {self._digest.hexdigest()}, not {self.file.sha256}")
        os.fsync(self._descriptor)

    def _take_over(self, copied: int) -> None:
        """Digest what a copy has stored, which need not be what the source holds by now."""
        end = self.offset + copied
        while self.offset < end:
            stored = os.pread(self._descriptor, min(end - self.offset, _BUFFER_BYTES), self.offset)
            self._digest.update(stored)
            self.offset += len(stored)

    def _refuse(self, what: str) -> NoReturn:
        self.refused = ModelStoreError(
            f"{self.file.path} is not the file that was described: {what}. What arrived was deleted; fetch it again, "
            "from another source if this repeats"
        )
        raise self.refused
