"""How long a pipeline outlives its head: a lease that begins when the host of the head is lost, and ends with an order.

::

    host lost ----> the leases of its pipelines begin ----> lease_s without an order for one: that pipeline is closed
                    an order for one ends its lease

Any order of a lost host says that it is there again, but keeps only the pipeline that it is for: a head that comes back
as somebody else does not keep what it forgot. A head may have nothing to say while only the way back to it was
lost: a batch for one of the stages since then is a sign of life, too.

The lock of the table guards both what hosts are gone and what leases run. Timers end pipelines without it.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.migration.kv_transfer import KVExchange
    from runtime.warm.hosted_pipeline import HostedPipeline
    from runtime.warm.pipeline_table import PipelineTable


class HeadLeases:
    """See the module. Thread-safe.

    Args:
        table: the pipelines.
        lease_s: how long they outlive their head.
        exchange: has heard what came for their stages.
        close: ends a pipeline and takes the reason; called from other threads.

    """

    def __init__(
        self, table: PipelineTable, lease_s: float, exchange: KVExchange, close: Callable[[HostedPipeline, str], None]
    ) -> None:
        self._table, self._lease_s, self._exchange, self._close = table, lease_s, exchange, close
        self._lock = table.lock
        self._gone: dict[str, str] = {}  # hosts that are lost and gave no order since, with the reason
        self._running: dict[HostedPipeline, threading.Timer] = {}

    def host_lost(self, host: str, reason: str) -> None:
        """Begin the leases of the pipelines whose head was there."""
        with self._lock:
            self._gone[host] = reason
            headless = [hosted for hosted in self._table.all() if hosted.head == host]
        for hosted in headless:
            self.begin(hosted, reason)

    def host_heard(self, host: str) -> None:
        """Take note that a host is there: what it opens or resumes from now on is not headless."""
        with self._lock:
            self._gone.pop(host, None)

    def begin(self, hosted: HostedPipeline, reason: str) -> None:
        """End a pipeline unless its head is heard of in time."""
        with self._lock:
            if hosted in self._running or hosted.closed:
                return
            timer = threading.Timer(self._lease_s, self._lapse, (hosted, time.monotonic(), reason))
            self._running[hosted] = timer
            timer.daemon = True
            timer.start()

    def begin_if_gone(self, hosted: HostedPipeline) -> None:
        """Begin the lease of a pipeline whose head was lost while it was opened or resumed."""
        with self._lock:
            reason = self._gone.get(hosted.head)
            if reason is not None:
                self.begin(hosted, reason)

    def end(self, hosted: HostedPipeline) -> None:
        """End the lease of a pipeline: its head was heard of, or there is nothing left to lapse."""
        with self._lock:
            timer = self._running.pop(hosted, None)
        if timer is not None:
            timer.cancel()

    def _lapse(self, hosted: HostedPipeline, since: float, reason: str) -> None:
        with self._lock:
            self._running.pop(hosted, None)
            stages = sorted(hosted.stages)
        if self._exchange.gateway.heard_at(hosted.name) > since:
            return  # only one way was lost, and not the one that its batches take
        self._close(hosted, f"{reason}, and was not heard of for {self._lease_s:g} s")
        for stage in stages:  # should it be there after all
            hosted.tell_end(stage, -signal.SIGKILL)
