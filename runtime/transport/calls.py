"""Calls that wait for their answers: numbered, each with a future, failed together when who should answer is gone."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import msgspec

from runtime.transport.channel import ChannelError
from runtime.transport.frames import Call

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.transport.frames import Buffer, Frame, Reply


class CallError(RuntimeError):
    """Who was called refused, failed, or is gone; the message says which."""


class Calls:
    """The calls of one process to others. Thread-safe. `error` is the type that futures fail with."""

    def __init__(self, error: type[Exception] = CallError) -> None:
        self.error = error
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[str, Future[Any]]] = {}
        self._numbers = itertools.count(1)

    def send(
        self, to: str, send: Callable[[Frame, Sequence[Buffer]], None], method: str, arguments: dict[str, Any]
    ) -> tuple[int, Future[Any]]:
        """Send a call to `to` through `send`; returns its number and the future of its answer."""
        future: Future[Any] = Future()
        with self._lock:
            number = next(self._numbers)
            self._waiting[number] = to, future
        try:
            send(Call(number, method), [msgspec.msgpack.encode(arguments)])
        except ChannelError as error:
            self._settle(number, error=f"{to}: {error}")
        except BaseException:
            self.forget(number)
            raise
        return number, future

    def answered(self, reply: Reply, buffers: Sequence[Buffer], by: str | None = None) -> None:
        """Take an answer; one that nobody waits for is dropped, and with `by` one of another than who was called."""
        if by is not None:
            with self._lock:
                called, _ = self._waiting.get(reply.call, (None, None))
            if called != by:
                return
        if reply.error is not None:
            self._settle(reply.call, error=f"{reply.stage}: {reply.error}")
            return
        try:
            value = msgspec.msgpack.decode(buffers[0])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._settle(reply.call, error=f"{reply.stage}: unreadable answer: {error}")
            return
        self._settle(reply.call, value=value)

    def forget(self, number: int) -> None:
        """Wait for an answer no longer."""
        with self._lock:
            self._waiting.pop(number, None)

    def cancel(self, number: int, reason: str) -> None:
        """Fail one call, if it still waits."""
        self._settle(number, error=reason)

    def fail(self, to: str, reason: str) -> None:
        """Fail every call that waits for `to`."""
        with self._lock:
            numbers = [number for number, (name, _) in self._waiting.items() if name == to]
        for number in numbers:
            self._settle(number, error=reason)

    def _settle(self, number: int, *, value: Any = None, error: str | None = None) -> None:
        with self._lock:
            _, future = self._waiting.pop(number, (None, None))
        if future is None:
            return
        if error is not None:
            future.set_exception(self.error(error))
        else:
            future.set_result(value)
