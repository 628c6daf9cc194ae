"""A preloaded process that forks stage processes, so that a new stage is ready in about a second instead of ten.

Importing the engine takes most of a stage's start. The zygote is forked once from a process that has done it (or
does it in `preload`), opens no device, starts no thread, and then only waits for orders::

    parent <-- Ready, or NotReady(reason) -------------- zygote   (once, when it is preloaded)
    parent --- Fork(key, payload) + file descriptors --> zygote --- fork --> child runs main(payload, descriptors)
    parent <-- Forked(key, pid), or NotForked ---------- zygote
    parent <-- Exited(key, pid, status) ---------------- zygote   (whenever a child ends, whatever the reason)
    parent --- Fence(number, spared pids) -------------> zygote   (all other children are killed and waited for)
    parent <-- Fenced(number, children) ---------------- zygote   (now that they are gone)

A child of a zygote can become a zygote itself (`Zygote.within`, `be_zygote`): what is common to all models is preloaded
once, the weights of each model in a child, its stages are forked from that.

The socket is a private pair inherited by fork: nobody else can speak on it. When the parent goes, the socket
closes and the zygote ends its children; when the zygote is killed, the kernel ends them (PR_SET_PDEATHSIG).

A parent that wants to be survived leaves a duplicate of its end with another process (`runtime.warm.keeper`). Whoever
gets it *adopts* the zygote: what its predecessor had ordered and not read any more is answered before `Fenced`, and
dropped; from then on it knows every child there is, from the process that the kernel tells of their ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import select
import signal
import socket
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any, Self

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    ChildMain = Callable[[bytes, list[int]], None]
    Preload = Callable[[], Any]

_MESSAGE_BYTES = 1 << 16
_MAX_DESCRIPTORS = 16
_PR_SET_PDEATHSIG = 1


class ZygoteError(RuntimeError):
    """The zygote is gone or could not fork."""


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """Report: the zygote is preloaded and takes orders; `facts` is what `preload` returned, as plain data."""

    facts: Any = None


class NotReady(msgspec.Struct, tag="not_ready", frozen=True):
    """Report: preloading failed and the zygote ends."""

    reason: str


class Fork(msgspec.Struct, tag="fork", frozen=True):
    """Order: fork a child that runs the zygote's main with `payload`."""

    key: str
    payload: bytes


class Forked(msgspec.Struct, tag="forked", frozen=True):
    """Report: the child `key` runs as `pid`."""

    key: str
    pid: int


class NotForked(msgspec.Struct, tag="not_forked", frozen=True):
    """Report: the kernel refused to make the child `key`."""

    key: str
    reason: str


class Exited(msgspec.Struct, tag="exited", frozen=True):
    """Report: the child `key` ended; `status` is its exit code, negative for a signal."""

    key: str
    pid: int
    status: int


class Fence(msgspec.Struct, tag="fence", frozen=True):
    """Order: kill every child but these, and wait until they are gone."""

    number: int
    spared: list[int]


class Fenced(msgspec.Struct, tag="fenced", frozen=True):
    """Report: these are all children that are left, pids by key; all orders before `Fence` were served."""

    number: int
    children: dict[str, int]


_encode = msgspec.msgpack.Encoder().encode
_decode_order = msgspec.msgpack.Decoder(Fork | Fence).decode
_decode_report = msgspec.msgpack.Decoder(Ready | NotReady | Forked | NotForked | Exited | Fenced).decode


