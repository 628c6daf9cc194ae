"""One change of a pipeline as a pure state machine: events in, instructions out, no clock, no process, no socket.

::

    PLAN --Planned--> PREPARE --ChainReady--> PRE_COPY --RoundCopied--> (again, or) --> CUTOVER --Settled--> RELEASE
                                   |                                                       ^                   |
                                   +------- nothing to copy, or not while decoding --------+                Released
                                                                                                               |
    any step before Settled --StageLost, Rejected, LeaseLapsed, Cancelled--> ABORTING --RolledBack--> ABORTED  v
                                                                                                           COMMITTED

How KV gets to layers that change their node is the change's `Method`. Pre-copy that does not converge ends in the
fallback the change was asked for with: computing the KV again at the cutover, or giving up.

What can fail between any two lines has one answer each:

* Before the route is flipped nothing has reached the new stages that clients could see: they are discarded.
* After the flip and before the first result of the new epoch, the batches sent to the new stages are replayed on the
  old ones.
* After the first result (`Settled`) the change is committed; what is left is to let the old stages go, and a failure
  there never blocks serving.

`ChangeMachine.handle` raises `ImpossibleTransition` with the change's story for an event that makes no sense where it
comes; events that merely come late (a lease of a step that is over, a second loss) are ignored.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runtime.migration.stop_rule import CopyRound, StopRule, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.layout import Layout


class Step(enum.StrEnum):
    """Where a change is."""

    PLAN = "plan"
    PREPARE = "prepare"
    PRE_COPY = "pre_copy"
    CUTOVER = "cutover"
    RELEASE = "release"
    ABORTING = "aborting"
    COMMITTED = "committed"
    ABORTED = "aborted"


class Method(enum.StrEnum):
    """How the KV of layers that change their node gets there."""

    PRE_COPY = "pre_copy"  # copied while decoding goes on; only what is stale then is copied during the pause
    STOP_AND_COPY = "stop_and_copy"  # all of it is copied during the pause
    RECOMPUTE = "recompute"  # computed again from tokens during the pause


class Fallback(enum.StrEnum):
    """What to do when pre-copy does not converge."""

    ABORT = "abort"
    RECOMPUTE = "recompute"


class Carry(enum.StrEnum):
    """What a cutover has to do for the KV before the new chain can go on."""

    NOTHING = "nothing"  # the new stages map what is there
    COPY = "copy"
    RECOMPUTE = "recompute"


ENDED = frozenset({Step.COMMITTED, Step.ABORTED})


# -- events ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Planned:
    """The plan was checked and accepted."""


@dataclass(frozen=True, slots=True)
class ChainReady:
    """All new stages are loaded, bound to their KV pools, connected, and passed a probe from end to end."""


@dataclass(frozen=True, slots=True)
class RoundCopied:
    """One pre-copy round is over."""

    copied: CopyRound


@dataclass(frozen=True, slots=True)
class Switched:
    """New batches take the new chain. `idle`: no request exists, so there is no first result to wait for."""

    idle: bool


@dataclass(frozen=True, slots=True)
class NotMovable:
    """A request holds state that cannot be carried over and did not let go of it in time (I7)."""

    reason: str


@dataclass(frozen=True, slots=True)
class Settled:
    """The first result of the new epoch was revealed, or every request ended before it asked for one."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A new stage failed, was lost, or rejected a batch."""

    reason: str


@dataclass(frozen=True, slots=True)
class LeaseLapsed:
    """`step` took longer than it may."""

    step: Step


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody changed their mind."""

    reason: str


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The old layout serves alone again and the new stages are gone."""


@dataclass(frozen=True, slots=True)
class Released:
    """The old stages are gone."""


Event = (
    Planned
    | ChainReady
    | RoundCopied
    | Switched
    | NotMovable
    | Settled
    | Failed
    | LeaseLapsed
    | Cancelled
    | RolledBack
    | Released
)

# -- instructions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prepare:
    """Start the new stages, load, bind, connect, probe; answer `ChainReady` or `Failed`."""


@dataclass(frozen=True, slots=True)
class CopyStale:
    """Copy what is stale of the moving layers while batches go on; answer `RoundCopied`."""

    number: int


@dataclass(frozen=True, slots=True)
class Switch:
    """Flip the route between two batches; answer `Switched`, `NotMovable` or `Failed`.

    Unless `carry` is nothing, hold new batches first and let those in flight finish; then copy what is stale, or let
    the new chain begin with computing the KV of every request again.
    """

    carry: Carry


@dataclass(frozen=True, slots=True)
class RollBack:
    """Serve from the old chain again, which replays what the new one has in flight; discard the new stages.

    Answer `RolledBack`.
    """


@dataclass(frozen=True, slots=True)
class Release:
    """Let the old stages go; answer `Released`."""


@dataclass(frozen=True, slots=True)
class ArmLease:
    """Answer `LeaseLapsed(step)` if the machine is still in `step` after its time. Replaces the lease before."""

    step: Step


@dataclass(frozen=True, slots=True)
class Finish:
    """The change is over: `COMMITTED` or `ABORTED`, with the reason for the latter."""

    outcome: Step
    reason: str | None


Instruction = Prepare | CopyStale | Switch | RollBack | Release | ArmLease | Finish


class ImpossibleTransition(RuntimeError):
    """An event came where it makes no sense: a bug. Carries the story of the change."""


