"""Two hundred children that end or are killed leave nothing behind: not in the zygote, and not in its parent.

The scenarios run in a process of their own (``python -m tests.unit.runtime.warm.test_zygote_leaks SCENARIO``), because
a test process has descriptors and threads that come and go.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from runtime.warm.zygote import Zygote, ZygoteError
from tests.unit.runtime.warm.zygote_parent import Exits, child_main, descriptors_of, eventually, is_alive, order

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[4]
DEADLINE_S = 120
CYCLES, AT_ONCE = 200, 8
SOME_BLOCKS = 20  # of the two hundred and more that one leaked object for each child would be
SOME_BYTES = 128 << 10  # far less than a page for each child


def run(scenario: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.unit.runtime.warm.test_zygote_leaks", scenario]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_two_hundred_children_that_end_or_are_killed_leave_nothing_behind():
    outcome = run("start_and_end")
    assert outcome.pop("heap_blocks_grown") <= SOME_BLOCKS
    assert outcome.pop("zygote_bytes_grown") <= SOME_BYTES
    statuses = {str(status): CYCLES // 4 for status in (0, 1, -signal.SIGKILL, -signal.SIGUSR1)}
    assert outcome == {"ended": statuses, "descriptors": [], "children": [], "kept": [0, 0, 0]}


def test_a_child_that_comes_when_nobody_waits_for_it_any_more_is_ended():
    outcome = run("come_late")
    assert "no answer from the zygote" in outcome.pop("refused")
    assert outcome == {"status": -signal.SIGKILL, "children": [], "kept": [0, 0, 0], "next": True}


# -- in a process of its own -------------------------------------------------------------------------------------------


def child(payload: bytes, descriptors: list[int]) -> None:
    """Do what the payload says; what is new is to tell how much memory the zygote had in use at the fork."""
    if json.loads(payload) == ["blocks"]:
        os.write(descriptors[0], str(sys.getallocatedblocks()).encode())
    else:
        child_main(payload, descriptors)


def start_and_end() -> dict[str, Any]:
    exits = Exits()
    zygote = Zygote(child, gc.freeze, exits)
    with tempfile.TemporaryFile() as file:
        _cycle(zygote, exits, file, range(2 * AT_ONCE))  # what is made once, such as caches
        blocks = _blocks(zygote, exits, file)
        seen = len(exits.seen)
        before = descriptors_of(os.getpid()) + descriptors_of(zygote.pid), _bytes(zygote.pid)
        for first in range(0, CYCLES, AT_ONCE):
            _cycle(zygote, exits, file, range(first, first + AT_ONCE))
        after = descriptors_of(os.getpid()) + descriptors_of(zygote.pid), _bytes(zygote.pid)
        ended = [status for _, status in exits.seen[seen:]]
        blocks_after = _blocks(zygote, exits, file)
    children = _children(zygote.pid)
    kept = _kept(zygote)
    zygote.close()
    return {
        "ended": {status: ended.count(status) for status in sorted(set(ended))},
        "descriptors": sorted(set(after[0]) ^ set(before[0])) if len(after[0]) == len(before[0]) else after[0],
        "children": children + _children(os.getpid()),
        "kept": kept,
        "heap_blocks_grown": blocks_after - blocks,
        "zygote_bytes_grown": after[1] - before[1],
    }


def come_late() -> dict[str, Any]:
    exits = Exits()
    zygote = Zygote(child, gc.freeze, exits)
    os.kill(zygote.pid, signal.SIGSTOP)
    try:
        zygote.fork("late", order("wait"), timeout_s=0.01)
    except ZygoteError as error:
        refused = str(error)
    os.kill(zygote.pid, signal.SIGCONT)
    ((_, status),) = exits.wait(1)
    another = zygote.fork("late", order("wait"))  # the same name is free again
    alive = is_alive(another)
    zygote.kill("late")
    exits.wait(2)
    outcome = {
        "refused": refused,
        "status": status,
        "children": _children(zygote.pid),
        "kept": _kept(zygote),
        "next": alive,
    }
    zygote.close()
    return outcome


def _cycle(zygote: Zygote, exits: Exits, file: IO[bytes], numbers: range) -> None:
    """Start a child for each number, all alive together; end them in four ways, and wait until that is known."""
    wanted = len(exits.seen) + len(numbers)
    for number in numbers:
        how = (order("wait"), order("write", "x"), order("exit", 1), order("wait"))[number % 4]
        zygote.fork(f"child-{number}", how, [file.fileno()])
    for number in numbers:
        if number % 4 in {0, 3}:
            zygote.kill(f"child-{number}", signal.SIGKILL if number % 4 else signal.SIGUSR1)
    exits.wait(wanted)


def _blocks(zygote: Zygote, exits: Exits, file: IO[bytes]) -> int:
    """Return how many blocks of memory the objects of the zygote take, as its next child has inherited them."""
    file.seek(0)
    file.truncate()
    wanted = len(exits.seen) + 1
    zygote.fork("blocks", order("blocks"), [file.fileno()])
    exits.wait(wanted)
    file.seek(0)
    return int(file.read())


def _bytes(pid: int) -> int:
    """Return the memory of a process's own making. What it merely shares or no longer shares does not change it."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in rollup if line.startswith("Anonymous:"))


def _children(pid: int) -> list[int]:
    """Return the children of a process other than a zygote, living or not, once all that ended are waited for."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    eventually(lambda: not path.read_text().split())
    return [int(name) for name in path.read_text().split()]


def _kept(zygote: Zygote) -> list[int]:
    return [len(zygote._pids), len(zygote._answers), len(zygote._unwanted)]


SCENARIOS: dict[str, Callable[[], dict[str, Any]]] = {
    scenario.__name__: scenario for scenario in (start_and_end, come_late)
}

if __name__ == "__main__":
    print(json.dumps(SCENARIOS[sys.argv[1]]()))  # noqa: T201 - the answer to the test
