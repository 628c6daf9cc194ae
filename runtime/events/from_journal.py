"""What of the journal the world is told: an entry becomes an event, or nothing.

====================================  ==========================================  ===================================
entry (subject)                       details                                     event
====================================  ==========================================  ===================================
planned, ended (a change)             the change's report                         reconfiguration.planned, .committed,
                                                                                  .aborted
stage prepared, stage released        stage, node, ms                             stage.prepared, stage.released
(a change)
node ready, node lost (pipeline)      node, weights_were_warm or reason           node.joined, node.lost
====================================  ==========================================  ===================================

Ids follow from what is told (the head's boot id, the change, its state), so whoever tells of a change makes the same
event: the head that publishes it, and the function that answers with it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec

from runtime.events.catalogue import NodeJoined, NodeLost, ReconfigurationReport, StageReport, Type
from runtime.events.envelope import Event, make

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.migration.journal import Entry

_MOST_REASON_CHARACTERS = 4000
_STATE_OF = {"running": "planned", "committed": "committed", "aborted": "aborted"}
_RECONFIGURATION = {
    "planned": Type.RECONFIGURATION_PLANNED,
    "committed": Type.RECONFIGURATION_COMMITTED,
    "aborted": Type.RECONFIGURATION_ABORTED,
}
_STAGE = {"stage prepared": Type.STAGE_PREPARED, "stage released": Type.STAGE_RELEASED}


def source_of(pipeline: str) -> str:
    """Return the source of what the head of a pipeline tells."""
    return f"/midstream/pipelines/{pipeline}"


def from_journal(entry: Entry, pipeline: str, boot: str) -> Event | None:
    """Return the event that an entry of the journal is, if it is one.

    Args:
        entry: what was told.
        pipeline: the name of the pipeline.
        boot: the id of this start of its head.

    Raises:
        EventError: the entry's details are not what the event needs.

    """
    details = entry.details
    match entry.event:
        case "planned" | "ended":
            if "boot" not in details:  # the end of a request
                return None
            return from_report(details, pipeline)
        case "stage prepared" | "stage released" as event:
            kind = _STAGE[event]
            stage = StageReport(
                pipeline=pipeline,
                stage=details["stage"],
                node=details["node"],
                change=entry.subject,
                ms=details["ms"],
            )
            happened = f"{entry.subject}.stage-{stage.stage}.{kind.rpartition('.')[2]}"
            return _event(kind, pipeline, boot, happened, pipeline, stage, entry.at)
        case "node ready":
            joined = NodeJoined(node=details["node"], pipeline=pipeline, weights_were_warm=details["weights_were_warm"])
            return _event(Type.NODE_JOINED, pipeline, boot, _node_id(entry), joined.node, joined, entry.at)
        case "node lost":
            lost = NodeLost(node=details["node"], pipeline=pipeline, reason=_reason(details["reason"]))
            return _event(Type.NODE_LOST, pipeline, boot, _node_id(entry), lost.node, lost, entry.at)
    return None


def from_report(report: Mapping[str, Any], pipeline: str) -> Event:
    """Return the event that the report of a change is: planned while it runs, then committed or aborted.

    Equal to what the head publishes of it.

    Args:
        report: as the control API gives it, such as ``{"id": "change-1", "boot": ..., "state": "committed", ...}``.
        pipeline: the name of the pipeline.

    Raises:
        EventError: the report is not what the event needs.

    """
    state = _STATE_OF[report["state"]]
    data = ReconfigurationReport(
        pipeline=pipeline,
        change=report["id"],
        from_=report["from"],
        to=report["to"],
        state=state,
        reason=_reason(report["reason"]) or None,
        total_ms=report["total_ms"],
        steps_ms={str(step): ms for step, ms in report["steps_ms"].items()},
        bytes_moved=report["bytes_moved"],
        rounds=report["rounds"],
        requests_carried=report["requests_carried"],
        epoch=report["epoch"],
        request=_id_of(report["request"]),
        unchanged=False,
        pause_ms=report["pause_ms"],
    )
    at = report["started_at"] if state == "planned" else report["ended_at"]
    return _event(
        _RECONFIGURATION[state],
        pipeline,
        report["boot"],
        f"{report['id']}.{state}",
        pipeline,
        data,
        at,
        traceparent=report["traceparent"],
    )


def _event(
    kind: Type,
    pipeline: str,
    boot: str,
    happened: str,
    subject: str,
    data: msgspec.Struct,
    at: float,
    traceparent: str | None = None,
) -> Event:
    return make(
        kind,
        source_of(pipeline),
        subject,
        msgspec.to_builtins(data),
        id=f"{boot}.{happened}",
        time=datetime.fromtimestamp(at, UTC),
        traceparent=traceparent,
    )


def _node_id(entry: Entry) -> str:
    """Name what happened to a node, which can be lost and come back more than once, by when it did."""
    return f"{entry.details['node']}.{round(1e6 * entry.at)}.{'joined' if entry.event == 'node ready' else 'lost'}"


def _id_of(request: str | None) -> str | None:
    """Return the id of the event whose key (see `Event.key`) a change was asked for with."""
    if request is None:
        return None
    _, sharp, identity = request.partition("#")
    return unquote(identity) if sharp else request


def _reason(text: str | None) -> str:
    return (text or "")[:_MOST_REASON_CHARACTERS]
