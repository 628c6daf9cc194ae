"""The reconfiguration routine as a function: a request for another layout in, what became of it out.

The head does the work and keeps all state. It knows a request by its key (the event's source and id), so an event that
comes twice, to this instance or another one, changes the pipeline once and gets the same answer:

* the change's own ``committed`` or ``aborted`` event, equal to the one that the head publishes;
* ``committed`` with ``unchanged`` when the pipeline has the layout already;
* ``aborted`` with the reason when the request cannot be met or a newer one was accepted before; nothing changed then.

When another change is under way, or the head cannot be reached or sleeps, the broker is asked to send the event again.
"""

from __future__ import annotations

import hashlib
import logging
import os
from typing import TYPE_CHECKING, Any

import msgspec

from runtime.events.catalogue import ReconfigurationReport, Type
from runtime.events.envelope import make
from runtime.events.from_journal import from_report, source_of
from runtime.head.control_client import ControlClient, ControlError
from runtime.head.event_function import EventFunction, Settings, SettingsError, TryAgain, making_sense, read_settings

if TYPE_CHECKING:
    from runtime.events.envelope import Event

# Refusals that the same request would get again; any other is for a while.
_FINAL = frozenset({"forbidden", "invalid", "superseded", "unchanged"})
_MOST_REASON_CHARACTERS = 4000


def new() -> Reconfigure:
    """Return the function's instance; func-python calls this once."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # one line per request to the head otherwise
    try:
        return Reconfigure(read_settings(os.environ))
    except SettingsError as error:
        raise SystemExit(str(error)) from error


class Reconfigure(EventFunction):
    """Takes ``dev.midstream.reconfiguration.requested``."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.pipeline, [Type.RECONFIGURATION_REQUESTED])
        self._endpoint = settings.endpoint

    def ready(self) -> tuple[bool, str]:
        """Whether events can be carried out now; a head that is away is told to each event's sender."""
        return (False, "ending") if self.ending.is_set() else (True, "ready")

    def answer(self, event: Event) -> Event:
        """Have the pipeline changed, and tell what the head says of it."""
        try:
            with ControlClient(self._endpoint) as head:
                report = _ended_change(head, event)
        except ControlError as error:
            if error.refused and error.kind in _FINAL:
                return _refused(event, error)
            raise TryAgain.because(error) from error
        with making_sense():
            return from_report(report, event.data["pipeline"])


def _ended_change(head: ControlClient, event: Event) -> dict[str, Any]:
    asked = {name: event.data[name] for name in ("method", "fallback", "precision", "generation") if name in event.data}
    begun = head.reconfigure(event.data["layers"], key=event.key, traceparent=event.traceparent, **asked)
    with making_sense():
        if begun["ended_at"] is not None:
            return begun
        change, boot = begun["id"], begun["boot"]
    ended = head.wait(change)
    with making_sense():
        if ended["boot"] != boot:
            raise TryAgain(f"the head was started again before {change} had ended", "head_restarted")
    return ended


def _refused(event: Event, error: ControlError) -> Event:
    """Tell of a request that started no change; told again, the event is the same."""
    unchanged = error.kind == "unchanged"
    state = "committed" if unchanged else "aborted"
    pipeline = event.data["pipeline"]
    data = ReconfigurationReport(
        pipeline=pipeline,
        change=None,
        from_=None,
        to=event.data["layers"],
        state=state,
        reason=str(error)[:_MOST_REASON_CHARACTERS],
        total_ms=0.0,
        steps_ms={},
        bytes_moved=0,
        rounds=0,
        requests_carried=0,
        epoch=0,
        request=event.id,
        unchanged=unchanged,
        pause_ms=None,
    )
    return make(
        Type.RECONFIGURATION_COMMITTED if unchanged else Type.RECONFIGURATION_ABORTED,
        source_of(pipeline),
        pipeline,
        msgspec.to_builtins(data),
        id=f"request-{hashlib.sha256(event.key.encode()).hexdigest()[:32]}.{state}",
    )
