"""Which events were handled already, and with which outcome.

Events are delivered at least once. Whoever handles them remembers what came of each, by source and id, and gives the
same outcome again instead of handling it again. The memory is bounded: the events that were asked for longest ago go
first, and none is kept beyond an age, after which no sender tries again.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.events.envelope import Event

Outcome = TypeVar("Outcome")


class Delivered(Generic[Outcome]):
    """The outcomes of the events handled last. Thread-safe.

    Args:
        capacity: events remembered at most.
        age_s: seconds that an outcome is remembered.
        clock: monotonic seconds.

    """

    def __init__(
        self, capacity: int = 10_000, age_s: float = 3600.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._capacity = capacity
        self._age_s = age_s
        self._clock = clock
        self._lock = threading.Lock()
        self._outcomes: OrderedDict[tuple[str, str], tuple[float, Outcome]] = OrderedDict()

    def outcome(self, event: Event) -> Outcome | None:
        """Return what came of an event, or None when it is new, or forgotten."""
        key = event.source, event.id
        with self._lock:
            found = self._outcomes.get(key)
            if found is None:
                return None
            until, outcome = found
            if self._clock() >= until:
                del self._outcomes[key]
                return None
            self._outcomes.move_to_end(key)
            return outcome

    def remember(self, event: Event, outcome: Outcome) -> None:
        """Keep what came of an event; for one that is known already, this is its outcome from now on."""
        key = event.source, event.id
        with self._lock:
            self._outcomes[key] = self._clock() + self._age_s, outcome
            self._outcomes.move_to_end(key)
            while len(self._outcomes) > self._capacity:
                self._outcomes.popitem(last=False)
