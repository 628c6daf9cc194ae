"""How stages come to serve without a change: those that were lost are replaced, those that slept brought back.

Both begin with the question where the layers go, since nodes may be gone, or forbidden, by now (`Nodes.placed`)::

    the layout as it was, and no KV gone --> other stages take the roles of those that are missing
    another layout, or KV gone           --> layers re-placed: what the new stages lack of KV is computed again

Stages that are left are asked to forget all their roles first: they may wait for one that is gone. When to mend is
decided elsewhere (`runtime.engine.recovery`, `runtime.engine.sleep`); no change is under way meanwhile.

Caveats: a node that comes back without its KV counts as another layout. Where no node may serve, placing waits without
end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.engine.assembly import Assembler, Assembly
from runtime.engine.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from runtime.engine.depth import Depth
    from runtime.engine.dispatcher import Dispatcher
    from runtime.engine.fleet import Fleet, Stage
    from runtime.engine.nodes import Nodes
    from runtime.engine.serving import Serving
    from runtime.layout import Layout
    from runtime.migration.journal import Journal

_REST_S = 1.0  # between mending and what would disturb the streams again


class Mender:
    """Replaces stages, ends them and brings them back. One of these at a time.

    Args:
        serving: what serves; gets the new stages.
        depth: the batches in flight, which follow the layout.
        fleet: has the processes.
        nodes: say where layers can go, and have the KV.
        dispatcher: replays what is in flight.
        assembler: starts and joins stages.
        journal: is told what happens.
        max_batch_tokens: the most tokens in a batch that computes KV again.
        recover_if_lost: has serving stages replaced that are gone, for a reason.
        on_placed: called when it is known where layers may go.

    """

    def __init__(
        self,
        serving: Serving,
        depth: Depth,
        fleet: Fleet,
        nodes: Nodes,
        dispatcher: Dispatcher,
        assembler: Assembler,
        journal: Journal,
        max_batch_tokens: int,
        recover_if_lost: Callable[[str], None],
        on_placed: Callable[[], None],
    ) -> None:
        self._serving, self._depth, self._fleet, self._nodes = serving, depth, fleet, nodes
        self._dispatcher, self._assembler, self._journal = dispatcher, assembler, journal
        self._max_batch_tokens, self._recover_if_lost = max_batch_tokens, recover_if_lost
        self._on_placed = on_placed

    def repair(self) -> list[int]:
        """Replace the serving stages that are gone and replay what is in flight; returns its sequence numbers."""
        broken = self._serving.assembly
        layout = self._nodes.placed(broken.layout)
        self._on_placed()
        gone = self._nodes.kv_gone()
        if layout != broken.layout or not layout.nodes.isdisjoint(gone):
            replayed = self._move_from_lost_nodes(layout)
            self._nodes.kv_renewed(gone)
            return replayed
        # Replacements belong to the assembly at once: what is lost of them is lost while serving, and replaced in turn.
        self._serving.assembly = mended = Assembly(broken.layout, list(broken.stages))
        for rank, stage in enumerate(broken.stages):
            if self._fleet.alive(stage):
                # It may be waiting for one that is gone, in the epoch of this chain or of a change that was stopped.
                self._assembler.unroute([stage], None)
                continue
            spare = self._serving.spares.take(stage.node, broken.layout.precision)
            mended.stages[rank] = spare or self._assembler.start(broken.layout, rank)
            if spare is None:
                self._assembler.make_ready(mended.stages[rank])
        mended.chain = self._assembler.connect(mended.layout, mended.stages)
        replayed = self._dispatcher.restart(mended.chain, self._max_batch_tokens)
        self._depth.suit(broken.layout)
        self._serving.keep_spares(_REST_S)
        return replayed

    def _move_from_lost_nodes(self, layout: Layout) -> list[int]:
        """Serve with `layout`, which does without nodes that are gone or forbidden; compute again what they held."""
        before = self._serving.assembly.layout
        self._serving.reserve(layout)
        left = [stage for stage in self._serving.assembly.stages if self._fleet.alive(stage)]
        self._assembler.unroute(left, None)
        self._serving.assembly = mended = Assembly(layout, [])
        self._journal.tell("pipeline", "layers re-placed", layers=str(layout))
        left = self._leave_all_but(layout.nodes, left)
        for rank, placement in enumerate(layout.stages):
            reused = next((stage for stage in left if stage.node == placement.node and stage.any_role), None)
            if reused is not None:
                left.remove(reused)
            stage = reused or self._serving.spares.take(placement.node, layout.precision)
            if stage is None:
                stage = self._assembler.start(layout, rank)
                self._assembler.make_ready(stage)
            mended.stages.append(stage)
        for stage in left:
            self._fleet.release(stage)
        mended.chain = self._assembler.connect(mended.layout, mended.stages)
        replayed = self._dispatcher.restart(mended.chain, self._max_batch_tokens, kv_lost=True)
        self._serving.tell_left_over(self._nodes.scrub_left(before, layout))
        self._depth.suit(layout)
        self._serving.keep_spares(_REST_S)
        return replayed

    def _leave_all_but(self, nodes: Collection[str], serving: Sequence[Stage]) -> list[Stage]:
        """End all stages on other nodes at once, spares and those that are just starting too; return who is left."""
        self._serving.spares.leave_all_but(nodes)
        for stage in self._fleet.stages():
            if stage.node not in nodes:
                self._fleet.kill(stage)
        return [stage for stage in serving if stage.node in nodes]

    def end_stages(self) -> None:
        """End every stage; weights and KV stay."""
        stages = self._serving.assembly.stages
        self._serving.assembly = Assembly(self._serving.assembly.layout, [])
        self._serving.spares.keep({}, self._serving.assembly.layout.precision)
        for stage in stages:
            self._fleet.release(stage)

    def bring_stages_back(self) -> None:
        """Start the stages of the layout again, all at once, and serve from them.

        A node may have been lost meanwhile, or the intents forbid it: then its layers are placed elsewhere, and nobody
        finds the KV that went.
        """
        before = self._serving.assembly.layout
        layout = self._nodes.placed(before)
        self._on_placed()
        gone = self._nodes.kv_gone()
        kv_lost = layout != before or not layout.nodes.isdisjoint(gone)
        stages: list[Stage] = []
        try:
            if kv_lost:
                self._serving.reserve(layout)
            stages.extend(self._assembler.start(layout, rank) for rank in range(len(layout)))
            self._assembler.prepare(stages)
            self._assembler.bind(stages)
            assembly = Assembly(layout, stages)
            assembly.chain = self._assembler.connect(assembly.layout, assembly.stages)
        except StageError:
            for stage in stages:
                self._fleet.kill(stage)
            raise
        self._serving.assembly = assembly
        if kv_lost:
            self._journal.tell("pipeline", "layers re-placed", layers=str(layout))
            self._nodes.kv_renewed(gone)
            self._serving.tell_left_over(self._nodes.scrub_left(before, layout))
            self._depth.suit(layout)
        self._dispatcher.install(assembly.chain, self._max_batch_tokens if kv_lost else None)
        self._recover_if_lost("its process ended when the pipeline was just awake")
        self._serving.keep_spares(_REST_S)
