"""What a pipeline counts, for Prometheus. vLLM's own metrics stay as they are; these are beside them.

They are kept in the engine's process, where they happen, and travel to the server as the text that Prometheus reads
(`runtime.head.metrics`). Changes are counted when the journal tells of their end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from runtime.engine.pipeline import Pipeline
    from runtime.migration.journal import Entry

_STEP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_PAUSE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class PipelineMetrics:
    """The metrics of one pipeline."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._registry = registry = CollectorRegistry()
        self._changes = Counter("midstream_changes", "Changes of the layout that ended.", ["state"], registry=registry)
        for state in ("committed", "aborted"):
            self._changes.labels(state)
        self._steps = Histogram(
            "midstream_change_seconds",
            "Time that a change spent in each of its steps.",
            ["step"],
            buckets=_STEP_SECONDS,
            registry=registry,
        )
        self._pauses = Histogram(
            "midstream_pause_seconds",
            "Largest gap between two answers of the pipeline during a change, minus the median gap before it.",
            buckets=_PAUSE_SECONDS,
            registry=registry,
        )
        self._moved = Counter("midstream_moved_bytes", "KV copied between nodes by changes.", registry=registry)
        self._rounds = Counter("midstream_copy_rounds", "Rounds of copying KV ahead of cutovers.", registry=registry)
        self._carried = Counter("midstream_carried_requests", "Requests that changed chains.", registry=registry)
        self._recoveries = Counter("midstream_recoveries", "Losses of stages that were mended.", registry=registry)
        self._lost_nodes = Counter("midstream_lost_nodes", "Losses of nodes.", registry=registry)
        self._epoch = Gauge("midstream_epoch", "Epoch of the chain that serves.", registry=registry)
        self._layers = Gauge("midstream_stage_layers", "Layers of each stage.", ["stage", "node"], registry=registry)
        self._spares = Gauge("midstream_spare_stages", "Stages ready for a role.", ["node"], registry=registry)
        self._warm = Gauge(
            "midstream_warm_bytes", "Memory of weights and KV that stays when stages end.", ["node"], registry=registry
        )
        self._weights = Gauge(
            "midstream_weights_bytes", "Memory of weights on the head's host.", ["precision"], registry=registry
        )
        self._precision = Gauge(
            "midstream_precision", "1 for the precision of the weights that serve.", ["precision"], registry=registry
        )
        self._blocks = Gauge("midstream_kv_blocks", "Blocks of KV in the pool.", registry=registry)
        pipeline.journal.listen(self._told)

    def as_text(self) -> str:
        """Return all metrics as Prometheus reads them. Asks nobody on another host."""
        state = self._pipeline.status()
        self._epoch.set(state["epoch"])
        self._blocks.set(state["kv_blocks"])
        self._layers.clear()
        for stage in state["stages"]:
            layers = stage["last_layer"] - stage["first_layer"] + 1
            self._layers.labels(str(stage["index"]), stage["node"]).set(layers)
        self._spares.clear()
        for node, count in state["spare_stages"].items():
            self._spares.labels(node).set(count)
        self._warm.clear()
        for node, held in self._pipeline.nodes.warm_bytes().items():
            self._warm.labels(node).set(held)
        self._weights.clear()
        for precision, size in state["weights_bytes"].items():
            self._weights.labels(precision).set(size)
        self._precision.clear()
        self._precision.labels(state["precision"]).set(1)
        return generate_latest(self._registry).decode()

    def _told(self, entry: Entry) -> None:
        report = entry.details
        match entry.subject, entry.event:
            case "pipeline", "node lost":
                self._lost_nodes.inc()
            case _, "recovered":
                self._recoveries.inc()
            case _, "ended" if "steps_ms" in report:
                self._changes.labels(report["state"]).inc()
                for step, ms in report["steps_ms"].items():
                    self._steps.labels(str(step)).observe(ms / 1e3)
                if report["pause_ms"] is not None:
                    self._pauses.observe(report["pause_ms"] / 1e3)
                self._moved.inc(report["bytes_moved"])
                self._rounds.inc(report["rounds"])
                self._carried.inc(report["requests_carried"])
