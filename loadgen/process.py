"""A child process under test, which is watched and ended with certainty.

The process is started in a session of its own, so that the group to be killed contains what it started and nothing
else. While waiting until it is ready, its death is noticed at once and reported with its last log lines. Stopping is
SIGTERM to the process, so that it can end its own children, and after a deadline SIGKILL to whatever is left of the
group.
"""

import asyncio
import contextlib
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import psutil

from loadgen.errors import ServerDiedError, ServerError, ServerNotReadyError

_POLL_S = 0.05
_KILL_DEADLINE_S = 10.0  # a killed process goes as soon as the kernel lets go of it
_LOG_LINES = 40


class WatchedProcess(ABC):
    """One process, to be used as an async context manager (or with `start` and `stop`, any number of times).

    Args:
        name: For messages and the log file.
        argv: The command, as a list; nothing goes through a shell.
        log_path: File that its output is appended to.
        env: Added to the environment of this process.
        start_deadline_s: Seconds from start until it is ready.
        stop_deadline_s: Seconds from SIGTERM to SIGKILL.
    """

    READY: ClassVar[str]
    """What it is when it is ready, in a word, for messages."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log_path: Path,
        env: Mapping[str, str] | None = None,
        start_deadline_s: float = 300.0,
        stop_deadline_s: float = 30.0,
    ) -> None:
        self.name = name
        self.argv = tuple(argv)
        self.log_path = log_path
        self._env = {**os.environ, **(env or {})}
        self._start_deadline_s = start_deadline_s
        self._stop_deadline_s = stop_deadline_s
        self._process: asyncio.subprocess.Process | None = None

    @abstractmethod
    def _probe(self) -> contextlib.AbstractAsyncContextManager[Callable[[], Awaitable[bool]]]:
        """Yield what says whether the process is ready; it is asked again and again."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def pid(self) -> int:
        """Process id of the running process.

        Raises:
            ServerError: it is not running.
        """
        if self._process is None:
            raise ServerError(f"{self.name} is not running")
        return self._process.pid

    async def start(self) -> None:
        """Start the process and wait until it is ready. On any failure, and when cancelled, it is stopped again.

        Raises:
            ServerError: the command cannot be run, or the process already runs.
            ServerDiedError: it ended before it was ready.
            ServerNotReadyError: it was not ready before the deadline.
        """
        if self._process is not None:
            raise ServerError(f"{self.name} already runs as pid {self._process.pid}; stop it first")
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self.argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=asyncio.subprocess.STDOUT,
                    env=self._env,
                    start_new_session=True,
                )
            except OSError as error:
                raise ServerError(f"{self.name}: cannot run {self.argv[0]}: {error}") from error
        try:
            await self._wait_until_ready(self._process)
        except BaseException:
            await self.stop()
            raise

    async def _wait_until_ready(self, process: asyncio.subprocess.Process) -> None:
        end = time.monotonic() + self._start_deadline_s
        async with self._probe() as ready:
            while time.monotonic() < end:
                if await ready():
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_S):
                        await process.wait()
                if process.returncode is not None:
                    raise ServerDiedError(
                        f"{self.name} ended with status {process.returncode} before it was {self.READY}. "
                        f"Last lines of {self.log_path}:\n{self.log_tail()}"
                    )
        raise ServerNotReadyError(
            f"{self.name} (pid {process.pid}) was not {self.READY} within {self._start_deadline_s:g} s. "
            f"Last lines of {self.log_path}:\n{self.log_tail()}"
        )

    async def stop(self, deadline_s: float | None = None) -> None:
        """End the process and all that is left of its group. Does nothing if it is not running.

        Args:
            deadline_s: Seconds from SIGTERM to SIGKILL; None for the server's own `stop_deadline_s`.

        Raises:
            ServerError: a process of the group outlived SIGKILL.
        """
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await _gone(process, self._stop_deadline_s if deadline_s is None else deadline_s)
        finally:
            for member in _members(process.pid):
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.send_signal(signal.SIGKILL)
        if not await _gone(process, _KILL_DEADLINE_S):
            left = [member.pid for member in _members(process.pid)]
            raise ServerError(f"{self.name}: processes {left} are still there after SIGKILL; they hang in the kernel")

    def log_tail(self, lines: int = _LOG_LINES) -> str:
        """Return the last lines of the process's log."""
        if not self.log_path.exists():
            return ""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def cpu_seconds(self) -> float:
        """Return the CPU time that the living processes of the process's group have used, in seconds."""
        total = 0.0
        for member in [] if self._process is None else _members(self._process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = member.cpu_times()
                total += times.user + times.system
        return total


async def _gone(process: asyncio.subprocess.Process, deadline_s: float) -> bool:
    """Wait until a process and its group are gone, or the deadline has passed; return whether they are."""
    end = time.monotonic() + deadline_s
    while process.returncode is None or _members(process.pid):
        if time.monotonic() >= end:
            return False
        await asyncio.sleep(_POLL_S)
    return True


def _members(group: int) -> list[psutil.Process]:
    """Return the living processes of a process group. Zombies are dead: nobody may be there to reap them."""
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
    return members
