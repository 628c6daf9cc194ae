"""The stage processes of one pipeline: start them, call them, hear from them, end them.

One thread reads the head's inbox and hands every frame on: replies to whoever waits for them, results and rejections
to the dispatcher. The zygote, or the node runtime of another host, reports processes that ended, which fails every call
that waits for them. Stages of other hosts speak to this inbox through the gateways.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
import threading
import time
import traceback
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import zmq

from runtime.engine.errors import StageError
from runtime.engine.stage_process import StageStart
from runtime.layout import LOCAL_NODE
from runtime.migration.kv_transfer import KVExchange, answer, read_arguments
from runtime.transport.address import Address, Neighbourhood
from runtime.transport.calls import Calls
from runtime.transport.channel import ChannelError, Inbox, Outbox
from runtime.transport.frames import Call, Ended, FrameError, Lost, Rejected, Reply, Result, unpack
from runtime.transport.gateway import NODE, Gateway
from runtime.transport.identity import Enrolment, Identity
from runtime.transport.socket_folder import SocketFolder
from runtime.warm import model_fetch
from runtime.warm.model_fetch import ModelOrder, ModelSource
from runtime.warm.model_store import ModelStore
from runtime.warm.node import LocalNode, NodeError, clean_up_after
from runtime.warm.remote_node import RemoteNode
from runtime.warm.weights import Weights
from runtime.warm.zygote import ZygoteError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.engine.role import Role
    from runtime.transport.frames import Buffer, Frame
    from runtime.transport.identity import Peer
    from runtime.warm.node import Node
    from runtime.warm.zygote import ChildMain, Preload

_POLL_MS = 200


@dataclass(slots=True)
class Stage:
    """One live stage process as the head sees it."""

    name: str
    home: Node
    pid: int
    precision: str
    outbox: Outbox
    started_at: float = field(default_factory=time.time)
    memory_bytes: int = 0
    any_role: bool = False
    prepare_ms: dict[str, float] = field(default_factory=dict)

    @property
    def node(self) -> str:
        """The name of its node."""
        return self.home.name

    @property
    def address(self) -> Address:
        """Where it is."""
        return Address(self.home.host, self.name)


class GatewaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the head reaches other hosts.

    name: of the head among hosts.
    folder: where its identity and its enrolment are.
    listen: ``host:port`` on which the nodes reach it.
    """

    name: str
    folder: str
    listen: str