@dataclass(slots=True)
class ChangeMachine:
    """The protocol of one change.

    Args:
        change: its id.
        source, target: the layouts before and after.
        method: how KV gets to layers that change their node.
        fallback: what to do when pre-copy does not converge.
        rule: when to stop pre-copying.

    """

    change: str
    source: Layout
    target: Layout
    method: Method = Method.PRE_COPY
    fallback: Fallback = Fallback.ABORT
    rule: StopRule = field(default_factory=StopRule)
    step: Step = Step.PLAN
    reason: str | None = None
    stop_reason: str | None = None
    carry: Carry = Carry.NOTHING
    rounds: list[CopyRound] = field(default_factory=list)
    story: list[str] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.step in ENDED

    @property
    def copies(self) -> bool:
        """Whether KV has to be copied between nodes; on one node the new stages map what is there."""
        return bool(self.source.moved_layers(self.target))

    def handle(self, event: Event) -> list[Instruction]:
        """Take one event; return what has to be done now, in order.

        Raises:
            ImpossibleTransition: the event makes no sense in this step.

        """
        self.story.append(f"{self.step}: {event}")
        if isinstance(event, LeaseLapsed) and event.step is not self.step:
            return []
        if isinstance(event, Failed | LeaseLapsed | Cancelled | NotMovable):
            return self._stop(event)
        transition = _TRANSITIONS.get((self.step, type(event)))
        if transition is None:
            raise ImpossibleTransition(
                f"change {self.change} cannot take {event} while in {self.step}; its story: " + " | ".join(self.story)
            )
        return transition(self, event)

    def _enter(self, step: Step, *instructions: Instruction) -> list[Instruction]:
        self.step = step
        return [ArmLease(step), *instructions]

    def _planned(self, _: Event) -> list[Instruction]:
        return self._enter(Step.PREPARE, Prepare())

    def _chain_ready(self, _: Event) -> list[Instruction]:
        if self.method is Method.RECOMPUTE:
            return self._cut_over(Carry.RECOMPUTE)
        if not self.copies:
            return self._cut_over(Carry.NOTHING)
        if self.method is Method.STOP_AND_COPY:
            return self._cut_over(Carry.COPY)
        return self._enter(Step.PRE_COPY, CopyStale(1))

    def _round_copied(self, event: Event) -> list[Instruction]:
        if not isinstance(event, RoundCopied):  # pragma: no cover - the table says so
            raise TypeError(event)
        self.rounds.append(event.copied)
        judged = self.rule.judge(self.rounds)
        if judged.verdict is Verdict.COPY_AGAIN:
            return [CopyStale(len(self.rounds) + 1)]
        self.stop_reason = judged.reason
        if judged.verdict is Verdict.CUT_OVER:
            return self._cut_over(Carry.COPY)
        if self.fallback is Fallback.RECOMPUTE:
            return self._cut_over(Carry.RECOMPUTE)
        return self._abort(f"pre-copy does not converge ({judged.reason}): {self.rule.explain(self.rounds)}")

    def _cut_over(self, carry: Carry) -> list[Instruction]:
        self.carry = carry
        return self._enter(Step.CUTOVER, Switch(carry))

    def _switched(self, event: Event) -> list[Instruction]:
        if isinstance(event, Switched) and event.idle:
            return self._settled(event)
        return []

    def _settled(self, _: Event) -> list[Instruction]:
        return self._enter(Step.RELEASE, Release())

    def _released(self, _: Event) -> list[Instruction]:
        self.step = Step.COMMITTED
        return [Finish(self.step, None)]

    def _rolled_back(self, _: Event) -> list[Instruction]:
        self.step = Step.ABORTED
        return [Finish(self.step, self.reason)]

    def _ignore(self, _: Event) -> list[Instruction]:
        return []

    def _stop(self, event: Failed | LeaseLapsed | Cancelled | NotMovable) -> list[Instruction]:
        if self.step in ENDED or self.step is Step.ABORTING:
            return []
        if self.step is Step.RELEASE:
            # Committed. Old stages that will not go are ended by force; nothing else may undo the change.
            return self._released(event) if isinstance(event, LeaseLapsed) else []
        reason = f"{event.step} took too long" if isinstance(event, LeaseLapsed) else event.reason
        return self._abort(reason)

    def _abort(self, reason: str) -> list[Instruction]:
        self.reason = f"in step {self.step}: {reason}"
        self.step = Step.ABORTING
        return [RollBack()]


_TRANSITIONS: dict[tuple[Step, type], Callable[[ChangeMachine, Event], list[Instruction]]] = {
    (Step.PLAN, Planned): ChangeMachine._planned,
    (Step.PREPARE, ChainReady): ChangeMachine._chain_ready,
    (Step.PRE_COPY, RoundCopied): ChangeMachine._round_copied,
    (Step.CUTOVER, Switched): ChangeMachine._switched,
    (Step.CUTOVER, Settled): ChangeMachine._settled,
    (Step.RELEASE, Switched): ChangeMachine._ignore,  # the first result overtook the answer to the flip
    (Step.RELEASE, Released): ChangeMachine._released,
    (Step.ABORTING, RolledBack): ChangeMachine._rolled_back,
    # What was under way when the change was stopped may still report back.
    (Step.ABORTING, ChainReady): ChangeMachine._ignore,
    (Step.ABORTING, RoundCopied): ChangeMachine._ignore,
    (Step.ABORTING, Switched): ChangeMachine._ignore,
    (Step.ABORTING, Settled): ChangeMachine._ignore,
    (Step.ABORTED, ChainReady): ChangeMachine._ignore,
    (Step.ABORTED, RoundCopied): ChangeMachine._ignore,
    (Step.ABORTED, Switched): ChangeMachine._ignore,
    (Step.ABORTED, Settled): ChangeMachine._ignore,
    (Step.COMMITTED, Switched): ChangeMachine._ignore,
    (Step.COMMITTED, Released): ChangeMachine._ignore,
}
