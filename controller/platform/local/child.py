"""One child of the supervisor: started, watched until it is ready, ended with all that it started.

Every child leads a session and so a process group of its own: a terminal's Ctrl-C reaches the supervisor alone, and
ending the group ends nothing else. The kernel ends the child when the supervisor is gone (PR_SET_PDEATHSIG), and
`controller.platform.local.guard` the rest of its group.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx
import msgspec

from controller.platform.local.processes import PlatformError, ProcessRecord

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from controller.platform.local.guard import Note

LOG_LINES = 20
_POLL_S = 0.05
_PROBE_S = 5.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class ChildError(PlatformError):
    """A child ended, or did not become ready; the message has the last lines of its log."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Ready means: this address answers 200."""

    url: str


@dataclass(frozen=True, slots=True)
class Says:
    """Ready means: a line of its log matches."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Command:
    """How to run a child, and what it takes until it is ready; times in seconds.

    `stop_s` is from SIGTERM to SIGKILL, `stop_with_all_s` the same when the whole platform ends (None: as else).
    """

    argv: tuple[str, ...]
    ready: Answers | Says
    environment: Mapping[str, str] = field(default_factory=dict)
    start_s: float = 60.0
    stop_s: float = 20.0
    stop_with_all_s: float | None = None


class Child:
    """A process that is started at most once; for another try make another `Child`."""

    def __init__(self, name: str, command: Command, log: Path, folder: Path) -> None:
        self.name, self.command, self._log, self._folder = name, command, log, folder
        self._log_start = 0
        self._process: asyncio.subprocess.Process | None = None
        self.record: ProcessRecord | None = None

    async def start(self) -> ProcessRecord:
        """Start it, in its own group.

        Raises:
            ChildError: the command cannot be run.

        """
        environment = {**os.environ, **self.command.environment}
        supervisor = os.getpid()

        def with_the_supervisor() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != supervisor:  # it went before the kernel knew
                os._exit(1)

        with self._log.open("ab") as log:
            self._log_start = log.tell()
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self.command.argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=asyncio.subprocess.STDOUT,
                    env=environment,
                    cwd=self._folder,
                    start_new_session=True,
                    preexec_fn=with_the_supervisor,
                )
            except OSError as error:
                raise ChildError(f"{self.name}: cannot run {self.command.argv[0]}: {error}") from error
        try:
            self.record = ProcessRecord.of(self._process.pid)
        except PlatformError:
            raise ChildError(await self._why_it_ended(self._process)) from None
        return self.record

    async def wait_until_ready(self) -> None:
        """Wait until it is ready.

        Raises:
            ChildError: it has ended, or took too long.

        """
        process = self._running()
        deadline = time.monotonic() + self.command.start_s
        async with httpx.AsyncClient(timeout=_PROBE_S, trust_env=False) as http:
            while not await self._is_ready(http):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_S):
                        await process.wait()
                if process.returncode is not None:
                    raise ChildError(await self._why_it_ended(process))
                if time.monotonic() > deadline:
                    raise ChildError(
                        f"{self.name} was not ready within {self.command.start_s:g} s. {self.last_words()}"
                    )

    async def ended(self) -> str:
        """Wait until its process has ended; returns why, in words."""
        process = self._running()
        await process.wait()
        return _status(process)

    async def stop(self, patience_s: float | None = None) -> None:
        """End it and all that is left of its group.

        Args:
            patience_s: seconds from SIGTERM to SIGKILL; None for the command's own.

        """
        process, record = self._process, self.record
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.command.stop_s if patience_s is None else patience_s):
                await process.wait()
        if record is not None:
            await asyncio.to_thread(record.end_group)
        await process.wait()

    def last_words(self) -> str:
        """Return the last lines of its log since it was started, with the file's name."""
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()[-LOG_LINES:]
        if not lines:
            return f"It wrote nothing to {self._log}."
        return f"Last lines of {self._log}:\n" + "\n".join(f"  {line}" for line in lines)

    async def _is_ready(self, http: httpx.AsyncClient) -> bool:
        ready = self.command.ready
        if isinstance(ready, Says):
            with self._log.open("rb") as log:
                log.seek(self._log_start)
                return re.search(ready.pattern, log.read().decode(errors="replace"), re.MULTILINE) is not None
        with contextlib.suppress(httpx.TransportError):
            return (await http.get(ready.url)).status_code == httpx.codes.OK
        return False

    async def _why_it_ended(self, process: asyncio.subprocess.Process) -> str:
        await process.wait()
        return f"{self.name} {_status(process)} before it was ready. {self.last_words()}"

    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise ChildError(f"{self.name} was not started")
        return self._process


class Guard:
    """The process that ends children's groups when the supervisor is killed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, log: Path, folder: Path) -> Guard:
        """Start it; it is told everything from here on."""
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "controller.platform.local.guard"),
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                cwd=folder,
                start_new_session=True,
            )
        return cls(process)

    async def tell(self, note: Note) -> None:
        """Tell it something."""
        if self._process.stdin is not None and not self._process.stdin.is_closing():
            with contextlib.suppress(ConnectionError):
                self._process.stdin.write(msgspec.json.encode(note) + b"\n")
                await self._process.stdin.drain()

    async def close(self) -> None:
        """Let it go; what it was not told the end of, it ends."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self._process.wait()


def _status(process: asyncio.subprocess.Process) -> str:
    code = process.returncode
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with status {code}"
