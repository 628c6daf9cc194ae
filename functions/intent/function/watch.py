"""Keeps looking whether the active intents hold, makes them hold again or fails closed, and tells the world.

The state machine is `intents.proof.drift`; here is what it looks at and changes. Whatever it takes away are rules of
the plan that was enforced; rules of others stay. Where layers of the running pipeline have to move, that is asked for
as `dev.midstream.reconfiguration.requested` (`intents.mover`) when the intents are planned for anew; what cannot be
moved goes on where it is, and that is told as `dev.midstream.intent.violated` once more.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from intents.errors import EnforcementError
from intents.model.addressing import addressing
from intents.mover import Mover, enforced_and_moved, still_there
from intents.planning import plan_all
from intents.proof.closing import flows_that_stay
from intents.proof.drift import event_data
from intents.proof.drift_loop import Clock, DriftLoop
from runtime.events.catalogue import Type
from runtime.events.envelope import EventError, make
from runtime.events.from_journal import source_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from function.house import House
    from intents.live_midstream import RunningPipeline
    from intents.model.intent import PrivacyIntent
    from intents.mover import Head, Told
    from intents.moves import Move
    from intents.proof.drift import Violated
    from intents.proof.observed import Observed
    from intents.proof.report import Check
    from runtime.events.envelope import Event

_log = logging.getLogger(__name__)


class Watched:
    """The world of the drift loop (`intents.proof.drift_loop.World`).

    Args:
        house: What is looked at and changed.
        pipeline: Whose intents these are.
        publish: Takes events.
        head: Moves the pipeline's layers; None: that is up to others.
    """

    def __init__(self, house: House, pipeline: str, publish: Callable[[Event], None], head: Head | None = None) -> None:
        self._house, self._pipeline, self._publish = house, pipeline, publish
        self._mover = None if head is None else Mover(head, self._request, self._told)

    def intents(self) -> Sequence[PrivacyIntent]:
        """Return the active intents."""
        return self._house.store.active()

    def observe(self) -> Observed:
        """Read what runs and what is installed."""
        return self._house.observe()

    def replan(self) -> bool:
        """Enforce what the active intents come to now: routes, then the pipeline's layers, then routes to these."""
        return enforced_and_moved(self._enforce_plan, self._mover, self._look)

    def _look(self) -> tuple[Observed, Sequence[PrivacyIntent], RunningPipeline | None]:
        return self.observe(), self.intents(), self._house.running

    def _enforce_plan(self) -> bool:
        with self._house.store.locked():
            active, snapshot = self.intents(), self._house.inventory()
            plan = plan_all(active, snapshot)
            if plan.compiled is None or plan.refusal is not None:
                return False
            self._house.enforce(plan.compiled, snapshot, active, active)
        return True

    def close(self, checks: Sequence[Check]) -> None:
        """Take away the flow rules that these checks failed for; raises EnforcementError for stages that stay."""
        with self._house.store.locked():
            active, snapshot = self.intents(), self._house.inventory()
            enforced = self._house.enforced(active, snapshot)
            stay = tuple(flows_that_stay(checks, addressing(snapshot).ip, enforced.flows))
            self._house.enforce(replace(enforced, flows=stay), snapshot, active, active)
        still_there(self._house.running, checks)

    def violated(self, violated: Violated) -> None:
        """Tell that an intent does not hold."""
        try:
            data = event_data(violated, self._pipeline)
            self._publish(make(Type.INTENT_VIOLATED, source_of(self._pipeline), self._pipeline, data))
        except EventError:
            _log.exception("a violation of %s cannot be told", violated.intent)
        _log.warning("intent %s does not hold: %s", violated.intent, violated.reason)

    def _request(self, move: Move) -> None:
        """Publish the request for a layout."""
        try:
            event = make(Type.RECONFIGURATION_REQUESTED, move.source, self._pipeline, dict(move.data), id=move.id)
        except EventError as error:
            raise EnforcementError(str(error)) from error
        self._publish(replace(event, extensions=move.extensions))

    def _told(self, told: Told) -> None:
        _log.warning("%s", told.as_dict())
        for violated in told.violations:
            self.violated(violated)


class Watch:
    """Runs the loop on a thread until it is told to end.

    Args:
        watched: What it looks at and changes.
        every_s: Seconds between two looks.
    """

    def __init__(self, watched: Watched, every_s: float) -> None:
        self._loop = DriftLoop(watched, Clock(time.monotonic))
        self._every_s = every_s
        self._ending = threading.Event()
        self.broken: str | None = None

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._run, name="drift", daemon=True).start()

    def look(self) -> None:
        """Look once, now."""
        self._loop.step()
        for each in self._loop.settled:
            _log.warning("%s: found after %.3f s, over after %.3f s", each.how, each.detect_s, each.compliant_s)
        self._loop.settled.clear()

    def end(self) -> None:
        """Look no more."""
        self._ending.set()

    def _run(self) -> None:
        try:
            while not self._ending.wait(self._every_s):
                self.look()
        except Exception as error:  # noqa: BLE001 - nobody would watch any more: `alive` tells
            self.broken = f"the intents are not watched any more: {error!r}"
            _log.exception("the intents are not watched any more")
