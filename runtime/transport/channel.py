"""ZeroMQ sockets as this project uses them: an inbox that one thread reads, outboxes that any thread may use.

Addresses on one node are unix sockets in a directory that only the owner can enter, so the kernel authenticates
the peer. Messages between two endpoints keep their order; a full outbox blocks up to its timeout, then fails, so that
a stuck peer becomes an error with a name instead of memory that grows.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import zmq

from runtime.transport.frames import Frame, pack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.transport.frames import Buffer

_HIGH_WATER_MARK = 1000
_COPY_BELOW = 1 << 16


class ChannelError(ConnectionError):
    """A peer does not take messages, or an address cannot be bound."""


class Inbox:
    """A bound socket that receives multipart messages. Only one thread may read it."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self.address = address
        self._socket = context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.RCVHWM, _HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self._socket.close()
            raise ChannelError(f"cannot listen on {address}: {error}") from error

    def receive(self, timeout_ms: int | None = None) -> list[memoryview] | None:
        """Return the next message, or None when `timeout_ms` passed or the context was closed."""
        try:
            if timeout_ms is not None and not self._socket.poll(timeout_ms):
                return None
            return [part.buffer for part in self._socket.recv_multipart(copy=False)]
        except (zmq.ContextTerminated, zmq.ZMQError):
            return None

    def close(self) -> None:
        """Close the socket; a reader returns None."""
        self._socket.close()


class Outbox:
    """A connected socket that sends frames in order. Thread-safe. `envelope`, if given, precedes each message."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: str,
        timeout_s: float = 30.0,
        envelope: str | None = None,
    ) -> None:
        self.address = address
        self._envelope = [] if envelope is None else [envelope.encode()]
        self._lock = threading.Lock()
        self._socket = context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, _HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.SNDTIMEO, int(timeout_s * 1000))
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self._socket.close()
            raise ChannelError(f"cannot connect to {address}: {error}") from error

    def send(self, frame: Frame, buffers: Sequence[Buffer] = ()) -> None:
        """Send one message; buffers are handed over without a copy and must not change until they are sent.

        Raises:
            ChannelError: the peer takes no messages.

        """
        self.send_parts(pack(frame, buffers))

    def send_parts(self, message: Sequence[Buffer]) -> None:
        """Send a message that is packed already; raises as `send` does."""
        parts = [*self._envelope, *message]
        with self._lock:
            try:
                self._socket.send_multipart(parts, copy=all(len(part) < _COPY_BELOW for part in parts))
            except zmq.Again as error:
                raise ChannelError(f"{self.address} takes no messages; is its process stuck?") from error
            except zmq.ZMQError as error:
                raise ChannelError(f"cannot send to {self.address}: {error}") from error

    def close(self) -> None:
        """Close the socket; what was not sent yet is dropped."""
        with self._lock:
            self._socket.close()