class Zygote:
    """The parent's handle on its zygote. Thread-safe.

    Args:
        main: runs in each child with the payload and the descriptors of its `Fork`; its return ends the child.
        preload: runs once in the zygote, before the first order is served; import what every child needs there.
        on_exit: called from a reader thread with (key, status) when a child ends.

    """

    def __init__(self, main: ChildMain, preload: Preload, on_exit: Callable[[str, int], None]) -> None:
        self.pid, reports = fork_zygote(main, preload)
        self._is_child = True
        self._listen(reports, on_exit)

    @classmethod
    def within(cls, parent: Zygote, key: str, payload: bytes, on_exit: Callable[[str, int], None]) -> Self:
        """Let `parent` fork a child that becomes a zygote: its main calls `be_zygote` with its only descriptor.

        Raises:
            ZygoteError: as `fork`.

        """
        self = cls.__new__(cls)
        parent_socket, child_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with child_socket:
            try:
                self.pid = parent.fork(key, payload, [child_socket.fileno()])
            except BaseException:
                parent_socket.close()
                raise
        self._is_child = False
        self._listen(parent_socket, on_exit)
        return self

    @classmethod
    def adopt(
        cls, reports: socket.socket, pid: int, spared: Sequence[int], on_exit: Callable[[str, int], None], wait_s: float
    ) -> Self:
        """Take over a zygote whose parent is gone, by its end of the socket; end its children but those `spared`.

        When this returns, every other child is gone: the zygote has waited for them.

        Raises:
            ZygoteError: it is gone, could not preload, or did not answer within `wait_s` seconds.

        """
        self = cls.__new__(cls)
        self.pid, self._is_child = pid, False
        fence = secrets.randbits(63)
        self._listen(reports, on_exit, fence)  # first of all: it may wait for somebody to read its reports
        try:
            reports.send(_encode(Fence(fence, list(spared))), socket.MSG_DONTWAIT)
        except OSError as error:
            self.close()
            raise ZygoteError(f"the zygote (pid {pid}) takes no orders: {error}") from error
        with self._known:
            self._known.wait_for(lambda: self._fence is None or self._gone, wait_s)
            fenced, refused = self._fence is None, self._ready
        if not fenced:
            reason = refused.reason if isinstance(refused, NotReady) else "ended" if self._gone else "does not answer"
            self.close()
            raise ZygoteError(f"the zygote (pid {pid}) cannot be adopted: {reason}")
        self._ready = Ready()
        return self

    def children(self) -> dict[str, int]:
        """Return the pids of its children by key, as far as they have been heard of."""
        with self._lock:
            return dict(self._pids)

    def descriptor(self) -> int:
        """Return the descriptor of this end of the socket, to be duplicated."""
        return self._socket.fileno()

    def _listen(self, reports: socket.socket, on_exit: Callable[[str, int], None], fence: int | None = None) -> None:
        self._socket, self._on_exit = reports, on_exit
        self._fence = fence  # until it is answered, reports answer somebody else
        self._lock = threading.Lock()
        self._pids: dict[str, int] = {}
        self._answers: dict[str, Forked | NotForked] = {}
        self._unwanted: set[str] = set()  # who ordered these waits for them no longer
        self._known = threading.Condition(self._lock)
        self._ready: Ready | NotReady | None = None
        self._gone = False
        self._reader = threading.Thread(target=self._read_reports, name="zygote-reports", daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        """Whether the zygote still answers."""
        return not self._gone

    def wait_ready(self, timeout_s: float) -> Any:
        """Wait until the zygote is preloaded; returns what its `preload` returned.

        Raises:
            ZygoteError: preloading failed, with the reason, or took longer than `timeout_s` seconds.

        """
        with self._known:
            self._known.wait_for(lambda: self._ready is not None or self._gone, timeout_s)
            ready, gone = self._ready, self._gone
        if isinstance(ready, Ready):
            return ready.facts
        if ready is not None:
            reason = ready.reason
        else:
            reason = f"the zygote (pid {self.pid}) " + ("ended" if gone else f"took over {timeout_s:g} s")
        raise ZygoteError(f"cannot preload: {reason}")

    def fork(self, key: str, payload: bytes, descriptors: Sequence[int] = (), timeout_s: float = 60.0) -> int:
        """Fork a child and return its pid.

        Raises:
            ZygoteError: the zygote is gone, could not fork, or did not answer within `timeout_s` seconds; or the order
                is too long for it.

        """
        order = _encode(Fork(key, payload))
        if len(order) > _MESSAGE_BYTES:
            raise ZygoteError(
                f"cannot start process {key!r}: its order has {len(order)} bytes, not {_MESSAGE_BYTES} at most"
            )
        try:
            socket.send_fds(self._socket, [order], list(descriptors))
        except OSError as error:
            raise ZygoteError(f"cannot start process {key!r}: the zygote (pid {self.pid}) is gone: {error}") from error
        with self._known:
            # Not `_pids`: a child that ended at once has left it already.
            self._known.wait_for(lambda: key in self._answers or self._gone, timeout_s)
            answer = self._answers.pop(key, None)
            if answer is None:
                self._unwanted.add(key)
        if isinstance(answer, Forked):
            return answer.pid
        reason = answer.reason if answer else f"no answer from the zygote (pid {self.pid})"
        raise ZygoteError(f"cannot start process {key!r}: {reason}")

    def kill(self, key: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a child that this zygote started; nothing happens if it has ended."""
        with self._lock:
            pid = self._pids.get(key)
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def close(self) -> None:
        """End the zygote and all its children."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join(timeout=10)
        self._socket.close()
        if self._is_child:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)

    def _read_reports(self) -> None:
        while True:
            try:
                message = self._socket.recv(_MESSAGE_BYTES)
            except ConnectionResetError:  # it ended with an order unread: its last words are still to come
                continue
            except OSError:
                message = b""
            if not message:  # gone
                with self._known:
                    self._gone = True
                    lost = list(self._pids)
                    self._pids.clear()
                    self._known.notify_all()
                for key in lost:
                    self._tell_exit(key, -signal.SIGKILL)
                return
            report = _decode_report(message)
            unwanted = False
            with self._known:
                if isinstance(report, Fenced):
                    if report.number == self._fence:
                        self._fence, self._pids = None, dict(report.children)
                        self._known.notify_all()
                    continue
                if self._fence is not None and not isinstance(report, NotReady):
                    continue
                if isinstance(report, Exited):
                    self._pids.pop(report.key, None)
                elif isinstance(report, Ready | NotReady):
                    self._ready = report
                elif unwanted := report.key in self._unwanted:
                    self._unwanted.remove(report.key)
                else:
                    self._answers[report.key] = report
                if isinstance(report, Forked):
                    self._pids[report.key] = report.pid
                self._known.notify_all()
            if unwanted:
                self.kill(report.key)
            if isinstance(report, Exited):
                self._tell_exit(report.key, report.status)

    def _tell_exit(self, key: str, status: int) -> None:
        try:
            self._on_exit(key, status)
        except Exception:  # noqa: BLE001 - further reports are waited for, whatever the reaction does
            traceback.print_exc()


def fork_zygote(main: ChildMain, preload: Preload) -> tuple[int, socket.socket]:
    """Fork a zygote from this process, whose end is its end; returns its pid and the parent's end of its socket."""
    parent_socket, child_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        parent_socket.close()
        _run_zygote(parent, child_socket, main, preload)
    child_socket.close()
    return pid, parent_socket


def be_zygote(descriptor: int, main: ChildMain, preload: Preload) -> None:
    """Serve orders on a socket until it is closed: what a child that `Zygote.within` forked has to do."""
    with socket.socket(fileno=descriptor) as orders:
        try:
            ready = _encode(Ready(preload()))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".encode(errors="replace")[: _MESSAGE_BYTES // 2]
            orders.send(_encode(NotReady(reason.decode(errors="replace"))))
            raise
        orders.send(ready)
        with contextlib.suppress(ConnectionError):  # the parent has gone, and left reports unread
            _serve_orders(orders, main)


def _run_zygote(parent: int, orders: socket.socket, main: ChildMain, preload: Preload) -> None:
    """Be the zygote; never returns."""
    status = 1
    try:
        _leave_parent_behind(parent, keep=orders.fileno())
        be_zygote(orders.detach(), main, preload)
        status = 0
    except BaseException:  # noqa: BLE001 - the last frame of a process: report, then end without atexit handlers
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _serve_orders(orders: socket.socket, main: ChildMain) -> None:
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    zygote = os.getpid()
    keys: dict[int, str] = {}
    poller = select.poll()
    poller.register(orders, select.POLLIN)
    poller.register(wake_read, select.POLLIN)
    while True:
        for descriptor, _ in poller.poll():
            if descriptor == wake_read:
                os.read(wake_read, 4096)
                _report_exits(orders, keys)
                continue
            message, descriptors, _, _ = socket.recv_fds(orders, _MESSAGE_BYTES, _MAX_DESCRIPTORS)
            if not message:
                for pid in keys:
                    os.kill(pid, signal.SIGKILL)
                return
            order = _decode_order(message)
            if isinstance(order, Fence):
                _fence(orders, order, keys)
                continue
            answer: Forked | NotForked
            try:
                pid = os.fork()
            except OSError as error:  # no processes or memory left: those that run go on
                pid, answer = -1, NotForked(order.key, f"the zygote cannot fork: {error}")
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for unneeded in (wake_read, wake_write, orders.fileno()):
                    os.close(unneeded)
                orders.detach()
                _run_child(zygote, main, order.payload, descriptors)
            for descriptor_sent in descriptors:
                os.close(descriptor_sent)
            if pid > 0:
                keys[pid] = order.key
                answer = Forked(order.key, pid)
            orders.send(_encode(answer))


def _fence(orders: socket.socket, order: Fence, keys: dict[int, str]) -> None:
    """End all children but those that are spared; it is answered when they are gone."""
    unwanted = [pid for pid in keys if pid not in order.spared]
    for pid in unwanted:
        os.kill(pid, signal.SIGKILL)  # not waited for yet, so the number is still theirs
    for pid in unwanted:
        os.waitpid(pid, 0)
        del keys[pid]
    _report_exits(orders, keys)
    orders.send(_encode(Fenced(order.number, {key: pid for pid, key in keys.items()})))


def _report_exits(orders: socket.socket, keys: dict[int, str]) -> None:
    while keys:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        key = keys.pop(pid, None)
        if key is not None:
            orders.send(_encode(Exited(key, pid, os.waitstatus_to_exitcode(status))))


def _run_child(zygote: int, main: ChildMain, payload: bytes, descriptors: list[int]) -> None:
    """Be a stage process; never returns."""
    status = 1
    try:
        _die_with_parent(zygote)
        main(payload, descriptors)
        status = 0
    except BaseException:  # noqa: BLE001 - the last frame of a process: report, then end without atexit handlers
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _leave_parent_behind(parent: int, keep: int) -> None:
    """Undo what the parent's process owned: its sockets and pipes, its signal handlers, its place in the tree."""
    _die_with_parent(parent)
    for number in (signal.SIGINT, signal.SIGTERM):
        # A terminal's Ctrl-C reaches the whole group; only the parent decides when its stages end.
        signal.signal(number, signal.SIG_IGN)
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor > 2 and descriptor != keep and _is_connection(descriptor):
            os.close(descriptor)


def _is_connection(descriptor: int) -> bool:
    try:
        target = os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return False
    return target.startswith(("socket:", "pipe:"))


def _die_with_parent(parent: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent went before the kernel knew
        os._exit(1)
