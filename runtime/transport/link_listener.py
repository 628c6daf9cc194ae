"""The receiving end of links (`runtime.transport.link`): a thread each, and none reads a stranger."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
import traceback
from typing import TYPE_CHECKING

from runtime.transport.channel import ChannelError
from runtime.transport.frames import FrameError
from runtime.transport.identity import (
    IdentityError,
    Peer,
    parse_address,
    server_context,
    shown_fingerprint,
)
from runtime.transport.link import GREETING, HELLO, read_exactly
from runtime.transport.record import MAGIC, VERSION, Limits, RecordError, RecordReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.transport.identity import Enrolment, Identity

_TICK_S = 0.25


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
            link.sendall(GREETING)
        link.settimeout(self._limits.silence_s)
        self._log("link_up", peer.name, address=connection.address)
        return link, peer

    def _receive(self, connection: _Connection, link: ssl.SSLSocket, peer: Peer) -> None:
        magic, version, number = HELLO.unpack(read_exactly(link, HELLO.size))
        if (magic, version) != (MAGIC, VERSION):
            raise RecordError(f"{magic!r}, {version} is not the hello of version {VERSION}")
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
