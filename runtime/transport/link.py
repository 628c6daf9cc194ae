"""The channel between machines: messages over mutual TLS, from nodes that were enrolled and nobody else.

Problem: stages on several nodes exchange hidden states, KV blocks and control frames over a network that is not ours.
Who is not enrolled must not get a byte read (`runtime.transport.identity`), a peer that sends nonsense must hurt only
its own connection, and a peer that is slow or gone must become an error with its name, soon, never memory that grows.

Protocol: links are simplex. The dialler only sends and the accepter only receives; the way back is a connection of
its own. So one thread owns each TLS socket, which Python's are made for, and neither direction waits for the other. ::

    dialler                                    accepter
    LinkSender                                 LinkListener
      | ---- TCP, TLS 1.3, both certificates ---> |  fingerprint enrolled? else closed, nothing was read
      | <------------- greeting ----------------- |  "you are in": only now is the link up
      | ---- hello: version, number of the link > |  an older connection of this link is ended first
      | ---- record 0, record 1, heartbeat, ... > |  on_message(peer, destination, parts), in order
      |                                           |  nothing for `silence_s`: closed, on_gone(peer)

A record is, in big-endian numbers: magic (3 bytes), version (1), length of the destination (2), number of parts (4),
bytes of all parts (8), sequence number within the connection (8); then the destination (ASCII), the length of each
part (8 bytes each), the parts, and a BLAKE2b-128 digest of everything before it. A heartbeat is a record with neither
destination nor parts. Lengths are checked against `Limits` before memory is taken for what they announce.

Within a connection messages arrive in order and exactly once. When it breaks, what was queued or under way is lost:
the sender is told (`on_down`, `flush`) and nothing is sent again. The next connection is read only when nothing of
the broken one is handled any more. So a message of a link may get lost, but is never doubled or overtaken.

Caveats:

- TCP_USER_TIMEOUT would end the link of a receiver that is merely slow (Linux counts a closed window as silence), and
  keepalive is off while data is under way. So the sender reads TCP_INFO: a link is cut when data stays unacknowledged,
  or probes of a closed window stay unanswered, for `unacknowledged_s`. A heartbeat sees to it that there is data.
- AES-GCM keys wear out after about 350 GiB on one connection (RFC 8446, 5.5), and OpenSSL does not renew them by
  itself. The margin behind that number is large, but a link that copies for days should be closed and opened again.
- A peer whose process hangs, but whose machine answers, is noticed by a full queue, not by a break.
- A process forked from one with links holds them too: the peer would not hear of the parent's death at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import select
import socket
import ssl
import struct
import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.transport.channel import ChannelError
from runtime.transport.frames import FrameError
from runtime.transport.identity import (
    IdentityError,
    Peer,
    client_context,
    parse_address,
    server_context,
    shown_fingerprint,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from runtime.transport.frames import Buffer
    from runtime.transport.identity import Enrolment, Identity

_MAGIC, _VERSION = b"MSL", 1
_HEADER = struct.Struct(">3sBHIQQ")
_DIGEST_BYTES = 16
_HELLO = struct.Struct(">3sB16s")  # magic, version, random number of the link
_GREETING = b"midstream link 1"
_JOIN_BELOW = 1 << 14  # smaller pieces of a record share a TLS record of at most 16 KiB
_WRITE_BYTES = 1 << 16
_TICK_S = 0.25
_RETRY_AFTER_S = 1.0
_QUEUE_ENTRY_BYTES = 1024  # what a queued message costs beside its buffers, so that tiny ones are bounded too


@dataclass(frozen=True, slots=True)
class Limits:
    """What a link grants its peer: sizes in bytes, times in seconds. Both ends of a link need the same sizes.

    `connections` counts all that are open at once; when they are used up, a newcomer takes the place of the oldest
    one that has not yet shown who it is. `heartbeat_s` of the sender must stay well below `silence_s` of the listener.
    """

    destination_bytes: int = 128
    parts: int = 4096
    message_bytes: int = 64 << 20
    connections: int = 64
    connect_s: float = 3.0
    handshake_s: float = 5.0
    heartbeat_s: float = 1.0
    silence_s: float = 5.0
    unacknowledged_s: float = 2.5


class RecordError(ValueError):
    """Bytes that are not the next record of a link, or a message that no record can hold; the text says why."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a record holds. Each part lies in memory of its own, which nobody else writes to."""

    destination: str
    parts: list[memoryview]

    @property
    def is_heartbeat(self) -> bool:
        """Whether it only says that the sender lives."""
        return not self.destination


