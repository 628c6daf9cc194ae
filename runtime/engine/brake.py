"""Stops a pipeline where it must not be any more: what has become forbidden computes nothing.

Problem: an intent comes, or a label changes, while nothing of the pipeline changes, so nothing there is asked for.
Protocol: ask the guard every now and then whether the layout that serves is still allowed::

    serving --the guard forbids it----------------------------> stopped: no batch is scheduled, whoever asks waits
    stopped --the guard allows it-----------------------------> serving: nothing was lost
    stopped --a change to a layout that the guard allows------> serving there

A stop is of one layout: another one was asked for before it served (`runtime.migration.guard`), and one that is fallen
back to is stopped as before. Once a change is complete, or layers were re-placed, all that is forgotten (`forget`).
Streams wait without end; requests that come are held and then refused (`runtime.head.hold`).
What stands still is the scheduler: a batch that waited in the dispatcher would keep the engine's thread from hearing of
the change that ends the stop.

A guard that is silent stops nothing: its last word stands. Else a pipeline could serve no longer than its guard.

Caveats: a stop comes up to `period_s` (ten seconds where the guard takes long) and an answer of the guard later than
what it is for, and the batch in flight is answered. The KV of the streams stays in the memory of the forbidden node
until layers leave it. What a change away from there has in flight when it fails is answered by the old chain.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from runtime.migration.errors import ChangeForbidden, GuardSilent

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.layout import Layout
    from runtime.migration.guard import Permission
    from runtime.migration.journal import Journal

_PERIOD_S = 2.0
_SHARE = 20  # of the time may be spent with the guard: one part of so many
_LONGEST_S = 10.0


class Brake:
    """See the module. Thread-safe.

    Args:
        permission: asks the guard.
        serving: returns the layout that serves; None when nothing does.
        journal: is told of stops, and of their end.
        on_phase: called when `stopped` has changed.
        period_s: how often to ask, in seconds; less often where the guard takes long.

    """

    def __init__(
        self,
        permission: Permission,
        serving: Callable[[], Layout | None],
        journal: Journal,
        on_phase: Callable[[], None],
        period_s: float = _PERIOD_S,
    ) -> None:
        self._permission, self._serving, self._journal, self._on_phase = permission, serving, journal, on_phase
        self._period_s = period_s
        self._forbidden: dict[Layout, str] = {}  # reasons
        self._told: str | None = None
        self._soon, self._closing = threading.Event(), threading.Event()

    def start(self) -> None:
        """Begin to ask."""
        threading.Thread(target=self._watch, name="brake", daemon=True).start()

    def close(self) -> None:
        """Ask no more."""
        self._closing.set()
        self._soon.set()

    @property
    def stopped(self) -> str | None:
        """Why nothing may be computed now; None when it may."""
        forbidden = self._forbidden
        serving = self._serving() if forbidden else None
        return forbidden.get(serving) if serving is not None else None

    def forget(self) -> None:
        """Stop nothing that was forbidden before; ask at once."""
        self._forbidden = {}
        self._soon.set()

    def look(self) -> None:
        """Ask now, and do what follows."""
        serving = self._serving()
        if serving is None:
            return
        before = self._told
        try:
            self._permission.require(None, serving)
        except ChangeForbidden as error:
            self._forbidden = {**self._forbidden, serving: str(error)}
        except GuardSilent:
            pass
        else:
            self._forbidden = {layout: reason for layout, reason in self._forbidden.items() if layout != serving}
        self._told = self.stopped
        if before != self._told:
            what = {"reason": self._told} if self._told else {"layers": str(serving)}
            self._journal.tell("pipeline", "stopped" if self._told else "no longer stopped", **what)
        self._on_phase()

    def _watch(self) -> None:
        pause_s = self._period_s
        while not self._closing.is_set():
            self._soon.wait(pause_s)
            self._soon.clear()
            clock = time.monotonic()
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next look may see more
                self._journal.tell("pipeline", "not looked", reason=str(error))
            pause_s = max(self._period_s, min(_LONGEST_S, _SHARE * (time.monotonic() - clock)))
