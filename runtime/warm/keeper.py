"""A small process that outlives its node runtime for a while and holds what must not be lost: descriptors.

Weights are in the memory of zygotes, KV is in memory files. Both live as long as somebody holds a descriptor: a zygote
ends when the last copy of its parent's end of a socket is closed, a memory file goes with its last descriptor. The
keeper holds a copy of each, with a record that only the node runtime understands, and hands them to the next node
runtime of the same folder. It is the parent of the seed zygote, so the kernel ends all zygotes with it::

    keeper ---- parent of ----> seed zygote ----> model zygotes ----> stages

    node runtime --- connects to FOLDER/keeper ----------------------------> keeper
    node runtime <-- Busy(pid), and the end -------------------------------- keeper   (another one is attached)
    node runtime <-- Item(name, record) + descriptor, ..., Everything ------ keeper   (what the last one left)
    node runtime --- Keep(name, record) + descriptor ----------------------> keeper   (in the place of that name)
    node runtime --- Drop(name) -------------------------------------------> keeper
    node runtime --- End --------------------------------------------------> keeper   (all of it ends)

A message and its descriptor come together or not at all, and what was sent before a node runtime died is still read:
there is no half record. Who is attached is told by the connection, which the kernel closes with the process: a node
runtime that hangs or was stopped is still the only one, whatever its process id says and however long it takes.

With nobody attached for `keep_s` seconds, the keeper ends and everything with it: zygotes, stages, KV, its socket and
the node runtime's folder of sockets. It ends at once when the seed does, or on SIGTERM with nobody attached.

Only this user gets in: the socket is in a folder of its owner, mode 0600, and both sides ask the kernel who the other
is. What comes is msgpack, strictly typed; records are not looked into here.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import msgspec

from runtime.transport.socket_folder import remove_left
from runtime.warm.zygote import fork_zygote

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from runtime.warm.zygote import ChildMain, Preload

SEED = "seed"
"""The name under which the keeper has the seed zygote from the start."""

_SOCKET = "keeper"
_MESSAGE_BYTES = 1 << 16
_TICK_MS = 200
_SEND_S = 5.0
_END_S = 10.0
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


class KeeperError(RuntimeError):
    """The warm state of this node cannot be had: another node runtime has it, or its keeper does not answer."""


class Busy(msgspec.Struct, tag="busy", frozen=True):
    """Report: node runtime `pid` is attached."""

    pid: int


class Item(msgspec.Struct, tag="item", frozen=True):
    """Report: one thing that is kept; its descriptor, if it has one, comes with it."""

    name: str
    record: bytes


class Everything(msgspec.Struct, tag="everything", frozen=True):
    """Report: that was everything, so many items."""

    count: int


class Keep(msgspec.Struct, tag="keep", frozen=True):
    """Order: keep this, in the place of what has the name."""

    name: str
    record: bytes


class Drop(msgspec.Struct, tag="drop", frozen=True):
    """Order: keep that no longer."""

    name: str


class End(msgspec.Struct, tag="end", frozen=True):
    """Order: keep nothing any more."""


_encode = msgspec.msgpack.Encoder().encode
_decode_order = msgspec.msgpack.Decoder(Keep | Drop | End).decode
_decode_report = msgspec.msgpack.Decoder(Busy | Item | Everything).decode


@dataclass(frozen=True, slots=True)
class KeptItem:
    """Something that is kept: its name, what its owner wrote about it, and its descriptor, which is the receiver's."""

    name: str
    record: bytes
    descriptor: int | None = None


