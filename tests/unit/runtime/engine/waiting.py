"""Threads under a test's control: start them, and wait until each has ended or waits for the dispatcher."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.engine.dispatcher import Dispatcher

DEADLINE_S = 20.0


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether `condition` comes true before the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.0002)
    return True


class Background:
    """Calls on threads of their own. An error of one is raised where the test waits for it."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    def start(self, work: Callable[[], Any]) -> threading.Thread:
        """Run `work` until it ends or waits for the dispatcher."""

        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised again by `settle`
                self._errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()
        self.settle()
        return thread

    def settle(self) -> None:
        """Wait until every thread has ended or waits for the dispatcher to change."""
        waiting = self._dispatcher._changed._waiters  # what threading.Condition keeps, one entry for each that waits
        assert eventually(lambda: sum(thread.is_alive() for thread in self._threads) == len(waiting))
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if self._errors:
            raise self._errors.pop(0)

    @property
    def blocked(self) -> int:
        """How many threads wait for the dispatcher."""
        return len(self._threads)
