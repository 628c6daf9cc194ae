"""Has a pipeline's layers leave nodes that an intent forbids.

Protocol: look, and as long as stages run where they must not (`intents.moves`): publish the request as a CloudEvent,
and ask the head what becomes of it, with the event's own key. Who of the two comes first starts the change, the other
one is told of it: the head makes one change for one key. The head's guard judges it, its coordinator undoes it where it
fails. An aborted change is asked for anew, at most `attempts` times, with growing pauses; those that were aborted for a
mover before this one do not count. What the head cannot take for the moment is asked again with the same key for
`patience_s` seconds; any other refusal is final.

Every step is told (`Told`); nothing else is looked at meanwhile. A pipeline that cannot be moved stays where it is. If
its head asks a guard, it computes nothing there; else it goes on, and whoever closes what is broken must not call it
closed (`still_there`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from intents.errors import EnforcementError, IntentsError
from intents.live_midstream import UNCHANGED, HeadAway, LayoutRefused
from intents.moves import Broken, Move, Stuck, needed, stages_of
from intents.proof.drift import Violated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from intents.live_midstream import Change, RunningPipeline
    from intents.model.intent import PrivacyIntent
    from intents.proof.observed import Observed
    from intents.proof.report import Check

ATTEMPTS = 3
PATIENCE_S = 60.0
_MOST_S = 600.0  # for one change
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 15.0
_MOST_EARLIER = 30
_REASON_CHARACTERS = 4000


class Head(Protocol):
    """Who changes the pipeline; see `intents.live_midstream.MidstreamSource`."""

    def ask_for(self, layers: str, key: str) -> Change:
        """Ask for a layout; raises LayoutRefused, HeadAway."""

    def await_end(self, change: str) -> Change:
        """Return how a change ended, or where it is after some time."""


@dataclass(frozen=True, slots=True)
class Told:
    """A step of a move; `change` is the head's report, `why` the reason why it was not made."""

    what: Literal["requested", "moved", "aborted", "not moved"]
    broken: Broken
    move: Move | None = None
    change: Change | None = None
    why: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, for a line of JSON."""
        line: dict[str, Any] = {self.what.replace(" ", "_"): self.broken.pipeline, "intents": list(self.broken.intents)}
        if self.what in {"requested", "not moved"}:
            line["reason"] = self.broken.reason
        if self.move is not None:
            line |= {"from": self.move.before, "to": self.move.after, "request": self.move.key}
        if self.change is not None:
            report = self.change
            line |= {"change": report.id, "total_ms": report.total_ms, "pause_ms": report.pause_ms}
            line["requests_carried"] = report.requests_carried
        return line if self.why is None else line | {"why": self.why}

    @property
    def violations(self) -> tuple[Violated, ...]:
        """What is violated for good, of a pipeline that could not be moved."""
        if self.what != "not moved":
            return ()
        nodes = ", ".join(self.broken.nodes)
        where = f"on {nodes}" if nodes else "as it is"
        reason = (
            f"{self.broken.pipeline} stays {where}, as it cannot be moved: {self.why}; it computes nothing there if its"
        )
        reason = f"{reason} head has a --guard: else end it, or allow it. {self.broken.reason}"[:_REASON_CHARACTERS]
        return tuple(Violated(name, reason, (self.broken.pipeline, *self.broken.nodes)) for name in self.broken.intents)


class Mover:
    """See the module.

    Args:
        head: Changes the pipeline.
        publish: Takes the request as an event; what it raises as `EnforcementError` is told and does not hinder.
        tell: Takes each step.
        attempts: How often a change that was aborted is asked for in all.
        patience_s: How long the head may say that it cannot change for the moment.
        sleep: Waits for so many seconds.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        head: Head,
        publish: Callable[[Move], None],
        tell: Callable[[Told], None],
        *,
        attempts: int = ATTEMPTS,
        patience_s: float = PATIENCE_S,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._head, self._publish, self._tell = head, publish, tell
        self._attempts, self._patience_s = attempts, patience_s
        self._sleep, self._clock = sleep, clock

    def move(self, look: Callable[[], tuple[Observed, Sequence[PrivacyIntent], RunningPipeline | None]]) -> bool | None:
        """Have the pipeline leave what is forbidden; None: there is nothing to leave, False: it could not be done.

        Args:
            look: Returns what runs, the active intents, and the pipeline; None: it is not known.

        Raises:
            IntentsError: something could not be read.
        """
        moved: bool | None = None
        pause_s = _FIRST_PAUSE_S
        attempt, left = 0, self._attempts
        while left:
            attempt, left = attempt + 1, left - 1
            observed, intents, running = look()
            want = None if running is None else needed(observed, intents, running)
            if want is None:
                return moved
            if isinstance(want, Stuck):
                self._tell(Told("not moved", want.broken, why=want.why))
                return False
            want = replace(want, attempt=attempt)
            try:
                change = self._made(want)
            except IntentsError as error:
                if isinstance(error, LayoutRefused) and error.kind == UNCHANGED:
                    moved = True  # somebody else has done it
                    continue
                self._tell(Told("not moved", want.broken, want, why=str(error)))
                return False
            if change.state == "committed":
                self._tell(Told("moved", want.broken, want, change))
                moved = True
                continue
            if change.repeated and attempt <= _MOST_EARLIER:  # asked for, and aborted, before this mover came
                left += 1
                continue
            self._tell(Told("aborted", want.broken, want, change, why=change.reason))
            if not left:
                why = f"{change.id} was aborted, as {attempt - 1} before: {change.reason or 'no reason was given'}"
                self._tell(Told("not moved", want.broken, want, why=why))
                return False
            self._sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return moved

    def _made(self, move: Move) -> Change:
        """Return how the change ended; raises IntentsError if there was none, or it has no end."""
        try:
            self._publish(move)
            told = None
        except EnforcementError as error:
            told = f"the event could not be published: {error}"
        self._tell(Told("requested", move.broken, move, why=told))
        begun_s, pause_s = self._clock(), _FIRST_PAUSE_S
        change: Change | None = None
        while True:
            try:
                change = self._head.ask_for(move.after, move.key) if change is None else self._head.await_end(change.id)
            except (LayoutRefused, HeadAway) as error:
                if isinstance(error, LayoutRefused) and not error.passing:
                    raise
                if self._clock() - begun_s > self._patience_s:
                    raise EnforcementError(f"{error} (for {self._patience_s:g} s)") from error
                self._sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            if change.state != "running":
                return change
            if self._clock() - begun_s > _MOST_S:
                raise EnforcementError(f"{change.id} has not ended for {_MOST_S:g} s")


def enforced_and_moved(
    enforce: Callable[[], bool],
    mover: Mover | None,
    look: Callable[[], tuple[Observed, Sequence[PrivacyIntent], RunningPipeline | None]],
) -> bool:
    """Enforce a plan, have layers moved even if that fails, and enforce again for where they are then.

    Args:
        enforce: Makes and enforces a plan; False if there is none.
        mover: Moves the layers; None: nothing does.
        look: As for `Mover.move`.

    Raises:
        EnforcementError: the plan could not be enforced.
    """
    planned, failed = False, None
    try:
        planned = enforce()
    except EnforcementError as error:
        failed = error
    moved = None if mover is None else mover.move(look)
    if moved:
        return enforce()
    if failed is not None:
        raise failed
    return planned and moved is None


def still_there(running: RunningPipeline | None, checks: Sequence[Check]) -> None:
    """Raise EnforcementError if stages compute where they must not: nothing that is taken away here ends them."""
    stages = [] if running is None or running.stopped else stages_of(running, checks)
    if running is not None and stages:
        nodes = ", ".join(sorted({running.nodes[int(each.rpartition("-")[2])] for each in stages}))
        raise EnforcementError(
            f"{running.name} goes on running on {nodes} until its guard stops it, or it is moved or ended"
        )
