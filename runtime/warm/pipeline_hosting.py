"""How pipelines come to be hosted on this machine, get room for their KV, and go.

::

    open      the model is loaded unless it is warm; the pipeline gets an empty place
    reserve   room for its KV, which survives this process from then on
    resume    its head had lost this node: what is here stays, but for stages and layers that are not wanted
    adopt     its KV was left by the last node runtime: it is here until its head or its lease says otherwise
    close     stages end, its KV is erased; its model stays warm

A resumption is refused unless everything that the head means is what is here. The stages are gone before it is
answered: no process of the old life writes KV that the new one reads.

Locks: `open` and `adopt` are called by one thread at a time, `resume` by one, the rest by any. The lock of the table
decides who closes a pipeline, and whether its KV is still to be kept. Models are loaded, hosts asked and processes
ended without it.
"""

from __future__ import annotations

import secrets
import shutil
import time
from typing import TYPE_CHECKING, Any

from runtime.warm.adoption import PoolRecord
from runtime.warm.node import NodeError
from runtime.warm.order_arguments import OpenOrder, ReserveOrder, ResumeOrder, check_layers, convert

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.migration.kv_transfer import KVExchange
    from runtime.transport.identity import Enrolment
    from runtime.warm.adoption import LeftPool, WarmState
    from runtime.warm.head_leases import HeadLeases
    from runtime.warm.hosted_pipeline import HostedPipeline
    from runtime.warm.kv_pool import KVPoolShape
    from runtime.warm.pipeline_table import PipelineTable
    from runtime.warm.warm_models import WarmModels


class PipelineHosting:
    """See the module.

    Args:
        table: the pipelines.
        models: the models that they use.
        leases: how long they outlive their heads.
        warm: keeps their KV.
        enrolment: whom this node knows.
        exchange: the way to other hosts.
        log: takes (event, details...).

    """

    def __init__(
        self,
        table: PipelineTable,
        models: WarmModels,
        leases: HeadLeases,
        warm: WarmState,
        enrolment: Enrolment,
        exchange: KVExchange,
        log: Callable[..., None],
    ) -> None:
        self._table, self._models, self._leases = table, models, leases
        self._warm, self._enrolment, self._exchange, self._log = warm, enrolment, exchange, log
        self._node, self._lock = table.node, table.lock
        self._boot = secrets.token_hex(8)  # tells heads which life of this node runtime it is

    def open(self, head: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Host a pipeline, anew if it was open: load its model unless it is warm."""
        order: OpenOrder = convert(arguments, OpenOrder)
        before = self._table.get(order.pipeline)
        if before is not None:
            if before.head != head:
                raise NodeError(f"pipeline {order.pipeline!r} belongs to {before.head}")
            self.close(before, "its head opens it anew")
        hosts = frozenset({head, *order.hosts})
        for host in hosts - {self._node}:
            self._exchange.gateway.greet(host)
        model = self._models.use(order.key, order.pipeline)
        was_warm = model is not None
        if model is None:
            model = self._models.load(order, head)
        try:
            hosted = self._table.settle(order.pipeline, head, hosts, order.key, model.zygote)
        except Exception:
            with self._lock:
                model.users.discard(order.pipeline)
            raise
        self._log("pipeline opened", pipeline=order.pipeline, head=head, warm=was_warm)
        self._leases.begin_if_gone(hosted)
        return {**model.facts, "was_warm": was_warm, "memory_bytes": model.memory_bytes, "boot": self._boot}

    def adopt(self, left: LeftPool) -> None:
        """Host a pipeline whose KV the last node runtime has left, until its head or its lease says otherwise."""
        record = left.record
        model = self._models.adopted(record.model, left.pipeline)
        pool = left.descriptor, record.shape
        hosts = frozenset(record.hosts)
        hosted = self._table.settle(left.pipeline, record.head, hosts, record.model, model.zygote, pool)
        hosted.kv_bytes = record.kv_bytes

    # -- resuming ------------------------------------------------------------------------------------------------------

    def resume(self, head: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Let a head that had lost this node go on with the KV that is here; its stages are gone afterwards.

        When what is here is not what the head means, or its stages do not end, it is told why: nothing was resumed.
        """
        try:
            return self._resumed(head, convert(arguments, ResumeOrder))
        except NodeError as error:
            self._log("not resumed", head=head, reason=str(error))
            return {"refused": str(error)}

    def _resumed(self, head: str, order: ResumeOrder) -> dict[str, Any]:
        hosted = self._meant(head, order)
        started = time.perf_counter()
        with hosted.at_kv:
            hosted.life += 1
        self._leases.end(hosted)
        for host in hosted.hosts - {self._node}:
            self._exchange.gateway.reach(host)
        hosted.drop_copies()
        hosted.end_stages()
        hosted.node.scrub(sorted(set(range(order.shape.layers)) - set(order.layers)))
        tokens = int(hosted.node.pool.watermark.sum())
        with self._lock:
            if hosted.closed:
                raise NodeError(f"pipeline {order.pipeline!r} was closed meanwhile on node {self._node}")
        ms = round(1e3 * (time.perf_counter() - started), 1)
        self._log("pipeline resumed", pipeline=order.pipeline, head=head, tokens=tokens, ms=ms)
        self._leases.begin_if_gone(hosted)
        return {"boot": self._boot, "kept_tokens": tokens, "refused": None}

    def _meant(self, head: str, order: ResumeOrder) -> HostedPipeline:
        """Find the pipeline that a head wants to resume; raises NodeError unless it is what the head takes it for."""
        hosted = self._table.get(order.pipeline)
        if hosted is None or hosted.head != head:
            raise NodeError(f"node {self._node} has nothing left of pipeline {order.pipeline!r}")
        if hosted.hosts != frozenset({head, *order.hosts}) or hosted.weights != order.key:
            raise NodeError(
                f"what node {self._node} has of pipeline {order.pipeline!r} is of another model or on others"
            )
        model = self._models.get(order.key)
        if model is None or not model.zygote.alive:
            raise NodeError(f"the weights of pipeline {order.pipeline!r} are gone on node {self._node}")
        if hosted.node.pool.shape != order.shape:
            raise NodeError(f"the KV of pipeline {order.pipeline!r} on node {self._node} has another shape")
        check_layers(order.layers, order.shape.layers)
        return hosted

    # -- room for KV ---------------------------------------------------------------------------------------------------

    def reserve(self, hosted: HostedPipeline, order: ReserveOrder) -> None:
        """Make the pool of a pipeline, and room for some of its layers. Raises NodeError when there is none."""
        if not 0 <= order.layers <= order.shape.layers:
            raise NodeError(f"room for {order.layers} of {order.shape.layers} layers cannot be made")
        before = hosted.kv_bytes
        try:
            with self._models.promising:
                hosted.kv_bytes = order.layers * order.shape.layer_stride
                self._models.make_room()
            hosted.node.reserve(order.shape, order.layers)
            self._keep_kv(hosted, order.shape)
        except Exception:
            with self._lock:
                hosted.kv_bytes = before
            raise

    def _keep_kv(self, hosted: HostedPipeline, shape: KVPoolShape) -> None:
        """Have the KV of a pipeline survive this process, as its head's and nobody else's."""
        head = self._enrolment.peers().get(hosted.head)
        if head is None:
            raise NodeError(f"{hosted.head} is not enrolled any more")
        hosts = tuple(sorted(hosted.hosts))
        record = PoolRecord(hosted.head, head.fingerprint, hosts, hosted.weights, shape, hosted.kv_bytes)
        with self._lock:
            if not hosted.closed:
                self._warm.keep_pool(hosted.name, record, hosted.node.descriptor())

    # -- ends ----------------------------------------------------------------------------------------------------------

    def close(self, hosted: HostedPipeline, reason: str) -> None:
        """End a pipeline's stages and erase its KV; its model stays warm."""
        with self._lock:
            if not self._table.remove(hosted):
                return
            copies = list(hosted.copies.values())
        self._leases.end(hosted)
        for sender in copies:
            sender.stop()
        hosted.orders.shutdown(wait=False, cancel_futures=True)
        self._warm.drop_pool(hosted.name)
        hosted.node.close()  # from here on it starts no stage
        with self._lock:
            stages, hosted.stages = hosted.stages, set()
            self._models.done(hosted.weights, hosted.name)
        for stage in stages:
            hosted.node.kill(stage)
            hosted.node.ended(stage)
        shutil.rmtree(hosted.folder, ignore_errors=True)
        self._log("pipeline closed", pipeline=hosted.name, head=hosted.head, reason=reason)
