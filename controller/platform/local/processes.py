"""Processes, such that no other can be taken for one: for who has to end what somebody else started.

A number is given to another process some time after its owner has gone. A process that a note names is ended only if it
still is that process: same start of the machine, same number, same start time. The number of a process group is not
given away as long as the group has a member, so members of a group whose leader has gone can be ended too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

import msgspec
import psutil

_POLL_S = 0.05
_END_S = 10.0
TEMPORARY_PREFIX = "midstream-"


class PlatformError(RuntimeError):
    """The local platform cannot do what was asked; the message says why and what to do."""


class ProcessRecord(msgspec.Struct, frozen=True):
    """A process, such that no other can be taken for it; `created` is its start in seconds since the epoch.

    It leads a process group of its own.
    """

    pid: int
    created: float
    boot: str

    @classmethod
    def of(cls, pid: int) -> ProcessRecord:
        """Describe a living process.

        Raises:
            PlatformError: there is none of that id.

        """
        try:
            return cls(pid, psutil.Process(pid).create_time(), _boot())
        except psutil.Error as error:
            raise PlatformError(f"process {pid} has ended at once") from error

    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            return (
                self.boot == _boot()
                and process.create_time() == self.created
                and process.status() != psutil.STATUS_ZOMBIE
            )
        return False

    def group(self) -> list[psutil.Process]:
        """Return the living processes of its group; zombies are dead."""
        if self.boot != _boot():
            return []
        members = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                if os.getpgid(process.pid) != self.pid:
                    continue
                if process.pid == self.pid and process.create_time() != self.created:
                    return []  # the number was given to another process, so nothing is left of the group
                if process.create_time() >= self.created and process.status() != psutil.STATUS_ZOMBIE:
                    members.append(process)
        return members

    def end_group(self) -> bool:
        """Kill what is left of its group and wait until that is gone; returns whether there was anything."""
        found = False
        deadline = time.monotonic() + _END_S
        while members := self.group():
            found = True
            for member in members:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.send_signal(signal.SIGKILL)  # psutil looks at the start time again
            if time.monotonic() > deadline:
                raise PlatformError(f"processes {[member.pid for member in members]} do not end after SIGKILL")
            time.sleep(_POLL_S)
        return found


def remove_temporary(folder: str) -> None:
    """Remove a platform's temporary files, if that is what the folder is."""
    if Path(folder).name.startswith(TEMPORARY_PREFIX):
        shutil.rmtree(folder, ignore_errors=True)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
