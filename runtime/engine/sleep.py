"""Scale to zero and back: a pipeline that nobody uses ends its stages; the next request brings them back.

::

    awake --no request for `after_s` seconds--> falling asleep: batches wait, stages and spares end --> asleep
    asleep --a batch--> waking: stages are forked, bound and connected --> awake, the batch goes out

Weights (in the zygote) and KV with the prefix cache (in the node's pool) stay, so what comes back is warm. No change
can be under way in any of this; one that is asked for wakes the pipeline first.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.engine.dispatcher import Dispatcher
    from runtime.migration.coordinator import Coordinator
    from runtime.migration.journal import Journal

_ATTEMPTS = 3
_HOLDER = "falling asleep"


class Sleep:
    """Lets a pipeline sleep after `after_s` seconds without a request; with None it never does. Thread-safe.

    Args:
        end_stages: ends all stages and spares.
        bring_back: starts the stages again and installs their chain; raises when that fails.
        give_up: called with the reason when they cannot be brought back.
        on_phase: called when `phase` has changed.
        stays: tells that it must not fall asleep now.

    """

    def __init__(
        self,
        after_s: float | None,
        dispatcher: Dispatcher,
        coordinator: Coordinator,
        journal: Journal,
        end_stages: Callable[[], None],
        bring_back: Callable[[], None],
        give_up: Callable[[str], None],
        on_phase: Callable[[], None] = lambda: None,
        stays: Callable[[], bool] = lambda: False,
    ) -> None:
        self._after_s, self._stays = after_s, stays
        self._dispatcher, self._coordinator, self._journal = dispatcher, coordinator, journal
        self._end_stages, self._bring_back, self._give_up = end_stages, bring_back, give_up
        self._on_phase = on_phase
        self._wanted, self._awake, self._closing = threading.Event(), threading.Event(), threading.Event()
        self._awake.set()
        self.phase: str | None = None  # "asleep" or "waking"; None when awake

    def start(self) -> None:
        """Begin to watch for idleness."""
        if self._after_s is not None:
            threading.Thread(target=self._watch, args=(self._after_s,), name="sleep", daemon=True).start()

    @property
    def awake(self) -> bool:
        """Whether changes can be made now."""
        return self._awake.is_set()

    def wake(self) -> None:
        """Wake the pipeline if it sleeps. Does not wait."""
        self._wanted.set()

    def wait_awake(self, timeout_s: float) -> bool:
        """Wake the pipeline if it sleeps, and wait until it is awake; False when `timeout_s` passed first."""
        deadline = time.monotonic() + timeout_s
        while not self._awake.is_set() and time.monotonic() < deadline:
            self.wake()
            self._awake.wait(min(timeout_s, 0.5))
        return self._awake.is_set()

    def close(self) -> None:
        """Watch no longer."""
        self._closing.set()
        self._wanted.set()

    def _watch(self, after_s: float) -> None:
        while not self._closing.wait(min(1.0, after_s / 4)):
            if self._dispatcher.idle_s() < after_s or self._stays():
                continue
            self._awake.clear()
            if self._coordinator.hold(_HOLDER):
                self._wanted.clear()
                try:
                    if self._dispatcher.suspend(self.wake):
                        self._sleep()
                finally:
                    self._coordinator.let_go()
            if self.phase is not None:
                return  # given up, or closing
            self._awake.set()

    def _sleep(self) -> None:
        self._enter("asleep")
        self._end_stages()
        self._journal.tell("pipeline", "asleep")
        self._wanted.wait()
        if self._closing.is_set():
            return
        self._enter("waking")
        clock = time.perf_counter()
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._bring_back()
                break
            except Exception as error:  # noqa: BLE001 - whatever goes wrong, who waits must hear of it
                self._journal.tell("pipeline", "not woken", attempt=attempt, error=str(error))
                if attempt == _ATTEMPTS:
                    self._give_up(f"the pipeline could not be woken: {error}")
                    return
        self._enter(None)
        self._journal.tell("pipeline", "awake", total_ms=round(1e3 * (time.perf_counter() - clock), 1))

    def _enter(self, phase: str | None) -> None:
        self.phase = phase
        self._on_phase()
