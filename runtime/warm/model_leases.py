"""Who needs which blobs of a `ModelStore`, for as long as the process that said so lives.

A lease is one small file that its process keeps locked (`LockedFile`). Nothing has to be renewed, and nothing stays
after a crash: a lease file that can be locked is stale, and the next one who looks removes it.

The caller holds the store's lock around every call, so nobody sees a lease file that is half made.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import msgspec

from runtime.warm.blob_writer import LockedFile

if TYPE_CHECKING:
    from pathlib import Path


class Lease(msgspec.Struct, frozen=True):
    """`owner` needs the blobs with these `digests`, under the names of `view`."""

    owner: str
    digests: tuple[str, ...]
    view: str


class Leases:
    """The leases of all processes in `folder`, and those of this process, which it can end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own: dict[Lease, tuple[Path, LockedFile]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, lease: Lease) -> bool:
        """Add a lease of this process; return False if it is there already."""
        if lease in self.own():
            return False
        path = self._folder / uuid.uuid4().hex
        locked = LockedFile.acquire(path)
        try:
            path.write_bytes(msgspec.json.encode(lease))
        except OSError:
            path.unlink()
            locked.close()
            raise
        self._own[lease] = (path, locked)
        return True

    def own(self) -> list[Lease]:
        """Return the leases of this process; a forked child has none of its parent's."""
        return [lease for lease, (_, locked) in self._own.items() if locked.held]

    def end(self, lease: Lease) -> None:
        """Remove one of this process's own leases, if it is still there."""
        if lease in self.own():
            path, locked = self._own.pop(lease)
            path.unlink()
            locked.close()

    def live(self) -> list[Lease]:
        """Return the leases of all living processes, and remove those of dead ones."""
        live = []
        for path in self._folder.iterdir():
            unheld = LockedFile.try_acquire(path)
            if unheld is None:
                live.append(msgspec.json.decode(path.read_bytes(), type=Lease))
            else:
                path.unlink()
                unheld.close()
        return live
