"""Runs the drift state machine: reads the state, checks it, and does what the machine says.

Everything that touches the world is injected, the clock too. An effect that raises `IntentsError` counts as failed: a
state that cannot be read is one in which nothing is proven, a plan that cannot be applied is tried again, and what
cannot be closed is tried again with the next observation.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from intents.errors import IntentsError
from intents.proof.checker import check
from intents.proof.drift import (
    Changed,
    Close,
    Closed,
    Drift,
    Input,
    Instruction,
    Observe,
    Planned,
    Replan,
    Seen,
    Settled,
    Violated,
)
from intents.proof.report import Check, Report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from intents.model.intent import PrivacyIntent
    from intents.proof.observed import Observed

_log = logging.getLogger(__name__)


class World(Protocol):
    """What the loop looks at and changes. Every method may raise `IntentsError`."""

    def intents(self) -> Sequence[PrivacyIntent]:
        """Return the active intents."""

    def observe(self) -> Observed:
        """Read what runs and what is installed, with the current snapshot."""

    def replan(self) -> bool:
        """Plan for the current snapshot, prove the plan and apply it; False: there is none. Raises: not applied."""

    def close(self, checks: Sequence[Check]) -> None:
        """Take away what these checks failed for."""

    def violated(self, violated: Violated) -> None:
        """Tell that an intent does not hold."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds that only go forward."""

    now_s: Callable[[], float]


class DriftLoop:
    """The loop; `settled` has what it measured.

    Args:
        world: What it looks at and changes.
        clock: Tells the time, the one by which changes are dated.
        attempts: How often a plan is tried for one incident.
    """

    def __init__(self, world: World, clock: Clock, attempts: int = 3) -> None:
        self._world = world
        self._clock = clock
        self.drift = Drift(attempts=attempts, held_s=clock.now_s())
        self.settled: list[Settled] = []

    def run(self, wait: Callable[[], Sequence[Changed]], stopped: Callable[[], bool]) -> None:
        """Go on until stopped: `wait` returns the changes that sources report, or none after the longest pause."""
        while not stopped():
            self.step(wait())

    def step(self, changes: Sequence[Changed] = ()) -> None:
        """Take in these changes (without any, just look), and do all that follows from them."""
        todo: deque[Instruction] = deque()
        for each in changes:
            todo += self._handle(each)
        todo = deque(dict.fromkeys(todo)) or deque([Observe()])
        while todo:
            todo += self._do(todo.popleft())

    def _do(self, instruction: Instruction) -> Sequence[Instruction]:
        match instruction:
            case Observe():
                return self._handle(self._observe())
            case Replan():
                return self._handle(self._replan())
            case Close(checks=checks):
                return self._handle(self._close(checks))
            case Violated():
                self._try("tell of a violation", lambda: self._world.violated(instruction))
            case Settled():
                self.settled.append(instruction)
        return ()

    def _handle(self, given: Input) -> Sequence[Instruction]:
        self.drift, instructions = self.drift.handle(given)
        return instructions

    def _observe(self) -> Seen:
        started_s = self._clock.now_s()
        try:
            intents = self._world.intents()
            observed = self._world.observe()
            report = check(intents, observed) if intents else _nothing_to_hold()
            state = f"{observed.inventory.version}:{[intent.metadata.name for intent in intents]}"
        except IntentsError as error:
            report, state = _unreadable(error), "unreadable"
        return Seen(started_s, self._clock.now_s(), report, state)

    def _replan(self) -> Planned:
        found = applied = False

        def plan() -> None:
            nonlocal found
            found = self._world.replan()

        applied = self._try("apply a plan", plan)
        return Planned(self._clock.now_s(), found or not applied, found and applied)

    def _close(self, checks: Sequence[Check]) -> Closed:
        done = self._try("close", lambda: self._world.close(checks))
        return Closed(self._clock.now_s(), done)

    def _try(self, what: str, do: Callable[[], None]) -> bool:
        try:
            do()
        except IntentsError as error:
            _log.warning("could not %s: %s", what, error)
            return False
        return True


def _nothing_to_hold() -> Report:
    return Report((Check("intents", "hold", (), True, "no intent is active"),))


def _unreadable(error: IntentsError) -> Report:
    return Report((Check("state", "can be read", (), False, str(error), breach=True),))
