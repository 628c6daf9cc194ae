"""Work that must not take the processor from decoding, in a process that does nothing else meanwhile.

Not for a process with urgent threads: these wait for what a thread of little priority holds (a lock, the interpreter).
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


def in_background(work: Callable[[], _T], settle: Callable[[], None]) -> _T:
    """Run `work` on a thread of its own, and wait for what it returns or raises.

    `settle` makes the thread one that does not disturb others, before the work begins.
    """
    outcome: Future[_T] = Future()

    def run() -> None:
        try:
            settle()
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again on the caller's thread
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name="background", daemon=True)
    thread.start()
    thread.join()
    return outcome.result()
