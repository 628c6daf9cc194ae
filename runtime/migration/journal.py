"""The story of changes and requests: what happened to whom, when, in order.

Bounded in memory; the oldest entries go first. Changes are few and keep their whole story; requests are many.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

_CAPACITY = 50_000


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that happened: `at` in unix seconds, to `subject` (a change or request id)."""

    at: float
    subject: str
    event: str
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"at": self.at, "subject": self.subject, "event": self.event, **self.details}


class Journal:
    """A bounded list of entries. Thread-safe."""

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self._lock = threading.Lock()
        self._entries: deque[Entry] = deque(maxlen=capacity)

    def tell(self, subject: str, event: str, **details: Any) -> None:
        """Add an entry, now."""
        entry = Entry(time.time(), subject, event, details)
        with self._lock:
            self._entries.append(entry)

    def story(self, subject: str | None = None, limit: int = 1000) -> list[Entry]:
        """Return the entries of a subject in order, the newest `limit` of them.

        A request can be named as its client knows it: the engine appends a suffix to the id that the API shows.
        Without a subject, everything.
        """
        with self._lock:
            entries = list(self._entries)
        chosen = [e for e in entries if subject is None or e.subject == subject or e.subject.startswith(f"{subject}-")]
        return chosen[-limit:]
