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

All of it but the stages survives this process for a while, and is adopted by the next one
(`runtime.warm.adoption`). ``resume`` is what a head asks for that has lost this node and reaches it again in time,
whether this process is another one or only the link was away.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import secrets
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
from runtime.warm.adoption import PoolRecord, WarmModel
from runtime.warm.kv_pool import KVPoolShape
from runtime.warm.model_fetch import ModelFetch, ModelOrder
from runtime.warm.node import LocalNode, NodeError, OnlyZygote

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.migration.kv_transfer import KVSender
    from runtime.transport.frames import Buffer, Frame
    from runtime.transport.identity import Enrolment, Identity, Peer
    from runtime.warm.adoption import LeftPool, WarmState
    from runtime.warm.model_store import ModelStore

PRELOAD_S = 600.0
_ORDERS_AT_ONCE = 4
_END_STAGES_S = 5.0
_CHANGE_KV = frozenset({"copy_blocks", "give_back", "scrub"})
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
        name = hashlib.blake2b(self.engine, digest_size=32)
        name.update(self.model.files.identity().encode() if self.model else b"")
        return name.digest()


class ResumeOrder(OpenOrder, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Arguments of ``resume``: those of ``open`` then, the pool's shape, and the layers whose KV is still wanted."""

    shape: KVPoolShape
    layers: list[int]


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
    life: int = 0  # counts how often it was resumed: orders of an earlier life are not obeyed any more
    at_kv: threading.Lock = field(default_factory=threading.Lock)  # held while an order changes the KV
    orders: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_ORDERS_AT_ONCE, "orders"))


