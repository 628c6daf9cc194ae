"""Node runtimes (`tiny_node`, each in a process of its own), and heads that give them orders over real links."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import zmq

from runtime.transport.address import Neighbourhood
from runtime.transport.calls import Calls
from runtime.transport.channel import Inbox
from runtime.transport.frames import Frame, Reply, unpack
from runtime.transport.identity import Enrolment, Identity, Peer
from runtime.warm.remote_node import RemoteNode
from tests.unit.runtime.transport.hosts import DEADLINE_S, Host, eventually
from tests.unit.runtime.warm.tiny_node import SHAPE, engine, orders

ROOT = Path(__file__).parents[4]
TINY = engine("tiny")
MIB = 1 << 20


class Daemon:
    """A node runtime in a process of its own."""

    def __init__(
        self,
        folder: Path,
        name: str,
        memory_bytes: int | None = None,
        lease_s: float = 60.0,
        rate: float | None = None,
        keep_s: float = 0.0,
        listen: str = "127.0.0.1:0",
    ) -> None:
        self.name, self.folder = name, folder / name
        self.identity = Identity.load_or_create(self.folder, name)
        self.enrolment = Enrolment(self.folder)
        options = {
            "memory_bytes": memory_bytes,
            "lease_s": lease_s,
            "rate": rate,
            "keep_s": keep_s,
            "listen": listen,
        }
        command = [sys.executable, "-m", "tests.unit.runtime.warm.tiny_node", str(self.folder), name]
        self.process = subprocess.Popen(
            [*command, json.dumps(options)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            self.hello = self._answer()
        except AssertionError:
            self.close()
            raise
        self.address: str = self.hello["address"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the node runtime has ended"
        return json.loads(line)

    def state(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> dict[str, Any]:
        """Let it end; returns what is left of it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        left = self._answer()
        self.process.wait(DEADLINE_S)
        return left

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def logged(self, event: str) -> list[dict[str, str]]:
        lines = (self.folder / "log").read_text().splitlines()
        return [entry for entry in map(json.loads, lines) if entry["event"] == event]

    def told(self, event: str, text: str) -> bool:
        return eventually(lambda: self.has_told(event, text))

    def has_told(self, event: str, text: str) -> bool:
        return any(text in json.dumps(entry) for entry in self.logged(event))

    def trust(self, host: Host | Daemon, *, controls: bool = False) -> None:
        address = host.address if isinstance(host, Daemon) else host.gateway.address
        pem = host.identity.certificate_pem
        self.enrolment.add(Peer(name=host.name, certificate_pem=pem, address=address, controls=controls))

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE_S)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


class Head(Host):
    """The head of some pipelines: it listens, calls node runtimes, and keeps what stages and nodes tell it."""

    def __init__(self, folder: Path, name: str = "head", address: str = "127.0.0.1:0") -> None:
        super().__init__(folder, name)
        if address != "127.0.0.1:0":
            self.gateway.close()
            self.listen(address)
        self.calls = Calls()
        self.on_loss = self.calls.fail
        self.results: queue.Queue[tuple[Frame, list[bytes]]] = queue.Queue()
        self._context = zmq.Context()
        self._closing = False
        self._readers: list[threading.Thread] = []

    def node(self, daemon: Daemon, pipeline: str = "p1") -> RemoteNode:
        """Begin a pipeline: what is for its head is read from now on."""
        self.enrolment.add(
            Peer(name=daemon.name, certificate_pem=daemon.identity.certificate_pem, address=daemon.address)
        )
        if not os.path.exists(f"{self.sockets}/{pipeline}/head"):
            os.makedirs(f"{self.sockets}/{pipeline}", exist_ok=True)
            home = Neighbourhood(self.name, pipeline, f"{self.sockets}/{pipeline}", self.sockets)
            inbox = Inbox(self._context, home.inbox("head"))
            self.gateway.admit(pipeline, "head", inbox.address)
            reader = threading.Thread(target=self._read, args=(inbox,), daemon=True)
            self._readers.append(reader)
            reader.start()
        return RemoteNode(daemon.name, pipeline, self.gateway, self.calls)

    def _read(self, inbox: Inbox) -> None:
        while not self._closing:
            parts = inbox.receive(50)
            if not parts:
                continue
            frame, buffers = unpack(parts)
            if isinstance(frame, Reply):
                self.calls.answered(frame, buffers)
            else:
                self.results.put((frame, [bytes(buffer) for buffer in buffers]))
        inbox.close()

    def next(self) -> Frame:
        return self.results.get(timeout=DEADLINE_S)[0]

    def tell(self, daemon: Daemon, stage: str, method: str, pipeline: str = "p1", /, **arguments: Any) -> Any:
        """Call a stage and wait for its answer."""
        _, future = self.calls.send(
            stage,
            lambda frame, buffers: self.gateway.send(daemon.name, f"{pipeline}/{stage}", frame, buffers),
            method,
            arguments,
        )
        return future.result(DEADLINE_S)

    def close(self) -> None:
        self._closing = True
        super().close()
        for reader in self._readers:
            reader.join(DEADLINE_S)
        self._context.destroy(linger=0)


def start(head: Head, node: RemoteNode, stage: str = "stage-1", **fields: Any) -> int:
    return node.start(stage, orders(stage, head.name, **fields))


def opened(head: Head, daemon: Daemon, pipeline: str = "p1", model: bytes = TINY) -> RemoteNode:
    """Open a pipeline with room for all layers."""
    node = head.node(daemon, pipeline)
    node.open([], model, None, DEADLINE_S)
    node.reserve(SHAPE, SHAPE.layers)
    return node


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
