"""What a server and the processes it started hold, so that what leaks shows.

Counted are processes, threads, open files, and shared memory: files without a name (memfd) and those in /dev/shm, each
once however many processes have it. The memory that only one process has (USS) is summed up, so that what several
share counts for none of them.

Caveat: /proc changes while it is read. A process that ends meanwhile counts for nothing.
"""

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

_BLOCK_BYTES = 512  # what st_blocks counts in, whatever the file system
_MEMFD, _SHM = "/memfd:", "/dev/shm/"  # noqa: S108 - only looked at


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process and all its descendants hold.

    Attributes:
        processes, threads, descriptors: Their numbers.
        shared_files, shared_bytes: Files in memory that they have open, and the memory these occupy.
        private_bytes: Memory that only one process has, summed up.
        spares: How many of the processes are stages that the head keeps ready, as it says: it may keep up to twice as
            many as it wants, so that their number is no leak.
        folders: Folders of theirs in the temporary folder.
    """

    processes: int = 0
    threads: int = 0
    descriptors: int = 0
    shared_files: int = 0
    shared_bytes: int = 0
    private_bytes: int = 0
    spares: int = 0
    folders: int = 0


# What may be more in the end than it was in the beginning. A process that has worked for long has opened connections
# and started pool threads that it had not before, and has tables that have grown to their bounds.
LIMITS = Usage(processes=0, threads=24, descriptors=24, shared_files=0, shared_bytes=256 << 20, private_bytes=256 << 20)
PER_SPARE = Usage(processes=1, threads=16, descriptors=32, private_bytes=192 << 20)


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants, in no order; none if it is gone."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def usage(pid: int) -> Usage:
    """Return what a process and its descendants hold now."""
    processes = threads = descriptors = private = 0
    files: dict[tuple[int, int], int] = {}
    for process in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            private += process.memory_full_info().uss
            threads += process.num_threads()
            processes += 1
            for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
                descriptors += 1
                with contextlib.suppress(FileNotFoundError):
                    if os.readlink(descriptor).startswith((_MEMFD, _SHM)):
                        found = descriptor.stat()
                        files[found.st_dev, found.st_ino] = found.st_blocks * _BLOCK_BYTES
    return Usage(processes, threads, descriptors, len(files), sum(files.values()), private)


def stage_pids(node_pid: int) -> list[int]:
    """Return the stage processes of a node runtime, in the order of their start.

    They are what its zygotes with weights have forked: runtime, zygote with the engine, zygote with weights, stage.
    """
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for engine in psutil.Process(node_pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                for weights in engine.children():
                    with contextlib.suppress(psutil.NoSuchProcess):
                        found += [one for one in weights.children() if one.status() != psutil.STATUS_ZOMBIE]
    with contextlib.suppress(psutil.NoSuchProcess):
        found.sort(key=psutil.Process.create_time)
    return [process.pid for process in found]


def living(processes: Iterable[psutil.Process]) -> list[int]:
    """Return the pids of those processes that are not gone; a zombie is."""
    left = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                left.append(process.pid)
    return left


def grown(before: Mapping[str, Usage], after: Mapping[str, Usage], limits: Usage = LIMITS) -> list[str]:
    """Say, by role, what has grown by more than its limit and than what its further spare stages may hold."""
    found = []
    for role, old in before.items():
        new, more = after[role], max(0, after[role].spares - old.spares)
        for name in ("processes", "threads", "descriptors", "shared_files", "shared_bytes", "private_bytes", "folders"):
            limit = getattr(limits, name) + more * getattr(PER_SPARE, name)
            if getattr(new, name) > getattr(old, name) + limit:
                found.append(f"{role}: {name} {getattr(old, name)} -> {getattr(new, name)}")
    return found
