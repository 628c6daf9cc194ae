"""The pipeline as one object: made of its parts, started, served from, and ended.

What happens to a pipeline, and where to look::

    start    the stages of the first layout are started, loaded, bound to their KV pools and joined   `Pipeline`
    serve    batches go down the chain and come back; what serves now                    `dispatcher`, `serving`
             no more are in flight than keep its devices busy                                          `depth`
             no longer than the intents allow it                                                       `brake`
    change   asked for, planned, prepared, copied, switched    `migration.coordinator`, `planning`, `changing`
             how much is held at once: KV blocks, requests, tokens                                  `capacity`
    lose     a stage or a node goes: when to mend it, and how                           `recovery`, `mending`
    sleep    nobody asks for anything: the stages end, until somebody does                 `sleep`, `mending`
    close    everything ends                                                                       `Pipeline`

Below them all: processes (`fleet`), joined to chains (`assembly`), on nodes with KV pools (`nodes`). What is told of
all of it is `pipeline_status`. Here is what joins these parts: each knows those that it uses, and hears of the rest
through what it was given here.

Caveat: the fleet forks a zygote when it is made, which would inherit threads and sockets: what has some comes later.
"""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from runtime.engine.assembly import Assembler
from runtime.engine.brake import Brake
from runtime.engine.capacity import PipelineSide
from runtime.engine.changing import Changing
from runtime.engine.depth import Depth
from runtime.engine.dispatcher import Dispatcher
from runtime.engine.engine_config import describe
from runtime.engine.errors import StageError
from runtime.engine.fleet import Fleet, GatewaySettings
from runtime.engine.kv_spec import decode_specs
from runtime.engine.ledger import Ledger
from runtime.engine.mending import Mender
from runtime.engine.model_zygote import be_precision_zygote, import_engine
from runtime.engine.nodes import Nodes
from runtime.engine.pipeline_status import PipelineStatus
from runtime.engine.planning import Planner
from runtime.engine.precision import precision_of
from runtime.engine.recovery import Recovery
from runtime.engine.serving import Serving
from runtime.engine.sleep import Sleep
from runtime.engine.stage_process import PoolBinding
from runtime.layout import LOCAL_NODE, Layout
from runtime.migration.coordinator import Coordinator, Leases
from runtime.migration.journal import Journal
from runtime.migration.protocol import Failed
from runtime.transport.frames import PROBE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vllm.config import VllmConfig

    from runtime.migration.guard import Permission
    from runtime.transport.frames import Buffer, Result
    from runtime.warm.model_fetch import ModelOrder

_LOAD_TIMEOUT_S = 600.0
_NOTICE_S = 2.0  # from a failed batch to the news that its stage has ended
_GUARD_S = 60.0  # for a guard that starts at the same time


