"""The sending end of a link (`runtime.transport.link`): a bounded queue, and a thread that owns the socket."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import struct
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from runtime.transport.channel import ChannelError
from runtime.transport.identity import (
    IdentityError,
    Peer,
    client_context,
    parse_address,
    shown_fingerprint,
)
from runtime.transport.link import GREETING, HELLO, read_exactly
from runtime.transport.record import MAGIC, VERSION, Limits, OutgoingRecord, RecordError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.transport.frames import Buffer
    from runtime.transport.identity import Identity

_WRITE_BYTES = 1 << 16
_PACED_BYTES = 1 << 15
_BURST_S = 0.02
_RETRY_AFTER_S = 1.0
_TICK_S = 0.25


class LinkSender:
    """Sends messages to one peer over a link that it opens when the first message comes. Thread-safe.

    When the link breaks, what was queued or under way is lost, `on_down(reason)` is called once, on the link's own
    thread, and the next `send` opens a new link once `on_down` returned. `on_down` must not send on this link. A link
    that cannot be opened is told to who sends, not to `on_down`: no message was accepted.

    Raises:
        ChannelError: no address is known for `peer`.
        IdentityError: `identity` cannot be loaded.
        ValueError: `bytes_per_second` is not positive.

    """

    def __init__(
        self,
        identity: Identity,
        peer: Peer,
        *,
        limits: Limits | None = None,
        queue_bytes: int = 64 << 20,
        bytes_per_second: float | None = None,
        on_down: Callable[[str], None] | None = None,
    ) -> None:
        if peer.address is None:
            raise ChannelError(f"no address is known for {peer.name}; enrol it again with host:port")
        self.peer = peer
        self._address = peer.address
        self._limits = limits or Limits()
        self._queue_bytes = queue_bytes
        self._on_down = on_down
        self._context = client_context(identity, peer)
        self._hello = HELLO.pack(MAGIC, VERSION, os.urandom(16))
        self._pace = _Pace(bytes_per_second)
        self._condition = threading.Condition()
        # Guarded by the condition; the link's thread notifies of every change.
        self._queue: deque[OutgoingRecord] = deque()
        self._queued_bytes = 0
        self._up = self._wanted = self._closed = self._idle = False
        self._attempts = self._breaks = 0
        self._reason = "it was not opened yet"
        self._retry_at = 0.0
        self._lost: str | None = None
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name=f"link to {peer.name}", daemon=True)
        self._thread.start()

    @property
    def up(self) -> bool:
        """Whether the peer has greeted this node and the link has not broken since."""
        return self._up

    def send(self, destination: str, parts: Sequence[Buffer], timeout_s: float = 30.0) -> None:
        """Queue one message for `destination` at the peer; messages of one thread keep their order.

        The buffers are not copied: they must not change until they are sent, which `flush` tells. A message that
        changed meanwhile has a wrong digest, and the peer breaks the link. Opens the link if it is down. Blocks up to
        `timeout_s` while the queue is full (a message larger than the queue waits until it is empty).

        Raises:
            ChannelError: the link cannot be opened (at once if that was found out within the last second), it broke
                while this call waited, the peer takes no messages, or `close` was called. The message was not queued.
            RecordError: the message is too large, has too many parts, or its destination is no short ASCII name.

        """
        if not destination:
            raise RecordError("a message needs a destination, such as stage-3")
        record = OutgoingRecord(destination, parts, self._limits)
        deadline = time.monotonic() + timeout_s
        with self._condition:
            self._open(deadline)
            breaks = self._breaks
            self._condition.wait_for(
                lambda: self._closed or self._breaks != breaks or self._has_room(record), deadline - time.monotonic()
            )
            if self._closed or self._breaks != breaks:
                raise ChannelError(self._why_not())
            if not self._has_room(record):
                raise ChannelError(
                    f"{self.peer.name} takes no messages: {self._queued_bytes} bytes waited for {timeout_s:g} s; "
                    "is its process stuck, or the link too slow?"
                )
            self._queue.append(record)
            self._queued_bytes += record.queue_bytes
            if self._idle:
                os.eventfd_write(self._wakeup, 1)

    def flush(self, timeout_s: float) -> None:
        """Wait until the kernel has every message that was sent since the last flush; the peer may not have it yet.

        Raises:
            ChannelError: the link broke since the last flush, so messages may be lost; or it takes too long.

        """
        with self._condition:
            done = self._condition.wait_for(lambda: self._lost is not None or not self._queue, timeout_s)
            if self._lost is not None:
                lost, self._lost = self._lost, None
                raise ChannelError(f"messages to {self.peer.name} may be lost: {lost}")
            if not done:
                raise ChannelError(
                    f"{self._queued_bytes} bytes for {self.peer.name} were not sent within {timeout_s:g} s"
                )

    def pace(self, bytes_per_second: float | None) -> None:
        """Send at most so many bytes per second, also of what is under way; None for as many as possible.

        Raises:
            ValueError: `bytes_per_second` is not positive.

        """
        self._pace.set(bytes_per_second)

    def close(self) -> None:
        """Close the link and end its thread; what was not sent yet is dropped."""
        with self._condition:
            self._closed = True
            if self._wakeup >= 0:
                os.eventfd_write(self._wakeup, 1)
            self._condition.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _has_room(self, record: OutgoingRecord) -> bool:
        return not self._queue or self._queued_bytes + record.queue_bytes <= self._queue_bytes

    def _why_not(self) -> str:
        what = "was closed by this node" if self._closed else f"is down: {self._reason}"
        return f"the link to {self.peer.name} at {self._address} {what}"

    def _open(self, deadline: float) -> None:
        """Have the link's thread connect if it must, and wait for the outcome."""
        if self._thread is threading.current_thread():
            raise ChannelError(f"on_down must not send to {self.peer.name}: the link opens only after it returned")
        if not self._up and not self._closed and time.monotonic() >= self._retry_at:
            attempts, self._wanted = self._attempts, True
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._closed or self._attempts != attempts, deadline - time.monotonic())
            if self._attempts == attempts and not self._closed:
                raise ChannelError(f"the link to {self.peer.name} at {self._address} is still being opened; try again")
        if self._closed or not self._up:
            raise ChannelError(self._why_not())

    def _run(self) -> None:
        """Open the link whenever it is wanted, and serve it."""
        try:
            while True:
                with self._condition:
                    self._condition.wait_for(lambda: self._wanted or self._closed)
                    if self._closed:
                        return
                self._connect_and_serve()
        finally:  # also when on_down raised: then nobody may wait for this thread any longer
            with self._condition:
                self._closed, self._up = True, False
                if self._queue:
                    self._lost = "the link was closed before they were sent"
                self._queue.clear()
                os.close(self._wakeup)
                self._wakeup = -1
                self._condition.notify_all()

    def _connect_and_serve(self) -> None:
        try:
            link = self._connect()
        except (OSError, IdentityError) as error:
            with self._condition:
                self._note_attempt(up=False)
                self._reason, self._retry_at = _explain(error), time.monotonic() + _RETRY_AFTER_S
            return
        with link:
            with self._condition:
                self._note_attempt(up=True)
            try:
                self._serve(link)
            except OSError as error:
                reason = _explain(error)
            else:
                return
        with self._condition:
            self._up = False
            self._reason = self._lost = reason
            self._breaks += 1
            self._queue.clear()
            self._queued_bytes = 0
            self._condition.notify_all()
        if self._on_down is not None:
            self._on_down(reason)

    def _note_attempt(self, *, up: bool) -> None:
        self._attempts += 1
        self._up, self._wanted = up, False
        self._condition.notify_all()

    def _connect(self) -> ssl.SSLSocket:
        raw = socket.create_connection(parse_address(self._address), self._limits.connect_s)
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            raw.settimeout(self._limits.handshake_s)
            link = self._context.wrap_socket(raw, do_handshake_on_connect=False, suppress_ragged_eofs=False)
        except OSError:
            raw.close()
            raise
        try:
            link.do_handshake()
            if (shown := shown_fingerprint(link)) != self.peer.fingerprint:
                raise IdentityError(f"another node answers there: its certificate is {shown}, not the enrolled one")
            greeting = read_exactly(link, len(GREETING))
            if greeting != GREETING:
                raise ConnectionAbortedError(f"it greets with {greeting!r}, not {GREETING!r}: another version?")
            link.sendall(self._hello)
            link.setblocking(False)
        except BaseException:
            link.close()
            raise
        return link

    def _serve(self, link: ssl.SSLSocket) -> None:
        """Send what is queued and heartbeats until `close`; raise OSError when the link breaks."""
        wire = _Wire(link, self._wakeup, self._pace, self._limits, lambda: self._closed)
        heartbeat, sequence, next_beat = OutgoingRecord("", (), self._limits), 0, 0.0
        while not self._closed:
            record: OutgoingRecord | None = None
            if time.monotonic() >= next_beat:
                wire.raise_if_cut()
                next_beat = time.monotonic() + self._limits.heartbeat_s
                record = heartbeat
            else:
                with self._condition:
                    record = self._queue[0] if self._queue else None
                    self._idle = record is None
            if record is None:
                wire.wait(0, next_beat - time.monotonic())
                continue
            if not all(wire.write(piece) for piece in record.pieces(sequence)):
                return
            sequence += 1
            if record is not heartbeat:
                with self._condition:
                    self._queue.popleft()
                    self._queued_bytes -= record.queue_bytes
                    self._condition.notify_all()
        with contextlib.suppress(OSError):  # says goodbye; the peer's answer is not waited for
            link.unwrap()