class RecordReader:
    """Turns the bytes of one connection into messages, without a copy and without a socket.

    Fill `buffer`, which is never empty, from its front and tell `advance` how much came. After a `RecordError` the
    reader is of no use: nothing that follows can be trusted to start a record.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._sequence = 0
        self._within_record = False
        self._message: Message | None = None
        self._steps = self._read_records()
        self.buffer = next(self._steps)

    def advance(self, count: int) -> Message | None:
        """Take note that the first `count` bytes of `buffer` came; return the message that they complete, if any.

        Raises:
            RecordError: this is not the next record.

        """
        self._within_record = True
        self.buffer = self.buffer[count:]
        if not self.buffer:
            self.buffer = next(self._steps)
        message, self._message = self._message, None
        return message

    def finish(self) -> None:
        """Take note that nothing more comes.

        Raises:
            RecordError: that is in the middle of a record.

        """
        if self._within_record:
            raise RecordError(f"cut short in record {self._sequence}")

    def _read_records(self) -> Generator[memoryview, None, None]:
        """Yield the memory for what comes next, piece by piece; set `_message` after each record."""
        while True:
            header = bytearray(_HEADER.size)
            yield memoryview(header)
            destination_bytes, parts, message_bytes = self._check_header(header)
            digest = hashlib.blake2b(header, digest_size=_DIGEST_BYTES)
            front = bytearray(destination_bytes + 8 * parts)
            if front:
                yield memoryview(front)
                digest.update(front)
            lengths = struct.unpack_from(f">{parts}Q", front, destination_bytes)
            if sum(lengths) != message_bytes:
                raise RecordError(f"announces {message_bytes} bytes, but its parts have {sum(lengths)}")
            received = []
            for length in lengths:
                part = memoryview(bytearray(length))
                received.append(part)
                if length:
                    yield part
                    digest.update(part)
            end = bytearray(_DIGEST_BYTES)
            yield memoryview(end)
            if end != digest.digest():
                raise RecordError(f"the digest of record {self._sequence} is wrong: it was changed on its way")
            self._message = Message(_destination(front[:destination_bytes]), received)
            self._sequence += 1
            self._within_record = False

    def _check_header(self, header: bytearray) -> tuple[int, int, int]:
        magic, version, destination_bytes, parts, message_bytes, sequence = _HEADER.unpack(header)
        if (magic, version) != (_MAGIC, _VERSION):
            raise RecordError(f"starts with {bytes(header[:4])!r}, not as a record of version {_VERSION} does")
        if sequence != self._sequence:
            raise RecordError(f"has number {sequence}, but {self._sequence} is next")
        if not destination_bytes and (parts or message_bytes):
            raise RecordError("has parts, but no destination")
        _check_limits(destination_bytes, parts, message_bytes, self._limits)
        return destination_bytes, parts, message_bytes


def _destination(name: bytearray) -> str:
    try:
        return name.decode("ascii")
    except UnicodeDecodeError as error:
        raise RecordError(f"destination {bytes(name)!r} is not ASCII") from error


def _check_limits(destination_bytes: int, parts: int, message_bytes: int, limits: Limits) -> None:
    for what, value, limit in (
        ("bytes of destination", destination_bytes, limits.destination_bytes),
        ("parts", parts, limits.parts),
        ("bytes", message_bytes, limits.message_bytes),
    ):
        if value > limit:
            raise RecordError(f"{value} {what}, but a message on this link has {limit} at most")


class OutgoingRecord:
    """A message on its way out. It refers to the caller's buffers; only what is small is copied, when it is sent.

    Raises:
        RecordError: no record can hold it.

    """

    def __init__(self, destination: str, parts: Sequence[Buffer], limits: Limits) -> None:
        if not destination.isascii() or (parts and not destination):
            raise RecordError(f"destination {destination!r} must be a short ASCII name, such as stage-3")
        self._destination = destination.encode("ascii")
        try:
            views = [memoryview(part) for part in parts]
            self._parts = [view.cast("B") if view.nbytes else memoryview(b"") for view in views]
        except TypeError as error:
            raise RecordError(f"a part for {destination} is not contiguous memory: {error}") from error
        self._message_bytes = sum(map(len, self._parts))
        _check_limits(len(self._destination), len(self._parts), self._message_bytes, limits)
        self.queue_bytes = self._message_bytes + _QUEUE_ENTRY_BYTES

    def pieces(self, sequence: int) -> Iterator[bytes | memoryview]:
        """Yield the record as number `sequence` of its connection; the digest is made while the pieces are taken."""
        header = (_MAGIC, _VERSION, len(self._destination), len(self._parts), self._message_bytes, sequence)
        lengths = struct.pack(f">{len(self._parts)}Q", *map(len, self._parts))
        digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        joined = bytearray(_HEADER.pack(*header) + self._destination + lengths)
        for part in self._parts:
            if len(joined) + len(part) <= _JOIN_BELOW:
                joined += part
                continue
            digest.update(joined)
            yield bytes(joined)
            joined.clear()
            for start in range(0, len(part), _WRITE_BYTES):
                piece = part[start : start + _WRITE_BYTES]
                digest.update(piece)
                yield piece
        digest.update(joined)
        yield bytes(joined) + digest.digest()


class LogLimit:
    """Passes on the first `lines` log lines about a peer in every `seconds`; the next line tells how many it left out.

    Whoever can reach the port can make a line for each connection; all strangers together count as one peer.
    """

    def __init__(
        self,
        log: Callable[..., None],
        lines: int = 10,
        seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log, self._lines, self._seconds, self._clock = log, lines, seconds, clock
        self._lock = threading.Lock()
        self._seen: dict[str | None, tuple[float, int]] = {}  # peer: start of its window, lines in it

    def __call__(self, event: str, peer: str | None, **details: object) -> None:
        """Log `event` unless there were too many about `peer`; None is a stranger."""
        with self._lock:
            now = self._clock()
            start, count = self._seen.get(peer, (now, 0))
            left_out = 0
            if now - start >= self._seconds:
                start, left_out, count = now, max(count - self._lines, 0), 0
            self._seen[peer] = (start, count + 1)
        if count < self._lines:
            if left_out:
                details["left_out"] = left_out
            self._log(event, peer=peer or "unknown", **details)


class _HandlerBug(Exception):
    """`on_message` raised something other than a FrameError; the cause is what it raised."""


class _Connection:
    """An accepted connection. Its thread owns the socket; others may only `end` it."""

    def __init__(self, raw: socket.socket, address: str) -> None:
        self.address = address
        self.peer: Peer | None = None
        self.link: tuple[str, bytes] | None = None  # the peer's name and its number for the link
        self._lock = threading.Lock()
        self._socket = raw
        self._why: str | None = None

    @property
    def ended_because(self) -> str | None:
        """Why this side ended it; None if it did not."""
        return self._why

    def secure(self, context: ssl.SSLContext, timeout_s: float) -> ssl.SSLSocket:
        with self._lock:
            self._socket.settimeout(timeout_s)
            connection = context.wrap_socket(
                self._socket, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=False
            )
            self._socket = connection
        if self._why is not None:
            raise ConnectionAbortedError(self._why)
        connection.do_handshake()
        return connection

    def end(self, why: str) -> None:
        """Make the thread's next read or write fail; the descriptor stays valid until the thread closes it."""
        with self._lock:
            if self._why is None:
                self._why = why
            # Not SSLSocket.shutdown: that would take TLS away under the thread that reads.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        with self._lock:
            self._socket.close()