class Pipeline(PipelineSide):
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
        self._config, self._permission, self._on_failed = config, permission, on_failed
        self._failed = threading.Event()
        self._status = PipelineStatus(self)
        layout = layout.in_precision(precision_of(config))
        self.depth = Depth(batches_in_flight)
        self.depth.suit(layout)
        self.dispatcher = Dispatcher(
            Ledger(config.cache_config.block_size), self._on_settled, self._on_batch_failed, self.journal.tell
        )
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
        scheduler = config.scheduler_config
        self.assembler = Assembler(self.fleet, self.nodes, self.dispatcher, threads, scheduler.max_num_seqs)
        self.serving = Serving(
            layout, self.fleet, self.nodes, self.dispatcher, self.assembler, self.journal, spare_stages
        )
        self.changing = Changing(
            Planner(config, nodes, self.serving, self.fleet, self.nodes),
            self.serving,
            self.depth,
            self.fleet,
            self.nodes,
            self.dispatcher,
            self.assembler,
            self.journal,
            scheduler.max_num_batched_tokens,
            self._recover_if_lost,
            self._status.show_phase,
            self._forget_stop,
            self._fail,
        )
        self.mender = Mender(
            self.serving,
            self.depth,
            self.fleet,
            self.nodes,
            self.dispatcher,
            self.assembler,
            self.journal,
            scheduler.max_num_batched_tokens,
            self._recover_if_lost,
            self._forget_stop,
        )
        show_phase = self._status.show_phase
        self.coordinator = Coordinator(self.changing, self.journal, leases, permission)
        self.brake = Brake(permission, self.serving.now, self.journal, show_phase) if permission else None
        self.depth.stopped = lambda: self.brake is not None and self.brake.stopped is not None
        self.recovery = Recovery(
            self.mender.repair, self.serving.is_whole, self.coordinator, self.journal, self._fail, show_phase
        )
        self.sleep = Sleep(
            sleep_after_s,
            self.dispatcher,
            self.coordinator,
            self.journal,
            self.mender.end_stages,
            self.mender.bring_stages_back,
            self._fail,
            show_phase,
            self.depth.stopped,
        )
        self.depth.pipeline = self
        self.depth.kv_losses = lambda: self.dispatcher.kv_losses

    # -- start ---------------------------------------------------------------------------------------------------------

    def start(self) -> list[dict[str, Any]]:
        """Start and load the stages of the first layout; returns each stage's KV cache specs.

        Raises:
            ChangeForbidden, GuardSilent: the intents, or their guard, do not allow it; no node was asked for anything.
        """
        assembly = self.serving.assembly
        if self._permission is not None:
            self._permission.require(None, assembly.layout, _GUARD_S)  # nothing is carried over into it
        self.fleet.load(assembly.layout.precision, _LOAD_TIMEOUT_S, background=False)
        self.nodes.open(self._describe_model)
        assembly.stages = [self.assembler.start(assembly.layout, rank) for rank in range(len(assembly.layout))]
        return [decode_specs(ready["kv_specs"]) for ready in self.assembler.prepare(assembly.stages)]

    def _describe_model(self, nodes: frozenset[str]) -> tuple[bytes, ModelOrder | None]:
        """Say what the zygotes of other hosts need; a model that is a folder is offered to them."""
        folder = Path(self._config.model_config.model)
        order = self.fleet.offer_model(folder, nodes) if folder.is_dir() else None
        return msgspec.msgpack.encode(describe(self._config)), order

    def bind(self, blocks: int, block_tokens: int, layer_bytes: int, layout_name: str) -> None:
        """Reserve the nodes' KV pools, give them to the stages and install the first chain."""
        assembly = self.serving.assembly
        self.assembler.binding = PoolBinding(
            assembly.layout.total_layers, blocks, block_tokens, layer_bytes, layout_name
        )
        self.serving.reserve(assembly.layout)
        self.dispatcher.ledger = Ledger(block_tokens)
        self.assembler.bind(assembly.stages)
        assembly.chain = self.assembler.connect(assembly.layout, assembly.stages)
        self.dispatcher.install(assembly.chain)
        self.journal.tell("pipeline", "serving", layers=str(assembly.layout), epoch=assembly.chain.epoch)
        self.serving.keep_spares()
        self.sleep.start()
        if self.brake is not None:
            self.brake.start()

    # -- serve ---------------------------------------------------------------------------------------------------------

    def layout(self) -> Layout:
        """Return the layout that serves now."""
        return self.serving.assembly.layout

    def epoch(self) -> int:
        """Return the epoch that serves now."""
        return self.dispatcher.epoch

    def status(self) -> dict[str, Any]:
        """Return what serves now, as plain data."""
        return self._status.report()

    @property
    def failed(self) -> bool:
        """Whether the pipeline serves no more."""
        return self._failed.is_set()

    def _on_result(self, result: Result, buffers: Sequence[Buffer]) -> None:
        if result.sequence == PROBE:
            self.assembler.probe_passed(result.epoch)
            return
        self.dispatcher.on_result(result, buffers)

    # -- change --------------------------------------------------------------------------------------------------------

    def _on_settled(self, epoch: int) -> None:
        self.coordinator.settled(epoch)

    def _forget_stop(self) -> None:
        """What serves from now on was asked for, and nothing that was forbidden before is returned to."""
        if self.brake is not None:
            self.brake.forget()

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
            self.serving.tell_left_over([str(error)])
        self.journal.tell("pipeline", "KV blocks changed", blocks=kept, moved=len(moved), preempted=len(preempted))

    def hold_changes(self, holder: str) -> bool:
        """Let no other change begin; False when one is under way."""
        return self.coordinator.hold(holder)

    def let_changes_go(self) -> None:
        """Let changes begin again."""
        self.coordinator.let_go()

    # -- lose ----------------------------------------------------------------------------------------------------------

    def _on_batch_failed(self, epoch: int, reason: str) -> None:
        target = self.serving.target
        if epoch == self.changing.abandoned_epoch:
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
        target = self.serving.target
        if target is not None and name not in target.kept and any(stage.name == name for stage in target.stages):
            self.coordinator.post(Failed(reason))
        elif any(stage.name == name for stage in self.serving.assembly.stages):
            if self.assembler.binding is None:
                self._fail(reason)  # before anything was served
                return
            self.recovery.stage_lost(name, reason)
        elif self.serving.spares.lost(name):
            self.serving.keep_spares()

    def _recover_if_lost(self, reason: str) -> None:
        """Replace serving stages that were lost before it was known that they serve."""
        for stage in self.serving.assembly.stages:
            if not self.fleet.alive(stage):
                self.recovery.stage_lost(stage.name, reason)

    def _on_way_lost(self, node: str, host: str, reason: str) -> None:
        """Do without a host that a node cannot reach; of two that cannot reach each other, the one that is told of."""
        if node in self.nodes.names():
            self.lose_node(host, f"{node}: {reason}", cut_off=False)

    def lose_node(self, name: str, reason: str, *, cut_off: bool = True) -> None:
        """Do without a node's processes from now on: they and its KV are gone, or may be (`Nodes.lose`)."""
        if not self.nodes.lose(name, reason, cut_off=cut_off):
            return
        self.journal.tell("pipeline", "node lost", node=name, reason=reason)
        for stage in self.fleet.stages():
            if stage.node == name:
                self.fleet.lose(stage, reason)

    def _fail(self, reason: str) -> None:
        if not self._failed.is_set():
            self._failed.set()
            self._status.show_phase()
            self.journal.tell("pipeline", "failed", reason=reason)
            self.dispatcher.fail(StageError(reason))
            self._on_failed(reason)

    # -- close ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End everything."""
        self._failed.set()
        self.fleet.remove_sockets()  # first of all: whoever ends a server gives its engine little time
        self.sleep.close()
        if self.brake is not None:
            self.brake.close()
        self.nodes.close()
        self.coordinator.close()
        self.serving.spares.close()
        self.assembler.fail_probes(None, "the pipeline was shut down")
        self.dispatcher.fail(StageError("the pipeline was shut down"))
        self.fleet.close()
