"""Scenarios around a zygote, each run as a process of its own: a test process has too many threads and sockets.

``python -m tests.unit.runtime.warm.zygote_parent SCENARIO [argument...]`` prints what came out as one JSON line.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.warm import zygote as zygote_module
from runtime.warm.zygote import Zygote, ZygoteError, be_zygote

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE_S = 10.0


class Exits:
    """Collects what the zygote reports."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.seen: list[tuple[str, int]] = []

    def __call__(self, key: str, status: int) -> None:
        with self._changed:
            self.seen.append((key, status))
            self._changed.notify_all()

    def wait(self, count: int) -> list[tuple[str, int]]:
        with self._changed:
            self._changed.wait_for(lambda: len(self.seen) >= count, DEADLINE_S)
            return sorted(self.seen)


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether `condition` comes true before the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def is_alive(pid: int) -> bool:
    """Whether `pid` still runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def zombies_of(pid: int) -> list[int]:
    """Children of `pid` that ended and were not waited for."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if not is_alive(int(child))]


def descriptors_of(pid: int) -> list[str]:
    """What each descriptor of `pid` refers to."""
    links = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that listed them
            links.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return sorted(links)


def child_main(payload: bytes, descriptors: list[int]) -> None:
    """Do what the payload says: a JSON list of a verb and its arguments."""
    verb, *arguments = json.loads(payload)
    if verb == "write":  # what was sent, on the descriptor that was sent
        os.write(descriptors[0], arguments[0].encode())
    elif verb == "exit":
        os._exit(arguments[0])
    elif verb == "signal":
        os.kill(os.getpid(), arguments[0])
    elif verb == "raise":
        raise RuntimeError(arguments[0])
    elif verb == "wait":
        signal.pause()
    elif verb == "look":
        look = {
            "preloaded": os.environ.get("PRELOADED"),
            "descriptors": [link for link in descriptors_of(os.getpid()) if link.startswith(("socket:", "pipe:"))],
            "threads": threading.active_count(),
            "sigint": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
        }
        os.write(descriptors[0], json.dumps(look).encode())


def order(verb: str, *arguments: Any) -> bytes:
    return json.dumps([verb, *arguments]).encode()


def preload() -> None:
    os.environ["PRELOADED"] = "yes"


def start(exits: Exits, prepare: Callable[[], None] = preload) -> Zygote:
    return Zygote(child_main, prepare, exits)


def payload_and_descriptor_reach_the_child() -> dict[str, Any]:
    exits = Exits()
    zygote = start(exits)
    with tempfile.TemporaryFile() as file:
        pid = zygote.fork("a", order("write", "héllo"), [file.fileno()])
        seen = exits.wait(1)
        file.seek(0)
        written = file.read().decode()
    zygote.close()
    return {"written": written, "exits": seen, "own_pid": pid != os.getpid()}


def the_child_starts_clean() -> dict[str, Any]:
    exits = Exits()
    read, write = os.pipe()  # what the parent owns before the zygote exists
    threading.Thread(target=lambda: os.read(read, 1), daemon=True).start()
    zygote = start(exits)
    with tempfile.TemporaryFile() as file:
        zygote.fork("a", order("look"), [file.fileno()])
        exits.wait(1)
        file.seek(0)
        look = json.loads(file.read())
    parents = {os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in (read, write)}
    look["parents_pipes"] = sorted(parents & set(look.pop("descriptors")))
    zygote.close()
    return look


def endings_are_reported() -> dict[str, Any]:
    exits = Exits()
    zygote = start(exits)
    zygote.fork("fine", order("write", ""), [2])
    zygote.fork("status", order("exit", 7))
    zygote.fork("signal", order("signal", signal.SIGUSR1))
    zygote.fork("raises", order("raise", "no"))
    seen = exits.wait(4)
    zygote.close()
    return {"exits": seen}


def a_child_is_killed() -> dict[str, Any]:
    exits = Exits()
    zygote = start(exits)
    zygote.fork("a", order("wait"))
    zygote.fork("b", order("wait"))
    zygote.kill("a")
    first = exits.wait(1)
    zygote.kill("a")
    zygote.kill("nobody")
    zygote.kill("b", signal.SIGUSR2)
    both = exits.wait(2)
    zygote.close()
    return {"first": first, "both": both}


