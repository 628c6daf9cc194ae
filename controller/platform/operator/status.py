"""What an object's status is written as: plain data, as the CRD has it."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from controller.platform.operator.head import HeadReport

MOST_MESSAGE = 4000
"""Characters of a message."""

Truth = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition, without its time."""

    type: str
    status: Truth
    reason: str
    message: str


def terminating(status: Mapping[str, Any], generation: int, message: str, now: float) -> dict[str, Any]:
    """Return the status of a pipeline that is being deleted."""
    conditions = (Condition("Ready", "False", "Terminating", message),)
    kept = {key: value for key, value in status.items() if key not in {"conditions", "phase"}}
    return {
        **kept,
        "phase": "Terminating",
        "observedGeneration": generation,
        "conditions": with_times(conditions, status, generation, now),
    }


def rejected(status: Mapping[str, Any], generation: int, message: str, now: float) -> dict[str, Any]:
    """Return the status of an object that breaks rules which the API server does not know; what serves stays."""
    conditions = tuple(
        Condition(kind, "False", "Invalid", message[:MOST_MESSAGE]) for kind in ("Ready", "Applied", "Reconfigured")
    )
    kept = {key: value for key, value in status.items() if key != "conditions"}
    return {
        "phase": "Pending",
        **kept,
        "observedGeneration": generation,
        "conditions": with_times(conditions, status, generation, now),
    }


def serving(head: HeadReport) -> dict[str, Any]:
    """Return what of the status the head tells."""
    last = head.last_change
    told: dict[str, Any] = {"layout": head.layers, "epoch": head.epoch, "stageCount": head.layers.count(",") + 1}
    told["stages"] = [
        {"index": stage.index, "layers": f"{stage.first_layer}-{stage.last_layer}", "node": stage.node}
        for stage in head.stages
    ]
    if last is not None:
        told["lastChange"] = {
            "id": last.id,
            "state": last.state,
            "totalMs": last.total_ms,
            "bytesMoved": last.bytes_moved,
            **({"reason": last.reason[:MOST_MESSAGE]} if last.reason else {}),
        }
        if last.pause_ms is not None:
            told["lastPauseMs"] = last.pause_ms
    return told


def with_times(
    conditions: tuple[Condition, ...], before: Mapping[str, Any], generation: int, now: float
) -> list[dict[str, Any]]:
    """Return conditions as in a status; one whose truth is the same as before keeps its time."""
    known = {told["type"]: told for told in before.get("conditions") or ()}
    at = dt.datetime.fromtimestamp(now, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return [
        {
            "type": condition.type,
            "status": condition.status,
            "reason": condition.reason,
            "message": condition.message,
            "observedGeneration": generation,
            "lastTransitionTime": known[condition.type]["lastTransitionTime"]
            if known.get(condition.type, {}).get("status") == condition.status
            else at,
        }
        for condition in conditions
    ]
