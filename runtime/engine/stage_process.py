"""One stage as a process: an inbox, a worker, and a way on to the next stage.

The loop is sequential on purpose: control calls and batches are handled one at a time, so a batch sees the routes and
requests that the messages before it set up. A stage serves every epoch it has a route for, which lets it belong to the
old and the new chain while a change is under way, and rejects every other (invariant I1).

The head sends a batch to all stages at once. A stage prepares it (requests, block tables, attention metadata) and only
then waits for the hidden states of the stage before it, which computes meanwhile. All stages get the batches in one
order, so no two can wait for each other; a wait ends when the epoch is taken away (`unroute`).

A stage that inherited the whole model from the zygote can take any role, a new one with every epoch: it is prepared
before anybody knows what for, waits as a spare, and goes back to being one.

A stage is prepared on a thread that runs only when a core is idle: loading weights must not take the processor from
the stages that are serving. The thread that computes keeps its normal priority.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import torch
import zmq
from vllm.platforms import current_platform

from runtime.engine.compute_threads import ComputeThreads
from runtime.engine.errors import StageError
from runtime.engine.kv_spec import encode_specs
from runtime.engine.messages import BatchOutput, decode_batch, encode
from runtime.engine.role import Role
from runtime.transport.address import Address, Neighbourhood
from runtime.transport.channel import Inbox, Outbox
from runtime.transport.frames import (
    PROBE,
    Batch,
    Call,
    FrameError,
    Hidden,
    Rejected,
    Reply,
    Result,
    StageSpan,
    TensorMeta,
    unpack,
)
from runtime.transport.priority import in_background
from runtime.warm.kv_pool import KVPool, KVPoolShape
from runtime.warm.memory import anonymous_bytes
from runtime.warm.node import StagePayload

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from vllm.config import VllmConfig

    from runtime.engine.stage_worker import StageWorker
    from runtime.engine.warm_model import WarmModel
    from runtime.transport.frames import Buffer, Frame

_T = TypeVar("_T")

_set_num_threads = torch.set_num_threads  # vLLM's processor worker replaces it by one that does nothing
_HEARD_WHILE_WAITING = frozenset({"route", "unroute", "release"})


class StageStart(msgspec.Struct, frozen=True):
    """What a stage process is told when it is forked.

    `role`: what to load where no model can be inherited; None for a stage that will be told with each epoch.
    """

    name: str
    head: Address
    threads: int
    role: Role | None = None


class PoolBinding(msgspec.Struct, frozen=True):
    """Argument of the ``bind`` call: the shape of the node's KV pool and vLLM's name for its inner layout.

    `batch_tokens`: the size of the batches to expect, in tokens.
    """

    layers: int
    blocks: int
    block_tokens: int
    layer_bytes: int
    layout_name: str
    batch_tokens: int = 1

    @property
    def shape(self) -> KVPoolShape:
        """The pool's dimensions."""
        return KVPoolShape(self.layers, self.blocks, self.block_tokens, self.layer_bytes)


def run_stage(payload: bytes, descriptors: Sequence[int], vllm_config: VllmConfig, warm_model: WarmModel) -> None:
    """Be a stage until the head says otherwise or goes away. `descriptors` holds the KV pool's memory file."""
    given = msgspec.msgpack.decode(payload, type=StagePayload)
    start = msgspec.msgpack.decode(given.orders, type=StageStart)
    if start.threads:
        # The number of threads belongs to the thread that starts them: this one computes.
        _set_num_threads(start.threads)
    StageProcess(start, given.home, descriptors[0], vllm_config, warm_model).serve()


class RouteOrder(msgspec.Struct, frozen=True):
    """Argument of the ``route`` call. `batch_tokens`: the size of the batches to expect, in tokens."""

    epoch: int
    role: Role
    next: Address
    batch_tokens: int


@dataclass(frozen=True, slots=True)
class _Route:
    """How this stage serves one epoch: in which role, and who gets what it computes."""

    role: Role
    next: Address
    outbox: Outbox


class _AbandonedError(Exception):
    """The epoch of the batch that is being computed was taken away."""


