"""What serves now, what is about to, and what goes with it: spare stages, weights, and room for KV.

An `Assembly` serves, from the start on; a second one, the *target*, is there while a change is prepared. Whoever
changes, mends, wakes or ends stages (`runtime.engine.changing`, `runtime.engine.mending`) puts another assembly in
place as a whole, and has kept here what hangs on it.

Read by all threads, written by one at a time: no change is under way while a recovery or a sleep has stages replaced
(`Coordinator.stopped`, `Coordinator.hold`).

Caveat: asleep, the assembly that serves has a layout and neither stages nor a chain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.engine.assembly import Assembler, Assembly
from runtime.engine.spares import SpareStages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.engine.dispatcher import Dispatcher
    from runtime.engine.fleet import Fleet
    from runtime.engine.nodes import Nodes
    from runtime.layout import Layout
    from runtime.migration.journal import Journal


class Serving:
    """See the module.

    Args:
        layout: what is to serve first.
        fleet: has the processes, and the weights of this host.
        nodes: have the KV.
        dispatcher: knows which epoch takes batches.
        assembler: starts spare stages.
        journal: is told what happens.
        spare_stages: how many each node keeps ready; None for one more than it has serving.

    """

    def __init__(
        self,
        layout: Layout,
        fleet: Fleet,
        nodes: Nodes,
        dispatcher: Dispatcher,
        assembler: Assembler,
        journal: Journal,
        spare_stages: int | None,
    ) -> None:
        self._fleet, self._nodes, self._dispatcher = fleet, nodes, dispatcher
        self._assembler, self._journal, self._spare_stages = assembler, journal, spare_stages
        self.assembly = Assembly(layout, [])
        self.target: Assembly | None = None
        self.spares = SpareStages(fleet, assembler.start_spare, journal, self._let_go_of_weights)

    def now(self) -> Layout | None:
        """Return the layout of the chain that takes batches; None while it is being replaced, or sleeps."""
        epoch = self._dispatcher.epoch
        for assembly in (self.target, self.assembly):
            if assembly is not None and assembly.chain is not None and assembly.chain.epoch == epoch:
                return assembly.layout
        return None

    def is_whole(self) -> bool:
        """Whether no serving stage is gone."""
        return all(self._fleet.alive(stage) for stage in self.assembly.stages)

    def keep_spares(self, rest_s: float = 0.0) -> None:
        """Keep enough spare stages on each node for the next change: those it has now and one more, if not told."""
        layout, stages = self.assembly.layout, self.assembly.stages
        if not stages:
            return  # asleep
        # A stage that loads its own layers cannot wait for a role.
        nodes = [placement.node for placement in layout.stages if all(stage.any_role for stage in stages)]
        wanted = {node: nodes.count(node) + 1 if self._spare_stages is None else self._spare_stages for node in nodes}
        self.spares.keep(wanted, layout.precision, rest_s)

    def _let_go_of_weights(self) -> None:
        """Give up weights in a precision that neither serves nor is about to."""
        if self._fleet.weights is not None:
            for precision in self._fleet.weights.keep(self._wanted_precisions):
                self._journal.tell("pipeline", "weights given up", precision=precision)

    def _wanted_precisions(self) -> set[str]:
        target = self.target
        return {self.assembly.layout.precision, *((target.layout.precision,) if target else ())}

    def reserve(self, *layouts: Layout) -> None:
        """Make room on all nodes for the KV of any of `layouts`; raises ChangeRefused."""
        if self._assembler.binding is not None:
            self._nodes.reserve(self._assembler.binding.shape, layouts)

    def tell_left_over(self, problems: Sequence[str]) -> None:
        """Tell what could not be erased, or given back."""
        for problem in problems:
            self._journal.tell("pipeline", "left over", problem=problem)
