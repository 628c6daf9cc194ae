"""Control calls as plain data: what the head's control API asks of the pipeline inside the engine's process.

They travel over vLLM's own utility calls (`collective_rpc` by name), whose results are plain msgpack data, so
refusals are values here, not exceptions: ``{"refused": kind, "message": ...}``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from runtime.engine.capacity import CapacityOrder
from runtime.engine.metrics import PipelineMetrics
from runtime.layout import LayoutError
from runtime.migration.desk import Desk, Order
from runtime.migration.errors import (
    ChangeBusy,
    ChangeForbidden,
    ChangeRefused,
    ChangeSuperseded,
    ChangeUnknown,
    ChangeUnneeded,
    GuardAsked,
    GuardSilent,
    LastStage,
    PipelineAsleep,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.engine.pipeline import Pipeline
    from runtime.migration.coordinator import Change

PREFIX = "midstream."
_KINDS = {
    ChangeUnneeded: "unchanged",
    ChangeSuperseded: "superseded",
    LastStage: "last_stage",
    PipelineAsleep: "asleep",
    ChangeForbidden: "forbidden",
    GuardAsked: "guard_asked",
    GuardSilent: "guard_silent",
}


class ControlCalls:
    """The calls, by name."""

    def __init__(self, pipeline: Pipeline, model: str | list[str], version: str) -> None:
        self._pipeline = pipeline
        self._desk = Desk(
            pipeline.coordinator,
            pipeline.layout,
            lambda layout: layout.without(pipeline.nodes.lost_names()),
            self._wake,
        )
        self._metrics = PipelineMetrics(pipeline)
        self._facts = {"model": model if isinstance(model, str) else model[0], "vllm_version": version}
        self._calls: dict[str, Callable[..., Any]] = {
            f"{PREFIX}status": self._status,
            f"{PREFIX}reconfigure": self._reconfigure,
            f"{PREFIX}attach": self._attach,
            f"{PREFIX}release": self._release,
            f"{PREFIX}metrics": self._metrics.as_text,
            f"{PREFIX}report": self._report,
            f"{PREFIX}cancel": self._cancel,
            f"{PREFIX}capacity": self._capacity,
            f"{PREFIX}story": self._story,
            f"{PREFIX}trace": self._trace,
        }

    def knows(self, method: str) -> bool:
        """Whether `method` is one of these."""
        return method in self._calls

    def call(self, method: str, arguments: Sequence[Any]) -> list[Any]:
        """Carry a call out; one result, in a list as vLLM wants it."""
        try:
            return [self._calls[method](*arguments)]
        except ChangeBusy as error:
            return [{"refused": "busy", "message": str(error), "change": error.change}]
        except ChangeRefused as error:
            return [{"refused": _KINDS.get(type(error), "invalid"), "message": str(error)}]
        except LayoutError as error:
            return [{"refused": "invalid", "message": str(error)}]
        except ChangeUnknown as error:
            return [{"refused": "unknown", "message": str(error)}]

    def _status(self) -> dict[str, Any]:
        return {
            **self._facts,
            **self._pipeline.status(),
            "wanted": str(self._desk.wanted()),
            "generation": self._desk.generation,
        }

    def _reconfigure(self, order: dict[str, Any]) -> dict[str, Any]:
        change, repeated = self._desk.reconfigure(msgspec.convert(order, Order))
        return {**change.report(), "repeated": repeated}

    def _attach(self, stage: int, node: str | None, holder: str | None, key: str | None) -> dict[str, Any]:
        return self._moved(stage, self._desk.attach(stage, node, holder=holder, key=key))

    def _release(self, stage: int, holder: str | None, key: str | None) -> dict[str, Any]:
        return self._moved(stage, self._desk.release(stage, holder=holder, key=key))

    def _moved(self, stage: int, change: Change | None) -> dict[str, Any]:
        report = None if change is None else change.report()
        return {"change": report, "node": self._desk.node_of(stage), "away": self._desk.is_away(stage)}

    def _wake(self) -> None:
        """Have the pipeline woken if it sleeps; the engine's thread waits for nobody."""
        if not self._pipeline.sleep.awake:
            self._pipeline.sleep.wake()
            raise PipelineAsleep("the pipeline sleeps and is being woken; ask again in a moment")

    def _report(self, change: str) -> dict[str, Any]:
        return self._pipeline.coordinator.find(change).report()

    def _cancel(self, change: str) -> dict[str, Any]:
        return self._pipeline.coordinator.cancel(change).report()

    def _capacity(self, order: dict[str, Any] | None) -> dict[str, Any]:
        capacity = self._pipeline.depth.capacity
        if capacity is None:
            raise ChangeRefused("this engine's scheduler is not runtime.engine.scheduler.PipelineScheduler")
        if order is not None:
            capacity.ask(msgspec.convert(order, CapacityOrder))
            self._pipeline.depth.change_capacity()
        return capacity.report()

    def _story(self, subject: str | None) -> list[dict[str, Any]]:
        return [entry.as_dict() for entry in self._pipeline.journal.story(subject)]

    def _trace(self) -> list[dict[str, Any]]:
        """Stage activity as Chrome trace events (ts and dur in microseconds), for Perfetto or chrome://tracing."""
        return [
            {
                "name": f"batch {traced.sequence}",
                "ph": "X",
                "pid": f"epoch {traced.epoch}",
                "tid": span.stage,
                "ts": span.start_ns / 1e3,
                "dur": (span.end_ns - span.start_ns) / 1e3,
                "args": {"tokens": traced.tokens},
            }
            for traced in list(self._pipeline.dispatcher.trace)
            for span in traced.spans
        ]
