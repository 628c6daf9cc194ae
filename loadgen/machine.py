"""The machine a figure was taken on, and who else was using it: without both a figure cannot be compared."""

import os
import platform
import time
from dataclasses import dataclass
from typing import Any

import psutil

from loadgen.process import WatchedProcess


def machine_facts() -> dict[str, Any]:
    """Return CPUs this process may use, memory in GiB, Python, platform, and the load average over the last minute."""
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "load_average_1m": round(os.getloadavg()[0], 2),
    }


@dataclass(frozen=True, slots=True)
class CpuUse:
    """Who used the machine during a pass, in CPUs (CPU seconds per second).

    Attributes:
        idle_server: The server that was not being measured; None if there was none.
        foreign: Everything but the servers' living processes and this one. Threads of a model step wait for each
            other, so that even a little of it multiplies latencies.
    """

    idle_server: float | None
    foreign: float


class CpuWatch:
    """Accounts for CPU time from its creation on.

    Args:
        active: The processes of the server that is measured.
        idle: The server that should be idle meanwhile, if there is one.
    """

    def __init__(self, *active: WatchedProcess, idle: WatchedProcess | None = None) -> None:
        self._active, self._idle = active, idle
        self._before = self._read()

    def use(self) -> CpuUse:
        """Return who used the machine since the watch was made."""
        wall, machine, active, idle, own = (
            after - before for before, after in zip(self._before, self._read(), strict=True)
        )
        return CpuUse(
            idle_server=None if self._idle is None else idle / wall,
            foreign=max(0.0, machine - active - idle - own) / wall,
        )

    def _read(self) -> tuple[float, float, float, float, float]:
        times = psutil.cpu_times()
        return (
            time.monotonic(),
            sum(times) - times.idle - times.iowait,
            sum(process.cpu_seconds() for process in self._active),
            0.0 if self._idle is None else self._idle.cpu_seconds(),
            time.process_time(),
        )