class _Wire:
    """The sending end of a connection, as its one thread uses it: writes and waits that notice everything else."""

    def __init__(
        self, link: ssl.SSLSocket, wakeup: int, pace: _Pace, limits: Limits, closing: Callable[[], bool]
    ) -> None:
        self._link, self._wakeup, self._pace, self._limits, self._closing = link, wakeup, pace, limits, closing
        self._poll = select.poll()
        self._poll.register(wakeup, select.POLLIN)

    def write(self, piece: bytes | memoryview) -> bool:
        """Hand `piece` to the kernel; False if `close` came first.

        Raises:
            OSError: the link broke.

        """
        rest = memoryview(piece)
        while rest:
            some = rest[: self._pace.chunk_bytes]
            while (delay := self._pace.delay_s(len(some))) > 0 and not self._closing():
                self.wait(0, delay)
            while not self._closing():
                try:
                    count = self._link.send(some)
                    break
                except ssl.SSLWantWriteError:  # TLS wants the very same bytes again
                    self.wait(select.POLLOUT, _TICK_S)
            else:
                return False
            rest = rest[count:]
        return True

    def wait(self, events: int, timeout_s: float) -> None:
        """Wait for `events` of the socket, for a wake-up or for the peer to go, `timeout_s` at most.

        Raises:
            OSError: the link broke.

        """
        self._poll.register(self._link, select.POLLIN | events)
        happened = dict(self._poll.poll(max(timeout_s, 0) * 1000))
        if self._wakeup in happened:
            os.eventfd_read(self._wakeup)
        if happened.get(self._link.fileno(), 0) & ~select.POLLOUT:
            self._expect_silence()
        if not happened:
            self.raise_if_cut()

    def _expect_silence(self) -> None:
        """Look at what came: a peer says nothing after its greeting, so it is an end, or part of one."""
        try:
            data = self._link.recv(1)
        except ssl.SSLWantReadError:
            return
        raise ConnectionAbortedError("it sent data on a link of one way" if data else "it closed the link")

    def raise_if_cut(self) -> None:
        """Ask the kernel whether the peer's machine still answers.

        Raises:
            ConnectionAbortedError: it does not.

        """
        info = self._link.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 60)
        # struct tcp_info: probes is byte 3, unacked the 5th and last_ack_recv (ms) the 13th of the 32-bit numbers.
        probes, unacknowledged, quiet_ms = info[3], *struct.unpack_from("=I28xI", info, 24)
        # A slow receiver answers every probe, at growing intervals; one may be on its way and one may get lost.
        if (unacknowledged or probes > 2) and quiet_ms > 1000 * self._limits.unacknowledged_s:
            raise ConnectionAbortedError(f"its machine has not answered for {quiet_ms / 1000:.1f} s")