def the_zygote_is_killed() -> dict[str, Any]:
    exits = Exits()
    zygote = start(exits)
    pids = [zygote.fork(key, order("wait")) for key in ("a", "b")]
    os.kill(zygote.pid, signal.SIGKILL)
    seen = exits.wait(2)
    ended = eventually(lambda: not any(map(is_alive, pids)))
    try:
        zygote.fork("c", order("wait"), timeout_s=DEADLINE_S)
    except ZygoteError as error:
        refused = str(error)
    else:
        refused = None
    zygote.close()
    return {"exits": seen, "children_ended": ended, "refused": refused, "named": str(zygote.pid)}


def the_zygote_is_closed() -> dict[str, Any]:
    exits = Exits()
    zygote = start(exits)
    pids = [zygote.fork(key, order("wait")) for key in ("a", "b")]
    zygote.close()
    ended = eventually(lambda: not any(map(is_alive, [zygote.pid, *pids])))
    return {"exits": exits.wait(2), "all_ended": ended}


def the_parent_goes_without_a_word() -> dict[str, Any]:
    """A parent of its own is killed; only its pids are known here."""
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        os.close(read)
        zygote = start(Exits())
        pids = [zygote.pid, *(zygote.fork(key, order("wait")) for key in ("a", "b"))]
        os.write(write, json.dumps(pids).encode())
        signal.pause()
    os.close(write)
    pids = json.loads(os.read(read, 1000))
    alive = all(map(is_alive, pids))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    return {"alive_before": alive, "all_ended": eventually(lambda: not any(map(is_alive, pids)))}


def many_children_leave_nothing_behind(cycles: str) -> dict[str, Any]:
    exits = Exits()
    zygote = start(exits)
    with tempfile.TemporaryFile() as file:
        zygote.fork("warm-up", order("write", ""), [file.fileno()])
        exits.wait(1)
        before = descriptors_of(zygote.pid), descriptors_of(os.getpid())
        for number in range(int(cycles)):
            zygote.fork(f"child-{number}", order("write", ""), [file.fileno()], timeout_s=DEADLINE_S)
        seen = exits.wait(1 + int(cycles))
        after = descriptors_of(zygote.pid), descriptors_of(os.getpid())
        zombies = zombies_of(zygote.pid)
    zygote.close()
    return {
        "exits": len(seen),
        "statuses": sorted({status for _, status in seen}),
        "leaked": before != after,
        "zombies": zombies,
        "own_zombies": zombies_of(os.getpid()),
    }


def a_child_that_ends_at_once_is_still_answered() -> dict[str, Any]:
    exits = Exits()
    zygote = start(exits)
    send = socket.send_fds

    def send_and_be_late(*arguments: Any) -> int:
        sent = send(*arguments)
        exits.wait(1)  # the child is started, ends and is reported before its starter looks for the answer
        return sent

    socket.send_fds = send_and_be_late
    try:
        answered = zygote.fork("a", order("exit", 0), timeout_s=1) > 0
    except ZygoteError:
        answered = False
    zygote.close()
    return {"answered": answered}


def a_fork_that_fails_ends_nobody_else() -> dict[str, Any]:
    def forbid_second_fork() -> None:
        fork, forks = os.fork, iter([True])

        def fork_once() -> int:
            if next(forks, False):
                return fork()
            raise BlockingIOError(11, "Resource temporarily unavailable")

        os.fork = fork_once

    exits = Exits()
    zygote = start(exits, forbid_second_fork)
    first = zygote.fork("first", order("wait"))
    try:
        zygote.fork("second", order("wait"), timeout_s=DEADLINE_S)
    except ZygoteError as error:
        refused = str(error)
    else:
        refused = None
    alive = is_alive(first)
    zygote.close()
    return {"refused": refused, "first_alive": alive}