class StageProcess:
    """The loop around a `StageWorker`."""

    def __init__(
        self,
        start: StageStart,
        home: Neighbourhood,
        pool_descriptor: int,
        vllm_config: VllmConfig,
        warm_model: WarmModel,
    ) -> None:
        self._start, self._home = start, home
        self._pool_descriptor = pool_descriptor
        self._vllm_config = vllm_config
        self._warm_model = warm_model
        self._context = zmq.Context()
        self._inbox = Inbox(self._context, home.inbox(start.name))
        self._head = home.outbox(self._context, start.head)
        self._routes: dict[int, _Route] = {}  # by epoch
        self._outboxes: dict[Address, Outbox] = {start.head: self._head}
        self._waiting: deque[tuple[Frame, Sequence[Buffer]]] = deque()  # came while a batch was being computed
        self._hidden: dict[tuple[int, int], tuple[Hidden, Sequence[Buffer]]] = {}  # by epoch and sequence
        self._worker: StageWorker | None = None
        self._cores = os.sched_getaffinity(0)
        self._compute_threads: ComputeThreads | None = None
        self._running = True
        self._calls: dict[str, Callable[[Any], object]] = {
            "prepare": self._prepare,
            "bind": self._bind,
            "route": self._route,
            "map_kv": self._map_kv,
            "unroute": self._unroute,
            "release": self._release,
            "worker": self._call_worker,
        }

    def serve(self) -> None:
        """Handle messages until released."""
        while self._running:
            received = self._waiting.popleft() if self._waiting else self._receive()
            if received is None:
                return
            frame, buffers = received
            if isinstance(frame, Batch):
                self._compute(frame, buffers)
            elif isinstance(frame, Hidden):
                self._keep_hidden(frame, buffers)
            elif isinstance(frame, Call):
                self._answer(frame, buffers[0])
        self._context.destroy(linger=1000)

    def _receive(self) -> tuple[Frame, Sequence[Buffer]] | None:
        """Return the next frame that is for stages, or None when the context was closed."""
        while (parts := self._inbox.receive()) is not None:
            try:
                frame, buffers = unpack(parts)
            except FrameError as error:
                self._head.send(Rejected(self._start.name, -1, -1, str(error)))
                continue
            if isinstance(frame, Batch | Hidden | Call):
                return frame, buffers
            self._head.send(Rejected(self._start.name, -1, -1, f"a stage does not take {type(frame).__name__}"))
        return None

    # -- batches ---------------------------------------------------------------------------------------------------

    def _compute(self, frame: Batch, buffers: Sequence[Buffer]) -> None:
        route = self._route_of(frame)
        if route is None:
            return
        if frame.buffers == 0:
            if route.role.is_first:
                self._pass_probe(frame.epoch, route)
            return
        start_ns = time.monotonic_ns()
        spans: tuple[StageSpan, ...] = ()

        def fetch() -> dict[str, torch.Tensor]:
            nonlocal start_ns, spans
            hidden, hidden_buffers = self._await_hidden(frame.epoch, frame.sequence)
            start_ns, spans = time.monotonic_ns(), hidden.spans
            return _to_tensors(hidden.tensors, hidden_buffers)

        try:
            output = self._ready_worker().compute(route.role, decode_batch(buffers), fetch)
        except _AbandonedError:
            return
        except Exception as error:  # noqa: BLE001 - any failure of this batch is the head's to decide about
            traceback.print_exc()
            self._reject(frame, f"{type(error).__name__}: {error}")
            return
        spans = (*spans, StageSpan(self._start.name, start_ns, time.monotonic_ns()))
        if isinstance(output, BatchOutput):
            encoded = encode(output)
            route.outbox.send(Result(frame.epoch, frame.sequence, len(encoded), spans), encoded)
        else:
            metas, raw = _to_buffers(output)
            route.outbox.send(Hidden(frame.epoch, frame.sequence, metas, spans), raw)

    def _route_of(self, frame: Batch | Hidden) -> _Route | None:
        """Return the route of a frame's epoch; without one, reject the frame (I1)."""
        route = self._routes.get(frame.epoch)
        if route is None:
            served = sorted(self._routes)
            reason = f"epoch {frame.epoch} is not served by stage {self._start.name}, which serves {served}"
            self._reject(frame, reason)
        return route

    def _reject(self, frame: Batch | Hidden, reason: str) -> None:
        self._head.send(Rejected(self._start.name, frame.epoch, frame.sequence, reason))

    def _keep_hidden(self, frame: Hidden, buffers: Sequence[Buffer]) -> None:
        """Keep hidden states until their batch asks for them; a probe goes on at once, whatever is being computed."""
        route = self._route_of(frame)
        if route is None:
            return
        if frame.sequence == PROBE:
            self._pass_probe(frame.epoch, route)
        else:
            self._hidden[frame.epoch, frame.sequence] = frame, buffers

    def _await_hidden(self, epoch: int, sequence: int) -> tuple[Hidden, Sequence[Buffer]]:
        """Wait for the hidden states of a batch; what else comes waits, but for the calls that may end the wait."""
        while (arrived := self._hidden.pop((epoch, sequence), None)) is None:
            received = self._receive()
            if received is None:
                raise _AbandonedError
            frame, buffers = received
            if isinstance(frame, Hidden):
                self._keep_hidden(frame, buffers)
            elif isinstance(frame, Call) and frame.method in _HEARD_WHILE_WAITING:
                self._answer(frame, buffers[0])
                if epoch not in self._routes or not self._running:
                    raise _AbandonedError
            else:
                self._waiting.append((frame, buffers))
        return arrived

    @staticmethod
    def _pass_probe(epoch: int, route: _Route) -> None:
        route.outbox.send(Result(epoch, PROBE, 0) if route.role.is_last else Hidden(epoch, PROBE))

    # -- control ---------------------------------------------------------------------------------------------------

    def _answer(self, call: Call, arguments: Buffer) -> None:
        try:
            method = self._calls.get(call.method)
            if method is None:
                raise StageError(f"unknown call {call.method!r}")
            result = msgspec.msgpack.encode(method(msgspec.msgpack.decode(arguments)))
        except Exception as error:  # noqa: BLE001 - every failure of a call is told to the caller
            traceback.print_exc()
            self._head.send(Reply(self._start.name, call.call, f"{type(error).__name__}: {error}", 0))
            return
        self._head.send(Reply(self._start.name, call.call), [result])

    def _prepare(self, _: object) -> dict[str, Any]:
        """Take over or load layers; returns timings in ms, bytes of memory, the KV cache spec, and what it can be."""
        timings: dict[str, float] = {}
        before = anonymous_bytes()
        self._worker = worker = _in_background(
            lambda: _load_worker(self._start, self._vllm_config, self._warm_model, timings), 1, self._cores
        )
        return {
            "timings_ms": timings,
            "memory_bytes": anonymous_bytes() - before,
            "any_role": worker.inherited,
            "kv_specs": encode_specs(worker.get_kv_cache_spec()),
            "kv_layouts": worker.get_supported_kv_cache_layouts(),
        }

    def _bind(self, arguments: dict[str, Any]) -> None:
        """View the KV pool and rehearse, through all layers this stage has."""
        binding = msgspec.convert(arguments, PoolBinding)
        worker = self._ready_worker()

        def bind() -> None:
            worker.bind_kv(KVPool(self._pool_descriptor, binding.shape), binding.layout_name)
            worker.compile_or_warm_up_model()
            for tokens in sorted({1, binding.batch_tokens}):
                worker.rehearse(tokens)

        _in_background(bind, torch.get_num_threads(), self._cores)
        if current_platform.is_cpu():
            self._compute_threads = ComputeThreads()

    def _route(self, arguments: dict[str, Any]) -> None:
        """Serve `epoch` in a role: send what this stage computes to `next`."""
        route = msgspec.convert(arguments, RouteOrder)
        worker = self._ready_worker()
        if not self._routes:
            # Nobody waits for this stage yet: it can meet the memory that others have filled, and their batches.
            worker.take_role(route.role)

            def meet() -> None:
                worker.map_kv()
                worker.rehearse(route.batch_tokens)

            # With the threads that real batches use: kernels are prepared for a size and a number of threads.
            _in_background(meet, torch.get_num_threads(), self._cores)
            if self._compute_threads is not None:
                self._compute_threads.spread(route.role.rank)
        if route.next not in self._outboxes:
            self._outboxes[route.next] = self._home.outbox(self._context, route.next)
        self._routes[route.epoch] = _Route(route.role, route.next, self._outboxes[route.next])

    def _map_kv(self, _: object) -> None:
        """Map what was copied into the pool since the last route was set, before anybody waits for this stage."""
        _in_background(self._ready_worker().map_kv, 1, self._cores)

    def _unroute(self, arguments: dict[str, Any]) -> None:
        """Stop serving `epoch`, or every one if it is None: its frames are rejected from now on.

        A stage without any epoch is a spare.
        """
        epoch = arguments["epoch"]
        ending = [number for number in self._routes if epoch in (None, number)]
        for number in ending:
            to = self._routes.pop(number).next
            if to != self._start.head and all(to != other.next for other in self._routes.values()):
                self._outboxes.pop(to).close()
        self._hidden = {key: value for key, value in self._hidden.items() if key[0] in self._routes}
        if ending and not self._routes:
            self._ready_worker().forget_requests()

    def _release(self, _: object) -> None:
        """End the process after this call is answered."""
        self._running = False

    def _call_worker(self, arguments: dict[str, Any]) -> object:
        """Call a method of vLLM's worker whose arguments and result are plain data."""
        return getattr(self._ready_worker(), arguments["method"])(*arguments["args"], **arguments["kwargs"])

    def _ready_worker(self) -> StageWorker:
        if self._worker is None:
            raise StageError(f"stage {self._start.name} is not prepared yet")
        return self._worker


