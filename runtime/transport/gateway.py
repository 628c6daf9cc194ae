"""A host's way to other hosts: everything that leaves or enters goes through here, encrypted and authenticated.

::

    a process here --> unix socket to.HOST --> Gateway --- TLS link ---> Gateway of HOST --> process, or node runtime
                                                       --- bulk link -->

Processes never hold keys. What comes from outside is checked before any process sees it: the peer is enrolled, the
message is a frame of the protocol, its receiver is one that this host has admitted. A peer that sends anything else is
cut off (`LinkListener` does it when a handler raises FrameError), with the reason in the log.

Bulk (KV, weights) has a link of its own to each host, so that it never stands in the way of a batch. Its threads have
the priority of all others: one with less, put aside while it held the interpreter, would make those that forward
batches wait for it (up to 200 ms, measured on two busy cores). What bulk takes from others is bounded by its pace.

A host is lost when a link to it breaks or nothing comes from it any more.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import zmq

from runtime.transport.address import gateway_socket
from runtime.transport.channel import ChannelError, Inbox, Outbox
from runtime.transport.frames import Call, FrameError, pack, unpack
from runtime.transport.identity import IdentityError
from runtime.transport.link_listener import LinkListener
from runtime.transport.link_sender import LinkSender
from runtime.transport.record import RecordError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.transport.frames import Buffer, Frame
    from runtime.transport.identity import Enrolment, Identity, Peer

NODE = "node"
"""Who takes the orders and the KV that come to a host."""

HELLO = "hello"
"""The call that says nothing, and needs no answer."""

_POLL_MS = 200
_LAST_WORDS_S = 0.5
_DELIVER_S = 5.0


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A process that others may send to; `peers`: who; None for everybody who is enrolled."""

    outbox: Outbox
    peers: frozenset[str] | None


