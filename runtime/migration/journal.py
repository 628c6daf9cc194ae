"""The story of changes and requests: what happened to whom, when, in order.

Bounded in memory; the oldest entries go first. Changes are few and keep their whole story; requests are many. Who
wants to pass on what is told as it happens (the publisher of events) listens.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_CAPACITY = 50_000

logger = logging.getLogger(__name__)


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
        self._listeners: tuple[Callable[[Entry], None], ...] = ()

    def listen(self, callback: Callable[[Entry], None]) -> None:
        """Call back with every entry from now on, on the thread that tells it, so it must not block.

        An error that it raises is logged; who tells goes on undisturbed.
        """
        with self._lock:
            self._listeners = (*self._listeners, callback)

    def tell(self, subject: str, event: str, **details: Any) -> None:
        """Add an entry, now."""
        entry = Entry(time.time(), subject, event, details)
        with self._lock:
            self._entries.append(entry)
            listeners = self._listeners
        for listener in listeners:
            try:
                listener(entry)
            except Exception:
                logger.exception("a listener of the journal failed at the entry %r of %s", event, subject)

    def story(self, subject: str | None = None, limit: int = 1000) -> list[Entry]:
        """Return the entries of a subject in order, the newest `limit` of them.

        A request can be named as its client knows it: the engine appends a suffix to the id that the API shows.
        Without a subject, everything.
        """
        with self._lock:
            entries = list(self._entries)
        chosen = [e for e in entries if subject is None or e.subject == subject or e.subject.startswith(f"{subject}-")]
        return chosen[-limit:]
