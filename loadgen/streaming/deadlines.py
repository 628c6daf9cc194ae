"""Timers that are precise to a fraction of a millisecond, on any asyncio loop.

An event loop's own timers are not: asyncio rounds its waiting up to whole milliseconds, and uvloop rounds to the
nearest one, which fires up to half a millisecond *early*. Both are too coarse for moments that are compared with the
truth within one millisecond. Here the kernel wakes the loop through a `timerfd` on the clock of `loadgen.clock`
(`CLOCK_MONOTONIC` is what `time.perf_counter_ns` reads on Linux). Python wraps timerfd from 3.13 on; until that is the
oldest version, ctypes does.

What remains is the loop's own lateness: a callback runs when those before it are through.
"""

import asyncio
import contextlib
import ctypes
import heapq
import itertools
import os
from collections.abc import Callable
from types import TracebackType
from typing import Self

from loadgen.clock import now_ns

_CLOCK_MONOTONIC = 1
_ABSOLUTE = 1
_SECOND = 1_000_000_000


class _Moment(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("interval", _Moment), ("value", _Moment))


class PreciseTimer:
    """One timer that calls `fire` on the running loop at the moment it was last armed for."""

    def __init__(self, fire: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"no timer can be had from the kernel: {os.strerror(number)}")
        self._setting = _Setting()
        self._fire = fire
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._on_expiry)

    def arm(self, due_ns: int | None) -> None:
        """Fire once at `due_ns` of `loadgen.clock` (at once if that is past); None: not at all."""
        seconds, nanoseconds = (0, 0) if due_ns is None else divmod(max(1, due_ns), _SECOND)
        self._setting.value.seconds, self._setting.value.nanoseconds = seconds, nanoseconds
        self._libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(self._setting), None)

    def close(self) -> None:
        """Give the timer back."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _on_expiry(self) -> None:
        with contextlib.suppress(BlockingIOError):  # armed anew between the expiry and now
            os.read(self._fd, 8)
            self._fire()


class Deadline:
    """A callback that has been asked for; `cancel` takes it back."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Do not call; what the callback holds is let go of at once."""
        self.callback = None


class Deadlines:
    """Any number of callbacks, each at its moment, behind one timer."""

    def __init__(self) -> None:
        self._timer = PreciseTimer(self._fire)
        self._heap: list[tuple[int, int, Deadline]] = []
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.close()

    def at(self, due_ns: int, callback: Callable[[], None]) -> Deadline:
        """Call back at `due_ns`; those with the same moment in the order in which they were asked for."""
        deadline = Deadline(callback)
        heapq.heappush(self._heap, (due_ns, next(self._numbers), deadline))
        if self._heap[0][2] is deadline:
            self._timer.arm(due_ns)
        return deadline

    async def sleep_until(self, due_ns: int) -> None:
        """Wait for a moment; returns at once, without giving way, if it is past."""
        if due_ns <= now_ns():
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        deadline = self.at(due_ns, lambda: None if woken.done() else woken.set_result(None))
        try:
            await woken
        finally:
            deadline.cancel()

    def _fire(self) -> None:
        now = now_ns()
        while self._heap and self._heap[0][0] <= now:
            callback = heapq.heappop(self._heap)[2].callback
            if callback is not None:
                callback()
        self._timer.arm(self._heap[0][0] if self._heap else None)
