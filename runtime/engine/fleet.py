"""The stage processes of one pipeline: start them, call them, hear from them, end them.

One thread reads the head's inbox and hands every frame on: replies to whoever waits for them, results and rejections
to the dispatcher. The zygote reports processes that ended, which fails every call that waits for them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import zmq

from runtime.engine.errors import StageError
from runtime.transport.channel import ChannelError, Inbox, Outbox
from runtime.transport.frames import Call, FrameError, Rejected, Reply, Result, unpack
from runtime.warm.zygote import Zygote, ZygoteError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.engine.stage_process import StageStart
    from runtime.transport.frames import Buffer

_POLL_MS = 200


@dataclass(slots=True)
class Stage:
    """One live stage process as the head sees it."""

    name: str
    node: str
    pid: int
    outbox: Outbox
    started_at: float = field(default_factory=time.time)
    memory_bytes: int = 0
    any_role: bool = False
    prepare_ms: dict[str, float] = field(default_factory=dict)


class Fleet:
    """All stages of one pipeline. Thread-safe.

    Args:
        zygote_main: what a forked stage runs.
        preload: what the zygote imports before it forks stages.
        on_result: takes results of batches.
        on_rejected: takes refusals of batches.
        on_lost: called with (stage name, reason) when a stage process ends without having been released.

    """

    def __init__(
        self,
        zygote_main: Callable[[bytes, list[int]], None],
        preload: Callable[[], None],
        on_result: Callable[[Result, Sequence[Buffer]], None],
        on_rejected: Callable[[Rejected], None],
        on_lost: Callable[[str, str], None],
    ) -> None:
        # Fork before this process has sockets and threads of ours that the zygote would only have to forget.
        self._zygote = Zygote(zygote_main, preload, self._on_exit)
        self._on_result, self._on_rejected, self._on_lost = on_result, on_rejected, on_lost
        # Only the owner may enter, so the kernel vouches for every peer on these sockets.
        self._directory = Path(tempfile.mkdtemp(prefix="midstream-"))
        self._context = zmq.Context()
        self._inbox = Inbox(self._context, f"ipc://{self._directory}/head")
        self._lock = threading.Lock()
        self._stages: dict[str, Stage] = {}
        self._starting: set[str] = set()  # being forked: their end may be reported before their start
        self._gone_at_birth: set[str] = set()
        self._calls: dict[int, tuple[str, Future[Any]]] = {}
        self._call_numbers = itertools.count(1)
        self._stage_numbers = itertools.count(1)
        self._closing = False
        self._reader = threading.Thread(target=self._read, name="stage-frames", daemon=True)
        self._reader.start()

    @property
    def zygote_pid(self) -> int:
        """Process id of the zygote."""
        return self._zygote.pid

    @property
    def head_address(self) -> str:
        """Where the last stage of a chain sends its results."""
        return self._inbox.address

    def stages(self) -> list[Stage]:
        """Return the live stages."""
        with self._lock:
            return list(self._stages.values())

    def alive(self, stage: Stage) -> bool:
        """Whether a stage's process has neither ended, as far as is known, nor been released."""
        with self._lock:
            return stage.name in self._stages

    def start(self, start: Callable[[str, str, str], StageStart], node: str, pool_descriptor: int) -> Stage:
        """Fork a stage process; `start` makes its orders from (name, inbox address, head address)."""
        name = f"stage-{next(self._stage_numbers)}"
        address = f"ipc://{self._directory}/{name}"
        orders = start(name, address, self.head_address)
        with self._lock:
            self._starting.add(name)
        try:
            pid = self._zygote.fork(name, msgspec.msgpack.encode(orders), [pool_descriptor])
            stage = Stage(name, node, pid, Outbox(self._context, address))
        except ZygoteError as error:
            with self._lock:
                self._starting.discard(name)
            raise StageError(str(error)) from error
        with self._lock:
            self._starting.discard(name)
            gone = name in self._gone_at_birth
            self._gone_at_birth.discard(name)
            if not gone:
                self._stages[name] = stage
        if gone:
            stage.outbox.close()
            raise StageError(f"{name} ended as soon as it was started")
        return stage

    def call_async(self, stage: Stage, method: str, /, **arguments: Any) -> Future[Any]:
        """Call a stage; the future fails with StageError when the stage says so, or ends."""
        future: Future[Any] = Future()
        number = next(self._call_numbers)
        with self._lock:
            if stage.name not in self._stages:
                future.set_exception(StageError(f"{stage.name} is gone"))
                return future
            self._calls[number] = (stage.name, future)
        try:
            stage.outbox.send(Call(number, method), [msgspec.msgpack.encode(arguments)])
        except ChannelError as error:
            self._settle(number, error=StageError(f"{stage.name}: {error}"))
        return future

    def call(self, stage: Stage, method: str, timeout_s: float, /, **arguments: Any) -> Any:
        """Call a stage and wait.

        Raises:
            StageError: the stage refused, ended, or did not answer within `timeout_s` seconds.

        """
        return self.answer(self.call_async(stage, method, **arguments), timeout_s, stage, method)

    @staticmethod
    def answer(future: Future[Any], timeout_s: float, stage: Stage, method: str) -> Any:
        """Wait for the answer of a call that `call_async` made; raises as `call` does."""
        try:
            return future.result(timeout_s)
        except TimeoutError as error:
            raise StageError(f"{stage.name} did not answer {method!r} within {timeout_s:g} s") from error

    def release(self, stage: Stage, timeout_s: float = 5.0) -> None:
        """Let a stage end; kill it when it does not within `timeout_s` seconds."""
        with self._lock:
            if self._stages.pop(stage.name, None) is None:
                return
            number = next(self._call_numbers)
            future: Future[Any] = Future()
            self._calls[number] = (stage.name, future)
        with contextlib.suppress(ChannelError):
            stage.outbox.send(Call(number, "release"), [msgspec.msgpack.encode({})])
        with contextlib.suppress(StageError, TimeoutError):
            future.result(timeout_s)
        with self._lock:
            self._calls.pop(number, None)
        self._zygote.kill(stage.name)
        stage.outbox.close()

    def kill(self, stage: Stage) -> None:
        """End a stage at once; it is no longer reported as lost."""
        with self._lock:
            self._stages.pop(stage.name, None)
        self._zygote.kill(stage.name)
        self._fail_calls(stage.name, f"{stage.name} was ended")
        stage.outbox.close()

    def close(self) -> None:
        """End all stages and the zygote, and leave no file behind."""
        with self._lock:
            self._closing = True
            stages = list(self._stages.values())
            self._stages.clear()
        # First of all: whoever ends a server gives its engine little time. Sockets that are connected stay so.
        shutil.rmtree(self._directory, ignore_errors=True)
        self._zygote.close()
        self._reader.join(timeout=5)
        self._inbox.close()
        for stage in stages:
            stage.outbox.close()
        self._context.destroy(linger=0)
        shutil.rmtree(self._directory, ignore_errors=True)

    # -- what comes in -----------------------------------------------------------------------------------------------

    def _read(self) -> None:
        while not self._closing:
            parts = self._inbox.receive(_POLL_MS)
            if parts is None:
                continue
            try:
                frame, buffers = unpack(parts)
            except FrameError as error:
                self._on_rejected(Rejected("unknown", -1, -1, str(error)))
                continue
            if isinstance(frame, Result):
                self._on_result(frame, buffers)
            elif isinstance(frame, Rejected):
                self._on_rejected(frame)
            elif isinstance(frame, Reply):
                if frame.error is not None:
                    self._settle(frame.call, error=StageError(f"{frame.stage}: {frame.error}"))
                else:
                    self._settle(frame.call, value=msgspec.msgpack.decode(buffers[0]))

    def _settle(self, number: int, *, value: Any = None, error: StageError | None = None) -> None:
        with self._lock:
            _, future = self._calls.pop(number, (None, None))
        if future is None:
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)

    def _fail_calls(self, name: str, reason: str) -> None:
        with self._lock:
            numbers = [number for number, (stage, _) in self._calls.items() if stage == name]
        for number in numbers:
            self._settle(number, error=StageError(reason))

    def _on_exit(self, name: str, status: int) -> None:
        """React to the end of a process (the zygote's reader thread)."""
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        with self._lock:
            stage = self._stages.pop(name, None)
            if stage is None and name in self._starting:
                self._gone_at_birth.add(name)
            lost = stage is not None and not self._closing
        if stage is not None:
            stage.outbox.close()
        with contextlib.suppress(OSError):
            os.unlink(self._directory / name)
        self._fail_calls(name, f"{name} {how}")
        if lost:
            self._on_lost(name, f"{name} {how}")
