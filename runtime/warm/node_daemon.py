"""The node runtime: keeps weights, KV and stage processes of pipelines on one machine, whatever becomes of their heads.

::

    head ---- Call open, reserve, start, kill, copy_... (destination "node") ----> NodeDaemon
    head <--- Reply, Ended                              (destination "PIPELINE/head")
    head <--> stages of the pipeline                    (destination "PIPELINE/stage-N")
    node ---- KVTokens, Call kv_...  (destination "node") ----> NodeDaemon of another machine

Processes: the daemon has one *seed* zygote, with the engine imported; each model is a zygote forked from it that has
the weights; stages are forked from that. Orders are taken from enrolled peers that may control only, and each of them
rules its own pipelines only.

A pipeline whose head is gone and gives no order for it within `lease_s` is lost: its stages end, its KV is erased. The
zygote with the weights stays for the next head with the same model, until memory is needed: what was used least
recently goes first.
"""

from __future__ import annotations

import contextlib
import math
import re
import shutil
import signal
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
from runtime.transport.frames import Call, Ended, FrameError, Lost
from runtime.transport.gateway import Gateway
from runtime.transport.socket_folder import SocketFolder
from runtime.warm.kv_pool import KVPoolShape
from runtime.warm.model_fetch import ModelFetch, ModelOrder
from runtime.warm.node import LocalNode, NodeError, OnlyZygote
from runtime.warm.zygote import Zygote

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.migration.kv_transfer import KVSender
    from runtime.transport.frames import Buffer, Frame
    from runtime.transport.identity import Enrolment, Identity, Peer
    from runtime.warm.model_store import ModelStore

PRELOAD_S = 600.0
_ORDERS_AT_ONCE = 4
_NAME = re.compile(r"[A-Za-z0-9-]{1,32}")  # of pipelines and stages: they become names of files and destinations


class ModelPayload(msgspec.Struct, frozen=True):
    """What a model's zygote gets: the engine's configuration, and the folder with the files if not the one it names."""

    engine: bytes
    folder: str | None


class OpenOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of ``open``: the pipeline, its nodes, and what its zygote needs.

    engine: its configuration, which only the engine understands.
    model: the model's files; None when every node gets them from a model hub.
    """

    pipeline: str
    hosts: list[str]
    engine: bytes
    model: ModelOrder | None = None

    @property
    def key(self) -> bytes:
        """Name the weights: what one pipeline has loaded, another with the same key can use."""
        return self.engine + (self.model.files.identity().encode() if self.model else b"")


class ReserveOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of ``reserve``: the pool's shape, and how many of its layers will be in use at once on this node."""

    pipeline: str
    shape: KVPoolShape
    layers: int


class StartOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of ``start``: the stage's name, and its orders, which only it understands."""

    pipeline: str
    stage: str
    orders: bytes


