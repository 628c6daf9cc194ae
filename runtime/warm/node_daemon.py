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

This module takes orders and losses in and hands them on; the rest is where it belongs: what is hosted
(`runtime.warm.pipeline_table`, `hosted_pipeline`), how it comes and goes (`pipeline_hosting`), what may be ordered for
it (`pipeline_orders`, `order_arguments`), the weights and the memory (`warm_models`), and how long a pipeline waits for
its head (`head_leases`). Which lock guards what is said there: there is one for all tables, that of the pipelines.

All of it but the stages survives this process for a while, and is adopted by the next one
(`runtime.warm.adoption`). ``resume`` is what a head asks for that has lost this node and reaches it again in time,
whether this process is another one or only the link was away.
"""

from __future__ import annotations

import contextlib
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from runtime.migration.kv_transfer import KVExchange, answer, read_arguments
from runtime.transport.frames import Call, FrameError
from runtime.transport.gateway import Gateway
from runtime.transport.socket_folder import SocketFolder
from runtime.warm.head_leases import HeadLeases
from runtime.warm.node import NodeError
from runtime.warm.order_arguments import is_name
from runtime.warm.pipeline_hosting import PipelineHosting
from runtime.warm.pipeline_orders import PipelineOrders
from runtime.warm.pipeline_table import PipelineTable
from runtime.warm.warm_models import WarmModels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.transport.frames import Buffer, Frame
    from runtime.transport.identity import Enrolment, Identity, Peer
    from runtime.warm.adoption import WarmState
    from runtime.warm.hosted_pipeline import HostedPipeline
    from runtime.warm.model_store import ModelStore


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
        self._exchange = exchange = KVExchange(identity.name)
        self._sockets = SocketFolder("node-")
        self._folder = str(self._sockets.path)
        numbers = itertools.count(warm.last_number + 1)
        self._table = table = PipelineTable(identity.name, self._folder, exchange, numbers, log)
        self._models = WarmModels(warm, table, memory_bytes, models, exchange, numbers, log)
        self._leases = HeadLeases(table, lease_s, exchange, self._close_pipeline)
        self._hosting = PipelineHosting(table, self._models, self._leases, warm, enrolment, exchange, log)
        self._orders = PipelineOrders(self._hosting)
        self._openers = ThreadPoolExecutor(1, "open")  # one model is loaded at a time
        self._resumers = ThreadPoolExecutor(1, "resume")  # which nobody should have to wait for
        for left in warm.pools:
            self._hosting.adopt(left)
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
                on_bulk_lost=exchange.calls.fail,
            )
        except Exception:
            self._sockets.remove()
            raise
        exchange.gateway = self.gateway
        warm.on_seed_child_exit, warm.on_stage_exit = self._models.on_exit, table.on_stage_exit
        for hosted in table.all():
            if hosted.life == 0:  # its head may have been quicker
                self._leases.begin(hosted, "this node runtime was started again")

    @property
    def address(self) -> str:
        """Where this node listens: ``host:port``."""
        return self.gateway.address

    def pipelines(self) -> dict[str, dict[str, Any]]:
        """Return what this node hosts, as plain data."""
        with self._table.lock:
            return {hosted.name: hosted.facts() for hosted in self._table.all()}

    def close(self) -> None:
        """End everything and leave nothing behind."""
        for hosted in self._table.shut():
            self._hosting.close(hosted, "the node runtime ends")
        self._open_no_more()
        self.gateway.close()
        self._models.close()
        self._sockets.remove()

    def leave(self) -> None:
        """Let go of the other hosts, and leave what is warm to the next node runtime."""
        self._table.shut()
        self._open_no_more()
        self.gateway.close()
        self._sockets.remove()

    def _close_pipeline(self, hosted: HostedPipeline, reason: str) -> None:
        self._hosting.close(hosted, reason)  # which is made after the leases

    def _open_no_more(self) -> None:
        for threads in (self._openers, self._resumers):
            threads.shutdown(wait=False, cancel_futures=True)

    def _on_frame(self, peer: Peer, frame: Frame, buffers: Sequence[Buffer]) -> None:
        """Take a frame for the node runtime, on the thread of the link it came on; FrameError cuts the peer off."""
        if self._exchange.on_frame(peer.name, frame, buffers):
            return
        if not isinstance(frame, Call):
            raise FrameError(f"a node runtime does not take {type(frame).__name__}")
        if not peer.controls:
            raise FrameError(f"{peer.name} may not control this node; enrol it with --controls if it should")
        self._leases.host_heard(peer.name)
        arguments = read_arguments(frame, buffers[0])
        pipeline = arguments.get("pipeline")
        if not isinstance(pipeline, str) or not is_name(pipeline):
            raise FrameError(f"{pipeline!r} is no name for a pipeline")

        def answered(work: Callable[[], object]) -> None:
            answer(self.gateway, self._name, peer.name, f"{pipeline}/head", frame, work)

        if frame.method in {"open", "resume"}:
            hosting = self._hosting
            threads, begin = (
                (self._openers, hosting.open) if frame.method == "open" else (self._resumers, hosting.resume)
            )
            with contextlib.suppress(RuntimeError):  # closed meanwhile
                threads.submit(answered, lambda: begin(peer.name, arguments))
            return
        hosted = self._table.get(pipeline)
        if hosted is None or hosted.head != peer.name:
            answered(lambda: _refuse(f"{peer.name} has no pipeline {pipeline!r} here"))
            return
        if frame.method not in self._orders:
            raise FrameError(f"unknown order {frame.method!r}")
        self._leases.end(hosted)
        self._orders.take(hosted, frame.method, arguments, answered)

    def _on_lost(self, host: str, reason: str) -> None:
        """Give the pipelines of a head that is gone some time, then end them; tell the others that a node is gone."""
        self._exchange.calls.fail(host, reason)
        for hosted in self._table.all():
            if host in hosted.hosts and hosted.head != host:
                hosted.tell_loss(host, reason)
        self._leases.host_lost(host, reason)


def _refuse(reason: str) -> object:
    raise NodeError(reason)
