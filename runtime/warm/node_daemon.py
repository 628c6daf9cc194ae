"""The node runtime: keeps weights, KV and stage processes of pipelines on one machine, whatever becomes of their heads.

::

    head ---- Call open, reserve, start, kill, copy_... (destination "node") ----> NodeDaemon
    head <--- Reply, Ended                              (destination "PIPELINE/head")
    head <--> stages of the pipeline                    (destination "PIPELINE/stage-N")
    node ---- KVTokens, Call kv_...  (destination "node") ----> NodeDaemon of another machine

Processes: the daemon has one *seed* zygote, with the engine imported; each model is a zygote forked from it that has
the weights; stages are forked from that. Orders are taken from enrolled peers that may control only, and each of them
rules its own pipelines only.

A head that is gone for longer than `lease_s` loses its pipelines: their stages end, their KV is erased. The zygote
with the weights stays for the next head with the same model, until memory is needed: what was used least recently goes
first.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import psutil

from runtime.migration.kv_transfer import KVExchange, answer, read_arguments
from runtime.transport.address import Neighbourhood
from runtime.transport.channel import ChannelError
from runtime.transport.frames import Call, Ended, FrameError
from runtime.transport.gateway import Gateway
from runtime.warm.kv_pool import KVPoolShape
from runtime.warm.memory import available_bytes
from runtime.warm.node import LocalNode, NodeError
from runtime.warm.zygote import Zygote

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.migration.kv_transfer import KVSender
    from runtime.transport.frames import Buffer, Frame
    from runtime.transport.identity import Enrolment, Identity, Peer

PRELOAD_S = 600.0
_ORDERS_AT_ONCE = 4


class OpenOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of ``open``: the pipeline, its nodes, and what its zygote needs (which only the engine understands)."""

    pipeline: str
    hosts: list[str]
    engine: bytes


class ReserveOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of ``reserve``: the pool's shape, and how many of its layers will be in use at once on this node."""

    pipeline: str
    shape: KVPoolShape
    layers: int


@dataclass(slots=True)
class _WarmModel:
    """A zygote that has the weights of a model."""

    zygote: Zygote
    facts: dict[str, Any]
    memory_bytes: int
    used_at: float = field(default_factory=time.monotonic)
    users: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Hosted:
    """One pipeline on this machine."""

    name: str
    head: str
    model: bytes
    node: LocalNode
    folder: str
    stages: set[str] = field(default_factory=set)
    kv_bytes: int = 0
    copies: dict[str, KVSender] = field(default_factory=dict)
    orders: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_ORDERS_AT_ONCE, "orders"))