class Keeper:
    """A node runtime's connection to its keeper. Orders may come from any thread: each is one message.

    `items` is what was kept when it attached, `is_new` whether it has started this keeper.
    """

    def __init__(self, connection: socket.socket, items: list[KeptItem], child: int | None) -> None:
        self._connection, self.items, self._child = connection, items, child

    @property
    def is_new(self) -> bool:
        """Whether nothing was kept before."""
        return self._child is not None

    @classmethod
    def attach(
        cls, folder: Path, main: ChildMain, preload: Preload, seed_record: Callable[[int], bytes], keep_s: float
    ) -> Self:
        """Attach to the keeper of `folder`, or start one, with a seed zygote that runs `main` and `preload`.

        To be called before this process has threads and sockets: the keeper and its zygotes are forked from it.

        Args:
            folder: that only this user may write to.
            main, preload: as for `Zygote`.
            seed_record: makes the record of a new seed, given its pid.
            keep_s: how long a new keeper holds everything with no node runtime attached, in seconds.

        Raises:
            KeeperError: another node runtime is attached.

        """
        place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(place, fcntl.LOCK_EX)  # of two that start at once, the second finds the keeper of the first
            address = f"/proc/self/fd/{place}/{_SOCKET}"  # the address of a socket has 107 bytes at most
            found = _connect(address)
            if found is not None:
                return cls(found[0], found[1], None)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(address)
            listener = _listen(address)
            sys.stdout.flush()
            sys.stderr.flush()
            child = os.fork()
            if child == 0:
                _run_keeper(folder, listener, main, preload, seed_record, keep_s)
            listener.close()
            found = _connect(address)
            if found is None:
                os.waitpid(child, 0)
                raise KeeperError("the process that keeps the warm state ended at once")
            return cls(found[0], found[1], child)
        finally:
            os.close(place)

    def keep(self, name: str, record: bytes, descriptor: int | None = None) -> None:
        """Have something kept. Without a keeper, nothing is."""
        with contextlib.suppress(OSError):
            socket.send_fds(self._connection, [_encode(Keep(name, record))], [] if descriptor is None else [descriptor])

    def drop(self, name: str) -> None:
        """Have something kept no longer."""
        with contextlib.suppress(OSError):
            self._connection.send(_encode(Drop(name)))

    def leave(self) -> None:
        """Detach: everything is kept for the next node runtime."""
        self._connection.close()

    def end(self) -> None:
        """Have everything end, and wait until the keeper has."""
        with self._connection as connection, contextlib.suppress(OSError):
            connection.settimeout(_END_S)
            connection.send(_encode(End()))
            while connection.recv(1):
                continue
        if self._child is not None:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._child, 0)


