"""What was answered to which event, kept beside the intents.

Events come at least once and in any order. An event that comes again gets the answer of the first time, also from a
function that was started anew: carried out again, it would bring back an intent that was replaced since.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import msgspec

from intents.errors import IntentsError

if TYPE_CHECKING:
    from pathlib import Path

_KEPT = 4096


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One answer: data of `intent.decided`, and when (unix seconds)."""

    data: dict[str, object]
    at: float


class Memory:
    """One file for each event in a folder; the oldest give way."""

    def __init__(self, folder: Path, kept: int = _KEPT) -> None:
        self._folder, self._kept = folder, kept

    def find(self, key: str) -> Answer | None:
        """Return what the event with this key was answered.

        Raises:
            IntentsError: it was, but that cannot be read any more.
        """
        path = self._path(key)
        try:
            return msgspec.json.decode(path.read_bytes(), type=Answer)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise IntentsError(f"{path}: cannot be read: {error}") from error

    def keep(self, key: str, answer: Answer) -> None:
        """Remember an answer, for as long as there is room."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._path(key)
        new = path.with_suffix(".new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(answer))
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
        files = sorted(self._folder.glob("*.json"), key=lambda each: each.stat().st_mtime_ns)
        for old in files[: -self._kept]:
            old.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