class NodeDaemon:
    """See the module. Thread-safe.

    Args:
        identity, enrolment: who this node is, and whom it knows.
        listen: ``host:port``.
        seed: a zygote whose children become zygotes with weights (`runtime.engine.model_zygote`).
        memory_bytes: the most this node may take for weights and KV; None for what the machine has.
        lease_s: how long pipelines outlive their head.
        log: takes (event, details...).

    """

    def __init__(
        self,
        identity: Identity,
        enrolment: Enrolment,
        listen: str,
        seed: Zygote,
        memory_bytes: int | None,
        lease_s: float,
        log: Callable[..., None],
        bulk_bytes_per_second: float | None = None,
    ) -> None:
        self._name = identity.name
        self._seed, self._memory_bytes, self._lease_s, self._log = seed, memory_bytes, lease_s, log
        self._lock = threading.RLock()
        self._hosted: dict[str, _Hosted] = {}
        self._models: dict[bytes, _WarmModel] = {}  # by what their zygotes were told
        self._opening = threading.Lock()  # one model is loaded at a time
        self._lapsing: dict[str, threading.Timer] = {}  # by head
        self._exchange = KVExchange(identity.name)
        self._count = 0
        self._folder = tempfile.mkdtemp(prefix="midstream-node-")
        self._orders: dict[str, Callable[[_Hosted, dict[str, Any]], object]] = {
            "reserve": self._reserve,
            "start": self._start,
            "kill": self._kill,
            "scrub": lambda hosted, arguments: hosted.node.scrub(_layers(arguments)),
            "free_bytes": lambda *_: self._free_bytes(),
            "copy_begin": self._copy_begin,
            "copy_round": self._copy_round,
            "copy_stale": lambda hosted, arguments: self._copy(hosted, arguments).stale_bytes(),
            "copy_compare": lambda hosted, arguments: self._copy(hosted, arguments).mismatches(),
            "copy_stop": lambda hosted, arguments: self._copy(hosted, arguments).stop(),
            "copy_end": self._copy_end,
            "copy_allow": self._copy_allow,
            "copy_forget": lambda hosted, arguments: hosted.node.forget_copy(_text(arguments, "copy")),
            "close": lambda hosted, _: self._close(hosted, "its head is done with it"),
        }
        self._openers = ThreadPoolExecutor(1, "open")
        self.gateway = Gateway(
            identity, enrolment, listen, self._folder, self._on_frame, self._on_lost, log, bulk_bytes_per_second
        )
        self._exchange.gateway = self.gateway

    @property
    def address(self) -> str:
        """Where this node listens: ``host:port``."""
        return self.gateway.address

    def pipelines(self) -> dict[str, dict[str, Any]]:
        """Return what this node hosts, as plain data."""
        with self._lock:
            return {
                name: {"head": hosted.head, "stages": sorted(hosted.stages), "kv_bytes": hosted.kv_bytes}
                for name, hosted in self._hosted.items()
            }

    def close(self) -> None:
        """End everything and leave nothing behind."""
        with self._lock:
            hosted = list(self._hosted.values())
        for one in hosted:
            self._close(one, "the node runtime ends")
        for timer in self._lapsing.values():
            timer.cancel()
        self.gateway.close()
        for model in self._models.values():
            model.zygote.close()
        self._seed.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    # -- what comes in -----------------------------------------------------------------------------------------------

    def _on_frame(self, peer: Peer, frame: Frame, buffers: Sequence[Buffer]) -> None:
        """Take a frame for the node runtime, on the thread of the link it came on; FrameError cuts the peer off."""
        if self._exchange.on_frame(peer.name, frame, buffers):
            return
        if not isinstance(frame, Call):
            raise FrameError(f"a node runtime does not take {type(frame).__name__}")
        if not peer.controls:
            raise FrameError(f"{peer.name} may not control this node; enrol it with --controls if it should")
        self._heard_of(peer.name)
        arguments = read_arguments(frame, buffers[0])
        pipeline = arguments.get("pipeline")

        def answered(work: Callable[[], object]) -> None:
            answer(self.gateway, self._name, peer.name, f"{pipeline}/head", frame, work)

        if frame.method == "open":
            self._openers.submit(answered, lambda: self._open(peer.name, arguments))
            return
        with self._lock:
            hosted = self._hosted.get(pipeline) if isinstance(pipeline, str) else None
        if hosted is None or hosted.head != peer.name:
            answered(lambda: _refuse(f"{peer.name} has no pipeline {pipeline!r} here"))
            return
        method = self._orders.get(frame.method)
        if method is None:
            raise FrameError(f"unknown order {frame.method!r}")
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            hosted.orders.submit(answered, lambda: method(hosted, arguments))

    # -- orders --------------------------------------------------------------------------------------------------------

    def _open(self, head: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Host a pipeline, anew if it was open: load its model unless it is warm."""
        order = _convert(arguments, OpenOrder)
        if not order.pipeline.isalnum():
            raise NodeError(f"pipeline names are letters and digits, not {order.pipeline!r}")
        before = self._hosted.get(order.pipeline)
        if before is not None:
            if before.head != head:
                raise NodeError(f"pipeline {order.pipeline!r} belongs to {before.head}")
            self._close(before, "its head opens it anew")
        for host in {head, *order.hosts} - {self._name}:
            self.gateway.reach(host)
        model = self._models.get(order.engine)
        was_warm = model is not None
        if model is None:
            model = self._load(order.engine)
        folder = str(Path(self._folder) / order.pipeline)
        Path(folder).mkdir(mode=0o700)
        home = Neighbourhood(self._name, order.pipeline, folder, self._folder)
        node = LocalNode(self._name, model.zygote, home, self._exchange)
        with self._lock:
            model.users.add(order.pipeline)
            self._hosted[order.pipeline] = _Hosted(order.pipeline, head, order.engine, node, folder)
        self._log("pipeline opened", pipeline=order.pipeline, head=head, warm=was_warm)
        return {**model.facts, "was_warm": was_warm, "memory_bytes": model.memory_bytes}

    def _load(self, engine: bytes) -> _WarmModel:
        """Fork a zygote that loads a model."""
        self._count += 1
        key = f"model-{self._count}"
        zygote = Zygote.within(self._seed, key, engine, self._on_stage_exit)
        try:
            facts = zygote.wait_ready(PRELOAD_S)
        except Exception:
            zygote.close()
            raise
        model = _WarmModel(zygote, facts, _private_bytes(zygote.pid))
        with self._lock:
            self._models[engine] = model
        try:
            self._make_room(0, keep=engine)
        except NodeError:
            with self._lock:
                del self._models[engine]
            zygote.close()
            raise
        return model

    def _reserve(self, hosted: _Hosted, arguments: dict[str, Any]) -> None:
        order = _convert(arguments, ReserveOrder)
        wanted = order.layers * order.shape.layer_stride
        with self._lock:
            self._make_room(wanted - hosted.kv_bytes, keep=hosted.model)
            hosted.node.reserve(order.shape, order.layers)
            hosted.kv_bytes = wanted

    def _start(self, hosted: _Hosted, arguments: dict[str, Any]) -> int:
        stage = _text(arguments, "stage")
        with self._lock:
            hosted.stages.add(stage)
        return hosted.node.start(stage, arguments["orders"])

    def _kill(self, hosted: _Hosted, arguments: dict[str, Any]) -> None:
        hosted.node.kill(_text(arguments, "stage"))

    def _copy_begin(self, hosted: _Hosted, arguments: dict[str, Any]) -> None:
        copy = _text(arguments, "copy")
        hosted.copies[copy] = hosted.node.send_to(_text(arguments, "host"), copy, _layers(arguments))

    def _copy_round(self, hosted: _Hosted, arguments: dict[str, Any]) -> tuple[int, float, int]:
        copied = self._copy(hosted, arguments).round()
        return copied.sent_bytes, copied.seconds, copied.stale_bytes

    def _copy_end(self, hosted: _Hosted, arguments: dict[str, Any]) -> None:
        sender = hosted.copies.pop(_text(arguments, "copy"), None)
        if sender is not None:
            sender.end()

    def _copy_allow(self, hosted: _Hosted, arguments: dict[str, Any]) -> None:
        hosted.node.allow_copy(_text(arguments, "copy"), _text(arguments, "host"))

    @staticmethod
    def _copy(hosted: _Hosted, arguments: dict[str, Any]) -> KVSender:
        copy = _text(arguments, "copy")
        if copy not in hosted.copies:
            raise NodeError(f"no copy {copy!r} was begun")
        return hosted.copies[copy]

    # -- memory --------------------------------------------------------------------------------------------------------

    def _free_bytes(self) -> int:
        free = available_bytes()
        return free if self._memory_bytes is None else min(free, self._memory_bytes - self._used_bytes())

    def _used_bytes(self) -> int:
        with self._lock:
            return sum(model.memory_bytes for model in self._models.values()) + sum(
                hosted.kv_bytes for hosted in self._hosted.values()
            )

    def _make_room(self, needed: int, keep: bytes) -> None:
        """Let go of models that nobody uses, the least recently used first, until `needed` more bytes fit.

        Raises:
            NodeError: they do not fit, with the number of bytes that are missing.

        """
        if self._memory_bytes is None:
            return
        with self._lock:
            idle = sorted(
                (model.used_at, engine) for engine, model in self._models.items() if not model.users and engine != keep
            )
            for _, engine in idle:
                if self._used_bytes() + needed <= self._memory_bytes:
                    break
                self._models.pop(engine).zygote.close()
            missing = self._used_bytes() + needed - self._memory_bytes
        if missing > 0:
            raise NodeError(
                f"node {self._name} may take {self._memory_bytes / 2**20:.0f} MiB and lacks {missing / 2**20:.0f} MiB "
                "for weights and KV; start it with more --memory, or use a smaller KV cache (--kv-cache-memory-bytes)"
            )

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _on_stage_exit(self, stage: str, status: int) -> None:
        with self._lock:
            hosted = next((one for one in self._hosted.values() if stage in one.stages), None)
            if hosted is None:
                return
            hosted.stages.discard(stage)
        hosted.node.ended(stage)
        try:
            self.gateway.send(hosted.head, f"{hosted.name}/head", Ended(stage, status))
        except ChannelError as error:
            self._log("end of a stage not told", stage=stage, reason=str(error))

    def on_seed_exit(self, key: str, status: int) -> None:
        """React to the end of a model's zygote: its stages have ended with it, and are reported by the kernel."""
        self._log("model zygote ended", key=key, status=status)
        with self._lock:
            for engine, model in list(self._models.items()):
                if not model.zygote.alive:
                    del self._models[engine]

    def _on_lost(self, host: str, reason: str) -> None:
        """Give the pipelines of a head that is gone some time, then end them."""
        self._exchange.calls.fail(host, reason)
        with self._lock:
            if host in self._lapsing or all(hosted.head != host for hosted in self._hosted.values()):
                return
            timer = self._lapsing[host] = threading.Timer(self._lease_s, self._lapse, (host, reason))
            timer.daemon = True
            timer.start()

    def _heard_of(self, host: str) -> None:
        with self._lock:
            timer = self._lapsing.pop(host, None)
        if timer is not None:
            timer.cancel()

    def _lapse(self, host: str, reason: str) -> None:
        with self._lock:
            self._lapsing.pop(host, None)
            hosted = [one for one in self._hosted.values() if one.head == host]
        for one in hosted:
            self._close(one, reason)

    def _close(self, hosted: _Hosted, reason: str) -> None:
        """End a pipeline's stages and erase its KV; its model stays warm."""
        with self._lock:
            if self._hosted.pop(hosted.name, None) is None:
                return
            stages, hosted.stages = hosted.stages, set()
            model = self._models.get(hosted.model)
            if model is not None:
                model.users.discard(hosted.name)
                model.used_at = time.monotonic()
        for stage in stages:
            hosted.node.kill(stage)
            hosted.node.ended(stage)
        hosted.orders.shutdown(wait=False, cancel_futures=True)
        hosted.node.close()
        shutil.rmtree(hosted.folder, ignore_errors=True)
        self._log("pipeline closed", pipeline=hosted.name, head=hosted.head, reason=reason)


def _refuse(reason: str) -> object:
    raise NodeError(reason)


def _convert(value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise NodeError(f"malformed {kind.__name__}: {error}") from error


def _text(arguments: dict[str, Any], name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str):
        raise NodeError(f"{name} must be text, not {value!r}")
    return value


def _layers(arguments: dict[str, Any]) -> list[int]:
    layers: list[int] = msgspec.convert(arguments.get("layers"), list[int])
    return layers


def _private_bytes(pid: int) -> int:
    """Return the memory that only this process has: the weights of a zygote's model."""
    usage: int = psutil.Process(pid).memory_full_info().uss
    return usage
