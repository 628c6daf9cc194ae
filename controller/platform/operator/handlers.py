"""How kopf's events become looks at pipelines.

For each pipeline there is one daemon of kopf: a loop that looks, tells, and waits until it is time to look again or
something about the pipeline has changed. Looks at one pipeline so never overlap, an operator that starts looks at all
of them, and a replica that pauses (kopf's peering decides which one works) stops its loops. Deletion is a handler of
its own behind a finalizer, since a pipeline can be deleted while no operator runs.

Looks block, and run on threads. What they tell becomes Events here, in kopf's own loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

import kopf

from controller.platform.operator import plan
from controller.platform.operator.apply import NODE, PIPELINE, POD, ClusterError
from controller.platform.operator.ending import end
from controller.platform.operator.facts import DATA_PORT_LABEL, NODE_LABEL, PIPELINE_LABEL
from controller.platform.operator.reconcile import Look, Reconciler
from controller.platform.operator.status import terminating

if TYPE_CHECKING:
    from controller.platform.operator.apply import Cluster
    from controller.platform.operator.trust import Trust

_LOG = logging.getLogger("midstream.operator")
_GROUP, _VERSION = PIPELINE.api_version.split("/")
_END_POLL_S = 2.0
_STOP_S = 60.0  # longer than any look takes: one that was cut off would go on, on its thread


class Handlers:
    """What the operator does about which object.

    Args:
        cluster: the namespace.
        trust: who is enrolled at whom.
        image: of everything that is started.

    """

    def __init__(self, cluster: Cluster, trust: Trust, image: str) -> None:
        self._cluster = cluster
        self._trust = trust
        self._reconciler = Reconciler(cluster, trust, image)
        self._wakers: dict[str, asyncio.Event] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    def register(self, registry: kopf.OperatorRegistry) -> None:
        """Tell kopf."""
        pipelines: dict[str, Any] = {"group": _GROUP, "version": _VERSION, "plural": PIPELINE.plural}
        kopf.daemon(**pipelines, registry=registry, id="look", cancellation_backoff=_STOP_S)(self.keep_looking)
        kopf.on.event(**pipelines, registry=registry, id="wake")(self.wake)
        kopf.on.delete(**pipelines, registry=registry, id="end")(self.end)
        on_pod = kopf.on.event("", "v1", POD.plural, registry=registry, id="pod", labels={DATA_PORT_LABEL: "true"})
        on_pod(self.see_pod)
        on_node = kopf.on.event("", "v1", NODE.plural, registry=registry, id="node", labels={NODE_LABEL: "true"})
        on_node(self.see_node)

    async def keep_looking(self, name: str, body: kopf.Body, stopped: kopf.DaemonStopped, **_: Any) -> None:
        """Look at one pipeline until it is deleted or this replica stops."""
        waker = self._wakers.setdefault(name, asyncio.Event())
        failures = 0
        while not stopped:
            waker.clear()
            look = await self._look(name, failures)
            failures = failures + 1 if look.away else 0
            for note in look.notes:
                kind = "Warning" if note.warning else "Normal"
                kopf.event(body, type=kind, reason=note.reason, message=note.message)
            await _first(stopped.wait(), waker.wait(), timeout=look.retry_s)

    async def wake(self, name: str, type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002 - kopf's name
        """Look again at a pipeline that has changed, unless it was the operator who changed it."""
        if type == "DELETED":
            self._wakers.pop(name, None)
            self._locks.pop(name, None)
        told = (body.get("status") or {}).get("observedGeneration")
        if name in self._wakers and told != body["metadata"].get("generation"):
            self._wakers[name].set()

    async def end(self, name: str, body: kopf.Body, **_: Any) -> None:
        """Take a pipeline apart; kopf lets the object go when this returns."""
        # A look that has begun before is not to make again what this deletes.
        async with self._lock(name):
            plain = {**body, "metadata": dict(body["metadata"])}
            try:
                waits_for = await asyncio.to_thread(end, self._cluster, self._trust, plain)
                message = f"waiting for {waits_for}" if waits_for else "everything is gone"
                status = terminating(plain.get("status") or {}, body["metadata"]["generation"], message, time.time())
                await asyncio.to_thread(self._reconciler.write_status, plain, status)
            except ClusterError as error:
                raise kopf.TemporaryError(str(error), delay=_END_POLL_S) from error
        if waits_for:
            raise kopf.TemporaryError(message, delay=_END_POLL_S)
        kopf.event(body, type="Normal", reason="Ended", message="the pipeline has ended")

    async def see_pod(self, labels: kopf.Labels, **_: Any) -> None:
        """Write down where a pod is now, and look at its pipeline again."""
        if waker := self._wakers.get(labels.get(PIPELINE_LABEL, "")):
            waker.set()
        else:
            await self._sync_trust()

    async def see_node(self, **_: Any) -> None:
        """Give a node that was opted in its identity."""
        await self._sync_trust()

    async def _look(self, name: str, failures: int) -> Look:
        try:
            async with self._lock(name):
                return await asyncio.to_thread(self._reconciler.look, name, failures)
        except ClusterError as error:
            _LOG.warning("%s: %s", name, error)
            return Look(plan.back_off(failures), away=True)

    async def _sync_trust(self) -> None:
        try:
            await asyncio.to_thread(self._trust.sync)
        except ClusterError as error:
            _LOG.warning("peers are not up to date: %s", error)  # the next look tries again

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())


async def _first(*things: Any, timeout: float) -> None:  # noqa: ASYNC109 - of several at once
    """Wait for the first of several things, no longer than `timeout` seconds."""
    tasks = [asyncio.ensure_future(thing) for thing in things]
    try:
        await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
