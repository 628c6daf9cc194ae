"""The pipeline as one object: its stages, its chain, its KV pool, and how to change them.

Implements the effects that `runtime.migration.coordinator` asks for, on top of the fleet (processes) and the dispatcher
(batches). All stages of a node map the node's KV pool, so a change within a node copies nothing; layers that change
their node are copied from pool to pool first (`runtime.engine.nodes`, `runtime.migration.precopy`). All stages compute
in the precision of the layout: another one means other stages, with weights of their own, on the same KV.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from runtime.engine.assembly import Assembler, Assembly, role_of
from runtime.engine.brake import Brake
from runtime.engine.dispatcher import Chain, Dispatcher
from runtime.engine.engine_config import describe
from runtime.engine.errors import StageError
from runtime.engine.fleet import Fleet, GatewaySettings, Stage
from runtime.engine.kv_spec import decode_specs
from runtime.engine.ledger import Ledger
from runtime.engine.model_zygote import be_precision_zygote, import_engine
from runtime.engine.nodes import Migration, Nodes
from runtime.engine.precision import bytes_to_load, check_precision, precision_of
from runtime.engine.recovery import Recovery
from runtime.engine.sleep import Sleep
from runtime.engine.spares import SpareStages
from runtime.engine.stage_process import PoolBinding
from runtime.layout import LOCAL_NODE, Layout
from runtime.migration.coordinator import ChangeEffects, Coordinator, Cost, Leases
from runtime.migration.copy_pace import HURRIED, PacedCopy, PaceRule
from runtime.migration.errors import ChangeRefused, ChangeUnneeded, NotMovableError
from runtime.migration.journal import Journal
from runtime.migration.protocol import Carry, Failed
from runtime.phase import Phase, open_phase_word
from runtime.transport.frames import PROBE
from runtime.warm.memory import available_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vllm.config import VllmConfig

    from runtime.engine.capacity import Capacity, PipelineSide
    from runtime.migration.guard import Permission
    from runtime.migration.stop_rule import CopyRound
    from runtime.transport.frames import Buffer, Result
    from runtime.warm.model_fetch import ModelOrder

_PREPARE_TIMEOUT_S = 600.0
_CALL_TIMEOUT_S = 60.0
_FLIP_S = 5.0  # for prompt logprobs to be done, which cannot be moved before
_NOTICE_S = 2.0  # from a failed batch to the news that its stage has ended
_GUARD_S = 60.0  # for a guard that starts at the same time
_REST_S = 1.0  # between a change and what would disturb the streams again
_PROCESS_BYTES = 128 << 20  # what a stage touches of its own beside its weights; measured 60 to 110 MiB


@dataclass(slots=True)
class Depth:
    """What the scheduler has to know of the pipeline. Shared with it.

    Args:
        batches: how many may be in flight at once. As many as there are devices that can compute at the same time:
            stages that share the cores of one node would only take them from each other, and two half-full batches
            cost nearly twice one full batch.
        pipeline: for the scheduler's changes of its capacity.
        capacity: the scheduler's limits.
        change_capacity: changes them now, if no batch is in flight.
        kv_losses: tells how often the KV of some layers was lost.
        kv_losses_known: how often the scheduler has emptied its prefix cache for that.
        stopped: tells whether nothing may be computed now.

    """

    batches: int = 1
    pipeline: PipelineSide | None = None
    capacity: Capacity | None = None
    change_capacity: Callable[[], None] = lambda: None
    kv_losses: Callable[[], int] = lambda: 0
    kv_losses_known: int = 0
    stopped: Callable[[], bool] = lambda: False


class Pipeline(ChangeEffects):
    """See the module. `on_failed` is called once, with the reason, when the pipeline can serve no more.

    With a `permission`, nothing of the pipeline goes to a node, or over a way to one, without it (I5).
    """

    def __init__(
        self,
        config: VllmConfig,
        layout: Layout,
        threads: int,
        batches_in_flight: int,
        spare_stages: int | None,
        sleep_after_s: float | None,
        nodes: Sequence[str],
        gateway: GatewaySettings | None,
        permission: Permission | None,
        node_grace_s: float,
        on_failed: Callable[[str], None],
        leases: Leases | None = None,
    ) -> None:
        self.journal = Journal()
        self._config = config
        self._batches_in_flight = batches_in_flight
        self._spare_stages = spare_stages
        self.depth = Depth()
        self._set_depth(layout)
        self._permission = permission
        self._on_failed = on_failed
        self._total_layers = layout.total_layers
        self._max_batch_tokens = config.scheduler_config.max_num_batched_tokens
        self._max_requests = config.scheduler_config.max_num_seqs
        self._failed = threading.Event()
        self._phase_word, self._phase_lock = open_phase_word(), threading.Lock()
        self._carried_before = 0
        self._migration: Migration | None = None
        self._paced: PacedCopy  # what is copied for the change under way
        self._copied_is_mapped = False
        self._abandoned_epoch: int | None = None  # while a change is undone
        self._stopped = False  # the change under way shall end
        self._assembly = Assembly(layout.in_precision(precision_of(config)), [])
        self._target: Assembly | None = None
        self.dispatcher = Dispatcher(
            Ledger(config.cache_config.block_size), self._on_settled, self._on_batch_failed, self.journal.tell
        )
        self.depth.pipeline = self
        self.depth.kv_losses = lambda: self.dispatcher.kv_losses
        here = not nodes or LOCAL_NODE in layout.nodes
        self.fleet = Fleet(
            lambda payload, descriptors: be_precision_zygote(payload, descriptors, config),
            import_engine if here else None,
            gateway,
            self._on_result,
            self.dispatcher.on_rejected,
            self._on_lost,
            self.lose_node,
            self._on_way_lost,
            self._fail,
            partial(self.journal.tell, "gateway"),
        )
        self.nodes = Nodes(
            [self.fleet.remote_node(name) for name in nodes],
            self.fleet.local_node if here else None,
            self.journal,
            permission,
            node_grace_s,
        )
        self.assembler = Assembler(self.fleet, self.nodes, self.dispatcher, threads, self._max_requests)
        self._other_hosts = tuple(nodes)
        self.spares = SpareStages(self.fleet, self.assembler.start_spare, self.journal, self._let_go_of_weights)
        self.coordinator = Coordinator(self, self.journal, leases, permission)
        self.brake = Brake(permission, self._serving, self.journal, self._show_phase) if permission else None
        self.depth.stopped = lambda: self.brake is not None and self.brake.stopped is not None
        self.recovery = Recovery(
            self._repair, self._is_whole, self.coordinator, self.journal, self._fail, self._show_phase
        )
        self.sleep = Sleep(
            sleep_after_s,
            self.dispatcher,
            self.coordinator,
            self.journal,
            self._end_stages,
            self._bring_stages_back,
            self._fail,
            self._show_phase,
        )

    # -- start ---------------------------------------------------------------------------------------------------------

    def start(self) -> list[dict[str, Any]]:
        """Start and load the stages of the first layout; returns each stage's KV cache specs.

        Raises:
            ChangeForbidden, GuardSilent: the intents, or their guard, do not allow it; no node was asked for anything.
        """
        self._require_permission()
        self.fleet.load(self._assembly.layout.precision, _PREPARE_TIMEOUT_S, background=False)
        self.nodes.open(self._describe_model)
        assembly = self._assembly
        assembly.stages = [self.assembler.start(assembly.layout, rank) for rank in range(len(assembly.layout))]
        return [decode_specs(ready["kv_specs"]) for ready in self.assembler.prepare(assembly.stages)]

    def _describe_model(self, nodes: frozenset[str]) -> tuple[bytes, ModelOrder | None]:
        """Say what the zygotes of other hosts need; a model that is a folder is offered to them."""
        folder = Path(self._config.model_config.model)
        order = self.fleet.offer_model(folder, nodes) if folder.is_dir() else None
        return msgspec.msgpack.encode(describe(self._config)), order

    def bind(self, blocks: int, block_tokens: int, layer_bytes: int, layout_name: str) -> None:
        """Reserve the nodes' KV pools, give them to the stages and install the first chain."""
        self.assembler.binding = PoolBinding(self._total_layers, blocks, block_tokens, layer_bytes, layout_name)
        self._reserve(self._assembly.layout)
        self.dispatcher.ledger = Ledger(block_tokens)
        self.assembler.bind(self._assembly.stages)
        self._assembly.chain = self.assembler.connect(self._assembly.layout, self._assembly.stages)
        self.dispatcher.install(self._assembly.chain)
        self.journal.tell("pipeline", "serving", layers=str(self._assembly.layout), epoch=self._assembly.chain.epoch)
        self._keep_spares()
        self.sleep.start()
        if self.brake is not None:
            self.brake.start()

    # -- what the coordinator asks for -----------------------------------------------------------------------------

    def layout(self) -> Layout:
        """Return the layout that serves now."""
        return self._assembly.layout

    def epoch(self) -> int:
        """Return the epoch that serves now."""
        return self.dispatcher.epoch

    def _serving(self) -> tuple[int, Layout] | None:
        """Return epoch and layout of the chain that takes batches; None while it is being replaced, or sleeps."""
        epoch = self.epoch()
        for assembly in (self._target, self._assembly):
            if assembly is not None and assembly.chain is not None and assembly.chain.epoch == epoch:
                return epoch, assembly.layout
        return None

    def plan(self, text: str, precision: str | None) -> Layout:
        """Check a target layout against the model, the nodes that there are, and the memory of this host.

        On the engine's thread, so nobody on another host is asked: what they lack is found out in `prepare`.
        """
        serving = self._assembly.layout
        target = Layout.parse(text or str(serving), self._total_layers).in_precision(precision or serving.precision)
        if target.precision != serving.precision:
            check_precision(self._config, target.precision, self._other_hosts)
        elif target == serving:
            raise ChangeUnneeded(f"the pipeline already has the layout {target}, in {target.precision}")
        self.nodes.check(target)
        needed, free = self._extra_bytes(target), available_bytes()
        if needed > free:
            raise ChangeRefused(
                f"layers {str(target)!r} in {target.precision}: the new stages need {needed / 2**20:.0f} MiB beside "
                f"the old ones until these are released, but only {free / 2**20:.0f} MiB are free; "
                f"free {(needed - free) / 2**20:.0f} MiB, or change in smaller steps that keep some stages as they are"
            )
        return target

    def prepare(self, target: Layout, cost: Cost, *, awaited: bool) -> int:
        """Bring up the new stages of `target` beside the serving ones, keep the others; return the chain's epoch."""
        old = self._assembly
        self._stopped = False
        self._paced = PacedCopy(self.dispatcher.rhythm, HURRIED if awaited else PaceRule())
        self._copied_is_mapped = False
        self._reserve(old.layout, target)
        reusable = {role_of(old.layout, rank): stage for rank, stage in enumerate(old.stages)}
        assembly = self._target = Assembly(target, [])
        cost.peak_extra_bytes = self._load_weights(target.precision)
        for rank in range(len(target)):
            stage = reusable.get(role_of(target, rank))
            if stage is not None:
                assembly.kept.add(stage.name)
                assembly.stages.append(stage)
                continue
            spare = self.spares.take(target.stages[rank].node, target.precision)
            stage = spare or self.assembler.start(target, rank)
            assembly.stages.append(stage)
            if spare is None:
                # One after the other: loading several at once would only compete with the stages that serve.
                self.assembler.make_ready(stage)
                cost.prepare_ms[stage.name] = stage.prepare_ms
            cost.peak_extra_bytes += stage.memory_bytes
        assembly.chain = self.assembler.connect(assembly.layout, assembly.stages)
        self._migration = self.nodes.copy(f"{self.fleet.pipeline}.{assembly.chain.epoch}", old.layout, target)
        if self._migration is not None:
            stale = self._migration.stale_bytes()
            self._paced.begin(stale)
            cost.peak_extra_bytes += stale
        return assembly.chain.epoch

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
        target = self._target
        new = [stage for stage in target.stages if stage.name not in target.kept] if target else []
        calls = [(stage, self.fleet.call_async(stage, "map_kv")) for stage in new]
        for stage, future in calls:
            self.fleet.answer(future, _CALL_TIMEOUT_S, stage, "map_kv")

    def switch(self, cost: Cost, carry: Carry, hold_s: float) -> bool:
        """Flip the route to the prepared chain between two batches."""
        target = self._target
        if target is None or target.chain is None:
            raise StageError("there is no prepared chain to switch to")
        self._carried_before = self.dispatcher.counters.carried_requests
        if carry is Carry.NOTHING:
            return self._flip(target.chain, target.layout)
        self.dispatcher.hold(hold_s)
        try:
            if not self.dispatcher.wait_drained(self.epoch(), hold_s, lambda: self._stopped or not self._is_whole()):
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
            self.dispatcher.resume()

    def _flip(self, chain: Chain, layout: Layout, recompute_tokens: int | None = None) -> bool:
        idle, stuck = self.dispatcher.switch(chain, _FLIP_S, recompute_tokens)
        if stuck:
            raise NotMovableError(
                f"requests {', '.join(stuck)} are computing prompt logprobs, which only their last stage holds until "
                "the prompt is done; try again when they have answered"
            )
        self._set_depth(layout)
        self._show_phase()
        return idle

    def interrupt(self) -> None:
        """End the stages that only the target layout has, loading, copying, and waiting for the old ones."""
        self._stopped = True
        if self.fleet.weights is not None:
            self.fleet.weights.stop_loading()
        self.dispatcher.look_again()
        if self._migration is not None:
            self._migration.stop()
        if self._target is not None:
            for stage in self._target.stages:
                if stage.name not in self._target.kept:
                    self.fleet.kill(stage)
                    self.assembler.fail_probes(stage.name, f"{stage.name} was ended")

    def roll_back(self) -> None:
        """Serve from the old chain alone; give up when it is gone as well."""
        target, self._target = self._target, None
        try:
            # Without all old stages there is a recovery to come, which replays what both chains have in flight.
            if target and target.chain and self._is_whole():
                self._abandoned_epoch = target.chain.epoch
                # A stage of both chains may be waiting for one that has gone.
                self.assembler.unroute([s for s in self._assembly.stages if s.name in target.kept], target.chain.epoch)
                if self.epoch() == target.chain.epoch:
                    self._serve_from_old()
        except StageError as error:
            if self._is_whole():
                self._fail(f"the old stages cannot take over again: {error}")
                raise
        finally:
            self._abandoned_epoch = None
        if target is not None:
            for stage in target.stages:
                if stage.name not in target.kept:
                    self.fleet.kill(stage)
        migration, self._migration = self._migration, None
        if migration is not None:
            self._tell_left_over(migration.scrub_target())
        self._let_go_of_room()
        self._keep_spares(_REST_S)

    def _let_go_of_room(self) -> None:
        """Claim no more room on the nodes than the layout that serves needs."""
        with contextlib.suppress(ChangeRefused):  # of a node that is gone
            self._reserve(self._assembly.layout)

    def _reserve(self, *layouts: Layout) -> None:
        """Make room on all nodes for the KV of any of `layouts`; raises ChangeRefused."""
        if self.assembler.binding is not None:
            self.nodes.reserve(self.assembler.binding.shape, layouts)

    def _tell_left_over(self, problems: Sequence[str]) -> None:
        for problem in problems:
            self.journal.tell("pipeline", "left over", problem=problem)

    def _serve_from_old(self) -> None:
        """Take the flip back."""
        assembly = self._assembly
        before = assembly.chain
        # A fresh epoch, so that nothing the abandoned chain still sends can be mistaken for an answer.
        assembly.chain = self.assembler.connect(assembly.layout, assembly.stages, probe=False)
        self.dispatcher.fall_back(assembly.chain, self._is_whole)
        if self.brake is not None:
            self.brake.soon()
        if before is not None:
            self.assembler.unroute(assembly.stages, before.epoch)
        self._set_depth(assembly.layout)

    def release(self, cost: Cost) -> None:
        """Make the target the serving layout; let go of stages it does not use."""
        target, old = self._target, self._assembly
        if target is None or old.chain is None:
            raise StageError("there is no change to complete")
        self._assembly, self._target = target, None
        migration, self._migration = self._migration, None
        self._recover_if_lost("its process ended when the change was just committed")
        cost.requests_carried = self.dispatcher.counters.carried_requests - self._carried_before
        self.dispatcher.wait_drained(
            old.chain.epoch, _CALL_TIMEOUT_S, lambda: not all(self.fleet.alive(stage) for stage in old.stages)
        )
        for stage in old.stages:
            if stage.name not in target.kept and not stage.any_role:
                self.fleet.release(stage)
                continue
            try:
                self.fleet.call(stage, "unroute", _CALL_TIMEOUT_S, epoch=old.chain.epoch)
            except StageError as error:
                self.journal.tell("pipeline", "not unrouted", stage=stage.name, reason=str(error))
                if stage.name not in target.kept:
                    self.fleet.kill(stage)
                continue
            if stage.name not in target.kept:
                self.spares.put(stage)
        if migration is not None:
            self._tell_left_over(migration.scrub_source())
        self._let_go_of_room()
        self._keep_spares(_REST_S)

    def pause_ms(self, since: float, until: float) -> float | None:
        """Return by how much the largest gap between answers in this time exceeds the usual one."""
        return self.dispatcher.rhythm.pause_ms(since, until)

    # -- capacity (`PipelineSide`) -------------------------------------------------------------------------------------

    def copy_blocks(self, moved: Mapping[int, int]) -> None:
        """Copy KV blocks on every node, by old and new number."""
        if moved:
            self.nodes.each(lambda node: node.copy_blocks(moved))

    def blocks_moved(self, moved: Mapping[int, int], kept: int, preempted: Sequence[str]) -> None:
        """Know the blocks by their new numbers, and give back those from `kept` on."""
        self.dispatcher.blocks_moved(moved, preempted)
        try:
            self.nodes.each(lambda node: node.give_back(kept))
        except Exception as error:  # noqa: BLE001 - a node may be gone: then there is nothing to give back
            self._tell_left_over([str(error)])
        self.journal.tell("pipeline", "KV blocks changed", blocks=kept, moved=len(moved), preempted=len(preempted))

    def hold_changes(self, holder: str) -> bool:
        """Let no other change begin; False when one is under way."""
        return self.coordinator.hold(holder)

    def let_changes_go(self) -> None:
        """Let changes begin again."""
        self.coordinator.let_go()

    # -- recovery ----------------------------------------------------------------------------------------------------

    def _is_whole(self) -> bool:
        return all(self.fleet.alive(stage) for stage in self._assembly.stages)

    def _recover_if_lost(self, reason: str) -> None:
        """Replace serving stages that were lost before it was known that they serve."""
        for stage in self._assembly.stages:
            if not self.fleet.alive(stage):
                self.recovery.stage_lost(stage.name, reason)

    def _repair(self) -> list[int]:
        """Replace the serving stages that are gone and replay what is in flight; returns its sequence numbers."""
        broken = self._assembly
        layout = self.nodes.placed(broken.layout)
        gone = self.nodes.kv_gone()
        if layout != broken.layout or not layout.nodes.isdisjoint(gone):
            replayed = self._move_from_lost_nodes(layout)
            self.nodes.kv_renewed(gone)
            return replayed
        # Replacements belong to the assembly at once: what is lost of them is lost while serving, and replaced in turn.
        self._assembly = mended = Assembly(broken.layout, list(broken.stages))
        for rank, stage in enumerate(broken.stages):
            if self.fleet.alive(stage):
                # It may be waiting for one that is gone, in the epoch of this chain or of a change that was stopped.
                self.assembler.unroute([stage], None)
                continue
            spare = self.spares.take(stage.node, broken.layout.precision)
            mended.stages[rank] = spare or self.assembler.start(broken.layout, rank)
            if spare is None:
                self.assembler.make_ready(mended.stages[rank])
        mended.chain = self.assembler.connect(mended.layout, mended.stages)
        replayed = self.dispatcher.restart(mended.chain, self._max_batch_tokens)
        self._set_depth(broken.layout)
        self._keep_spares(_REST_S)
        return replayed

    def _move_from_lost_nodes(self, layout: Layout) -> list[int]:
        """Serve with `layout`, which does without nodes that are gone or forbidden; compute again what they held."""
        before = self._assembly.layout
        self._reserve(layout)
        left = [stage for stage in self._assembly.stages if self.fleet.alive(stage)]
        self.assembler.unroute(left, None)
        self._assembly = mended = Assembly(layout, [])
        self.journal.tell("pipeline", "layers re-placed", layers=str(layout))
        for rank, placement in enumerate(layout.stages):
            reused = next((stage for stage in left if stage.node == placement.node and stage.any_role), None)
            if reused is not None:
                left.remove(reused)
            stage = reused or self.spares.take(placement.node, layout.precision)
            if stage is None:
                stage = self.assembler.start(layout, rank)
                self.assembler.make_ready(stage)
            mended.stages.append(stage)
        for stage in left:
            self.fleet.release(stage)
        mended.chain = self.assembler.connect(mended.layout, mended.stages)
        replayed = self.dispatcher.restart(mended.chain, self._max_batch_tokens, kv_lost=True)
        self._tell_left_over(self.nodes.scrub_left(before, layout))
        self._set_depth(layout)
        self._keep_spares(_REST_S)
        return replayed

    def lose_node(self, name: str, reason: str, *, cut_off: bool = True) -> None:
        """Do without a node's processes from now on: they and its KV are gone, or may be (`Nodes.lose`)."""
        if not self.nodes.lose(name, reason, cut_off=cut_off):
            return
        self.journal.tell("pipeline", "node lost", node=name, reason=reason)
        for stage in self.fleet.stages():
            if stage.node == name:
                self.fleet.lose(stage, reason)

    # -- scale to zero -------------------------------------------------------------------------------------------------

    def _end_stages(self) -> None:
        """End every stage; weights and KV stay."""
        stages = self._assembly.stages
        self._assembly = Assembly(self._assembly.layout, [])
        self.spares.keep({}, self._assembly.layout.precision)
        for stage in stages:
            self.fleet.release(stage)

    def _bring_stages_back(self) -> None:
        """Start the stages of the layout again, all at once, and serve from them.

        A node may have been lost meanwhile, or the intents forbid it: then its layers are placed elsewhere, and nobody
        finds the KV that went.
        """
        before = self._assembly.layout
        layout = self.nodes.placed(before)
        gone = self.nodes.kv_gone()
        kv_lost = layout != before or not layout.nodes.isdisjoint(gone)
        stages: list[Stage] = []
        try:
            if kv_lost:
                self._reserve(layout)
            stages.extend(self.assembler.start(layout, rank) for rank in range(len(layout)))
            self.assembler.prepare(stages)
            self.assembler.bind(stages)
            assembly = Assembly(layout, stages)
            assembly.chain = self.assembler.connect(assembly.layout, assembly.stages)
        except StageError:
            for stage in stages:
                self.fleet.kill(stage)
            raise
        self._assembly = assembly
        if kv_lost:
            self.journal.tell("pipeline", "layers re-placed", layers=str(layout))
            self.nodes.kv_renewed(gone)
            self._tell_left_over(self.nodes.scrub_left(before, layout))
            self._set_depth(layout)
        self.dispatcher.install(assembly.chain, self._max_batch_tokens if kv_lost else None)
        self._recover_if_lost("its process ended when the pipeline was just awake")
        self._keep_spares(_REST_S)

    # -- status ------------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what serves now, as plain data."""
        current, last = self.coordinator.current, self.coordinator.last
        return {
            "boot": self.coordinator.boot,
            "epoch": self.epoch(),
            "phase": self._phase(),
            "stopped": self.brake.stopped if self.brake else None,
            "layers": str(self._assembly.layout),
            "precision": self._assembly.layout.precision,
            "weights_bytes": self.fleet.weights.held_bytes() if self.fleet.weights else {},
            "total_layers": self._total_layers,
            "stages": [
                {
                    "index": index,
                    "name": stage.name,
                    "first_layer": placement.layers.first,
                    "last_layer": placement.layers.stop - 1,
                    "node": stage.node,
                    "pid": stage.pid,
                    "memory_bytes": stage.memory_bytes,
                }
                for index, (stage, placement) in enumerate(
                    zip(self._assembly.stages, self._assembly.layout.stages, strict=False)  # none while asleep
                )
            ],
            "spare_stages": {
                node: self.spares.count(node, self._assembly.layout.precision) for node in self.nodes.names()
            },
            "kv_blocks": self.assembler.binding.blocks if self.assembler.binding else 0,
            "counters": dataclasses.asdict(self.dispatcher.counters),
            "change": current.id if current else None,
            "last_change": last.report() if last else None,
            "recoveries": self.recovery.count,
            "last_recovery": self.recovery.last,
        }

    def _phase(self) -> str:
        current = self.coordinator.current
        if self.sleep.phase is not None:
            return self.sleep.phase
        if self.recovery.running:
            return "recovering"
        if self.brake is not None and self.brake.stopped and current is None:
            return "forbidden"
        return str(current.machine.step) if current else "serving"

    def _show_phase(self) -> None:
        """Let the head know whether a request has to wait for more than its turn."""
        if self._phase_word is None:
            return  # nobody is there to look
        with self._phase_lock:
            if self._failed.is_set():
                phase = Phase.FAILED
            elif self.sleep.phase is not None:
                phase = Phase[self.sleep.phase.upper()]
            elif self.recovery.running:
                phase = Phase.RECOVERING
            else:
                phase = Phase.FORBIDDEN if self.depth.stopped() else Phase.AWAKE
            self._phase_word.write(phase)

    def close(self) -> None:
        """End everything."""
        self._failed.set()
        self.fleet.remove_sockets()  # first of all: whoever ends a server gives its engine little time
        self.sleep.close()
        if self.brake is not None:
            self.brake.close()
        self.nodes.close()
        self.coordinator.close()
        self.spares.close()
        self.assembler.fail_probes(None, "the pipeline was shut down")
        self.dispatcher.fail(StageError("the pipeline was shut down"))
        self.fleet.close()

    def _set_depth(self, layout: Layout) -> None:
        self.depth.batches = min(self._batches_in_flight or len(layout.nodes), len(layout))

    def _require_permission(self) -> None:
        """Require that the intents, if any bound this pipeline, allow the layout; nothing is carried over into it."""
        if self._permission is not None:
            self._permission.require(None, self._assembly.layout, _GUARD_S)

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _keep_spares(self, rest_s: float = 0.0) -> None:
        """Keep enough spare stages on each node for the next change: those it has now and one more, if not told."""
        layout, stages = self._assembly.layout, self._assembly.stages
        if not stages:
            return  # asleep
        # A stage that loads its own layers cannot wait for a role.
        nodes = [placement.node for placement in layout.stages if all(stage.any_role for stage in stages)]
        wanted = {node: nodes.count(node) + 1 if self._spare_stages is None else self._spare_stages for node in nodes}
        self.spares.keep(wanted, layout.precision, rest_s)

    def _load_weights(self, precision: str) -> int:
        """Have the weights in a precision while others serve; returns the bytes that were loaded for it."""
        clock = time.perf_counter()
        if not self.fleet.load(precision, _PREPARE_TIMEOUT_S, background=True) or self.fleet.weights is None:
            return 0
        if self._stopped:
            raise StageError("the change was stopped")
        size, ms = self.fleet.weights.held_bytes()[precision], round(1e3 * (time.perf_counter() - clock), 1)
        self.journal.tell("pipeline", "weights loaded", precision=precision, bytes=size, ms=ms)
        return size

    def _let_go_of_weights(self) -> None:
        """Give up weights in a precision that neither serves nor is about to."""
        if self.fleet.weights is not None:
            for precision in self.fleet.weights.keep(self._wanted_precisions):
                self.journal.tell("pipeline", "weights given up", precision=precision)

    def _wanted_precisions(self) -> set[str]:
        target = self._target
        return {self._assembly.layout.precision, *((target.layout.precision,) if target else ())}

    def _migration_of_change(self) -> Migration:
        if self._migration is None:
            raise StageError("nothing was prepared to be copied")
        return self._migration

    def _extra_bytes(self, target: Layout) -> int:
        """Estimate the memory that the new stages of `target` need beside the old ones and the spares."""
        old = self._assembly
        reusable = {role_of(old.layout, rank) for rank in range(len(old.layout))}
        loaded, before, after = sum(stage.memory_bytes for stage in old.stages), old.layout.precision, target.precision
        if after != before:
            loaded = bytes_to_load(loaded, before, after)
        per_layer = loaded / self._total_layers
        spares = {node: self.spares.count(node, after) for node in target.nodes}
        held = self.fleet.weights.held_bytes() if self.fleet.weights else {}
        needed = 0.0 if after in held else float(bytes_to_load(held.get(before, 0), before, after))
        for rank, placement in enumerate(target.stages):
            if role_of(target, rank) in reusable:
                continue
            if spares[placement.node] > 0:
                spares[placement.node] -= 1
            else:
                needed += per_layer * len(placement.layers) + _PROCESS_BYTES
        return math.ceil(needed)

    # -- what the fleet and the dispatcher report ----------------------------------------------------------------------

    def _on_result(self, result: Result, buffers: Sequence[Buffer]) -> None:
        if result.sequence == PROBE:
            self.assembler.probe_passed(result.epoch)
            return
        self.dispatcher.on_result(result, buffers)

    def _on_settled(self, epoch: int) -> None:
        self.coordinator.settled(epoch)

    def _on_batch_failed(self, epoch: int, reason: str) -> None:
        target = self._target
        if epoch == self._abandoned_epoch:
            return  # a change is being undone: its batches are replayed
        if target is not None and target.chain is not None and epoch == target.chain.epoch:
            self.coordinator.post(Failed(reason))
        else:
            # Frames tell of a stage that ended before its end is known: then there is a recovery to come.
            threading.Thread(target=self._fail_unless_recovered, args=(epoch, reason), daemon=True).start()

    def _fail_unless_recovered(self, epoch: int, reason: str) -> None:
        if not self.recovery.wait(lambda: not self.dispatcher.waits_for(epoch), _NOTICE_S):
            self._fail(reason)  # nobody took this batch off the hands of its epoch

    def _on_lost(self, name: str, reason: str) -> None:
        self.journal.tell("pipeline", "stage lost", stage=name, reason=reason)
        self.dispatcher.look_again()
        self.assembler.fail_probes(name, reason)
        target = self._target
        if target is not None and name not in target.kept and any(stage.name == name for stage in target.stages):
            self.coordinator.post(Failed(reason))
        elif any(stage.name == name for stage in self._assembly.stages):
            if self.assembler.binding is None:
                self._fail(reason)  # before anything was served
                return
            self.recovery.stage_lost(name, reason)
        elif self.spares.lost(name):
            self._keep_spares()

    def _on_way_lost(self, node: str, host: str, reason: str) -> None:
        """Do without a host that a node cannot reach; of two that cannot reach each other, the one that is told of."""
        if node in self.nodes.names():
            self.lose_node(host, f"{node}: {reason}", cut_off=False)

    def _fail(self, reason: str) -> None:
        if not self._failed.is_set():
            self._failed.set()
            self._show_phase()
            self.journal.tell("pipeline", "failed", reason=reason)
            self.dispatcher.fail(StageError(reason))
            self._on_failed(reason)
