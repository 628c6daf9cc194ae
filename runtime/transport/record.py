"""How a message becomes bytes on a link, and how bytes from a peer become messages again, or are refused.

A record is, in big-endian numbers: magic (3 bytes), version (1), length of the destination (2), number of parts (4),
bytes of all parts (8), sequence number within the connection (8); then the destination (ASCII), the length of each
part (8 bytes each), the parts, and a digest of everything before it (BLAKE3, 16 bytes). A heartbeat is a record with
neither destination nor parts. Lengths are checked against `Limits` before memory is taken for what they announce.

Nothing here touches a socket: a reader says where the next bytes belong and is told how many came.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from runtime.transport.frames import Buffer

MAGIC, VERSION = b"MSL", 2
_HEADER = struct.Struct(">3sBHIQQ")
_DIGEST_BYTES = 16
_WRITE_BYTES = 1 << 16
_JOIN_BELOW = 1 << 14  # smaller pieces of a record share a TLS record of at most 16 KiB
_QUEUE_ENTRY_BYTES = 1024  # what a queued message costs beside its buffers, so that tiny ones are bounded too


@dataclass(frozen=True, slots=True)
class Limits:
    """What a link grants its peer: sizes in bytes, times in seconds. Both ends of a link need the same sizes.

    `connections` counts all that are open at once; when they are used up, a newcomer takes the place of the oldest
    one that has not yet shown who it is. `heartbeat_s` of the sender must stay well below `silence_s` of the listener.
    """

    destination_bytes: int = 128
    parts: int = 4096
    message_bytes: int = 512 << 20  # hidden states of 8192 tokens of a large model are 256 MiB
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
            digest = blake3(header)
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
            if end != digest.digest(_DIGEST_BYTES):
                raise RecordError(f"the digest of record {self._sequence} is wrong: it was changed on its way")
            self._message = Message(_destination(front[:destination_bytes]), received)
            self._sequence += 1
            self._within_record = False

    def _check_header(self, header: bytearray) -> tuple[int, int, int]:
        magic, version, destination_bytes, parts, message_bytes, sequence = _HEADER.unpack(header)
        if (magic, version) != (MAGIC, VERSION):
            raise RecordError(f"starts with {bytes(header[:4])!r}, not as a record of version {VERSION} does")
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
        header = (MAGIC, VERSION, len(self._destination), len(self._parts), self._message_bytes, sequence)
        lengths = struct.pack(f">{len(self._parts)}Q", *map(len, self._parts))
        digest = blake3()
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
        yield bytes(joined) + digest.digest(_DIGEST_BYTES)
