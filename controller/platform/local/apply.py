"""Make a running pipeline what an object says: by the same event as anybody may send by hand.

Protocol: the object is compared with the one that serves; fields that only a restart changes are refused. The layout is
compared with what the head serves now, since somebody may have changed it by hand. What differs is asked for with
``reconfiguration.requested`` and the next generation, and the object is kept as proposed: it becomes the one that
serves when the event ``committed`` with that request comes by. The supervisor sees that too, so nobody has to wait.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controller.platform.broker.client import BrokerClient, BrokerError
from controller.platform.llm_pipeline import PipelineError, Restart, diff
from controller.platform.local.plan import refuse_unknown_nodes, refuse_what_only_a_cluster_has
from controller.platform.local.processes import PlatformError
from controller.platform.local.state import Applied, running
from runtime.events.catalogue import Type
from runtime.events.envelope import make
from runtime.head.control_client import ControlClient, ControlError

if TYPE_CHECKING:
    from controller.platform.llm_pipeline import LiveChange, LLMPipeline
    from controller.platform.local.state import PlatformFolder, PlatformRecord

SOURCE = "/midstream/commands/apply"
_LONG_POLL_S = 30.0
_ENDS = {Type.RECONFIGURATION_COMMITTED: True, Type.RECONFIGURATION_ABORTED: False}


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
        wanted = pipeline.layout_text(record.total_layers)
        following = Applied(applied.generation + 1, pipeline.to_object())
        if wanted == _serving_layout(record):
            if following.object == applied.object:
                return Outcome(applied.generation)
            folder.write_applied(following)
            return Outcome(following.generation)
        return _request(folder, record, following, wanted, change, wait=wait)


def _serving_layout(record: PlatformRecord) -> str:
    try:
        with ControlClient(record.endpoint) as client:
            return str(client.status()["layers"])
    except ControlError as error:
        raise PlatformError(str(error)) from error


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
    folder.write_proposed(event.id, following)
    try:
        with BrokerClient(record.broker) as broker:
            after = broker.send(*event.to_http_binary())
            if not wait:
                return Outcome(following.generation, event.id)
            return _await_end(folder, broker, after, event.id, following)
    except BrokerError as error:
        if error.refused:
            folder.settle(event.id, committed=False)
        raise PlatformError(str(error)) from error


def _await_end(folder: PlatformFolder, broker: BrokerClient, after: int, request: str, following: Applied) -> Outcome:
    while folder.is_owned():
        page = broker.events(after, _LONG_POLL_S, subject=folder.name)
        after = page.next
        for seen in page.events:
            data = seen.event.get("data") or {}
            if seen.undelivered is not None and seen.event["id"] == request:
                folder.settle(request, committed=False)
                raise PlatformError(f"the change was not made: {seen.undelivered.message}")
            if seen.undelivered is None and data.get("request") == request and seen.event["type"] in _ENDS:
                committed = _ENDS[Type(seen.event["type"])]
                folder.settle(request, committed=committed)
                return Outcome(following.generation, request, committed, data)
    raise PlatformError(f"pipeline {folder.name!r} ended before the change did")