class Fleet:
    """All stages of one pipeline. Thread-safe.

    Args:
        be_zygote: what a zygote of weights runs (`runtime.warm.weights`).
        preload: what is done before, once; None for a head without stages on its own host.
        gateway: how to reach other hosts; None for a pipeline on this host alone.
        on_result: takes results of batches.
        on_rejected: takes refusals of batches.
        on_lost: called with (stage name, reason) when a stage process ends without having been released.
        on_host_lost: called with (host, reason) when another host is lost.
        on_way_lost: called with (node, host, reason) when a node has lost the way to another host.
        on_broken: called with the reason when no frame will be read any more.
        log: takes (event, details...) of the gateway.

    """

    def __init__(
        self,
        be_zygote: ChildMain,
        preload: Preload | None,
        gateway: GatewaySettings | None,
        on_result: Callable[[Result, Sequence[Buffer]], None],
        on_rejected: Callable[[Rejected], None],
        on_lost: Callable[[str, str], None],
        on_host_lost: Callable[[str, str], None],
        on_way_lost: Callable[[str, str, str], None],
        on_broken: Callable[[str], None],
        log: Callable[..., None],
    ) -> None:
        # Fork before this process has sockets and threads of ours that the zygote would only have to forget.
        self._exchange: KVExchange | None = None
        self.weights = Weights(be_zygote, preload, self._on_local_exit) if preload is not None else None
        self._settings = gateway
        self._source: ModelSource | None = None
        self._on_result, self._on_rejected, self._on_lost = on_result, on_rejected, on_lost
        self._on_host_lost, self._on_way_lost, self._on_broken = on_host_lost, on_way_lost, on_broken
        self.pipeline = secrets.token_hex(4)
        # Only the owner may enter, so the kernel vouches for every peer on these sockets.
        self._folder = SocketFolder()
        self._context = zmq.Context()
        self._lock = threading.Lock()
        self._stages: dict[str, Stage] = {}
        self._starting: set[str] = set()  # being forked: their end may be reported before their start
        self._gone_at_birth: set[str] = set()
        self.calls = Calls(StageError)
        self._stage_numbers = itertools.count(1)
        self._closing = False
        self.gateway = self._open_gateway(gateway, log) if gateway is not None else None
        host = self.gateway.host if self.gateway is not None else LOCAL_NODE
        sockets = str(self._folder.path)
        self._home = Neighbourhood(host, self.pipeline, sockets, sockets if gateway is not None else None)
        self.head = Address(host, "head")
        self._inbox = Inbox(self._context, self._home.inbox(self.head.name))
        if self.gateway is not None:
            self.gateway.admit(self.pipeline, self.head.name, self._inbox.address)
        self._reader = threading.Thread(target=self._read, name="stage-frames", daemon=True)
        self._reader.start()

    def _open_gateway(self, settings: GatewaySettings, log: Callable[..., None]) -> Gateway:
        folder = Path(settings.folder)
        identity = Identity.load_or_create(folder, settings.name)
        self._exchange = KVExchange(identity.name)
        self._exchange.gateway = Gateway(
            identity,
            Enrolment(folder),
            settings.listen,
            str(self._folder.path),
            self._on_node_frame,
            self._on_silence,
            log,
            on_bulk_lost=self._exchange.calls.fail,
        )
        return self._exchange.gateway

    def local_node(self, name: str) -> LocalNode:
        """Make a node of this host, whose stages are forked here.

        Raises:
            StageError: the pipeline was started without a zygote here.

        """
        if self.weights is None:
            raise StageError(f"the pipeline has no weights on this host for node {name!r}")
        return LocalNode(name, self.weights, self._home, self._exchange)

    def remote_node(self, name: str) -> RemoteNode:
        """Make the handle of a node on another host.

        Raises:
            StageError: this head has no gateway.

        """
        if self.gateway is None:
            raise StageError(f"there is no way to node {name!r}: the head has no gateway")
        return RemoteNode(name, self.pipeline, self.gateway, self.calls)

    def offer_model(self, folder: Path, readers: frozenset[str]) -> ModelOrder:
        """Let some nodes have the files of the model in `folder`; returns what they have to be told.

        Raises:
            ModelStoreError: the folder cannot be read.

        """
        if self._settings is None:
            raise StageError("there are no nodes to offer a model to: the head has no gateway")
        store = ModelStore(Path(self._settings.folder) / "models", None)
        order = ModelOrder(store.describe(folder, folder.name), str(folder))
        self._source = ModelSource(store, order, readers)
        return order

    def load(self, precision: str, timeout_s: float, *, background: bool) -> bool:
        """Have the weights in a precision on this host, if stages are started here at all; see `Weights.load`."""
        return self.weights is not None and self.weights.load(precision, timeout_s, background=background)

    def stages(self) -> list[Stage]:
        """Return the live stages."""
        with self._lock:
            return list(self._stages.values())

    def alive(self, stage: Stage) -> bool:
        """Whether a stage's process has neither ended, as far as is known, nor been released."""
        with self._lock:
            return stage.name in self._stages

    def start(self, node: Node, precision: str, threads: int, role: Role | None) -> Stage:
        """Fork a stage process on a node, with weights in a precision; `role` is None for a stage that will be told."""
        name = f"stage-{next(self._stage_numbers)}"
        address = Address(node.host, name)
        orders = msgspec.msgpack.encode(StageStart(name, self.head, threads, role))
        with self._lock:
            self._starting.add(name)
        try:
            pid = node.start(name, orders, precision)
            stage = Stage(name, node, pid, precision, self._outbox(address))
        except (ZygoteError, NodeError, ChannelError) as error:
            raise StageError(str(error)) from error
        finally:
            with self._lock:
                self._starting.discard(name)
        with self._lock:
            gone = name in self._gone_at_birth
            self._gone_at_birth.discard(name)
            if not gone:
                self._stages[name] = stage
        if gone:
            stage.outbox.close()
            raise StageError(f"{name} ended as soon as it was started")
        return stage

    def _outbox(self, address: Address) -> Outbox:
        if self.gateway is not None and address.host != self.head.host:
            self.gateway.reach(address.host)
        return self._home.outbox(self._context, address)

    def call_async(self, stage: Stage, method: str, /, **arguments: Any) -> Future[Any]:
        """Call a stage; the future fails with StageError when the stage says so, or ends."""
        if not self.alive(stage):
            future: Future[Any] = Future()
            future.set_exception(StageError(f"{stage.name} is gone"))
            return future
        _, future = self.calls.send(stage.name, stage.outbox.send, method, arguments)
        if not self.alive(stage):  # it ended just before its call could be failed with the others
            self.calls.fail(stage.name, f"{stage.name} is gone")
        return future

    def call(self, stage: Stage, method: str, timeout_s: float, /, **arguments: Any) -> Any:
        """Call a stage and wait.

        Raises:
            StageError: the stage refused, ended, or did not answer within `timeout_s` seconds.

        """
        return self.answer(self.call_async(stage, method, **arguments), timeout_s, stage, method)

    @staticmethod
    def answer(future: Future[Any], timeout_s: float, stage: Stage, method: str) -> Any:
        """Wait for the answer of a call that `call_async` made; raises as `call` does."""
        try:
            return future.result(timeout_s)
        except TimeoutError as error:
            raise StageError(f"{stage.name} did not answer {method!r} within {timeout_s:g} s") from error

    def release(self, stage: Stage, timeout_s: float = 5.0) -> None:
        """Let a stage end; kill it when it does not within `timeout_s` seconds."""
        with self._lock:
            if self._stages.pop(stage.name, None) is None:
                return
        number, future = self.calls.send(stage.name, stage.outbox.send, "release", {})
        with contextlib.suppress(StageError, TimeoutError):
            future.result(timeout_s)
        self.calls.forget(number)
        stage.home.kill(stage.name)
        stage.outbox.close()

    def kill(self, stage: Stage) -> None:
        """End a stage at once; it is no longer reported as lost."""
        with self._lock:
            self._stages.pop(stage.name, None)
        stage.home.kill(stage.name)
        self.calls.fail(stage.name, f"{stage.name} was ended")
        stage.outbox.close()

    def lose(self, stage: Stage, reason: str) -> None:
        """Take a stage for lost, whose node is."""
        self._gone(stage.name, reason)
        stage.home.kill(stage.name)

    def remove_sockets(self) -> None:
        """Remove the files of all sockets; what is connected stays so."""
        self._folder.remove()

    def close(self) -> None:
        """End all stages and the zygote, and leave no file behind."""
        with self._lock:
            self._closing = True
            stages = list(self._stages.values())
            self._stages.clear()
        if self.weights is not None:
            self.weights.close()
        if self.gateway is not None:
            self.gateway.close()
        self._reader.join(timeout=5)
        self._inbox.close()
        for stage in stages:
            stage.outbox.close()
        self._context.destroy(linger=0)
        self._folder.remove()

    # -- what comes in -----------------------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            while not self._closing:
                parts = self._inbox.receive(_POLL_MS)
                if parts is not None:
                    self._take(parts)
        except Exception as error:  # noqa: BLE001 - without this thread nothing is ever answered: say so, do not hang
            traceback.print_exc()
            self._on_broken(f"the thread that reads frames has ended: {type(error).__name__}: {error}")

    def _take(self, parts: list[memoryview]) -> None:
        try:
            frame, buffers = unpack(parts)
        except FrameError as error:
            self._on_rejected(Rejected("unknown", -1, -1, str(error)))
            return
        if isinstance(frame, Result):
            self._on_result(frame, buffers)
        elif isinstance(frame, Rejected):
            self._on_rejected(frame)
        elif isinstance(frame, Reply):
            self.calls.answered(frame, buffers)
        elif isinstance(frame, Ended):
            self._on_exit(frame.stage, frame.status)
        elif isinstance(frame, Lost):
            self._on_way_lost(frame.node, frame.host, frame.reason)

    def _on_node_frame(self, peer: Peer, frame: Frame, buffers: Sequence[Buffer]) -> None:
        """Take what another host has for the nodes of this one (the thread of the link)."""
        source, gateway = self._source, self.gateway
        if source and gateway and isinstance(frame, Call) and frame.method == model_fetch.METHOD:
            asked = read_arguments(frame, buffers[0])
            answer(gateway, self.head.host, peer.name, NODE, frame, lambda: source.read(peer.name, asked))
            return
        if self._exchange is None or not self._exchange.on_frame(peer.name, frame, buffers):
            raise FrameError(f"a head does not take {type(frame).__name__}")

    def _on_silence(self, host: str, reason: str) -> None:
        """React to the loss of a host: nobody there answers any more."""
        self.calls.fail(host, reason)
        if self._exchange is not None:
            self._exchange.calls.fail(host, reason)
        self._on_host_lost(host, reason)

    def _on_local_exit(self, name: str, status: int) -> None:
        clean_up_after(name, self._home, self._exchange)
        self._on_exit(name, status)

    def _on_exit(self, name: str, status: int) -> None:
        """React to the end of a process (the thread of the zygote's reports, or the reader)."""
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        self._gone(name, f"{name} {how}")

    def _gone(self, name: str, reason: str) -> None:
        with self._lock:
            stage = self._stages.pop(name, None)
            if stage is None and name in self._starting:
                self._gone_at_birth.add(name)
            lost = stage is not None and not self._closing
        if stage is not None:
            stage.outbox.close()
        self.calls.fail(name, reason)
        if lost:
            self._on_lost(name, reason)
