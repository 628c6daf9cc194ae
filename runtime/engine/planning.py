"""What is checked of a change before anything is touched: the model, the nodes, and the memory of this host.

New stages come up beside the old ones, so both need memory until the old ones are released. How much is estimated from
what the stages that serve take; spare stages that are ready, and weights that are held in a precision, cost nothing.

Caveats: all of it is asked on the engine's thread, so nobody on another host is: what they lack is found out when the
change is prepared. The memory that is free is that of this host, and others may take it meanwhile.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from runtime.engine.assembly import role_of
from runtime.engine.precision import bytes_to_load, check_precision
from runtime.layout import Layout
from runtime.migration.errors import ChangeRefused, ChangeUnneeded
from runtime.warm.memory import available_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm.config import VllmConfig

    from runtime.engine.fleet import Fleet
    from runtime.engine.nodes import Nodes
    from runtime.engine.serving import Serving

_PROCESS_BYTES = 128 << 20  # what a stage touches of its own beside its weights; measured 60 to 110 MiB


class Planner:
    """Checks what is asked for.

    Args:
        config: says which precisions the model can have.
        other_hosts: names of the nodes there.
        serving: what serves now, and its spare stages.
        fleet: has the weights of this host.
        nodes: those that there are.

    """

    def __init__(
        self, config: VllmConfig, other_hosts: Sequence[str], serving: Serving, fleet: Fleet, nodes: Nodes
    ) -> None:
        self._config, self._other_hosts = config, tuple(other_hosts)
        self._serving, self._fleet, self._nodes = serving, fleet, nodes

    def plan(self, text: str, precision: str | None) -> Layout:
        """Return the layout that is asked for; see `ChangeEffects.plan`.

        Raises:
            ChangeRefused: it does not work, or there is nothing to change.
            LayoutError: `text` is none of this model.

        """
        serving = self._serving.assembly.layout
        target = Layout.parse(text or str(serving), serving.total_layers).in_precision(precision or serving.precision)
        if target.precision != serving.precision:
            check_precision(self._config, target.precision, self._other_hosts)
        elif target == serving:
            raise ChangeUnneeded(f"the pipeline already has the layout {target}, in {target.precision}")
        self._nodes.check(target)
        needed, free = self.extra_bytes(target), available_bytes()
        if needed > free:
            raise ChangeRefused(
                f"layers {str(target)!r} in {target.precision}: the new stages need {needed / 2**20:.0f} MiB beside "
                f"the old ones until these are released, but only {free / 2**20:.0f} MiB are free; "
                f"free {(needed - free) / 2**20:.0f} MiB, or change in smaller steps that keep some stages as they are"
            )
        return target

    def extra_bytes(self, target: Layout) -> int:
        """Estimate the memory that the new stages of `target` need beside the old ones and the spares, in bytes."""
        old = self._serving.assembly
        reusable = {role_of(old.layout, rank) for rank in range(len(old.layout))}
        loaded, before, after = sum(stage.memory_bytes for stage in old.stages), old.layout.precision, target.precision
        if after != before:
            loaded = bytes_to_load(loaded, before, after)
        per_layer = loaded / old.layout.total_layers
        spares = {node: self._serving.spares.count(node, after) for node in target.nodes}
        held = self._fleet.weights.held_bytes() if self._fleet.weights else {}
        needed = 0.0 if after in held else float(bytes_to_load(held.get(before, 0), before, after))
        for rank, placement in enumerate(target.stages):
            if role_of(target, rank) in reusable:
                continue
            if spares[placement.node] > 0:
                spares[placement.node] -= 1
            else:
                needed += per_layer * len(placement.layers) + _PROCESS_BYTES
        return math.ceil(needed)
