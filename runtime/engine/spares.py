"""Stages that are ready before anybody knows what for: forked, bound to their node's KV pool, warmed up, idle.

A change that finds its new stages here is a matter of routes and the flip. What a change lets go comes back here, so
a pipeline that goes back and forth starts no process at all. A node has at least as many as it was asked to keep, and
at most twice as many; missing ones are started one after the other, in the background, after a change. All have
the precision that serves: those of another one go.
"""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from runtime.engine.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from runtime.engine.fleet import Fleet, Stage
    from runtime.migration.journal import Journal


class SpareStages:
    """The spare stages of all nodes. Thread-safe.

    Args:
        fleet: owns the processes.
        start: starts, prepares and binds a stage without a role on a node, in a precision; raises StageError.
        journal: is told when a spare cannot be started.
        on_surplus_gone: called whenever spares that are not wanted any more have been let go.

    """

    def __init__(
        self,
        fleet: Fleet,
        start: Callable[[str, str], Stage],
        journal: Journal,
        on_surplus_gone: Callable[[], None],
    ) -> None:
        self._fleet, self._start, self._journal, self._on_surplus_gone = fleet, start, journal, on_surplus_gone
        self._lock = threading.Lock()
        self._ready: list[Stage] = []
        self._wanted: dict[str, int] = {}
        self._precision = ""
        self._refill = ThreadPoolExecutor(1, "spare-stages")
        self._closing = threading.Event()

    def take(self, node: str, precision: str) -> Stage | None:
        """Take a ready spare of `node`, if there is one: the one that served last, which has met most."""
        with self._lock:
            for stage in reversed(self._ready):
                if (stage.node, stage.precision) == (node, precision) and self._fleet.alive(stage):
                    self._ready.remove(stage)
                    return stage
        return None

    def put(self, stage: Stage) -> None:
        """Keep a stage that serves no epoch any more."""
        with self._lock:
            self._ready.append(stage)

    def count(self, node: str, precision: str) -> int:
        """Return how many spares of `node` are ready."""
        with self._lock:
            return sum((stage.node, stage.precision) == (node, precision) for stage in self._ready)

    def lost(self, name: str) -> bool:
        """Forget a spare whose process ended; False when it was none."""
        with self._lock:
            for stage in self._ready:
                if stage.name == name:
                    self._ready.remove(stage)
                    return True
        return False

    def keep(self, wanted: Mapping[str, int], precision: str, rest_s: float = 0.0) -> None:
        """Have at least so many spares on each node from now on, and at most twice as many. Does not wait.

        Begins after `rest_s` seconds: whoever streams has just had a change, and a fork takes its moment as well.
        """
        with self._lock:
            self._wanted, self._precision = dict(wanted), precision
        # Nothing is refilled once the pipeline is closing.
        with contextlib.suppress(RuntimeError):
            self._refill.submit(self._adjust, rest_s)

    def leave_all_but(self, nodes: Collection[str]) -> None:
        """Have no spares but on these nodes, from now on: the others may not be used any more."""
        with self._lock:
            self._wanted = {node: number for node, number in self._wanted.items() if node in nodes}
            gone = [stage for stage in self._ready if stage.node not in nodes]
            self._ready = [stage for stage in self._ready if stage.node in nodes]
        for stage in gone:
            self._fleet.kill(stage)

    def close(self) -> None:
        """Start no further spare."""
        self._closing.set()
        self._refill.shutdown(wait=False, cancel_futures=True)

    def _adjust(self, rest_s: float) -> None:
        self._closing.wait(rest_s)
        for stage in self._surplus():
            self._fleet.release(stage)
        self._on_surplus_gone()
        try:
            while not self._closing.is_set() and (node := self._missing()) is not None:
                stage = self._start(node, self._precision)
                with self._lock:
                    wanted = node in self._wanted
                    if wanted:
                        self._ready.append(stage)
                if not wanted:
                    self._fleet.kill(stage)
        except StageError as error:
            # Not tried again before the next change, which does without: it starts the stages that it needs.
            self._journal.tell("pipeline", "no spare stage", reason=str(error))

    def _surplus(self) -> list[Stage]:
        with self._lock:
            self._ready = [stage for stage in self._ready if self._fleet.alive(stage)]
            kept: dict[str, int] = {}
            surplus = []
            for stage in self._ready:
                if stage.precision != self._precision:
                    surplus.append(stage)
                    continue
                kept[stage.node] = kept.get(stage.node, 0) + 1
                if kept[stage.node] > 2 * self._wanted.get(stage.node, 0):
                    surplus.append(stage)
            self._ready = [stage for stage in self._ready if stage not in surplus]
            return surplus

    def _missing(self) -> str | None:
        with self._lock:
            ready = [stage.node for stage in self._ready if stage.precision == self._precision]
            return next((node for node, number in self._wanted.items() if ready.count(node) < number), None)