class LinkListener:
    """Accepts links from enrolled peers and hands their messages to `on_message(peer, destination, parts)`.

    `on_message` runs on the connection's thread, so messages of one connection come one at a time and a slow
    `on_message` slows its sender down. The memory of `parts` is the receiver's to keep. A `FrameError` from it closes
    that connection; anything else it raises is a bug: logged with its traceback, connection closed.

    `log(event, peer=..., reason=..., address=...)` hears of ``link_refused`` (never got in), ``link_up``, ``link_down``
    and ``link_fault`` (a bug, with `traceback`); see `LogLimit` for its rate. `on_gone(peer)` is called when the last
    connection of a peer ended or was silent for `limits.silence_s`, but not by `close`. No connection is greeted while
    it runs, so it must return soon, and a peer that is heard of after it is there again.

    Peers enrolled later are let in without a restart; to lock one out, remove it from `enrolment`, then `drop` it.

    Raises:
        ChannelError: `address` ("host:port", port 0 for any) cannot be bound.
        IdentityError: `address` is malformed, or `identity` or `enrolment` cannot be loaded.

    """

    def __init__(
        self,
        identity: Identity,
        enrolment: Enrolment,
        address: str,
        on_message: Callable[[Peer, str, list[memoryview]], None],
        log: Callable[..., None],
        *,
        limits: Limits | None = None,
        on_gone: Callable[[Peer], None] | None = None,
    ) -> None:
        self._identity = identity
        self._enrolment = enrolment
        self._on_message = on_message
        self._on_gone = on_gone
        self._log = LogLimit(log)
        self._limits = limits or Limits()
        self._peers = enrolment.peers()
        self._context = server_context(identity, self._peers.values())
        self._lock = threading.Lock()
        self._presence = threading.Lock()  # held while a peer comes or goes
        self._connections: dict[_Connection, threading.Thread] = {}
        self._closing = threading.Event()
        self._socket = _listen(address)
        self.address = _format(self._socket.getsockname())
        self._acceptor = threading.Thread(target=self._accept, name=f"link accept {self.address}", daemon=True)
        self._acceptor.start()

    def drop(self, name: str) -> None:
        """End all connections of the peer `name`; returns when they are told, not when they are gone."""
        with self._lock:
            for connection in self._connections:
                if connection.peer is not None and connection.peer.name == name:
                    connection.end("dropped by this node")

    def close(self) -> None:
        """Stop listening, end all connections and wait for their threads."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._acceptor.join()
        with self._lock:
            threads = list(self._connections.values())
            for connection in self._connections:
                connection.end("this node closed its links")
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()

    def _accept(self) -> None:
        with self._socket:
            while not self._closing.is_set():
                try:
                    raw, address = self._socket.accept()
                except OSError as error:
                    if not self._closing.is_set():  # out of descriptors, say: others may give some back
                        self._log("link_refused", None, reason=f"cannot accept: {error}")
                        self._closing.wait(_TICK_S)
                    continue
                connection = _Connection(raw, _format(address))
                try:
                    self._admit(connection)
                except RuntimeError as error:
                    connection.close()
                    self._log("link_refused", None, reason=str(error), address=connection.address)

    def _admit(self, connection: _Connection) -> None:
        """Give `connection` a thread; raise RuntimeError if there is no room for it."""
        name = f"link from {connection.address}"
        thread = threading.Thread(target=self._run, args=(connection,), name=name, daemon=True)
        with self._lock:
            strangers = [c for c in self._connections if c.peer is None]
            # An ended stranger is gone in no time, but an ended peer's last message may still be handled.
            ending = sum(stranger.ended_because is not None for stranger in strangers)
            if len(self._connections) - ending >= self._limits.connections:
                stranger = next((c for c in strangers if c.ended_because is None), None)
                if stranger is None:
                    raise RuntimeError(f"all {self._limits.connections} connections are in use by peers")
                stranger.end("it had not shown who it is when another needed its place")
            self._connections[connection] = thread
            try:
                thread.start()
            except RuntimeError:
                del self._connections[connection]
                raise

    def _run(self, connection: _Connection) -> None:
        """Serve one connection from its first byte to its last."""
        reason, fault = "", ""
        try:
            self._receive(connection, *self._greet(connection))
            reason = "closed by the peer"
        except TimeoutError:
            if connection.peer is None:
                reason = f"no TLS handshake within {self._limits.handshake_s:g} s"
            else:
                reason = f"silent for {self._limits.silence_s:g} s"
        except ssl.SSLEOFError:
            reason = "the connection broke: it ended without a goodbye"
        except ssl.SSLCertVerificationError as error:
            reason = f"its certificate is not enrolled here, or out of date ({error.verify_message})"
        except RecordError as error:
            reason = f"not a record of a link: {error}"
        except FrameError as error:
            reason = f"not a frame for this node: {error}"
        except IdentityError as error:
            reason = str(error)
        except OSError as error:  # ssl.SSLError is one
            reason = str(error) if connection.peer else f"no TLS handshake: {error}"
        except Exception as error:  # noqa: BLE001 - whatever a handler does, the other links go on
            reason, fault = f"a bug of this node: {error}", traceback.format_exc()
        finally:
            connection.close()
            self._leave(connection, connection.ended_because or reason, fault)

    def _greet(self, connection: _Connection) -> tuple[ssl.SSLSocket, Peer]:
        link = connection.secure(self._current_context(), self._limits.handshake_s)
        fingerprint = shown_fingerprint(link)
        with self._presence:
            with self._lock:  # `drop` either finds the connection from now on, or removal came first
                peer = self._enrolment.find_by_fingerprint(fingerprint)
                connection.peer = peer
            if peer is None:
                raise IdentityError(f"its certificate {fingerprint} is not enrolled here")
            link.sendall(_GREETING)
        link.settimeout(self._limits.silence_s)
        self._log("link_up", peer.name, address=connection.address)
        return link, peer

    def _receive(self, connection: _Connection, link: ssl.SSLSocket, peer: Peer) -> None:
        magic, version, number = _HELLO.unpack(_read_exactly(link, _HELLO.size))
        if (magic, version) != (_MAGIC, _VERSION):
            raise RecordError(f"{magic!r}, {version} is not the hello of version {_VERSION}")
        self._end_older(connection, (peer.name, number))
        reader = RecordReader(self._limits)
        while count := link.recv_into(reader.buffer):
            message = reader.advance(count)
            if connection.ended_because is not None:  # the kernel still hands out what came before
                return
            if message is not None and not message.is_heartbeat:
                try:
                    self._on_message(peer, message.destination, message.parts)
                except FrameError:
                    raise
                except Exception as error:
                    raise _HandlerBug(f"on_message raised {error!r}") from error
        reader.finish()

    def _end_older(self, connection: _Connection, link: tuple[str, bytes]) -> None:
        """End what is left of the same link, which its sender knows to be broken, and wait until it is handled."""
        with self._lock:
            older = {other: thread for other, thread in self._connections.items() if other.link == link}
            connection.link = link
        for other, thread in older.items():
            other.end("the peer opened this link anew")
            thread.join()

    def _leave(self, connection: _Connection, reason: str, fault: str) -> None:
        peer = connection.peer
        event = "link_fault" if fault else "link_down" if peer else "link_refused"
        details = {"traceback": fault} if fault else {}
        self._log(event, peer.name if peer else None, reason=reason, address=connection.address, **details)
        with self._presence:
            with self._lock:
                del self._connections[connection]
                gone = peer and all(other.peer is None or other.peer.name != peer.name for other in self._connections)
            if peer and gone and self._on_gone is not None and not self._closing.is_set():
                self._on_gone(peer)

    def _current_context(self) -> ssl.SSLContext:
        """Return the context for the peers that are enrolled now."""
        peers = self._enrolment.peers()
        with self._lock:
            if peers != self._peers:
                self._context = server_context(self._identity, peers.values())
                self._peers = peers
            return self._context


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
        self._hello = _HELLO.pack(_MAGIC, _VERSION, os.urandom(16))
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
            greeting = _read_exactly(link, len(_GREETING))
            if greeting != _GREETING:
                raise ConnectionAbortedError(f"it greets with {greeting!r}, not {_GREETING!r}: another version?")
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
    """A token bucket: `bytes_per_second` on average, with bursts of a tenth of a second."""

    def __init__(self, bytes_per_second: float | None) -> None:
        if bytes_per_second is not None and bytes_per_second <= 0:
            raise ValueError(f"bytes_per_second is {bytes_per_second}, but a link needs more than 0 (None: no limit)")
        self._rate = bytes_per_second
        self._burst = math.inf if bytes_per_second is None else max(1.0, bytes_per_second / 10)
        self._tokens, self._at = self._burst, time.monotonic()
        self.chunk_bytes = int(min(_WRITE_BYTES, self._burst))

    def delay_s(self, count: int) -> float:
        """Take `count` tokens and return 0, or return the seconds until there are enough."""
        if self._rate is None:
            return 0.0
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < count:
            return (count - self._tokens) / self._rate
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


def _read_exactly(link: ssl.SSLSocket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        if not (more := link.recv(count - len(data))):
            raise ConnectionAbortedError("it closed the connection before the link was up")
        data += more
    return data


def _listen(address: str) -> socket.socket:
    host, port = parse_address(address)
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(where[:2], family=family)
    except OSError as error:
        raise ChannelError(f"cannot listen on {address}: {error}") from error


def _format(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