def _in_background(work: Callable[[], _T], threads: int, cores: Collection[int]) -> _T:
    """Run `work` on a thread that only gets one of `cores` when nobody else wants it, and wait for it."""

    def settle() -> None:
        # Any other policy, even the lowest priority, may finish its time slice before a woken stage gets its core.
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
        os.sched_setaffinity(0, cores)  # not where the computing thread is bound
        _set_num_threads(threads)

    return in_background(work, settle)


def _load_worker(
    start: StageStart, config: VllmConfig, warm_model: WarmModel, timings: dict[str, float]
) -> StageWorker:
    """Construct the worker and take over or load its layers; `timings` gets each part in ms."""
    clock = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        timings[name] = round(1e3 * (now - clock), 1)
        clock = now

    from vllm.config import set_current_vllm_config
    from vllm.utils.network_utils import get_file_store_init_method
    from vllm.utils.system_utils import set_process_title

    from runtime.engine.stage_worker import StageWorker

    set_process_title(start.name)
    # An inherited model is whole, and becomes a part of it when a role is taken.
    loaded = start.role
    if warm_model.inheritable or loaded is None:
        loaded = Role.whole(config.model_config.get_total_num_hidden_layers())
    os.environ["VLLM_PP_LAYER_PARTITION"] = ",".join(map(str, loaded.layer_counts))
    parallel = config.parallel_config
    parallel.pipeline_parallel_size = parallel.world_size = loaded.size
    with set_current_vllm_config(config):
        worker = StageWorker(
            vllm_config=config,
            local_rank=0,
            rank=0,
            distributed_init_method=get_file_store_init_method(),
            is_driver_worker=True,
        )
        worker.role = loaded
        worker.warm_model = warm_model
        worker.met_sizes = {}
        lap("construct")
        worker.init_device()
        lap("init_device")
        worker.load_model()
        lap("load_model")
    return worker