class NodeDaemon:
    """See the module. Thread-safe.

    Args:
        identity, enrolment: who this node is, and whom it knows.
        listen: ``host:port``.
        warm: what is warm already, and keeps what becomes so.
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
        warm: WarmState,
        memory_bytes: int | None,
        lease_s: float,
        log: Callable[..., None],
        bulk_bytes_per_second: float | None = None,
        models: ModelStore | None = None,
    ) -> None:
        self._name = identity.name
        self._warm, self._memory_bytes, self._lease_s, self._log = warm, memory_bytes, lease_s, log
        self._enrolment = enrolment
        self._boot = secrets.token_hex(8)
        self._lock = threading.RLock()
        self._stage_ended = threading.Condition(self._lock)
        self._hosted: dict[str, _Hosted] = {}
        self._models = dict(warm.models)  # by the name of their weights
        self._gone: dict[str, str] = {}  # hosts that are lost and gave no order since, with the reason
        self._closing = False
        self._promising = threading.Lock()  # what is promised to one must not be promised to another meanwhile
        self._exchange = KVExchange(identity.name)
        self._count = warm.last_number
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
        self._resumers = ThreadPoolExecutor(1, "resume")  # which nobody should have to wait for
        for left in warm.pools:
            self._take_over(left)
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
        warm.on_seed_child_exit, warm.on_stage_exit = self._on_model_exit, self._on_stage_exit
        self._fetch = ModelFetch(models, self.gateway, self._exchange.calls) if models is not None else None
        with self._lock:
            left_alone = list(self._hosted.values())
        for hosted in left_alone:
            if hosted.life == 0:  # its head may have been quicker
                self._let_lapse(hosted, "this node runtime was started again")

    def _take_over(self, left: LeftPool) -> None:
        """Host a pipeline whose KV the last node runtime has left, until its head or its lease says otherwise."""
        record = left.record
        model = self._models[record.model]
        with self._lock:
            model.users.add(left.pipeline)
        pool = left.descriptor, record.shape
        hosted = self._settle(left.pipeline, record.head, frozenset(record.hosts), record.model, model, pool)
        hosted.kv_bytes = record.kv_bytes

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
        for threads in (self._openers, self._resumers):
            threads.shutdown(wait=False, cancel_futures=True)
        self.gateway.close()
        with self._lock:
            models, self._models = list(self._models.values()), {}
        self._warm.close(models)
        self._sockets.remove()

    def leave(self) -> None:
        """Let go of the other hosts, and leave what is warm to the next node runtime."""
        with self._lock:
            self._closing = True
        for threads in (self._openers, self._resumers):
            threads.shutdown(wait=False, cancel_futures=True)
        self.gateway.close()
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

        if frame.method in {"open", "resume"}:
            threads, begin = (self._openers, self._open) if frame.method == "open" else (self._resumers, self._resume)
            with contextlib.suppress(RuntimeError):  # closed meanwhile
                threads.submit(answered, lambda: begin(peer.name, arguments))
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
        life = hosted.life
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            hosted.orders.submit(answered, lambda: self._obey(hosted, life, frame.method, arguments))

    def _obey(self, hosted: _Hosted, life: int, method: str, arguments: dict[str, Any]) -> object:
        """Do what an order says, unless its head has lost and resumed this pipeline since."""
        with hosted.at_kv if method in _CHANGE_KV else contextlib.nullcontext():
            if hosted.life != life:
                raise NodeError(f"pipeline {hosted.name} was resumed since {method!r} was ordered")
            done = self._orders[method](hosted, arguments)
        if method == "start" and hosted.life != life:
            self._kill(hosted, arguments)
        return done

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
        return {**model.facts, "was_warm": was_warm, "memory_bytes": model.memory_bytes, "boot": self._boot}

    def _host(self, order: OpenOrder, head: str, model: WarmModel) -> _Hosted:
        """Make a place for a pipeline whose model is warm."""
        return self._settle(order.pipeline, head, frozenset({head, *order.hosts}), order.key, model)

    def _settle(
        self,
        pipeline: str,
        head: str,
        hosts: frozenset[str],
        weights: bytes,
        model: WarmModel,
        left: tuple[int, KVPoolShape] | None = None,
    ) -> _Hosted:
        """Make a place for a pipeline, empty or with the pool that it has left."""
        self._count += 1
        prefix = f"{pipeline}.{self._count}/"
        folder = str(Path(self._folder) / pipeline)
        home = Neighbourhood(self._name, pipeline, folder, self._folder, hosts)
        with self._lock:
            if self._closing:
                raise NodeError(f"node {self._name} is ending")
            Path(folder).mkdir(mode=0o700)
            node = LocalNode(self._name, OnlyZygote(model.zygote), home, self._exchange, prefix, left)
            hosted = _Hosted(pipeline, head, hosts, weights, node, folder, prefix)
            self._hosted[pipeline] = hosted
        return hosted

    def _resume(self, head: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Let a head that had lost this node go on with the KV that is here; its stages are gone afterwards.

        When what is here is not what the head means, or its stages do not end, it is told why: nothing was resumed.
        """
        try:
            return self._resumed(head, _convert(arguments, ResumeOrder))
        except NodeError as error:
            self._log("not resumed", head=head, reason=str(error))
            return {"refused": str(error)}

    def _resumed(self, head: str, order: ResumeOrder) -> dict[str, Any]:
        hosted = self._hosted.get(order.pipeline)
        if hosted is None or hosted.head != head:
            raise NodeError(f"node {self._name} has nothing left of pipeline {order.pipeline!r}")
        if hosted.hosts != frozenset({head, *order.hosts}) or hosted.model != order.key:
            raise NodeError(
                f"what node {self._name} has of pipeline {order.pipeline!r} is of another model or on others"
            )
        with self._lock:
            model = self._models.get(order.key)
        if model is None or not model.zygote.alive:
            raise NodeError(f"the weights of pipeline {order.pipeline!r} are gone on node {self._name}")
        if hosted.node.pool.shape != order.shape:
            raise NodeError(f"the KV of pipeline {order.pipeline!r} on node {self._name} has another shape")
        total = order.shape.layers
        if any(not 0 <= layer < total for layer in order.layers):
            raise NodeError(f"layers {order.layers} are not all among the {total} of this pipeline")
        started = time.perf_counter()
        with hosted.at_kv:
            hosted.life += 1
        self._keep(hosted)
        for host in hosted.hosts - {self._name}:
            self.gateway.reach(host)
        for copy in list(hosted.copies):
            hosted.copies.pop(copy).stop()
        hosted.node.forget_copies()
        self._end_stages(hosted)
        hosted.node.scrub(sorted(set(range(total)) - set(order.layers)))
        tokens = int(hosted.node.pool.watermark.sum())
        with self._lock:
            if self._hosted.get(order.pipeline) is not hosted:
                raise NodeError(f"pipeline {order.pipeline!r} was closed meanwhile on node {self._name}")
            gone = self._gone.get(head)
        ms = round(1e3 * (time.perf_counter() - started), 1)
        self._log("pipeline resumed", pipeline=order.pipeline, head=head, tokens=tokens, ms=ms)
        if gone is not None:
            self._let_lapse(hosted, gone)
        return {"boot": self._boot, "kept_tokens": tokens, "refused": None}

    def _end_stages(self, hosted: _Hosted) -> None:
        """End the stages of a pipeline and wait until they are gone: what they could write is what there is."""
        with self._lock:
            stages = list(hosted.stages)
        for stage in stages:
            hosted.node.kill(stage)
        with self._stage_ended:
            if not self._stage_ended.wait_for(lambda: hosted.stages.isdisjoint(stages), _END_STAGES_S):
                raise NodeError(f"stages {sorted(hosted.stages)} of pipeline {hosted.name} do not end")

    def _load(self, order: OpenOrder, head: str) -> WarmModel:
        """Get the model's files and fork a zygote that loads them."""
        self._count += 1
        key = f"model-{self._count}"
        folder: Path | None = None
        if order.model is not None and self._fetch is not None:
            folder, fetched = self._fetch.folder(head, order.model, key)
            self._log("model files ready", model=order.model.files.name, folder=folder, fetched_bytes=fetched)
        payload = msgspec.msgpack.encode(ModelPayload(order.engine, str(folder) if folder else None))
        zygote = self._warm.load(key, payload)
        try:
            facts = zygote.wait_ready(PRELOAD_S)
            model = WarmModel(key, zygote, facts, _private_bytes(zygote.pid))
            model.users.add(order.pipeline)
            with self._promising:
                with self._lock:
                    self._models[order.key] = model
                self._make_room()
            self._warm.keep_model(order.key, model)
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
            self._keep_kv(hosted, order.shape)
        except Exception:
            with self._lock:
                hosted.kv_bytes = before
            raise

    def _keep_kv(self, hosted: _Hosted, shape: KVPoolShape) -> None:
        """Have the KV of a pipeline survive this process, as its head's and nobody else's."""
        head = self._enrolment.peers().get(hosted.head)
        if head is None:
            raise NodeError(f"{hosted.head} is not enrolled any more")
        hosts = tuple(sorted(hosted.hosts))
        record = PoolRecord(hosted.head, head.fingerprint, hosts, hosted.model, shape, hosted.kv_bytes)
        with self._lock:
            if self._hosted.get(hosted.name) is hosted:
                self._warm.keep_pool(hosted.name, record, hosted.node.descriptor())

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
        unneeded: list[WarmModel] = []
        with self._lock:
            idle = sorted((model.used_at, engine) for engine, model in self._models.items() if not model.users)
            for _, engine in idle:
                if self._used_bytes() <= self._memory_bytes:
                    break
                unneeded.append(self._models.pop(engine))
            missing = self._used_bytes() - self._memory_bytes
        for model in unneeded:  # without the lock: the ends of its stages may still have to be heard of
            self._warm.end_model(model)
            self._log("model let go", key=model.name, memory_bytes=model.memory_bytes)
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
            self._stage_ended.notify_all()
        hosted.node.ended(stage)
        self._tell_end(hosted, stage, status)

    def _tell_end(self, hosted: _Hosted, stage: str, status: int) -> None:
        try:
            self.gateway.send(hosted.head, f"{hosted.name}/head", Ended(stage, status))
        except ChannelError as error:
            self._log("end of a stage not told", stage=stage, reason=str(error))

    def _on_model_exit(self, key: str, status: int) -> None:
        """React to the end of a model's zygote: its stages have ended with it, and are reported by the kernel."""
        self._log("model zygote ended", key=key, status=status)
        with self._lock:
            ended = {engine: model for engine, model in self._models.items() if model.name == key}
            for engine in ended:
                del self._models[engine]
        for model in ended.values():
            self._warm.end_model(model)

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
        self._warm.drop_pool(hosted.name)
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
