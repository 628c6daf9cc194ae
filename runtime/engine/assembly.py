"""From processes to a chain: stages are started, made ready, given their roles and routes, and tried out.

A stage is *prepared* (it has its weights) and *bound* (it has the KV pool) before it can be *connected*: then it knows
its role in an epoch and the stage after it. A chain is tried out from end to end with a batch of nothing.
"""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from runtime.engine.dispatcher import Chain
from runtime.engine.errors import StageError
from runtime.engine.role import Role
from runtime.engine.stage_process import PoolBinding, RouteOrder
from runtime.transport.channel import ChannelError
from runtime.transport.frames import PROBE
from runtime.warm.node import NodeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.engine.dispatcher import Dispatcher
    from runtime.engine.fleet import Fleet, Stage
    from runtime.engine.nodes import Nodes
    from runtime.layout import Layout

_PREPARE_TIMEOUT_S = 600.0
_CALL_TIMEOUT_S = 60.0


@dataclass(slots=True)
class Assembly:
    """A layout and the stages that make it, in order."""

    layout: Layout
    stages: list[Stage]
    chain: Chain | None = None
    kept: set[str] = field(default_factory=set)


def role_of(layout: Layout, rank: int) -> tuple[object, ...]:
    """What must be equal for a stage process to serve in another layout: layers, node, precision, and being an end."""
    placement = layout.stages[rank]
    return placement, layout.precision, rank == 0, rank == len(layout) - 1


class Assembler:
    """Makes stages ready and joins them. Thread-safe as far as its callers do not work on the same stage.

    Args:
        fleet: has the processes.
        nodes: start them.
        dispatcher: knows the usual size of a batch, for rehearsals.
        threads: compute threads of each stage.
        max_requests: the most that run at once.

    """

    def __init__(self, fleet: Fleet, nodes: Nodes, dispatcher: Dispatcher, threads: int, max_requests: int) -> None:
        self._fleet, self._nodes, self._dispatcher = fleet, nodes, dispatcher
        self._threads, self._max_requests = threads, max_requests
        self.binding: PoolBinding | None = None  # the shape of the KV pools, once it is known
        self._epochs = 0
        self._probes: dict[int, tuple[tuple[str, ...], Future[None]]] = {}  # by epoch: the stages, and when it passed

    def start(self, layout: Layout, rank: int) -> Stage:
        """Start the process of a stage of `layout`; raises StageError."""
        return self._fork(layout.stages[rank].node, layout.precision, Role(rank, layout.counts))

    def start_spare(self, node: str, precision: str) -> Stage:
        """Start a stage that can take any role, and make it ready; raises StageError."""
        stage = self._fork(node, precision, None)
        try:
            self.make_ready(stage)
        except StageError:
            self._fleet.kill(stage)
            raise
        return stage

    def make_ready(self, stage: Stage) -> None:
        """Prepare and bind one stage; raises StageError."""
        self.prepare([stage])
        self.bind([stage])

    def _fork(self, node: str, precision: str, role: Role | None) -> Stage:
        try:
            return self._fleet.start(self._nodes.get(node), precision, self._threads, role)
        except NodeError as error:
            raise StageError(str(error)) from error

    def prepare(self, stages: Sequence[Stage]) -> list[dict[str, Any]]:
        """Have stages load what they need, side by side; returns what each has to say. Raises StageError."""
        clock = time.perf_counter()
        futures = [self._fleet.call_async(stage, "prepare") for stage in stages]
        answers = []
        for stage, future in zip(stages, futures, strict=True):
            ready = self._fleet.answer(future, _PREPARE_TIMEOUT_S, stage, "prepare")
            stage.memory_bytes, stage.any_role = ready["memory_bytes"], ready["any_role"]
            stage.prepare_ms = {**ready["timings_ms"], "until_loaded": round(1e3 * (time.perf_counter() - clock), 1)}
            answers.append(ready)
        return answers

    def bind(self, stages: Sequence[Stage]) -> None:
        """Give stages the KV pool of their node; raises StageError."""
        clock = time.perf_counter()
        arguments = {
            **msgspec.to_builtins(self.binding),
            "batch_tokens": self._dispatcher.usual_tokens(self._max_requests),
        }
        futures = [self._fleet.call_async(stage, "bind", **arguments) for stage in stages]
        for stage, future in zip(stages, futures, strict=True):
            self._fleet.answer(future, _PREPARE_TIMEOUT_S, stage, "bind")
            stage.prepare_ms["bind"] = round(1e3 * (time.perf_counter() - clock), 1)

    def connect(self, layout: Layout, stages: Sequence[Stage], *, probe: bool = True) -> Chain:
        """Give the stages their roles and routes for a fresh epoch, and send a probe through all of them.

        Raises:
            StageError: one of them does not answer, or the probe does not come through.

        """
        self._epochs += 1
        epoch = self._epochs
        addresses = [stage.address for stage in stages[1:]] + [self._fleet.head]
        batch_tokens = self._dispatcher.usual_tokens(self._max_requests)
        futures = []
        for rank, (stage, address) in enumerate(zip(stages, addresses, strict=True)):
            order = RouteOrder(epoch, Role(rank, layout.counts), address, batch_tokens)
            futures.append(self._fleet.call_async(stage, "route", **msgspec.to_builtins(order)))
        for stage, future in zip(stages, futures, strict=True):
            self._fleet.answer(future, _CALL_TIMEOUT_S, stage, "route")
        chain = Chain(epoch, tuple(stage.name for stage in stages), tuple(stage.outbox for stage in stages))
        if probe:
            self._probe(chain)
        return chain

    def _probe(self, chain: Chain) -> None:
        """Check the chain from end to end with a batch of nothing; this also opens every connection on the way."""
        passed: Future[None] = Future()
        self._probes[chain.epoch] = chain.stages, passed
        try:
            chain.send(PROBE, [])
            passed.result(_CALL_TIMEOUT_S)
        except TimeoutError as error:
            raise StageError(f"a probe did not pass through {' -> '.join(chain.stages)}") from error
        except ChannelError as error:
            raise StageError(f"a probe could not be sent: {error}") from error
        finally:
            del self._probes[chain.epoch]

    def probe_passed(self, epoch: int) -> None:
        """A batch of nothing has come through the chain of `epoch`."""
        _, passed = self._probes.get(epoch, (None, None))
        if passed is not None:
            with contextlib.suppress(InvalidStateError):  # a stage on its way was lost at this very moment
                passed.set_result(None)

    def fail_probes(self, name: str | None, reason: str) -> None:
        """End the wait for probes that pass through a stage, or all of them."""
        for stages, passed in list(self._probes.values()):
            if name is None or name in stages:
                with contextlib.suppress(InvalidStateError):  # it has just passed
                    passed.set_exception(StageError(reason))

    def unroute(self, stages: Sequence[Stage], epoch: int | None) -> None:
        """Have stages forget their role in an epoch (None: in all of them); raises StageError."""
        for stage in stages:
            self._fleet.call(stage, "unroute", _CALL_TIMEOUT_S, epoch=epoch)