def _to_tensors(metas: Sequence[TensorMeta], buffers: Sequence[Buffer]) -> dict[str, torch.Tensor]:
    """Read hidden states; raises StageError when a buffer is not what its description says."""
    tensors = {}
    for meta, buffer in zip(metas, buffers, strict=True):
        dtype = getattr(torch, meta.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise StageError(f"tensor {meta.name!r} has unknown type {meta.dtype!r}")
        expected = dtype.itemsize
        for size in meta.shape:
            expected *= size
        if any(size < 0 for size in meta.shape) or expected != len(buffer):
            raise StageError(f"tensor {meta.name!r} of {meta.dtype}{list(meta.shape)} came with {len(buffer)} bytes")
        # bytearray: torch wants memory that it may write to; hidden states are small.
        tensors[meta.name] = torch.frombuffer(bytearray(buffer), dtype=dtype).view(meta.shape)
    return tensors


def _to_buffers(tensors: dict[str, torch.Tensor]) -> tuple[tuple[TensorMeta, ...], list[Buffer]]:
    """Give hidden states as descriptions and raw host memory (which numpy keeps alive until it is sent)."""
    metas: list[TensorMeta] = []
    buffers: list[Buffer] = []
    for name, tensor in tensors.items():
        host = tensor.detach().to("cpu").contiguous()
        metas.append(TensorMeta(name, str(host.dtype).removeprefix("torch."), tuple(host.shape)))
        buffers.append(memoryview(host.view(-1).view(torch.uint8).numpy()))
    return tuple(metas), buffers