@dataclass(slots=True)
class _WarmModel:
    """A zygote that has the weights of a model."""

    key: str
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
    hosts: frozenset[str]
    model: bytes
    node: LocalNode
    folder: str
    prefix: str  # of its stages' names in the zygote
    lapse: threading.Timer | None = None  # runs while its head is gone
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
        bulk_bytes_per_second: limit of copying to each other host; None for none.
        models: where files of models are kept that this machine does not have; None to use only those it has.

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
        models: ModelStore | None = None,
    ) -> None:
        self._name = identity.name
        self._seed, self._memory_bytes, self._lease_s, self._log = seed, memory_bytes, lease_s, log
        self._lock = threading.RLock()
        self._hosted: dict[str, _Hosted] = {}
        self._models: dict[bytes, _WarmModel] = {}  # by what their zygotes were told
        self._gone: dict[str, str] = {}  # hosts that are lost and gave no order since, with the reason
        self._closing = False
        self._promising = threading.Lock()  # what is promised to one must not be promised to another meanwhile
        self._exchange = KVExchange(identity.name)
        self._count = 0
        self._sockets = SocketFolder("node-")
        self._folder = str(self._sockets.path)
        self._orders: dict[str, Callable[[_Hosted, dict[str, Any]], object]] = {
            "reserve": self._reserve,
            "start": self._start,
            "kill": self._kill,
            "copy_blocks": lambda hosted, arguments: hosted.node.copy_blocks(
                _convert(arguments.get("moved"), dict[int, int])
            ),
            "give_back": lambda hosted, arguments: hosted.node.give_back(_convert(arguments.get("first"), int)),
            "scrub": lambda hosted, arguments: hosted.node.scrub(_layers(hosted, arguments)),
            "copy_begin": self._copy_begin,
            "copy_round": self._copy_round,
            "copy_stale": lambda hosted, arguments: self._copy(hosted, arguments).stale_bytes(),
            "copy_finish": lambda hosted, arguments: self._copy(hosted, arguments).finish(),
            "copy_pace": lambda hosted, arguments: self._copy(hosted, arguments).pace(_pace(arguments)),
            "copy_stop": lambda hosted, arguments: self._copy(hosted, arguments).stop(),
            "copy_end": self._copy_end,
            "copy_allow": self._copy_allow,
            "copy_forget": lambda hosted, arguments: hosted.node.forget_copy(_text(arguments, "copy")),
            "close": lambda hosted, _: self._close(hosted, "its head is done with it"),
        }
        self._openers = ThreadPoolExecutor(1, "open")  # one model is loaded at a time
        try:
            self.gateway = Gateway(
                identity,
                enrolment,
                listen,
                self._folder,
                self._on_frame,
                self._on_lost,
                log,
                bulk_bytes_per_second,
                on_bulk_lost=self._exchange.calls.fail,
            )
        except Exception:
            self._sockets.remove()
            raise
        self._exchange.gateway = self.gateway
        self._fetch = ModelFetch(models, self.gateway, self._exchange.calls) if models is not None else None

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
            self._closing = True
            hosted = list(self._hosted.values())
        for one in hosted:
            self._close(one, "the node runtime ends")
        self._openers.shutdown(wait=False, cancel_futures=True)
        self.gateway.close()
        with self._lock:
            models, self._models = list(self._models.values()), {}
        for model in models:
            model.zygote.close()
        self._seed.close()
        self._sockets.remove()

    # -- what comes in -----------------------------------------------------------------------------------------------

    def _on_frame(self, peer: Peer, frame: Frame, buffers: Sequence[Buffer]) -> None:
        """Take a frame for the node runtime, on the thread of the link it came on; FrameError cuts the peer off."""
        if self._exchange.on_frame(peer.name, frame, buffers):
            return
        if not isinstance(frame, Call):
            raise FrameError(f"a node runtime does not take {type(frame).__name__}")
        if not peer.controls:
            raise FrameError(f"{peer.name} may not control this node; enrol it with --controls if it should")
        with self._lock:
            self._gone.pop(peer.name, None)
        arguments = read_arguments(frame, buffers[0])
        pipeline = arguments.get("pipeline")
        if not isinstance(pipeline, str) or _NAME.fullmatch(pipeline) is None:
            raise FrameError(f"{pipeline!r} is no name for a pipeline")

        def answered(work: Callable[[], object]) -> None:
            answer(self.gateway, self._name, peer.name, f"{pipeline}/head", frame, work)

        if frame.method == "open":
            with contextlib.suppress(RuntimeError):  # closed meanwhile
                self._openers.submit(answered, lambda: self._open(peer.name, arguments))
            return
        with self._lock:
            hosted = self._hosted.get(pipeline)
        if hosted is None or hosted.head != peer.name:
            answered(lambda: _refuse(f"{peer.name} has no pipeline {pipeline!r} here"))
            return
        method = self._orders.get(frame.method)
        if method is None:
            raise FrameError(f"unknown order {frame.method!r}")
        self._keep(hosted)
        if frame.method in {
            "copy_stop",
            "copy_pace",
        }:  # at once: rounds may keep all threads busy
            answered(lambda: method(hosted, arguments))
            return
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            hosted.orders.submit(answered, lambda: method(hosted, arguments))

    # -- orders --------------------------------------------------------------------------------------------------------

    def _open(self, head: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Host a pipeline, anew if it was open: load its model unless it is warm."""
        order = _convert(arguments, OpenOrder)
        before = self._hosted.get(order.pipeline)
        if before is not None:
            if before.head != head:
                raise NodeError(f"pipeline {order.pipeline!r} belongs to {before.head}")
            self._close(before, "its head opens it anew")
        for host in {head, *order.hosts} - {self._name}:
            self.gateway.greet(host)
        with self._lock:
            model = self._models.get(order.key)
            if model is not None and not model.zygote.alive:
                del self._models[order.key]
                model = None
            was_warm = model is not None
            if model is not None:
                model.users.add(order.pipeline)  # from now on nobody lets go of it
        if model is None:
            model = self._load(order, head)
        try:
            hosted = self._host(order, head, model)
        except Exception:
            with self._lock:
                model.users.discard(order.pipeline)
            raise
        self._log("pipeline opened", pipeline=order.pipeline, head=head, warm=was_warm)
        with self._lock:
            gone = self._gone.get(head)
        if gone is not None:  # while the model was loaded
            self._let_lapse(hosted, gone)
        return {**model.facts, "was_warm": was_warm, "memory_bytes": model.memory_bytes}

    def _host(self, order: OpenOrder, head: str, model: _WarmModel) -> _Hosted:
        """Make a place for a pipeline whose model is warm."""
        self._count += 1
        prefix = f"{order.pipeline}.{self._count}/"
        folder = str(Path(self._folder) / order.pipeline)
        hosts = frozenset({head, *order.hosts})
        home = Neighbourhood(self._name, order.pipeline, folder, self._folder, hosts)
        with self._lock:
            if self._closing:
                raise NodeError(f"node {self._name} is ending")
            Path(folder).mkdir(mode=0o700)
            node = LocalNode(self._name, OnlyZygote(model.zygote), home, self._exchange, prefix)
            hosted = _Hosted(order.pipeline, head, hosts, order.key, node, folder, prefix)
            self._hosted[order.pipeline] = hosted
        return hosted

    def _load(self, order: OpenOrder, head: str) -> _WarmModel:
        """Get the model's files and fork a zygote that loads them."""
        self._count += 1
        key = f"model-{self._count}"
        folder: Path | None = None
        if order.model is not None and self._fetch is not None:
            folder, fetched = self._fetch.folder(head, order.model, key)
            self._log("model files ready", model=order.model.files.name, folder=folder, fetched_bytes=fetched)
        payload = msgspec.msgpack.encode(ModelPayload(order.engine, str(folder) if folder else None))
        zygote = Zygote.within(self._seed, key, payload, self._on_stage_exit)
        try:
            facts = zygote.wait_ready(PRELOAD_S)
            model = _WarmModel(key, zygote, facts, _private_bytes(zygote.pid))
            model.users.add(order.pipeline)
            with self._promising:
                with self._lock:
                    self._models[order.key] = model
                self._make_room()
        except Exception:
            with self._lock:
                self._models.pop(order.key, None)
            zygote.close()
            raise
        finally:
            if self._fetch is not None:
                self._fetch.release(key)  # what is loaded needs its files no more
        return model

    def _reserve(self, hosted: _Hosted, arguments: dict[str, Any]) -> None:
        order = _convert(arguments, ReserveOrder)
        if not 0 <= order.layers <= order.shape.layers:
            raise NodeError(f"room for {order.layers} of {order.shape.layers} layers cannot be made")
        wanted = order.layers * order.shape.layer_stride
        before = hosted.kv_bytes
        try:
            with self._promising:
                hosted.kv_bytes = wanted
                self._make_room()
            hosted.node.reserve(order.shape, order.layers)
        except Exception:
            with self._lock:
                hosted.kv_bytes = before
            raise

    def _start(self, hosted: _Hosted, arguments: dict[str, Any]) -> int:
        order = _convert(arguments, StartOrder)
        if _NAME.fullmatch(order.stage) is None:
            raise NodeError(f"{order.stage!r} is no name for a stage")
        with self._lock:
            if order.stage in hosted.stages:
                raise NodeError(f"{order.stage} runs already")
            hosted.stages.add(order.stage)
        try:
            return hosted.node.start(order.stage, order.orders)
        except Exception:
            with self._lock:
                hosted.stages.discard(order.stage)
            raise

    def _kill(self, hosted: _Hosted, arguments: dict[str, Any]) -> None:
        hosted.node.kill(_text(arguments, "stage"))

    def _copy_begin(self, hosted: _Hosted, arguments: dict[str, Any]) -> None:
        copy = _copy_name(hosted, arguments)
        sender = hosted.node.send_to(_text(arguments, "host"), copy, _layers(hosted, arguments))
        with self._lock:
            hosted.copies[copy] = sender
            closed = self._hosted.get(hosted.name) is not hosted
        if closed:
            sender.stop()

    def _copy_round(self, hosted: _Hosted, arguments: dict[str, Any]) -> tuple[int, float, int]:
        copied = self._copy(hosted, arguments).round()
        return copied.sent_bytes, copied.seconds, copied.stale_bytes

    def _copy_end(self, hosted: _Hosted, arguments: dict[str, Any]) -> None:
        sender = hosted.copies.pop(_text(arguments, "copy"), None)
        if sender is not None:
            sender.end()

    def _copy_allow(self, hosted: _Hosted, arguments: dict[str, Any]) -> None:
        hosted.node.allow_copy(_copy_name(hosted, arguments), _text(arguments, "host"))

    @staticmethod
    def _copy(hosted: _Hosted, arguments: dict[str, Any]) -> KVSender:
        copy = _text(arguments, "copy")
        if copy not in hosted.copies:
            raise NodeError(f"no copy {copy!r} was begun")
        return hosted.copies[copy]

    # -- memory --------------------------------------------------------------------------------------------------------

    def _used_bytes(self) -> int:
        with self._lock:
            return sum(model.memory_bytes for model in self._models.values()) + sum(
                hosted.kv_bytes for hosted in self._hosted.values()
            )

    def _make_room(self) -> None:
        """Let go of models that nobody uses, the least recently used first, until all that is promised fits.

        Raises:
            NodeError: they do not fit, with the number of bytes that are missing.

        """
        if self._memory_bytes is None:
            return
        unneeded: list[_WarmModel] = []
        with self._lock:
            idle = sorted((model.used_at, engine) for engine, model in self._models.items() if not model.users)
            for _, engine in idle:
                if self._used_bytes() <= self._memory_bytes:
                    break
                unneeded.append(self._models.pop(engine))
            missing = self._used_bytes() - self._memory_bytes
        for model in unneeded:  # without the lock: the ends of its stages may still have to be heard of
            model.zygote.close()
            self._log("model let go", key=model.key, memory_bytes=model.memory_bytes)
        if missing > 0:
            raise NodeError(
                f"node {self._name} may take {self._memory_bytes / 2**20:.0f} MiB and lacks {missing / 2**20:.0f} MiB "
                "for weights and KV; start it with more --memory, or use a smaller KV cache (--kv-cache-memory-bytes)"
            )

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _on_stage_exit(self, key: str, status: int) -> None:
        prefix, slash, stage = key.partition("/")
        with self._lock:
            hosted = next((one for one in self._hosted.values() if one.prefix == prefix + slash), None)
            if hosted is None or stage not in hosted.stages:
                return
            hosted.stages.discard(stage)
        hosted.node.ended(stage)
        self._tell_end(hosted, stage, status)

    def _tell_end(self, hosted: _Hosted, stage: str, status: int) -> None:
        try:
            self.gateway.send(hosted.head, f"{hosted.name}/head", Ended(stage, status))
        except ChannelError as error:
            self._log("end of a stage not told", stage=stage, reason=str(error))

    def on_seed_exit(self, key: str, status: int) -> None:
        """React to the end of a model's zygote: its stages have ended with it, and are reported by the kernel."""
        self._log("model zygote ended", key=key, status=status)
        with self._lock:
            ended = {engine: model for engine, model in self._models.items() if model.key == key}
            for engine in ended:
                del self._models[engine]
        for model in ended.values():
            model.zygote.close()

    def _on_lost(self, host: str, reason: str) -> None:
        """Give the pipelines of a head that is gone some time, then end them; tell the others that a node is gone."""
        self._exchange.calls.fail(host, reason)
        with self._lock:
            concerned = [one for one in self._hosted.values() if host in one.hosts and one.head != host]
        for one in concerned:
            try:
                self.gateway.send(one.head, f"{one.name}/head", Lost(self._name, host, reason))
            except ChannelError as error:
                self._log("loss not told", head=one.head, host=host, reason=str(error))
        with self._lock:
            self._gone[host] = reason
            headless = [hosted for hosted in self._hosted.values() if hosted.head == host]
        for one in headless:
            self._let_lapse(one, reason)

    def _let_lapse(self, hosted: _Hosted, reason: str) -> None:
        """End a pipeline unless its head is heard of in time."""
        with self._lock:
            if hosted.lapse is not None or self._hosted.get(hosted.name) is not hosted:
                return
            hosted.lapse = threading.Timer(self._lease_s, self._lapse, (hosted, time.monotonic(), reason))
            hosted.lapse.daemon = True
            hosted.lapse.start()

    def _keep(self, hosted: _Hosted) -> None:
        with self._lock:
            timer, hosted.lapse = hosted.lapse, None
        if timer is not None:
            timer.cancel()

    def _lapse(self, hosted: _Hosted, since: float, reason: str) -> None:
        with self._lock:
            hosted.lapse = None
            stages = sorted(hosted.stages)
        if self.gateway.heard_at(hosted.name) > since:
            return  # only one way was lost, and not the one that its batches take
        self._close(hosted, f"{reason}, and was not heard of for {self._lease_s:g} s")
        for stage in stages:  # should it be there after all
            self._tell_end(hosted, stage, -signal.SIGKILL)

    def _close(self, hosted: _Hosted, reason: str) -> None:
        """End a pipeline's stages and erase its KV; its model stays warm."""
        with self._lock:
            if self._hosted.get(hosted.name) is not hosted:
                return
            del self._hosted[hosted.name]
            copies = list(hosted.copies.values())
        self._keep(hosted)
        for sender in copies:
            sender.stop()
        hosted.orders.shutdown(wait=False, cancel_futures=True)
        hosted.node.close()  # from here on it starts no stage
        with self._lock:
            stages, hosted.stages = hosted.stages, set()
            model = self._models.get(hosted.model)
            if model is not None:
                model.users.discard(hosted.name)
                model.used_at = time.monotonic()
        for stage in stages:
            hosted.node.kill(stage)
            hosted.node.ended(stage)
        shutil.rmtree(hosted.folder, ignore_errors=True)
        self._log("pipeline closed", pipeline=hosted.name, head=hosted.head, reason=reason)


def _refuse(reason: str) -> object:
    raise NodeError(reason)


def _convert(value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise NodeError(f"malformed {getattr(kind, '__name__', kind)}: {error}") from error


def _text(arguments: dict[str, Any], name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str):
        raise NodeError(f"{name} must be text, not {value!r}")
    return value


def _copy_name(hosted: _Hosted, arguments: dict[str, Any]) -> str:
    """Read the name of a copy, which begins with that of its pipeline: others have copies here too."""
    copy = _text(arguments, "copy")
    if not copy.startswith(f"{hosted.name}."):
        raise NodeError(f"copy {copy!r} is none of pipeline {hosted.name}")
    return copy


def _pace(arguments: dict[str, Any]) -> float | None:
    """Read how many bytes per second a copy may send; None for no limit."""
    pace: float | None = _convert(arguments.get("bytes_per_second"), float | None)
    if pace is not None and not 0 < pace < math.inf:
        raise NodeError(f"a copy cannot be made at {pace} bytes per second")
    return pace


def _layers(hosted: _Hosted, arguments: dict[str, Any]) -> list[int]:
    layers: list[int] = _convert(arguments.get("layers"), list[int])
    total = hosted.node.pool.shape.layers
    if any(not 0 <= layer < total for layer in layers):
        raise NodeError(f"layers {layers} are not all among the {total} of this pipeline")
    return layers


def _private_bytes(pid: int) -> int:
    """Return the memory that only this process has: the weights of a zygote's model."""
    usage: int = psutil.Process(pid).memory_full_info().uss
    return usage
