"""End a platform of this machine, or what is left of one."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import psutil

from controller.platform.local.processes import PlatformError
from controller.platform.local.state import PlatformFolder, platforms

if TYPE_CHECKING:
    from collections.abc import Iterator

    from controller.platform.local.state import PlatformRecord

_POLL_S = 0.05
_ORDERLY_S = 150.0  # every child gets its time, one after the other
_START_S = 5.0
_LAST_MOMENT_S = 10.0


def end(name: str | None) -> Iterator[str]:
    """End the platform of that name, or the only one there is; yields what was ended, in words.

    Raises:
        PlatformError: several run and none was named, or it does not end.

    """
    if name is None:
        there = platforms()
        if len(there) > 1:
            raise PlatformError(f"several pipelines run here ({', '.join(there)}); name one of them")
        if not there:
            yield "no pipeline runs here"
            return
        (name,) = there
    if name not in _names():
        yield f"no pipeline {name!r} runs here"
        return
    folder = PlatformFolder(name)
    record = folder.record()
    lived = folder.is_owned()
    if lived:
        _end_supervisor(folder)
    with folder.own():
        left = ", ".join(folder.clean_up())
    if lived:
        yield f"{name} ended: {', '.join(reversed(record.children)) if record else 'it was just starting'}"
        if left:
            yield f"killed, because the supervisor did not end them: {left}"
    else:
        yield f"{name} did not run any more; removed what was left: {left or 'logs'}"


def _names() -> set[str]:
    """Return the names of all platforms that have a folder, even one with nothing but logs, or a supervisor."""
    root = PlatformFolder("any").path.parent
    if not root.is_dir():
        return set()
    folders = {entry.name for entry in root.iterdir() if entry.is_dir()}
    return folders | {entry.stem for entry in root.glob("*.lock") if PlatformFolder(entry.stem).is_owned()}


def _end_supervisor(folder: PlatformFolder) -> None:
    """Ask the supervisor to end, wait for it, and kill it if it does not."""
    record = _its_record(folder)
    if record is None:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(record.supervisor.pid).terminate()
    with contextlib.suppress(psutil.NoSuchProcess):
        supervisor = psutil.Process(record.supervisor.pid)
        if not _released(folder, _ORDERLY_S):
            supervisor.kill()
        if record.supervisor.is_alive():  # it lets the name go a moment before it ends
            psutil.wait_procs([supervisor], _LAST_MOMENT_S)


def _its_record(folder: PlatformFolder) -> PlatformRecord | None:
    """Wait until a supervisor that has just begun says who it is; None if it ends before."""
    deadline = time.monotonic() + _START_S
    while folder.is_owned():
        if (record := folder.record()) is not None and record.supervisor.is_alive():
            return record
        if time.monotonic() > deadline:
            raise PlatformError(
                f"the supervisor of {folder.name!r} does not say who it is; see {folder.log('supervisor')}"
            )
        time.sleep(_POLL_S)
    return None


def _released(folder: PlatformFolder, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while folder.is_owned():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
