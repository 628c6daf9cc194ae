"""What a change does: the effects that `runtime.migration.coordinator` asks for, on processes, nodes and batches.

::

    prepare    --> the target's stages come up beside the serving ones; those in the same role are kept
    copy_stale --> layers that change their node are copied from pool to pool, and again what was written meanwhile
    switch     --> between two batches, the route goes over to the target's chain
    release    --> the target is what serves; other stages become spares, or end
    roll_back  --> or else the old chain serves alone, and nothing of the target is left

All stages of a node map the node's KV pool, so a change within a node copies nothing. All stages compute in the
precision of the layout: another one means other stages, with weights of their own, on the same KV.

The effects run on one thread, one after the other; only `interrupt` comes at any time, from another, to make the one
under way fail.

Caveat: a stage that is lost while a change is undone may belong to both chains. Without all old stages there is
nothing to go back to: then the recovery that follows replays what either chain has in flight.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from runtime.engine.assembly import Assembler, Assembly, role_of
from runtime.engine.errors import StageError
from runtime.migration.coordinator import ChangeEffects, Cost
from runtime.migration.copy_pace import HURRIED, PacedCopy, PaceRule
from runtime.migration.errors import ChangeRefused, NotMovableError
from runtime.migration.protocol import Carry

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.engine.depth import Depth
    from runtime.engine.dispatcher import Chain, Dispatcher
    from runtime.engine.fleet import Fleet
    from runtime.engine.nodes import Migration, Nodes
    from runtime.engine.planning import Planner
    from runtime.engine.serving import Serving
    from runtime.layout import Layout
    from runtime.migration.journal import Journal
    from runtime.migration.stop_rule import CopyRound

_LOAD_TIMEOUT_S = 600.0
_CALL_TIMEOUT_S = 60.0
_FLIP_S = 5.0  # for prompt logprobs to be done, which cannot be moved before
_REST_S = 1.0  # between a change and what would disturb the streams again


class Changing(ChangeEffects):
    """Carries out the change under way, and undoes it.

    Args:
        planner: checks what is asked for.
        serving: what serves, and the target.
        depth: the batches in flight, which follow the layout.
        fleet: has the processes, and the weights of this host.
        nodes: copy KV.
        dispatcher: goes from chain to chain.
        assembler: starts and joins stages.
        journal: is told what happens.
        max_batch_tokens: the most tokens in a batch that computes KV again.
        recover_if_lost: has serving stages replaced that are gone, for a reason.
        on_flipped: called when the target's chain has taken over.
        on_complete: called when the target is what serves, and nothing is fallen back to any more.
        give_up: called with the reason when it cannot.

    """

    def __init__(
        self,
        planner: Planner,
        serving: Serving,
        depth: Depth,
        fleet: Fleet,
        nodes: Nodes,
        dispatcher: Dispatcher,
        assembler: Assembler,
        journal: Journal,
        max_batch_tokens: int,
        recover_if_lost: Callable[[str], None],
        on_flipped: Callable[[], None],
        on_complete: Callable[[], None],
        give_up: Callable[[str], None],
    ) -> None:
        self.planner = planner
        self._serving, self._depth, self._fleet, self._nodes = serving, depth, fleet, nodes
        self._dispatcher, self._assembler, self._journal = dispatcher, assembler, journal
        self._max_batch_tokens, self._recover_if_lost = max_batch_tokens, recover_if_lost
        self._on_flipped, self._on_complete, self._give_up = on_flipped, on_complete, give_up
        self._carried_before = 0
        self._migration: Migration | None = None
        self._paced: PacedCopy  # what is copied for the change under way
        self._copied_is_mapped = False
        self._stopped = False  # the change under way shall end
        self.abandoned_epoch: int | None = None  # while a change is undone: its batches are replayed

    # -- plan and prepare ----------------------------------------------------------------------------------------------

    def layout(self) -> Layout:
        """Return the layout that serves now."""
        return self._serving.assembly.layout

    def plan(self, text: str, precision: str | None) -> Layout:
        """Check a target layout; see `Planner.plan`."""
        return self.planner.plan(text, precision)

    def prepare(self, target: Layout, cost: Cost, *, awaited: bool) -> int:
        """Bring up the new stages of `target` beside the serving ones, keep the others; return the chain's epoch."""
        old = self._serving.assembly
        self._stopped = False
        self._paced = PacedCopy(self._dispatcher.rhythm, HURRIED if awaited else PaceRule())
        self._copied_is_mapped = False
        self._serving.reserve(old.layout, target)
        reusable = {role_of(old.layout, rank): stage for rank, stage in enumerate(old.stages)}
        assembly = self._serving.target = Assembly(target, [])
        cost.peak_extra_bytes = self._load_weights(target.precision)
        for rank in range(len(target)):
            stage = reusable.get(role_of(target, rank))
            if stage is not None:
                assembly.kept.add(stage.name)
                assembly.stages.append(stage)
                continue
            spare = self._serving.spares.take(target.stages[rank].node, target.precision)
            stage = spare or self._assembler.start(target, rank)
            assembly.stages.append(stage)
            if spare is None:
                # One after the other: loading several at once would only compete with the stages that serve.
                self._assembler.make_ready(stage)
                cost.prepare_ms[stage.name] = stage.prepare_ms
            cost.peak_extra_bytes += stage.memory_bytes
        assembly.chain = self._assembler.connect(assembly.layout, assembly.stages)
        self._migration = self._nodes.copy(f"{self._fleet.pipeline}.{assembly.chain.epoch}", old.layout, target)
        if self._migration is not None:
            stale = self._migration.stale_bytes()
            self._paced.begin(stale)
            cost.peak_extra_bytes += stale
        return assembly.chain.epoch

    def _load_weights(self, precision: str) -> int:
        """Have the weights in a precision while others serve; returns the bytes that were loaded for it."""
        clock = time.perf_counter()
        if not self._fleet.load(precision, _LOAD_TIMEOUT_S, background=True) or self._fleet.weights is None:
            return 0
        if self._stopped:
            raise StageError("the change was stopped")
        size, ms = self._fleet.weights.held_bytes()[precision], round(1e3 * (time.perf_counter() - clock), 1)
        self._journal.tell("pipeline", "weights loaded", precision=precision, bytes=size, ms=ms)
        return size

    # -- copy ----------------------------------------------------------------------------------------------------------

    def copy_stale(self, cost: Cost) -> CopyRound:
        """Copy what is stale of the layers that change their node, once.

        After the first time, which copies most, the new stages map what came: else they would do it during the pause.
        """
        if cost.bytes_moved and not self._copied_is_mapped:
            self._map_copied()
        copied = self._paced.round(self._migration_of_change())
        cost.bytes_moved += copied.sent_bytes
        return copied

    def _map_copied(self) -> None:
        self._copied_is_mapped = True
        target = self._serving.target
        new = [stage for stage in target.stages if stage.name not in target.kept] if target else []
        calls = [(stage, self._fleet.call_async(stage, "map_kv")) for stage in new]
        for stage, future in calls:
            self._fleet.answer(future, _CALL_TIMEOUT_S, stage, "map_kv")

    def _migration_of_change(self) -> Migration:
        if self._migration is None:
            raise StageError("nothing was prepared to be copied")
        return self._migration

    # -- switch --------------------------------------------------------------------------------------------------------

    def switch(self, cost: Cost, carry: Carry, hold_s: float) -> bool:
        """Flip the route to the prepared chain between two batches."""
        target = self._serving.target
        if target is None or target.chain is None:
            raise StageError("there is no prepared chain to switch to")
        self._carried_before = self._dispatcher.counters.carried_requests
        if carry is Carry.NOTHING:
            return self._flip(target.chain, target.layout)
        self._dispatcher.hold(hold_s)
        try:
            if not self._dispatcher.wait_drained(
                self._dispatcher.epoch, hold_s, lambda: self._stopped or not self._serving.is_whole()
            ):
                raise StageError(
                    f"the batches in flight did not finish, within {hold_s:g} s or because a stage was lost"
                )
            if carry is Carry.RECOMPUTE:
                return self._flip(target.chain, target.layout, recompute_tokens=self._max_batch_tokens)
            migration = self._migration_of_change()
            sent, mismatches = migration.finish()
            cost.bytes_moved += sent
            if mismatches:
                raise StageError(f"watermarks differ after the last copy, by layer: {mismatches}")
            return self._flip(target.chain, target.layout)
        finally:
            self._dispatcher.resume()

    def _flip(self, chain: Chain, layout: Layout, recompute_tokens: int | None = None) -> bool:
        idle, stuck = self._dispatcher.switch(chain, _FLIP_S, recompute_tokens)
        if stuck:
            raise NotMovableError(
                f"requests {', '.join(stuck)} are computing prompt logprobs, which only their last stage holds until "
                "the prompt is done; try again when they have answered"
            )
        self._depth.suit(layout)
        self._on_flipped()
        return idle

    # -- undo ----------------------------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """End the stages that only the target layout has, loading, copying, and waiting for the old ones."""
        self._stopped = True
        if self._fleet.weights is not None:
            self._fleet.weights.stop_loading()
        self._dispatcher.look_again()
        if self._migration is not None:
            self._migration.stop()
        target = self._serving.target
        if target is not None:
            for stage in target.stages:
                if stage.name not in target.kept:
                    self._fleet.kill(stage)
                    self._assembler.fail_probes(stage.name, f"{stage.name} was ended")

    def roll_back(self) -> None:
        """Serve from the old chain alone; give up when it is gone as well."""
        target, self._serving.target = self._serving.target, None
        old = self._serving.assembly
        try:
            # Without all old stages there is a recovery to come, which replays what both chains have in flight.
            if target and target.chain and self._serving.is_whole():
                self.abandoned_epoch = target.chain.epoch
                # A stage of both chains may be waiting for one that has gone.
                self._assembler.unroute([s for s in old.stages if s.name in target.kept], target.chain.epoch)
                if self._dispatcher.epoch == target.chain.epoch:
                    self._serve_from_old(old)
        except StageError as error:
            if self._serving.is_whole():
                self._give_up(f"the old stages cannot take over again: {error}")
                raise
        finally:
            self.abandoned_epoch = None
        if target is not None:
            for stage in target.stages:
                if stage.name not in target.kept:
                    self._fleet.kill(stage)
        migration, self._migration = self._migration, None
        if migration is not None:
            self._serving.tell_left_over(migration.scrub_target())
        self._settle()

    def _serve_from_old(self, assembly: Assembly) -> None:
        """Take the flip back."""
        before = assembly.chain
        # A fresh epoch, so that nothing the abandoned chain still sends can be mistaken for an answer.
        assembly.chain = self._assembler.connect(assembly.layout, assembly.stages, probe=False)
        self._dispatcher.fall_back(assembly.chain, self._serving.is_whole)
        if before is not None:
            self._assembler.unroute(assembly.stages, before.epoch)
        self._depth.suit(assembly.layout)

    # -- complete ------------------------------------------------------------------------------------------------------

    def release(self, cost: Cost) -> None:
        """Make the target the serving layout; let go of stages it does not use."""
        target, old = self._serving.target, self._serving.assembly
        if target is None or old.chain is None:
            raise StageError("there is no change to complete")
        self._serving.assembly, self._serving.target = target, None
        self._on_complete()
        migration, self._migration = self._migration, None
        self._recover_if_lost("its process ended when the change was just committed")
        cost.requests_carried = self._dispatcher.counters.carried_requests - self._carried_before
        self._dispatcher.wait_drained(
            old.chain.epoch, _CALL_TIMEOUT_S, lambda: not all(self._fleet.alive(stage) for stage in old.stages)
        )
        for stage in old.stages:
            if stage.name not in target.kept and not stage.any_role:
                self._fleet.release(stage)
                continue
            try:
                self._fleet.call(stage, "unroute", _CALL_TIMEOUT_S, epoch=old.chain.epoch)
            except StageError as error:
                self._journal.tell("pipeline", "not unrouted", stage=stage.name, reason=str(error))
                if stage.name not in target.kept:
                    self._fleet.kill(stage)
                continue
            if stage.name not in target.kept:
                self._serving.spares.put(stage)
        if migration is not None:
            self._serving.tell_left_over(migration.scrub_source())
        self._settle()

    def _settle(self) -> None:
        """Claim no more room on the nodes than the layout that serves needs, and be ready for the next change."""
        with contextlib.suppress(ChangeRefused):  # of a node that is gone
            self._serving.reserve(self._serving.assembly.layout)
        self._serving.keep_spares(_REST_S)

    def pause_ms(self, since: float, until: float) -> float | None:
        """Return by how much the largest gap between answers in this time exceeds the usual one."""
        return self._dispatcher.rhythm.pause_ms(since, until)