def the_zygote_is_killed_before_a_child_drew_its_first_breath() -> dict[str, Any]:
    def hold_children_until_the_zygote_is_gone() -> None:
        die_with_parent, zygote = zygote_module._die_with_parent, os.getpid()

        def be_late(*arguments: Any) -> None:
            if os.getpid() != zygote:
                eventually(lambda: os.getppid() != zygote)
            die_with_parent(*arguments)

        zygote_module._die_with_parent = be_late

    zygote = start(Exits(), hold_children_until_the_zygote_is_gone)
    pid = zygote.fork("a", order("wait"))
    os.kill(zygote.pid, signal.SIGKILL)
    ended = eventually(lambda: not is_alive(pid))
    if not ended:
        os.kill(pid, signal.SIGKILL)
    zygote.close()
    return {"child_ended": ended}


# -- zygotes of zygotes ------------------------------------------------------------------------------------------------


def become_zygote(payload: bytes, descriptors: list[int]) -> None:
    """Be a zygote that preloads what the payload says: a JSON list of a verb and its argument."""
    verb, argument = json.loads(payload)

    def prepare() -> Any:
        if verb == "fail":
            raise RuntimeError(argument * 20_000)
        if verb == "end":
            os._exit(argument)
        if verb == "wait":
            signal.pause()
        if verb == "bad facts":
            return object()
        return {"facts": argument, "pid": os.getpid(), "outer": os.environ["PRELOADED"]}

    be_zygote(descriptors[0], child_main, prepare)


def a_child_becomes_a_zygote() -> dict[str, Any]:
    outer_exits, inner_exits = Exits(), Exits()
    outer = Zygote(become_zygote, preload, outer_exits)
    inner = Zygote.within(outer, "inner", order("load", 7), inner_exits)
    facts = inner.wait_ready(DEADLINE_S)
    own_pid = facts.pop("pid") == inner.pid
    with tempfile.TemporaryFile() as file:
        inner.fork("a", order("write", "x"), [file.fileno()])
        inner_exits.wait(1)
        file.seek(0)
        written = file.read().decode()
    waiting = inner.fork("b", order("wait"))
    inner.close()
    outer_seen = outer_exits.wait(1)
    ended = eventually(lambda: not is_alive(waiting))
    outer.close()
    return {
        "facts": facts,
        "own_pid": own_pid,
        "written": written,
        "inner": inner_exits.wait(2),
        "outer": outer_seen,
        "children_ended": ended,
    }


def a_zygote_is_adopted() -> dict[str, Any]:
    """Its parent has left a child that is wanted, one that is not, and answers that nobody read."""
    pid, left = zygote_module.fork_zygote(child_main, preload)
    for key in ("kept", "unwanted", "again"):
        left.send(zygote_module._encode(zygote_module.Fork(key, order("wait"))))
    left.recv(1 << 16)  # that it is ready
    kept = zygote_module._decode_report(left.recv(1 << 16)).pid
    exits = Exits()
    zygote = Zygote.adopt(left, pid, [kept], exits, DEADLINE_S)
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    again = zygote.fork("again", order("wait"))
    outcome = {
        "children": zygote.children() == {"kept": kept, "again": again},
        "only": children == [str(kept)],
        "alive": [is_alive(kept), is_alive(again)],
    }
    zygote.kill("kept")
    ended = exits.wait(1)
    zygote.close()
    os.waitpid(pid, 0)
    return {**outcome, "ended": ended}


def zygotes_that_cannot_be_adopted() -> dict[str, Any]:
    """One has ended, one does not answer, one could not preload."""
    reasons = []
    for prepare, number in ((preload, signal.SIGKILL), (preload, signal.SIGSTOP), (fail_to_preload, None)):
        pid, left = zygote_module.fork_zygote(child_main, prepare)
        if number is not None:
            os.kill(pid, number)
        try:
            Zygote.adopt(left, pid, [], Exits(), 0.5 if number == signal.SIGSTOP else DEADLINE_S)
        except ZygoteError as error:
            reasons.append(str(error).replace(str(pid), "PID"))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return {"reasons": reasons}


def fail_to_preload() -> None:
    raise RuntimeError("no such file")


