"""The newest events of a broker, numbered, for who wants to watch.

Beside events as they were accepted, the ring has *undelivered* ones: an event that a trigger gave up on, again, with
the reason. Whoever sent a request thus sees that it was refused, also where no dead letter sink is.

The ring is bounded in events and bytes; who is slow is told that it missed some. Numbers begin at 1 with the broker: a
reader that asks for what comes after a number not given yet has outlived a broker, and gets everything from the start.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from controller.platform.broker.wire import Event

SEQUENCE_HEADER = "Midstream-Sequence"  # of the answer to an event: its number
MOST_WAIT_S = 60.0  # of one poll


class Undelivered(msgspec.Struct, frozen=True):
    """Why an event did not get to a trigger's subscriber: where it failed, the HTTP status and what was said."""

    trigger: str
    destination: str
    code: int
    message: str


class Entry(msgspec.Struct, frozen=True):
    """One line of the ring: an event in CloudEvents' JSON format, when it came (Unix time), and what became of it."""

    sequence: int
    at: float
    event: msgspec.Raw
    undelivered: Undelivered | None = None


class Page(msgspec.Struct, frozen=True):
    """Entries after a number; `next` is the number to go on after; `missed` says that some were gone already."""

    events: list[Entry]
    next: int
    missed: bool


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which entries a reader wants; None: all."""

    subject: str | None = None
    type: str | None = None

    def matches(self, attributes: Any) -> bool:
        """Whether an event with these attributes is wanted."""
        return (self.subject is None or attributes.get("subject") == self.subject) and (
            self.type is None or attributes.get("type") == self.type
        )


class Ring:
    """The newest events. Belongs to one event loop."""

    def __init__(self, most_events: int, most_bytes: int) -> None:
        self.last = 0
        self._most_events = most_events
        self._most_bytes = most_bytes
        self._bytes = 0
        self._entries: deque[tuple[Event, Entry]] = deque()
        self._changed = asyncio.Event()
        self._closed = False

    def append(self, event: Event, undelivered: Undelivered | None = None) -> int:
        """Add an event; returns its number."""
        self.last += 1
        entry = Entry(self.last, time.time(), msgspec.Raw(event.to_json()), undelivered)
        self._entries.append((event, entry))
        self._bytes += len(bytes(entry.event))
        while len(self._entries) > self._most_events or self._bytes > self._most_bytes:
            _, oldest = self._entries.popleft()
            self._bytes -= len(bytes(oldest.event))
        self._wake()
        return self.last

    def page(self, after: int, wanted: Wanted, most: int) -> Page:
        """Return up to `most` wanted entries with higher numbers than `after`."""
        start = after if after <= self.last else 0
        oldest = self._entries[0][1].sequence if self._entries else self.last + 1
        found = [entry for event, entry in self._entries if entry.sequence > start and wanted.matches(event.attributes)]
        cut = found[:most]
        up_to = cut[-1].sequence if len(cut) < len(found) else self.last
        return Page(cut, up_to, missed=start != after or start + 1 < oldest)

    async def wait(self, after: int, wanted: Wanted, most: int, wait_s: float) -> Page:
        """Like `page`, but if there is none, wait for one; not longer than `wait_s`, nor beyond `close`."""
        try:
            async with asyncio.timeout(wait_s):
                while not self.page(after, wanted, most).events and not self._closed:
                    await self._changed.wait()
        except TimeoutError:
            pass
        return self.page(after, wanted, most)

    def close(self) -> None:
        """Let nobody wait any more."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