class _Pace:
    """A token bucket: `bytes_per_second` on average, in chunks that are small beside what a link carries at once.

    Small, because a receiver on a busy machine handles a chunk in one go. It may be set by another thread: what is read
    here together is one tuple.
    """

    def __init__(self, bytes_per_second: float | None) -> None:
        self._at, self._tokens = time.monotonic(), 0.0
        self.set(bytes_per_second)

    def set(self, bytes_per_second: float | None) -> None:
        """Change the rate; raises ValueError."""
        if bytes_per_second is not None and bytes_per_second <= 0:
            raise ValueError(f"bytes_per_second is {bytes_per_second}, but a link needs more than 0 (None: no limit)")
        chunk = _WRITE_BYTES if bytes_per_second is None else int(max(1.0, min(_PACED_BYTES, bytes_per_second / 10)))
        self._setting = bytes_per_second, chunk

    @property
    def bytes_per_second(self) -> float | None:
        """The rate; None without a limit."""
        return self._setting[0]

    @property
    def chunk_bytes(self) -> int:
        """How many bytes to send at once."""
        return self._setting[1]

    def delay_s(self, count: int) -> float:
        """Take `count` tokens and return 0, or return the seconds until there are enough."""
        rate, chunk = self._setting
        if rate is None:
            return 0.0
        now = time.monotonic()
        burst = max(chunk, count, rate * _BURST_S)
        self._tokens = min(burst, self._tokens + (now - self._at) * rate)
        self._at = now
        if self._tokens < count:
            return (count - self._tokens) / rate
        self._tokens -= count
        return 0.0


def _explain(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the node there cannot prove to be the enrolled one ({error.verify_message})"
    if isinstance(error, ssl.SSLEOFError):
        return "it ended without a goodbye: its process died, or it refused this node"
    if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
        return f"it refused this node's certificate ({error.reason}); is this node enrolled there?"
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    return str(error)