def zygotes_that_never_are_ready() -> dict[str, Any]:
    outer = Zygote(become_zygote, preload, Exits())
    reasons = []
    for verb, argument, timeout_s in (
        ("fail", "no such file \N{FIRE}", DEADLINE_S),
        ("bad facts", None, DEADLINE_S),
        ("end", 3, DEADLINE_S),
        ("wait", None, 0.05),
    ):
        inner = Zygote.within(outer, verb, order(verb, argument), Exits())
        try:
            inner.wait_ready(timeout_s)
        except ZygoteError as error:
            reasons.append(str(error).replace(str(inner.pid), "PID")[:90])
        outer.kill(verb)
        inner.close()
    outer.close()
    return {"reasons": reasons}


def the_outer_zygote_is_killed() -> dict[str, Any]:
    exits = Exits()
    outer = Zygote(become_zygote, preload, Exits())
    inner = Zygote.within(outer, "inner", order("load", 7), exits)
    inner.wait_ready(DEADLINE_S)
    stage = inner.fork("a", order("wait"))
    os.kill(outer.pid, signal.SIGKILL)
    ended = eventually(lambda: not is_alive(inner.pid) and not is_alive(stage))
    seen = exits.wait(1)
    gone = eventually(lambda: not inner.alive)
    inner.close()
    outer.close()
    return {"ended": ended, "exits": seen, "gone": gone}


def zygotes_that_cannot_be_forked_leave_nothing() -> dict[str, Any]:
    outer = Zygote(become_zygote, preload, Exits())
    Zygote.within(outer, "first", order("load", 7), Exits()).close()
    outer.close()
    before = descriptors_of(os.getpid())
    for number in range(20):
        with contextlib.suppress(ZygoteError):
            Zygote.within(outer, f"inner-{number}", order("load", 7), Exits())
    return {"leaked": before != descriptors_of(os.getpid()), "threads": threading.active_count()}


def an_order_that_is_too_long_ends_nobody() -> dict[str, Any]:
    exits = Exits()
    zygote = start(exits)
    first = zygote.fork("first", order("wait"))
    try:
        zygote.fork("second", bytes(1 << 17), timeout_s=DEADLINE_S)
    except ZygoteError as error:
        refused = str(error)
    third = zygote.fork("third", order("wait"), timeout_s=DEADLINE_S)
    alive = is_alive(first) and is_alive(third)
    zygote.close()
    return {"refused": refused, "alive": alive}


def a_reaction_that_fails_is_not_the_last() -> dict[str, Any]:
    exits = Exits()

    def react(key: str, status: int) -> None:
        exits(key, status)
        raise RuntimeError("the reaction has failed")

    zygote = Zygote(child_main, preload, react)
    zygote.fork("a", order("exit", 1))
    exits.wait(1)
    zygote.fork("b", order("exit", 2), timeout_s=DEADLINE_S)
    seen = exits.wait(2)
    zygote.close()
    return {"exits": seen}


SCENARIOS: dict[str, Callable[..., dict[str, Any]]] = {
    scenario.__name__: scenario
    for scenario in (
        payload_and_descriptor_reach_the_child,
        the_child_starts_clean,
        endings_are_reported,
        a_child_is_killed,
        the_zygote_is_killed,
        the_zygote_is_closed,
        the_parent_goes_without_a_word,
        many_children_leave_nothing_behind,
        a_child_that_ends_at_once_is_still_answered,
        a_fork_that_fails_ends_nobody_else,
        the_zygote_is_killed_before_a_child_drew_its_first_breath,
        a_child_becomes_a_zygote,
        a_zygote_is_adopted,
        zygotes_that_cannot_be_adopted,
        zygotes_that_never_are_ready,
        the_outer_zygote_is_killed,
        zygotes_that_cannot_be_forked_leave_nothing,
        an_order_that_is_too_long_ends_nobody,
        a_reaction_that_fails_is_not_the_last,
    )
}

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps(SCENARIOS[sys.argv[1]](*sys.argv[2:])))  # noqa: T201 - the answer to the test
