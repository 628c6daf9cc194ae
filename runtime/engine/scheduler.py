"""vLLM's scheduler, told when the pipeline is full.

Stock vLLM fixes the number of batches in flight when it starts. Here the pipeline changes while it runs, and with it
how many batches keep its devices busy: more would only split work into smaller batches, fewer would leave devices
idle. The engine's loop asks `has_requests` before it schedules, so that is where the answer belongs.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler

from runtime.engine.capacity import Capacity
from runtime.engine.executor import PipelineExecutor
from runtime.engine.tracing import tracing_of

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request

_LOOK_AGAIN_S = 0.02


class PipelineScheduler(Scheduler):
    """Schedules no more batches than keep the pipeline's devices busy."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._depth = PipelineExecutor.depth_of(self.vllm_config)
        self._capacity: Capacity | None = None
        if self._depth.pipeline is not None:
            self._capacity = self._depth.capacity = Capacity(self, self._depth.pipeline)
            self._depth.change_capacity = self.change_capacity
        self._tracing = tracing_of(self.vllm_config)
        self._batches_in_flight = 0
        self._nothing_to_schedule = False
        # Stages but the last learn sampled tokens from the scheduler, whatever the number of stages is at the moment.
        self.use_pp = True
        # A batch in flight may be replayed: what it reads must not be given to others when one of its requests ends.
        self.defer_block_free = True

    def has_requests(self) -> bool:
        """Whether the engine should schedule now: there is work, room in the pipeline, and something has changed."""
        if self._batches_in_flight and self._capacity is not None and self._capacity.waits:
            return False
        if self._batches_in_flight and (self._nothing_to_schedule or self._batches_in_flight >= self._depth.batches):
            return False
        return super().has_requests()

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Schedule one batch; remember when nothing could be scheduled because all requests are in flight."""
        self.change_capacity()
        if self._depth.stopped():
            return self._schedule_nothing(*args, **kwargs)
        if self._depth.kv_losses_known < (losses := self._depth.kv_losses()):
            self._forget_unused_prefixes()
            self._depth.kv_losses_known = losses
        output = super().schedule(*args, **kwargs)
        self._nothing_to_schedule = output.total_num_scheduled_tokens == 0
        if not self._nothing_to_schedule:
            self._batches_in_flight += 1
        return output

    def _schedule_nothing(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Tell of requests that ended; let the engine ask again in a moment, so that it hears of changes meanwhile."""
        time.sleep(_LOOK_AGAIN_S)
        before = self.pause_state
        self._pause_state = PauseState.PAUSED_ALL  # `set_pause_state` would log it
        try:
            return super().schedule(*args, **kwargs)
        finally:
            self._pause_state = before
            self._nothing_to_schedule = True

    def change_capacity(self) -> None:
        """Change the capacity if that was asked for, and no batch is in flight."""
        if self._capacity is not None and self._capacity.waits and not self._batches_in_flight:
            self._capacity.carry_out()

    def _forget_unused_prefixes(self) -> None:
        """Find no more in the prefix cache what no request holds: its KV went with a node.

        What requests hold is computed again.
        """
        pool = self.kv_cache_manager.block_pool
        pool.evict_blocks({block.block_id for block in pool.blocks if block.ref_cnt == 0 and block.block_hash})

    def update_from_output(self, scheduler_output: SchedulerOutput, output: ModelRunnerOutput) -> Any:
        """Take a batch's output; its requests can be scheduled again."""
        if scheduler_output.total_num_scheduled_tokens:
            self._batches_in_flight -= 1
        self._nothing_to_schedule = False
        outputs = super().update_from_output(scheduler_output, output)
        self.change_capacity()
        return outputs

    def add_request(self, request: Request) -> None:
        """Take a new request, which can be scheduled."""
        self._nothing_to_schedule = False
        if self._tracing is not None:
            self._tracing.came(request.request_id, request.trace_headers)
        super().add_request(request)

    def finish_requests(self, *args: Any, **kwargs: Any) -> Any:
        """End requests, which may free room for others."""
        self._nothing_to_schedule = False
        return super().finish_requests(*args, **kwargs)
