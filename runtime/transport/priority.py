"""Work that must not take the processor from decoding: copying KV, above all.

A thread that gives way gets what others leave over, and a small share when they leave nothing, so that what waits for
it (a lock, the interpreter) does not wait for ever. It stays so: taking the priority back needs a privilege. Hence
whatever is urgent runs on another thread.
"""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")
_LOWEST = 19
_thread = threading.local()


def give_way() -> None:
    """Let the current thread run when others do not want to, from now on."""
    if not getattr(_thread, "gives_way", False):
        _thread.gives_way = True
        with contextlib.suppress(OSError):  # a sandbox without the call: it goes on as it is
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)


def in_background(work: Callable[[], _T], settle: Callable[[], None] = give_way) -> _T:
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
