"""Folders for sockets that go when their process goes, even if it had no time to remove them.

A process makes a folder of its own in the system's temporary folder and removes it in the end. One that is killed
cannot: its folder is removed by whichever process of the same user makes the next one. To tell a folder that is left
from one in use, each has a file that its process keeps locked (`flock`) as long as it lives; the kernel lets go of the
lock. The file gets its name only when it is locked, so that nobody ever sees it free while its process lives.

Caveat: the lock belongs to the open file, which processes forked from this one share. They must not outlive it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

_PREFIX = "midstream-"
_LOCK, _NOT_YET = "sockets.lock", "sockets.lock.new"


class SocketFolder:
    """A new folder that only this user may enter. What others of this user have left is removed first.

    Args:
        kind: becomes a part of its name.

    """

    def __init__(self, kind: str = "") -> None:
        remove_left()
        self.path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{kind}"))
        self._lock = os.open(self.path / _NOT_YET, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        (self.path / _NOT_YET).rename(self.path / _LOCK)

    def remove(self) -> None:
        """Remove the folder and what is in it. May be called again."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def remove_left() -> list[Path]:
    """Remove the folders of this user's processes that are gone; returns them."""
    removed = []
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # it is in use, somebody else's, or just being removed
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                continue
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder)
            finally:
                os.close(lock)
    return removed