def _connect(address: str) -> tuple[socket.socket, list[KeptItem]] | None:
    """Attach to a keeper that is there; None when there is none. Raises KeeperError when it has no place."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    items: list[KeptItem] = []
    try:
        connection.settimeout(_END_S)
        connection.connect(address)
        _require_same_user(connection)
        while True:
            raw, descriptors, flags, _ = socket.recv_fds(connection, _MESSAGE_BYTES, 1)
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
            if not raw:
                raise ConnectionResetError  # it ends just now
            report = None if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) else _decode_report(raw)
            if isinstance(report, Item):
                items.append(KeptItem(report.name, report.record, *descriptors))
            elif isinstance(report, Busy):
                raise KeeperError(f"a node runtime of this name and folder runs already, as process {report.pid}")
            elif isinstance(report, Everything) and report.count == len(items):
                connection.settimeout(None)
                return connection, items
            else:
                raise KeeperError("what the keeper of the warm state says makes no sense; end that process")
    except TimeoutError as error:
        _give_up(connection, items)
        raise KeeperError(
            f"the keeper of the warm state did not answer within {_END_S:g} s; end that process"
        ) from error
    except OSError:
        _give_up(connection, items)
        return None
    except BaseException:
        _give_up(connection, items)
        raise


def close_all(items: list[KeptItem]) -> None:
    """Close the descriptors of items that nobody wants."""
    for item in items:
        if item.descriptor is not None:
            os.close(item.descriptor)


def _give_up(connection: socket.socket, items: list[KeptItem]) -> None:
    connection.close()
    close_all(items)


def _require_same_user(connection: socket.socket) -> int:
    """Ask the kernel who is at the other end; returns its pid. Raises KeeperError for another user."""
    pid: int
    uid: int
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if uid != os.geteuid():
        raise KeeperError(f"process {pid}, at the socket of the warm state, is one of user {uid}")
    return pid


def _listen(address: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = os.umask(0o177)
    try:
        listener.bind(address)
    finally:
        os.umask(before)
    listener.listen(4)
    return listener


# -- the process itself ------------------------------------------------------------------------------------------------


def _run_keeper(
    folder: Path,
    listener: socket.socket,
    main: ChildMain,
    preload: Preload,
    seed_record: Callable[[int], bytes],
    keep_s: float,
) -> None:
    """Be the keeper; never returns."""
    status = 1
    try:
        os.setsid()  # it is in no group that is ended with the node runtime
        _forget_descriptors(listener.fileno())  # the folder too, whose lock is the node runtime's
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        pid, seed = fork_zygote(main, preload)
        kept = {SEED: KeptItem(SEED, seed_record(pid), seed.fileno())}
        _Keeping(listener, kept, seed.fileno(), keep_s).serve()
        with contextlib.suppress(FileNotFoundError):
            (folder / _SOCKET).unlink()
        listener.close()
        remove_left()
        status = 0
    except BaseException:  # noqa: BLE001 - the last frame of a process: report, then end without atexit handlers
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _forget_descriptors(needed: int) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor > 2 and descriptor != needed:
            with contextlib.suppress(OSError):  # the one of the listing itself
                os.close(descriptor)


class _Keeping:
    """The keeper's loop: one thread, no state but what it keeps."""

    def __init__(self, listener: socket.socket, kept: dict[str, KeptItem], seed: int, keep_s: float) -> None:
        self._listener, self._kept, self._seed, self._keep_s = listener, kept, seed, keep_s
        self._attached: socket.socket | None = None
        self._pid = 0
        self._alone_since = time.monotonic() + _END_S  # whoever has started this process is about to attach
        self._told_to_end = False
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, *_: object) -> None:
        self._told_to_end = True

    def serve(self) -> None:
        """Return when nothing is to be kept any more."""
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        poller.register(self._seed, 0)  # only whether it has gone
        while not (self._attached is None and self._is_over()):
            ready = {descriptor for descriptor, _ in poller.poll(_TICK_MS if self._attached is None else None)}
            if self._seed in ready:
                return
            # First of all: whoever has died is not in the way of the next one.
            while self._attached is not None and select.select([self._attached], [], [], 0)[0]:
                if not self._obey(self._attached):
                    poller.unregister(self._attached)
                    self._attached.close()
                    self._attached, self._alone_since = None, time.monotonic()
            if self._listener.fileno() in ready and not self._told_to_end:
                self._accept(poller)

    def _is_over(self) -> bool:
        return self._told_to_end or time.monotonic() - self._alone_since >= self._keep_s

    def _accept(self, poller: select.poll) -> None:
        connection, _ = self._listener.accept()
        try:
            connection.settimeout(_SEND_S)
            pid = _require_same_user(connection)
            if self._attached is not None:
                connection.send(_encode(Busy(self._pid)))
                connection.close()
                return
            for item in self._kept.values():
                descriptors = [] if item.descriptor is None else [item.descriptor]
                socket.send_fds(connection, [_encode(Item(item.name, item.record))], descriptors)
            connection.send(_encode(Everything(len(self._kept))))
        except (OSError, KeeperError):
            connection.close()
            return
        self._attached, self._pid = connection, pid
        poller.register(connection, select.POLLIN)

    def _obey(self, connection: socket.socket) -> bool:
        """Take one order; False when the node runtime is gone, or everything is to end."""
        try:
            raw, descriptors, flags, _ = socket.recv_fds(connection, _MESSAGE_BYTES, 1)
        except OSError:
            return False
        try:
            order = None if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) else _decode_order(raw)
        except msgspec.DecodeError:  # and the end of the connection, which has no bytes
            order = None
        if isinstance(order, Keep):
            self._forget(order.name)
            self._kept[order.name] = KeptItem(order.name, order.record, *descriptors)
            return True
        for descriptor in descriptors:
            os.close(descriptor)
        if isinstance(order, Drop):
            self._forget(order.name)
            return True
        self._told_to_end = self._told_to_end or isinstance(order, End)
        return False

    def _forget(self, name: str) -> None:
        before = self._kept.pop(name, None)
        if before is not None and before.descriptor not in {None, self._seed}:
            os.close(before.descriptor)
