"""The drift loop: notices that intents no longer hold, and makes them hold again or closes.

Problem: after a plan was proven and enforced, labels change, links fail, pods move, rules are deleted, nodes go.

Protocol: sources report *changes* (what happened, and when if they know) and *observations* (the state as it was read).
Each observation is checked. `Drift` is a pure state machine, `handle(input) -> instructions`:

    WATCHING --does not hold--> REPLANNING --planned and applied--> CONFIRMING --holds--> WATCHING
                                  |      ^                             |
                            no plan      +--- does not hold, or failed to be applied: at most `attempts` times
                                  v
                               CLOSED --the snapshot is another one--> REPLANNING

A breach (something forbidden happens or cannot be ruled out) is closed at once, before planning: the flows and replicas
that are part of it are taken away, so that the time in which a byte may go astray is not the time that planning takes.
When there is no plan, the same is done for everything that cannot be proven, and the loop stays closed until the
snapshot changes. Nothing is opened but by a plan that was proven.

Measured, by the injected clock: `detect_s`, from the change (as its source dates it, else from the last observation
that held) to the check that found it, and `compliant_s`, from the change to the observation that holds again, or to
the closing.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intents.proof.report import Check, Report

_REASON_CHARACTERS = 4000  # the limits of dev.midstream.intent.violated
_OBJECTS = 1000
_OBJECT_CHARACTERS = 256


class Phase(enum.StrEnum):
    """Where the loop stands."""

    WATCHING = "watching"
    REPLANNING = "replanning"
    CONFIRMING = "confirming"
    CLOSED = "closed"


class ChangeKind(enum.StrEnum):
    """What a source may report."""

    LABELS_CHANGED = "labels_changed"
    LINK_FAILED = "link_failed"
    LINK_RESTORED = "link_restored"
    POD_MOVED = "pod_moved"
    RULE_CHANGED = "rule_changed"
    NODE_GONE = "node_gone"


@dataclass(frozen=True, slots=True)
class Changed:
    """A source says that something happened; the state has to be read again."""

    at_s: float
    kind: ChangeKind
    what: str


@dataclass(frozen=True, slots=True)
class Seen:
    """The state was read and checked: `started_s` is when reading began; `state` tells snapshots apart."""

    started_s: float
    at_s: float
    report: Report
    state: str


@dataclass(frozen=True, slots=True)
class Planned:
    """The outcome of `Replan`: whether there is a proven plan, and whether it could be applied."""

    at_s: float
    found: bool
    applied: bool


@dataclass(frozen=True, slots=True)
class Closed:
    """The outcome of `Close`: whether everything asked for was taken away."""

    at_s: float
    done: bool


Input = Changed | Seen | Planned | Closed


@dataclass(frozen=True, slots=True)
class Observe:
    """Read the state and check it."""


@dataclass(frozen=True, slots=True)
class Replan:
    """Plan for the current snapshot, prove the plan, and apply it."""


@dataclass(frozen=True, slots=True)
class Close:
    """Take away the flows and replicas that these checks failed for."""

    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class Violated:
    """Data of the event `dev.midstream.intent.violated`, without the pipeline, which its publisher knows."""

    intent: str
    reason: str
    objects: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Settled:
    """The intents hold again, or are closed, and how long that took.

    Attributes:
        how: `re-established`, `healed` (it held again by itself) or `closed`.
        changes: What was reported since it last held.
        detect_s: From the change to the check that found it.
        compliant_s: From the change to now.
    """

    how: str
    changes: tuple[str, ...]
    detect_s: float
    compliant_s: float


Instruction = Observe | Replan | Close | Violated | Settled


@dataclass(frozen=True, slots=True)
class Incident:
    """What is being repaired: since when, found when, how often a plan was tried."""

    began_s: float
    found_s: float
    attempts: int = 0
    close_attempts: int = 0
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Drift:
    """The state machine.

    Attributes:
        attempts: How often a plan, and how often a closing, is tried in one incident.
        held_s: When the last observation that held was begun.
        changes: What was reported since then.
        last: The last observation.
    """

    attempts: int = 3
    phase: Phase = Phase.WATCHING
    held_s: float = 0.0
    changes: tuple[Changed, ...] = ()
    incident: Incident | None = None
    last: Seen | None = None

    def handle(self, given: Input) -> tuple[Drift, tuple[Instruction, ...]]:
        """Return the next state, and what is to be done, in this order."""
        match given:
            case Changed():
                return replace(self, changes=(*self.changes, given)), (Observe(),)
            case Seen():
                return self._seen(given)
            case Planned():
                return self._planned(given)
            case Closed():
                return self._closed(given)

    def _seen(self, seen: Seen) -> tuple[Drift, tuple[Instruction, ...]]:
        if seen.report.holds:
            return self._holds(seen)
        state = replace(self, last=seen)
        if self.incident is None:
            began_s = min((each.at_s for each in self.changes), default=self.held_s)
            state = replace(state, incident=Incident(began_s, seen.at_s))
            return state._repair(seen, _violations(seen.report))
        if self.phase is Phase.CLOSED:
            if self.last is not None and self.last.state == seen.state:  # nothing new to plan for
                return state, () if seen.report.safe else (Close(seen.report.failures),)
            fresh = replace(self.incident, attempts=0, close_attempts=0)
            return replace(state, incident=fresh)._repair(seen, ())
        if self.phase is Phase.CONFIRMING:
            return state._repair(seen, ())
        return state, ()  # a plan is under way; what it leads to will be looked at

    def _holds(self, seen: Seen) -> tuple[Drift, tuple[Instruction, ...]]:
        later = tuple(each for each in self.changes if each.at_s > seen.started_s)  # not yet in what was read
        calm = replace(self, held_s=seen.started_s, changes=later, last=seen)
        if self.incident is None:
            return calm, ()
        how = "healed" if self.phase in {Phase.CLOSED, Phase.REPLANNING} else "re-established"
        settled = self._settled(how, seen.at_s)
        return replace(calm, phase=Phase.WATCHING, incident=None), (settled,)

    def _repair(self, seen: Seen, first: tuple[Instruction, ...]) -> tuple[Drift, tuple[Instruction, ...]]:
        """Close a breach at once; plan, as long as there are attempts left, else close all that is not proven."""
        assert self.incident is not None  # noqa: S101 - for the type checker
        breaches = tuple(each for each in seen.report.failures if each.breach)
        if self.incident.attempts >= self.attempts:
            return self._give_up(seen, first)
        state = replace(
            self, phase=Phase.REPLANNING, incident=replace(self.incident, attempts=self.incident.attempts + 1)
        )
        return state, (*first, *((Close(breaches),) if breaches else ()), Replan())

    def _give_up(self, seen: Seen, first: tuple[Instruction, ...] = ()) -> tuple[Drift, tuple[Instruction, ...]]:
        return replace(self, phase=Phase.CLOSED), (*first, Close(seen.report.failures))

    def _planned(self, planned: Planned) -> tuple[Drift, tuple[Instruction, ...]]:
        if self.phase is not Phase.REPLANNING or self.last is None:
            return self, (Observe(),)
        if planned.applied:
            return replace(self, phase=Phase.CONFIRMING), (Observe(),)
        return self._repair(self.last, ()) if planned.found else self._give_up(self.last)

    def _closed(self, closed: Closed) -> tuple[Drift, tuple[Instruction, ...]]:
        if self.phase is not Phase.CLOSED or self.incident is None or self.last is None:
            return self, ()  # a breach was closed; planning goes on
        if not closed.done:
            if self.incident.close_attempts + 1 >= self.attempts:
                return self, ()  # tried again with the next observation
            incident = replace(self.incident, close_attempts=self.incident.close_attempts + 1)
            return replace(self, incident=incident), (Close(self.last.report.failures),)
        if self.incident.settled:
            return self, ()
        state = replace(self, incident=replace(self.incident, settled=True))
        return state, (self._settled("closed", closed.at_s), Observe())

    def _settled(self, how: str, at_s: float) -> Settled:
        assert self.incident is not None  # noqa: S101 - for the type checker
        began_s = self.incident.began_s
        what = tuple(f"{each.kind}: {each.what}" for each in self.changes)
        return Settled(how, what, self.incident.found_s - began_s, at_s - began_s)


def _violations(report: Report) -> tuple[Violated, ...]:
    """Return one event for each intent that does not hold; a failure of the whole state counts for every intent."""
    names = dict.fromkeys(each.intent for each in report.checks if each.intent)
    found = []
    for name in names:
        failures = [each for each in report.failures if each.intent in {name, ""}]
        if failures:
            reason = "; ".join(f"{each.subject}: {each.reason}" for each in failures)[:_REASON_CHARACTERS]
            objects = dict.fromkeys(
                thing[:_OBJECT_CHARACTERS] for each in failures for thing in each.looked_at if thing
            )
            found.append(Violated(name, reason, tuple(objects)[:_OBJECTS]))
    return tuple(found)


def event_data(violated: Violated, pipeline: str) -> dict[str, object]:
    """Return the data of a `dev.midstream.intent.violated` event."""
    return {
        "pipeline": pipeline,
        "intent": violated.intent,
        "reason": violated.reason,
        "objects": list(violated.objects),
    }
