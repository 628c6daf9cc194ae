"""What a head says of itself, and what that means for an object that was proposed.

Events are only the sign to look: whoever may send one can forge it, and events come late, twice, or not at all. What
serves, which layout was asked for last and what became of a request is what the head's control API says::

    last change is the request's own, and has ended      -> what became of it
    a change is under way                                -> nothing is known yet
    its generation (or a newer one) was accepted,
        and its layout is the one asked for last         -> committed
    a newer generation was accepted                      -> never: the head refuses older ones
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from runtime.events.catalogue import Type
from runtime.events.envelope import read_http
from runtime.events.from_journal import source_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from controller.platform.local.state import Proposed
    from runtime.events.envelope import Event

_T = TypeVar("_T")
_TOLD = frozenset({Type.RECONFIGURATION_COMMITTED, Type.RECONFIGURATION_ABORTED, Type.NODE_JOINED, Type.NODE_LOST})
_RUNNING = "running"


class ChangeReport(msgspec.Struct, frozen=True):
    """What is needed of a change's report; `request` is the key (``<source>#<id>``) it was asked for with."""

    id: str
    state: str
    to: str
    request: str | None = None


class HeadStatus(msgspec.Struct, frozen=True):
    """What is needed of a head's status; `wanted` is the layout asked for last, `change` the one under way.

    `boot` names this start of the head and `generation` is the highest one that it has accepted.
    """

    boot: str
    wanted: str | None = None
    generation: int = 0
    change: str | None = None
    last_change: ChangeReport | None = None


def read_status(answer: object) -> HeadStatus | None:
    """Return what a head answered; None if it makes no sense."""
    return _convert(answer, HeadStatus)


def read_report(answer: object) -> ChangeReport | None:
    """Return what a head answered of a change; None if it makes no sense."""
    return _convert(answer, ChangeReport)


def read_told(raw: Mapping[str, Any], pipeline: str) -> Event | None:
    """Return an event by which the head of a pipeline tells of changes or nodes; None if it is another one.

    Args:
        raw: as CloudEvents' JSON has it.
        pipeline: the pipeline's name.

    Raises:
        EventError: it says that it is one, but is not.

    """
    if raw.get("source") != source_of(pipeline) or raw.get("type") not in _TOLD:
        return None
    return read_http({"content-type": "application/cloudevents+json"}, json.dumps(raw).encode())


def outcome(proposed: Proposed, status: HeadStatus, reports: Iterable[ChangeReport] = ()) -> bool | None:
    """Say whether a proposed object serves now; False when it never will, None when that is open.

    Args:
        proposed: the object and its request.
        status: of the head, now.
        reports: of changes that ended lately, which may be the request's.

    """
    generation = proposed.applied.generation
    for report in (status.last_change, *reports):
        if report is not None and report.request == proposed.key:
            return None if report.state == _RUNNING else report.state == "committed"
    if status.change is not None:
        return None
    if generation <= status.generation and status.wanted == proposed.layers:
        return True
    return False if generation < status.generation else None


def _convert(answer: object, kind: type[_T]) -> _T | None:
    try:
        return msgspec.convert(answer, kind)
    except msgspec.ValidationError:
        return None
