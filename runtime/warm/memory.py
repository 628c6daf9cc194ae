"""How much memory is left, and how much this process has taken."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def available_bytes() -> int:
    """Return the bytes that can still be taken here, within the limit of this control group if it has one."""
    free: int = psutil.virtual_memory().available
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, int(limit) - used)


def give_back_freed() -> None:
    """Give memory that was freed back to the system, where the C library keeps it otherwise."""
    with contextlib.suppress(AttributeError):  # another one than glibc
        ctypes.CDLL(None).malloc_trim(0)


def anonymous_bytes() -> int:
    """Return the bytes of memory of this process that no file backs; cheap enough to call while serving."""
    _, resident, shared = Path("/proc/self/statm").read_text().split()[:3]
    return (int(resident) - int(shared)) * _PAGE
