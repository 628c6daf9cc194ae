"""Which blobs of a `ModelStore` have to go so that another file fits: a pure decision over what is there.

Only what nobody needs may go: no blob under a lease, none of what is being written. The least recently used goes
first, and nothing goes when it would not be enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.filesize import decimal

from runtime.warm.model_files import ModelFile, ModelStoreError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from runtime.warm.model_leases import Lease


@dataclass(frozen=True, slots=True)
class Stored:
    """A blob or partial file: the bytes it has, and the `reserved` bytes it will have if a process is `writing` it."""

    path: Path
    size: int
    reserved: int
    last_use_ns: int
    writing: bool = False

    @property
    def sha256(self) -> str:
        """Digest of the complete file."""
        return self.path.name.partition(".")[0]


def what_must_go(file: ModelFile, limit: int, others: Sequence[Stored], leases: Sequence[Lease]) -> list[Stored]:
    """Choose from `others` what to remove so that they and all of `file` take at most `limit` bytes.

    Raises:
        ModelStoreError: it cannot be enough; the message says by how much and who holds the rest.

    """
    kept = {sha256 for lease in leases for sha256 in lease.digests}
    removable = [entry for entry in others if not entry.writing and entry.sha256 not in kept]
    excess = file.size + sum(entry.reserved for entry in others) - limit
    short = excess - sum(entry.size for entry in removable)
    if short > 0:
        raise ModelStoreError(
            f"no room for {file.path} ({decimal(file.size)}) in the model store: {decimal(short)} too little, even if "
            f"all that nobody holds is removed. Of {decimal(limit)}, {_holders(others, leases)}. Release some of it, "
            "raise the budget, or make room on the disk"
        )
    chosen = []
    for entry in sorted(removable, key=lambda entry: entry.last_use_ns):
        if excess <= 0:
            break
        chosen.append(entry)
        excess -= entry.size
    return chosen


def _holders(others: Sequence[Stored], leases: Sequence[Lease]) -> str:
    sizes = {entry.sha256: entry.size for entry in others}
    owned: dict[str, set[str]] = {}
    for lease in leases:
        owned.setdefault(lease.owner, set()).update(lease.digests)
    parts = [
        f"{owner!r} holds {decimal(sum(sizes.get(sha256, 0) for sha256 in digests))}"
        for owner, digests in sorted(owned.items())
    ]
    arriving = sum(entry.reserved for entry in others if entry.writing)
    return ", ".join([*parts, f"other files being written take {decimal(arriving)}"])
