"""A host's way to other hosts: everything that leaves or enters goes through here, encrypted and authenticated.

::

    a process here --> unix socket to.HOST --> Gateway --- TLS link ---> Gateway of HOST --> process, or node runtime
                                                       --- bulk link -->

Processes never hold keys. What comes from outside is checked before any process sees it: the peer is enrolled, the
message is a frame of the protocol, its receiver is one that this host has admitted. A peer that sends anything else is
cut off (`LinkListener` does it when a handler raises FrameError), with the reason in the log.

Bulk (KV, weights) has a link of its own to each host, so that it never stands in the way of a batch.
A host is lost when a link to it breaks or nothing comes from it any more.
"""

from __future__ import annotations

import os
import threading
import traceback
from typing import TYPE_CHECKING

import zmq

from runtime.transport.address import gateway_socket
from runtime.transport.channel import ChannelError, Inbox, Outbox
from runtime.transport.frames import pack, unpack
from runtime.transport.link import LinkListener, LinkSender

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.transport.frames import Buffer, Frame
    from runtime.transport.identity import Enrolment, Identity, Peer

NODE = "node"
"""Who takes the orders and the KV that come to a host."""

_POLL_MS = 200


class Gateway:
    """See the module. Thread-safe.

    Args:
        identity, enrolment: who this host is, and whom it knows.
        listen: ``host:port`` to listen on.
        folder: where its unix sockets are; only the owner can enter it.
        on_node_frame: takes (peer, frame, buffers) for this host's node runtime, on the thread of the link.
        on_lost: called with (host, reason) when a host is lost; once more after each time it was heard of again.
        log: takes (event, details...).
        bulk_bytes_per_second: limit of each bulk link; None for none.

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
    ) -> None:
        self.host = identity.name
        self.folder = folder
        self._identity, self._enrolment = identity, enrolment
        self._on_node_frame, self._on_lost, self._log = on_node_frame, on_lost, log
        self._bulk_rate = bulk_bytes_per_second
        self._lock = threading.Lock()
        self._context = zmq.Context()
        self._admitted: dict[str, Outbox] = {}  # by "pipeline/name"
        self._links: dict[str, LinkSender] = {}
        self._bulk: dict[str, LinkSender] = {}
        self._forwarders: dict[str, threading.Thread] = {}
        self._closing = False
        self._listener = LinkListener(
            identity, enrolment, listen, self._on_message, log, on_gone=lambda peer: self._lost(peer.name, "is silent")
        )

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
        with self._lock:
            if host in self._links:
                return
            peer = self._peer(host)
            link = LinkSender(self._identity, peer, on_down=lambda reason: self._lost(host, reason))
            inbox = Inbox(self._context, gateway_socket(self.folder, host))
            self._links[host] = link
            self._forwarders[host] = threading.Thread(
                target=self._forward, args=(inbox, link), name=f"to-{host}", daemon=True
            )
            self._forwarders[host].start()

    def send(self, host: str, destination: str, frame: Frame, buffers: Sequence[Buffer] = ()) -> None:
        """Send a frame to ``pipeline/name`` or to the node runtime of a host; raises ChannelError."""
        self.reach(host)
        self._links[host].send(destination, pack(frame, buffers))

    def send_bulk(self, host: str, frame: Frame, buffers: Sequence[Buffer]) -> None:
        """Send a frame to the node runtime of a host on its bulk link; raises ChannelError."""
        with self._lock:
            link = self._bulk.get(host)
            if link is None:
                link = self._bulk[host] = LinkSender(
                    self._identity, self._peer(host), bytes_per_second=self._bulk_rate, queue_bytes=4 << 20
                )
        link.send(NODE, pack(frame, buffers))

    def _peer(self, host: str) -> Peer:
        peer = self._enrolment.peers().get(host)
        if peer is None or peer.address is None:
            what = "is not enrolled" if peer is None else "has no address"
            raise ChannelError(f"host {host!r} {what}; run: midstream node trust {host} --certificate FILE --address A")
        return peer

    def _forward(self, inbox: Inbox, link: LinkSender) -> None:
        while not self._closing:
            message = inbox.receive(_POLL_MS)
            if not message:
                continue
            try:
                link.send(str(message[0], "utf-8"), message[1:])
            except ChannelError as error:
                self._log("not forwarded", to=bytes(message[0]).decode(errors="replace"), reason=str(error))
        inbox.close()

    # -- from other hosts to here --------------------------------------------------------------------------------------

    def admit(self, pipeline: str, name: str, socket: str) -> None:
        """Let other hosts send to a process of this one."""
        outbox = Outbox(self._context, socket, timeout_s=5.0)
        with self._lock:
            before = self._admitted.pop(f"{pipeline}/{name}", None)
            self._admitted[f"{pipeline}/{name}"] = outbox
        if before is not None:
            before.close()

    def dismiss(self, pipeline: str, name: str) -> None:
        """Let nobody send to a process any more."""
        with self._lock:
            outbox = self._admitted.pop(f"{pipeline}/{name}", None)
        if outbox is not None:
            outbox.close()

    def _on_message(self, peer: Peer, destination: str, parts: list[memoryview]) -> None:
        frame, buffers = unpack(parts)
        if destination == NODE:
            self._on_node_frame(peer, frame, buffers)
            return
        with self._lock:
            outbox = self._admitted.get(destination)
        if outbox is None:  # it has just ended, say
            self._log("not delivered", peer=peer.name, to=destination, reason="there is no such process here")
            return
        try:
            outbox.send_parts(parts)
        except ChannelError as error:
            self._log("not delivered", peer=peer.name, to=destination, reason=str(error))

    # -- losses ------------------------------------------------------------------------------------------------------

    def _lost(self, host: str, reason: str) -> None:
        if self._closing:
            return
        self._log("host lost", peer=host, reason=reason)
        try:
            self._on_lost(host, f"node {host} {reason}")
        except Exception:  # noqa: BLE001 - the link's thread must go on, whatever the reaction does
            traceback.print_exc()

    def close(self) -> None:
        """Close all links and sockets."""
        self._closing = True
        self._listener.close()
        for link in (*self._links.values(), *self._bulk.values()):
            link.close()
        for thread in self._forwarders.values():
            thread.join(timeout=5)
        for outbox in self._admitted.values():
            outbox.close()
        for host in self._forwarders:
            try:
                os.unlink(gateway_socket(self.folder, host).removeprefix("ipc://"))
            except FileNotFoundError:
                continue
        self._context.destroy(linger=0)
