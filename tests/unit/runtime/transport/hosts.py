"""Hosts on the loopback: real identities, real links, and whatever their gateways were told."""

from __future__ import annotations

import queue
import shutil
import tempfile
import threading
from typing import TYPE_CHECKING, Any

from runtime.transport.frames import Call
from runtime.transport.gateway import HELLO, Gateway
from runtime.transport.identity import Enrolment, Identity, Peer
from tests.unit.runtime.engine.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from runtime.transport.frames import Buffer, Frame


class Host:
    """A host with a gateway, which keeps what the gateway hands on; what it does with a frame can be replaced."""

    def __init__(self, folder: Path, name: str, **options: Any) -> None:
        self.name = name
        self.identity = Identity.load_or_create(folder / name, name)
        self.enrolment = Enrolment(folder / name)
        self.frames: queue.Queue[tuple[str, Frame, list[bytes]]] = queue.Queue()
        self.lost: queue.Queue[tuple[str, str]] = queue.Queue()
        self.bulk_lost: queue.Queue[tuple[str, str]] = queue.Queue()
        self.logged: list[tuple[str, dict[str, Any]]] = []
        self.sockets = tempfile.mkdtemp(prefix="m-")  # short: a unix socket's path has 107 characters at most
        self.react: Callable[[Peer, Frame, Sequence[Buffer]], None] = self._keep
        self.on_loss: Callable[[str, str], None] = lambda *_: None
        self._options = options
        self.gateway = self.listen("127.0.0.1:0")

    def listen(self, address: str) -> Gateway:
        self.gateway = Gateway(
            self.identity,
            self.enrolment,
            address,
            self.sockets,
            self._react,
            self._lose,
            self._log,
            on_bulk_lost=self._lose_bulk,
            **self._options,
        )
        return self.gateway

    def _react(self, *frame: Any) -> None:
        self.react(*frame)

    def _keep(self, peer: Peer, frame: Frame, buffers: Sequence[Buffer]) -> None:
        if frame != Call(0, HELLO):
            self.frames.put((peer.name, frame, [bytes(buffer) for buffer in buffers]))

    def _lose(self, host: str, reason: str) -> None:
        self.on_loss(host, reason)
        self.lost.put((host, reason))

    def _lose_bulk(self, host: str, reason: str) -> None:
        self.on_loss(host, reason)
        self.bulk_lost.put((host, reason))

    def _log(self, event: str, **details: Any) -> None:
        self.logged.append((event, details))

    def trust(self, other: Host, address: str | None = None, *, controls: bool = False) -> None:
        self.enrolment.add(
            Peer(
                name=other.name,
                certificate_pem=other.identity.certificate_pem,
                address=address or other.gateway.address,
                controls=controls,
            )
        )

    def next_frame(self) -> tuple[str, Frame, list[bytes]]:
        return self.frames.get(timeout=DEADLINE_S)

    def next_loss(self) -> tuple[str, str]:
        return self.lost.get(timeout=DEADLINE_S)

    def reasons(self, event: str) -> list[str]:
        return [details["reason"] for logged, details in list(self.logged) if logged == event]

    def told(self, event: str) -> str:
        """Wait for a line of the log and return its reason."""
        assert eventually(lambda: bool(self.reasons(event))), self.logged
        return self.reasons(event)[0]

    def close(self) -> None:
        self.gateway.close()
        shutil.rmtree(self.sockets, ignore_errors=True)


def introduce(*hosts: Host) -> None:
    """Enrol all of them at each other, with nobody in control."""
    for host in hosts:
        for other in hosts:
            if other is not host:
                host.trust(other)


def in_background(work: Callable[[], Any]) -> queue.Queue[Any]:
    """Run `work` on a thread; what it returned or raised can be got from the queue."""
    outcome: queue.Queue[Any] = queue.Queue()

    def run() -> None:
        try:
            outcome.put(work())
        except Exception as error:  # noqa: BLE001 - for the test to look at
            outcome.put(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome
