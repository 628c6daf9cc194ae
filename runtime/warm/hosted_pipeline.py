"""One pipeline on this machine: its stages, its KV, the copies that it sends, and the way to its head.

A pipeline is placed here by a `PipelineTable`, and is there until it is `closed`. Its head may lose this node and
resume the pipeline; that begins another `life` of it, and orders of an earlier one are not obeyed any more.

Locks:

* ``lock`` is that of the table, one for the whole node runtime. It guards ``closed``, ``stages`` and, except while
  memory is promised, ``kv_bytes``. A copy is entered under it too, and the pipeline closed: so either whoever closes it
  sees the copy, or whoever begins the copy sees that it is closed. Nobody waits for another host, or for the end of a
  process, while holding it.
* ``at_kv`` is held while an order changes the KV, and while ``life`` is counted up. Who needs both takes it first.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runtime.transport.channel import ChannelError
from runtime.transport.frames import Ended, Lost
from runtime.warm.node import NodeError
from runtime.warm.order_arguments import is_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.migration.kv_transfer import KVExchange, KVSender
    from runtime.warm.node import LocalNode
    from runtime.warm.order_arguments import StartOrder

_ORDERS_AT_ONCE = 4
_END_STAGES_S = 5.0


@dataclass(slots=True, eq=False)
class HostedPipeline:
    """See the module.

    Args:
        name, head, hosts: of the pipeline; `hosts` are all that have a part in it.
        weights: the name of its model's weights.
        node: what is kept for it.
        folder: where the sockets of its stages are.
        prefix: of its stages' names in the zygote.
        lock: of the table.
        exchange: the way to its head.
        log: takes (event, details...).

    """

    name: str
    head: str
    hosts: frozenset[str]
    weights: bytes
    node: LocalNode
    folder: str
    prefix: str
    lock: threading.RLock
    exchange: KVExchange
    log: Callable[..., None]
    closed: bool = False
    stages: set[str] = field(default_factory=set)
    kv_bytes: int = 0
    copies: dict[str, KVSender] = field(default_factory=dict)
    life: int = 0
    at_kv: threading.Lock = field(default_factory=threading.Lock)
    orders: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_ORDERS_AT_ONCE, "orders"))
    _stage_ended: threading.Condition = field(init=False)

    def __post_init__(self) -> None:
        """Make what waits under the table's lock."""
        self._stage_ended = threading.Condition(self.lock)

    def facts(self) -> dict[str, Any]:
        """Return what is here, as plain data."""
        with self.lock:
            return {"head": self.head, "stages": sorted(self.stages), "kv_bytes": self.kv_bytes}

    # -- stages --------------------------------------------------------------------------------------------------------

    def start(self, order: StartOrder) -> int:
        """Fork a stage process and return its pid."""
        if not is_name(order.stage):
            raise NodeError(f"{order.stage!r} is no name for a stage")
        with self.lock:
            if order.stage in self.stages:
                raise NodeError(f"{order.stage} runs already")
            self.stages.add(order.stage)
        try:
            return self.node.start(order.stage, order.orders)
        except Exception:
            with self.lock:
                self.stages.discard(order.stage)
            raise

    def stage_exited(self, stage: str, status: int) -> None:
        """Clean up after a stage process and tell the head; those of a closed pipeline are nobody's business."""
        with self.lock:
            if self.closed or stage not in self.stages:
                return
            self.stages.discard(stage)
            self._stage_ended.notify_all()
        self.node.ended(stage)
        self.tell_end(stage, status)

    def end_stages(self) -> None:
        """End the stages and wait until they are gone: what they could write is what there is. Raises NodeError."""
        with self.lock:
            stages = list(self.stages)
        for stage in stages:
            self.node.kill(stage)
        with self._stage_ended:
            if not self._stage_ended.wait_for(lambda: self.stages.isdisjoint(stages), _END_STAGES_S):
                raise NodeError(f"stages {sorted(self.stages)} of pipeline {self.name} do not end")

    # -- copies that it sends ------------------------------------------------------------------------------------------

    def begin_copy(self, copy: str, host: str, layers: Sequence[int]) -> None:
        """Begin to copy layers to another host."""
        sender = self.node.send_to(host, copy, layers)
        with self.lock:
            self.copies[copy] = sender
            closed = self.closed
        if closed:
            sender.stop()

    def copy(self, copy: str) -> KVSender:
        """Return a copy that was begun; raises NodeError."""
        if copy not in self.copies:
            raise NodeError(f"no copy {copy!r} was begun")
        return self.copies[copy]

    def end_copy(self, copy: str) -> None:
        """End a copy; nothing happens if it has ended."""
        sender = self.copies.pop(copy, None)
        if sender is not None:
            sender.end()

    def drop_copies(self) -> None:
        """Stop all copies, those that come from other hosts as well."""
        for copy in list(self.copies):
            sender = self.copies.pop(copy, None)
            if sender is not None:  # else it has ended just now
                sender.stop()
        self.node.forget_copies()

    # -- what its head hears -------------------------------------------------------------------------------------------

    def tell_end(self, stage: str, status: int) -> None:
        """Tell the head that a stage has ended."""
        try:
            self.exchange.gateway.send(self.head, f"{self.name}/head", Ended(stage, status))
        except ChannelError as error:
            self.log("end of a stage not told", stage=stage, reason=str(error))

    def tell_loss(self, host: str, reason: str) -> None:
        """Tell the head that this node has lost another host."""
        try:
            self.exchange.gateway.send(self.head, f"{self.name}/head", Lost(self.node.name, host, reason))
        except ChannelError as error:
            self.log("loss not told", head=self.head, host=host, reason=str(error))
