"""What is told of a pipeline: its status as plain data, and to the head, at any moment, whether it computes.

The status is made on the engine's thread when somebody asks. The phase is written into the head's word
(`runtime.phase`) by whoever changes it, on any thread, since the engine's waits just when the answer matters; what is
written is worked out anew each time, under a lock, so that the last one to write has seen all that the others changed.

Caveat: the two have words of their own. The status names the step of a change, which no request has to wait for.
"""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING, Any

from runtime.phase import Phase, open_phase_word

if TYPE_CHECKING:
    from runtime.engine.pipeline import Pipeline


class PipelineStatus:
    """Looks at a pipeline and tells of it. Touches nothing. Thread-safe."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._phase_word, self._phase_lock = open_phase_word(), threading.Lock()

    def report(self) -> dict[str, Any]:
        """Return what serves now, as plain data."""
        pipeline = self._pipeline
        serving, weights, binding = pipeline.serving, pipeline.fleet.weights, pipeline.assembler.binding
        current, last = pipeline.coordinator.current, pipeline.coordinator.last
        return {
            "boot": pipeline.coordinator.boot,
            "epoch": pipeline.epoch(),
            "phase": self._phase(),
            "stopped": pipeline.brake.stopped if pipeline.brake else None,
            "layers": str(serving.assembly.layout),
            "precision": serving.assembly.layout.precision,
            "weights_bytes": weights.held_bytes() if weights else {},
            "total_layers": serving.assembly.layout.total_layers,
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
                    zip(serving.assembly.stages, serving.assembly.layout.stages, strict=False)  # none while asleep
                )
            ],
            "spare_stages": {
                node: serving.spares.count(node, serving.assembly.layout.precision) for node in pipeline.nodes.names()
            },
            "kv_blocks": binding.blocks if binding else 0,
            "counters": dataclasses.asdict(pipeline.dispatcher.counters),
            "change": current.id if current else None,
            "last_change": last.report() if last else None,
            "recoveries": pipeline.recovery.count,
            "last_recovery": pipeline.recovery.last,
        }

    def _phase(self) -> str:
        pipeline = self._pipeline
        current = pipeline.coordinator.current
        if pipeline.sleep.phase is not None:
            return pipeline.sleep.phase
        if pipeline.recovery.running:
            return "recovering"
        if pipeline.depth.stopped() and current is None:
            return "forbidden"
        return str(current.machine.step) if current else "serving"

    def show_phase(self) -> None:
        """Let the head know whether a request has to wait for more than its turn."""
        if self._phase_word is None:
            return  # nobody is there to look
        pipeline = self._pipeline
        with self._phase_lock:
            if pipeline.failed:
                phase = Phase.FAILED
            elif pipeline.sleep.phase is not None:
                phase = Phase[pipeline.sleep.phase.upper()]
            elif pipeline.recovery.running:
                phase = Phase.RECOVERING
            else:
                phase = Phase.FORBIDDEN if pipeline.depth.stopped() else Phase.AWAKE
            self._phase_word.write(phase)