class Gateway:
    """See the module. Thread-safe.

    Args:
        identity, enrolment: who this host is, and whom it knows.
        listen: ``host:port`` to listen on.
        folder: where its unix sockets are; only the owner can enter it.
        on_node_frame: takes (peer, frame, buffers) for this host's node runtime, on the thread of the link.
        on_lost: called with (host, reason) when a host is lost: maybe more than once for one loss.
        log: takes (event, details...).
        bulk_bytes_per_second: limit of each bulk link; None for none.
        on_bulk_lost: called with (host, reason) when a bulk link breaks; what was on its way is lost.

    Raises:
        ChannelError, IdentityError: as `LinkListener`.

    """

    def __init__(
        self,
        identity: Identity,
        enrolment: Enrolment,
        listen: str,
        folder: str,
        on_node_frame: Callable[[Peer, Frame, Sequence[Buffer]], None],
        on_lost: Callable[[str, str], None],
        log: Callable[..., None],
        bulk_bytes_per_second: float | None = None,
        on_bulk_lost: Callable[[str, str], None] = lambda *_: None,
    ) -> None:
        self.host = identity.name
        self.folder = folder
        self.log = log
        self._identity, self._enrolment = identity, enrolment
        self._on_node_frame, self._on_lost, self._on_bulk_lost = on_node_frame, on_lost, on_bulk_lost
        self._bulk_rate = bulk_bytes_per_second
        self._lock = threading.Lock()
        self._context = zmq.Context()
        self._admitted: dict[str, _Admitted] = {}  # by "pipeline/name"
        self._heard_at: dict[str, float] = {}  # by pipeline, of those that have processes here
        self._links: dict[str, LinkSender] = {}
        self._bulk: dict[str, LinkSender] = {}
        self._bulk_breaks: Counter[str] = Counter()
        self._paces: dict[str, dict[str, float]] = {}  # of bulk, by host and by whoever wants it
        self._forwarders: dict[str, threading.Thread] = {}
        self._closing = False
        try:
            self._listener = LinkListener(
                identity,
                enrolment,
                listen,
                self._on_message,
                log,
                on_gone=lambda peer: self._lost(peer.name, "it is silent, or has closed its links"),
            )
        except Exception:
            self._context.term()
            raise

    @property
    def address(self) -> str:
        """Where other hosts reach this one: ``host:port``."""
        return self._listener.address

    # -- from here to other hosts -----------------------------------------------------------------------------------

    def reach(self, host: str) -> None:
        """Open the way to a host; processes of this host can send to it from now on.

        Raises:
            ChannelError: the host is not enrolled, or has no address.

        """
        self._link_to(host)

    def greet(self, host: str) -> None:
        """Open the way to a host as `reach` does, and the link; raises ChannelError when it cannot be reached."""
        self.send(host, NODE, Call(0, HELLO), [msgspec.msgpack.encode({})])

    def send(self, host: str, destination: str, frame: Frame, buffers: Sequence[Buffer] = ()) -> None:
        """Send a frame to ``pipeline/name`` or to the node runtime of a host; raises ChannelError."""
        _send(self._link_to(host), destination, pack(frame, buffers))

    def send_bulk(self, host: str, frame: Frame, buffers: Sequence[Buffer]) -> None:
        """Send a frame to the node runtime of a host on its bulk link; raises ChannelError."""
        link, outdated = self._current(self._bulk, host, self._lose_bulk, self._pace_to(host), 1 << 20)
        if outdated is not None:
            outdated.close()
        _send(link, NODE, pack(frame, buffers))

    def pace_bulk(self, host: str, owner: str, bytes_per_second: float | None) -> None:
        """Send bulk to a host at this pace as far as `owner` is concerned: the slowest of all owners' paces counts.

        None: `owner` does not care (any more). The limit of this host holds in any case.
        """
        with self._lock:
            paces = self._paces.setdefault(host, {})
            if bytes_per_second is None:
                paces.pop(owner, None)
            else:
                paces[owner] = bytes_per_second
            link = self._bulk.get(host)
        if link is not None:
            link.pace(self._pace_to(host))

    def _pace_to(self, host: str) -> float | None:
        limits = [*self._paces.get(host, {}).values(), *([self._bulk_rate] if self._bulk_rate is not None else [])]
        return min(limits, default=None)

    def bulk_breaks(self, host: str) -> int:
        """Return how often the bulk link to a host broke; each time, what was on its way was lost."""
        return self._bulk_breaks[host]

    def _link_to(self, host: str) -> LinkSender:
        link, outdated = self._current(self._links, host, self._lost)
        if outdated is not None:
            outdated.close()
        return link

    def _current(
        self,
        links: dict[str, LinkSender],
        host: str,
        on_down: Callable[[str, str], None],
        rate: float | None = None,
        queue_bytes: int = 64 << 20,
    ) -> tuple[LinkSender, LinkSender | None]:
        """Return the link to a host as it is enrolled now, and the one that it replaces, which is to be closed."""
        with self._lock:
            before = links.get(host)
            if before is not None and before.up:
                return before, None
            if self._closing:
                raise ChannelError(f"there is no way to host {host!r} any more: this host is closing its links")
            peer = self._peer(host)
            if before is not None and before.peer == peer:
                return before, None
            if links is self._links and host not in self._forwarders:
                self._start_forwarding(host)
            try:
                links[host] = LinkSender(
                    self._identity,
                    peer,
                    bytes_per_second=rate,
                    queue_bytes=queue_bytes,
                    on_down=lambda reason: on_down(host, reason),
                )
            except IdentityError as error:
                raise ChannelError(str(error)) from error
            return links[host], before

    def _peer(self, host: str) -> Peer:
        try:
            peer = self._enrolment.peers().get(host)
        except IdentityError as error:
            raise ChannelError(str(error)) from error
        if peer is None or peer.address is None:
            what = "is not enrolled" if peer is None else "has no address"
            raise ChannelError(f"host {host!r} {what}; run: midstream node trust {host} --certificate FILE --address A")
        return peer

    def _start_forwarding(self, host: str) -> None:
        inbox = Inbox(self._context, gateway_socket(self.folder, host))
        self._forwarders[host] = threading.Thread(
            target=self._forward, args=(host, inbox), name=f"to-{host}", daemon=True
        )
        self._forwarders[host].start()

    def _forward(self, host: str, inbox: Inbox) -> None:
        while not self._closing:
            message = inbox.receive(_POLL_MS)
            if not message:
                continue
            destination = bytes(message[0]).decode("ascii", errors="replace")
            try:
                self._link_to(host).send(destination, message[1:])
            except RecordError as error:
                self.log("not forwarded", to=destination, reason=str(error))
            except ChannelError as error:  # whoever waits for it waits in vain
                self.log("not forwarded", to=destination, reason=str(error))
                self._lost(host, f"it does not get what is sent to it: {error}")
        inbox.close()

    # -- from other hosts to here --------------------------------------------------------------------------------------

    def admit(self, pipeline: str, name: str, socket: str, peers: frozenset[str] | None = None) -> None:
        """Let other hosts send to a process of this one; `peers`: only these."""
        admitted = _Admitted(Outbox(self._context, socket, timeout_s=_DELIVER_S), peers)
        with self._lock:
            before = self._admitted.pop(f"{pipeline}/{name}", None)
            self._admitted[f"{pipeline}/{name}"] = admitted
        if before is not None:
            before.outbox.close()

    def dismiss(self, pipeline: str, name: str) -> None:
        """Let nobody send to a process any more."""
        with self._lock:
            admitted = self._admitted.pop(f"{pipeline}/{name}", None)
            if not any(other.startswith(f"{pipeline}/") for other in self._admitted):
                self._heard_at.pop(pipeline, None)
        if admitted is not None:
            admitted.outbox.close()

    def heard_at(self, pipeline: str) -> float:
        """Return when the last message for a process of a pipeline came, in seconds of the monotonic clock; or 0."""
        return self._heard_at.get(pipeline, 0.0)

    def _on_message(self, peer: Peer, destination: str, parts: list[memoryview]) -> None:
        frame, buffers = unpack(parts)
        if destination == NODE:
            self._on_node_frame(peer, frame, buffers)
            return
        with self._lock:
            admitted = self._admitted.get(destination)
            if admitted is not None and (admitted.peers is None or peer.name in admitted.peers):
                self._heard_at[destination.partition("/")[0]] = time.monotonic()
        if admitted is None:  # it has just ended, say
            self.log("not delivered", peer=peer.name, to=destination, reason="there is no such process here")
            return
        if admitted.peers is not None and peer.name not in admitted.peers:
            raise FrameError(f"{peer.name} has no part in the pipeline of {destination}")
        try:
            admitted.outbox.send_parts(parts)
        except ChannelError as error:
            self.log("not delivered", peer=peer.name, to=destination, reason=str(error))

    # -- losses ------------------------------------------------------------------------------------------------------

    def _lost(self, host: str, reason: str) -> None:
        if self._closing:
            return
        self.log("host lost", peer=host, reason=reason)
        _react(self._on_lost, host, f"{host}: {reason}")

    def _lose_bulk(self, host: str, reason: str) -> None:
        self._bulk_breaks[host] += 1
        self.log("bulk link lost", peer=host, reason=reason)
        _react(self._on_bulk_lost, host, f"the bulk link to {host} broke: {reason}")

    def close(self) -> None:
        """Close all links and sockets; a second call does nothing."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            links = [*self._links.values(), *self._bulk.values()]
        for link in links:
            with contextlib.suppress(ChannelError):
                link.flush(_LAST_WORDS_S)
        self._listener.close()
        for link in links:
            link.close()
        for thread in self._forwarders.values():
            thread.join(timeout=5)
        with self._lock:
            admitted, self._admitted = list(self._admitted.values()), {}
        for one in admitted:
            one.outbox.close()
        for host in self._forwarders:
            try:
                os.unlink(gateway_socket(self.folder, host).removeprefix("ipc://"))
            except FileNotFoundError:
                continue
        self._context.destroy(linger=0)


def _send(link: LinkSender, destination: str, parts: Sequence[Buffer]) -> None:
    try:
        link.send(destination, parts)
    except RecordError as error:
        raise ChannelError(f"{link.peer.name} cannot be sent this: {error}") from error


def _react(reaction: Callable[[str, str], None], host: str, reason: str) -> None:
    try:
        reaction(host, reason)
    except Exception:  # noqa: BLE001 - the link's thread must go on, whatever the reaction does
        traceback.print_exc()
