"""Ends what a supervisor leaves when it is killed.

Problem: the kernel ends a supervisor's children with it (PR_SET_PDEATHSIG), but not theirs: a server's engine would go
on for ever. Protocol: the supervisor starts this process first and tells it on standard input, a line of JSON each,
which process groups there are. When standard input closes, nobody is left who would end them, so this process does::

    {"begin": {"pid": ..., "created": ..., "boot": ...}}   a group, by the process that leads it
    {"end": ...}                                           that group has been ended in order
    {"temporary": "/tmp/midstream-x"}                      a folder to be removed

It ignores the signals of a terminal and imports little.
"""

from __future__ import annotations

import contextlib
import signal
import sys

import msgspec

from controller.platform.local.processes import PlatformError, ProcessRecord, remove_temporary


class Note(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line from the supervisor."""

    begin: ProcessRecord | None = None
    end: ProcessRecord | None = None
    temporary: str | None = None


def main() -> None:
    """Listen until the supervisor is gone, then end what it has not ended."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: list[ProcessRecord] = []
    temporary: list[str] = []
    for line in sys.stdin.buffer:
        with contextlib.suppress(msgspec.DecodeError):  # the last line of a supervisor that was killed in its middle
            note = msgspec.json.decode(line, type=Note)
            groups += [note.begin] if note.begin else []
            groups = [group for group in groups if group != note.end]
            temporary += [note.temporary] if note.temporary else []
    for group in reversed(groups):
        with contextlib.suppress(PlatformError):  # hangs in the kernel, and is still in the state folder
            group.end_group()
    for folder in temporary:
        remove_temporary(folder)


if __name__ == "__main__":
    main()
