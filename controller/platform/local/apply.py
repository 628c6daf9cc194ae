"""Make a running pipeline what an object says: by the same event as anybody may send by hand.

Protocol: the object is compared with the one that serves; fields that only a restart changes are refused. Then its
layout is asked for with ``reconfiguration.requested`` and the next generation, and the object is kept as proposed. It
becomes the one that serves when the head says that its change was committed, or that the layout is in force already;
the supervisor looks at that too, so nobody has to wait. Nothing is asked for only when the object is the one that
serves and nobody wants another layout: while a change is under way, the newest wish must still reach the head.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from controller.platform.broker.client import BrokerClient, BrokerError
from controller.platform.llm_pipeline import PipelineError, Restart, diff
from controller.platform.local.head_status import outcome, read_status, read_told
from controller.platform.local.plan import refuse_unknown_nodes, refuse_what_only_a_cluster_has
from controller.platform.local.processes import PlatformError
from controller.platform.local.state import Applied, Proposed, running
from runtime.events.catalogue import Type
from runtime.events.envelope import make
from runtime.events.errors import EventError
from runtime.events.from_journal import from_report
from runtime.head.control_client import ControlClient, ControlError

if TYPE_CHECKING:
    from controller.platform.broker.client import Seen
    from controller.platform.broker.ring import Undelivered
    from controller.platform.llm_pipeline import LiveChange, LLMPipeline
    from controller.platform.local.head_status import HeadStatus
    from controller.platform.local.state import PlatformFolder, PlatformRecord
    from runtime.events.envelope import Event

SOURCE = "/midstream/commands/apply"
_LONG_POLL_S = 30.0
_LOOK_AGAIN_S = 1.0
_ENDS = frozenset({Type.RECONFIGURATION_COMMITTED, Type.RECONFIGURATION_ABORTED})


class NeedsRestart(PipelineError):
    """Fields differ that only a restart changes."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an object: `request` is the event's id, None if nothing had to change.

    `committed` is None when nobody waited for the end; `report` is the data of the last event.
    """

    generation: int
    request: str | None = None
    committed: bool | None = None
    report: dict[str, Any] | None = None


@dataclass(slots=True)
class _Signs:
    """What the broker's events said of a request; only the head knows whether it is true."""

    ended: list[Event] = field(default_factory=list)
    lost: Undelivered | None = None

    def take(self, seen: Seen, proposed: Proposed, pipeline: str) -> None:
        if seen.undelivered is not None:
            if (seen.event.get("source"), seen.event.get("id")) == (SOURCE, proposed.request):
                self.lost = seen.undelivered
            return
        try:
            event = read_told(seen.event, pipeline)
        except EventError:
            return  # somebody else's, whatever it says
        if event is not None and event.type in _ENDS and event.data["request"] == proposed.request:
            self.ended.append(event)


def apply(pipeline: LLMPipeline, *, wait: bool = True) -> Outcome:
    """Make the running pipeline of that name what the object says.

    Raises:
        PipelineError: the object asks for what cannot be done here, or not while it serves; nothing was touched.
        PlatformError: no such pipeline runs, or it cannot be reached.

    """
    refuse_what_only_a_cluster_has(pipeline)
    folder, record = running(pipeline.name)
    with folder.applying():
        applied = folder.applied()
        if applied is None:
            raise PlatformError(
                f"{folder.path} says nothing of what serves; end it with `midstream down {folder.name}`"
            )
        change = diff(applied.pipeline, pipeline, record.total_layers)
        if isinstance(change, Restart):
            raise NeedsRestart(
                f"only a restart changes {', '.join(change.fields)}: run `midstream down {pipeline.name}`, then "
                "`midstream up` with this file"
            )
        refuse_unknown_nodes(pipeline, record.nodes)
        layers, wanted = pipeline.layout_text(record.total_layers), pipeline.to_object()
        status, proposals = _status(record), folder.proposals()
        in_force = status.change is None and status.wanted == layers
        if wanted == applied.object and in_force and not proposals:
            return Outcome(applied.generation)
        before = max(applied.generation, status.generation, *(other.applied.generation for other in proposals))
        return _request(folder, record, Applied(before + 1, wanted), layers, change, wait=wait)


def _status(record: PlatformRecord) -> HeadStatus:
    try:
        with ControlClient(record.endpoint) as head:
            status = read_status(head.status())
    except ControlError as error:
        raise PlatformError(str(error)) from error
    if status is None:
        raise PlatformError(f"{record.endpoint} does not answer as a head does")
    return status


def _request(
    folder: PlatformFolder, record: PlatformRecord, following: Applied, layers: str, change: LiveChange, *, wait: bool
) -> Outcome:
    data = {
        "pipeline": folder.name,
        "layers": layers,
        "method": str(change.method),
        "fallback": str(change.fallback),
        "generation": following.generation,
    }
    event = make(Type.RECONFIGURATION_REQUESTED, SOURCE, folder.name, data, id=str(uuid.uuid4()))
    proposed = Proposed(event.id, event.key, layers, following)
    folder.write_proposed(proposed)
    try:
        with BrokerClient(record.broker) as broker:
            after = broker.send(*event.to_http_binary())
            if not wait:
                return Outcome(following.generation, event.id)
            return _await_end(folder, record, broker, after, proposed)
    except BrokerError as error:
        if error.refused:
            folder.settle(event.id, committed=False)
        raise PlatformError(str(error)) from error


def _await_end(
    folder: PlatformFolder, record: PlatformRecord, broker: BrokerClient, after: int, proposed: Proposed
) -> Outcome:
    signs = _Signs()
    while folder.is_owned():
        page = broker.events(after, _LOOK_AGAIN_S if signs.ended else _LONG_POLL_S, subject=folder.name)
        after = page.next
        for seen in page.events:
            signs.take(seen, proposed, folder.name)
        end = _end(record, proposed, signs)
        if end is not None:
            committed = end["state"] == "committed"
            folder.settle(proposed.request, committed=committed)
            return Outcome(proposed.applied.generation, proposed.request, committed, end)
        if signs.lost is not None:
            folder.settle(proposed.request, committed=False)
            raise PlatformError(f"the change was not made: {signs.lost.message}")
    raise PlatformError(f"pipeline {folder.name!r} ended before the change did")


def _end(record: PlatformRecord, proposed: Proposed, signs: _Signs) -> dict[str, Any] | None:
    """Ask the head what became of a request; None while that is open, or the head does not answer."""
    try:
        with ControlClient(record.endpoint) as head:
            status = read_status(head.status())
            if status is None:
                return None
            changes = [event.data["change"] for event in signs.ended]
            if status.last_change is not None and status.last_change.request == proposed.key:
                changes.append(status.last_change.id)
            for change in filter(None, changes):
                report = _ended_report(head, change)
                if report is not None and report["request"] == proposed.key:
                    return from_report(report, record.name).data
    except ControlError:
        return None
    accepted = status.generation >= proposed.applied.generation
    for event in signs.ended:
        # Of what started no change, the head remembers only which generation it accepted.
        if event.data["change"] is None and (accepted or event.type is Type.RECONFIGURATION_ABORTED):
            return event.data
    committed = outcome(proposed, status)
    if committed is None:
        return None
    reason = "it is the layout that was asked for last" if committed else "a newer generation was accepted"
    return {"change": None, "state": "committed" if committed else "aborted", "reason": reason}


def _ended_report(head: ControlClient, change: str) -> dict[str, Any] | None:
    """Wait for the end of a change that an event named; None if the head does not know it."""
    try:
        return head.wait(quote(change, safe=""))
    except ControlError as error:
        if error.refused:
            return None
        raise
