"""What the scheduler has to know of the pipeline, which changes while both run: one object that both hold.

The pipeline writes it on its own threads; the scheduler asks before it schedules, and brings its limits along.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.engine.capacity import Capacity, PipelineSide
    from runtime.layout import Layout


@dataclass(slots=True)
class Depth:
    """What the scheduler has to know of the pipeline. Shared with it.

    Args:
        wanted_batches: how many batches were asked for; 0 for as many as there are nodes.
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

    wanted_batches: int = 0
    batches: int = 1
    pipeline: PipelineSide | None = None
    capacity: Capacity | None = None
    change_capacity: Callable[[], None] = lambda: None
    kv_losses: Callable[[], int] = lambda: 0
    kv_losses_known: int = 0
    stopped: Callable[[], bool] = lambda: False

    def suit(self, layout: Layout) -> None:
        """Have as many batches in flight as suit a layout."""
        self.batches = min(self.wanted_batches or len(layout.nodes), len(layout))
