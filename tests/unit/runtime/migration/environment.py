"""A model of everything around the protocol of a change, which may go wrong between any two lines.

The model keeps what the coordinator and the processes would keep: a mailbox of events that are heard in order, and
a queue of effects carried out one at a time. `World.moves` lists everything that can happen next, so a test can walk
all of it or a random part. Bad luck (a stage that fails, a lease that lapses, a cancellation) is drawn from a budget.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from runtime.layout import Layout
from runtime.migration.protocol import (
    ENDED,
    ArmLease,
    Cancelled,
    ChainReady,
    ChangeMachine,
    CopyStale,
    Event,
    Failed,
    Finish,
    Instruction,
    LeaseLapsed,
    NotMovable,
    Planned,
    Prepare,
    Release,
    Released,
    RollBack,
    RolledBack,
    RoundCopied,
    Settled,
    Step,
    Switch,
    Switched,
)
from runtime.migration.stop_rule import CopyRound, StopRule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Moves = Iterator[tuple[str, Callable[[], "World"]]]

SOURCE = Layout.parse("2,2", 4)
ON_ONE_NODE = Layout.parse("1,3", 4)
TO_ANOTHER_NODE = Layout.parse("2,2@b", 4)

FITS = CopyRound(1000, 1.0, 0)
DOES_NOT_FIT = CopyRound(1000, 1.0, 1000)
WORKING = frozenset({Step.PREPARE, Step.PRE_COPY, Step.CUTOVER, Step.RELEASE})


class BrokenPromise(AssertionError):
    """The protocol did what it must never do; the message holds the way there."""


@dataclass(frozen=True, slots=True)
class World:
    """One moment of a change. Hashable: two worlds that are equal have the same future.

    `told`: the instructions so far, leases left out. `flipped`, `idle`: what the switch did. `settled`: whether the
    first result of the new chain was announced. `luck`: how often something may still go wrong.
    """

    target: Layout
    luck: int
    round_cap: int = 3
    step: Step = Step.PLAN
    reason: str | None = None
    rounds: tuple[CopyRound, ...] = ()
    lease: Step | None = None
    mailbox: tuple[Event, ...] = (Planned(),)
    effects: tuple[Instruction, ...] = ()
    told: tuple[Instruction, ...] = ()
    heard: frozenset[type] = frozenset()
    flipped: bool = False
    idle: bool = False
    settled: bool = False

    @property
    def ended(self) -> bool:
        return any(isinstance(instruction, Finish) for instruction in self.told)

    @property
    def stuck(self) -> bool:
        """Whether nothing but luck can still end this change."""
        return not self.ended and next(self._certain_moves(), None) is None

    def moves(self) -> Moves:
        """Everything that can happen next, by name."""
        yield from self._certain_moves()
        yield from self._bad_luck()

    def _certain_moves(self) -> Moves:
        if self.mailbox:
            yield f"hear {self.mailbox[0]}", self._hear
        if self.effects:
            yield from self._carry_out(self.effects[0])
        if self.flipped and not self.idle and not self.settled:
            yield "first result", lambda: replace(self, settled=True, mailbox=(*self.mailbox, Settled()))
        if not self.mailbox and self.lease is self.step and self.step in WORKING:
            # When nothing else comes, a lease always lapses: no luck needed.
            yield f"lease of {self.step} lapses", lambda: self._post(LeaseLapsed(self.step))

    def _carry_out(self, effect: Instruction) -> Moves:
        done = replace(self, effects=self.effects[1:])
        if isinstance(effect, Prepare):
            yield "chain is ready", lambda: done._post(ChainReady())
            yield "prepare fails", lambda: done._post(Failed("prepare"))
        elif isinstance(effect, CopyStale):
            yield "copied enough", lambda: done._post(RoundCopied(FITS))
            yield "copied, much is stale", lambda: done._post(RoundCopied(DOES_NOT_FIT))
            yield "copying fails", lambda: done._post(Failed("copy"))
        elif isinstance(effect, Switch):
            if self.flipped:
                yield "switch answers", lambda: done._post(Switched(idle=self.idle))
                yield "switch fails after the flip", lambda: done._post(Failed("after the flip"))
            elif self.step is not Step.CUTOVER:
                yield "switch was stopped before it began", lambda: done
            else:
                yield "route flips", lambda: replace(self, flipped=True)
                yield "route flips, nobody is there", lambda: replace(self, flipped=True, idle=True)
                yield "a request cannot be moved", lambda: done._post(NotMovable("logprobs"))
                yield "switch fails before the flip", lambda: done._post(Failed("before the flip"))
        elif isinstance(effect, RollBack):
            yield "rolled back", lambda: done._post(RolledBack())
        elif isinstance(effect, Release):
            yield "released", lambda: done._post(Released())

    def _bad_luck(self) -> Moves:
        if self.luck == 0:
            return
        unlucky = replace(self, luck=self.luck - 1)
        yield "a stage is lost", lambda: unlucky._post(Failed("stage lost"))
        yield "cancelled", lambda: unlucky._post(Cancelled("cancelled"))
        for step in WORKING:
            yield f"late lease of {step}", lambda step=step: unlucky._post(LeaseLapsed(step))

    def _post(self, event: Event) -> World:
        return replace(self, mailbox=(*self.mailbox, event))

    def _hear(self) -> World:
        event = self.mailbox[0]
        machine = ChangeMachine("change-1", SOURCE, self.target, rule=StopRule(round_cap=self.round_cap))
        machine.step, machine.reason, machine.rounds = self.step, self.reason, list(self.rounds)
        instructions = machine.handle(event)
        lease, told = self.lease, [i for i in instructions if not isinstance(i, ArmLease)]
        for instruction in instructions:
            if isinstance(instruction, ArmLease):
                lease = instruction.step
        heard = self.heard | {type(event)}
        if isinstance(event, Switched) and event.idle:
            heard |= {Settled}  # nobody was there: as good as a first result
        return replace(
            self,
            step=machine.step,
            reason=machine.reason,
            rounds=tuple(machine.rounds),
            lease=lease,
            mailbox=self.mailbox[1:],
            effects=(*self.effects, *(i for i in told if not isinstance(i, Finish))),
            told=(*self.told, *told),
            heard=heard,
        )

    def check(self) -> None:
        """Raise BrokenPromise when something was instructed that must not be."""
        kinds = [type(instruction) for instruction in self.told]
        after_roll_back = kinds[kinds.index(RollBack) :] if RollBack in kinds else []
        roll_backs, finishes = kinds.count(RollBack), kinds.count(Finish)
        promises = {
            "released before the first result": Release not in kinds or Settled in self.heard,
            "rolled back twice": roll_backs <= 1,
            "finished twice": finishes <= 1,
            "instructed something after the end": Finish not in kinds[:-1],
            "went on after a roll-back": set(after_roll_back) <= {RollBack, Finish},
            "undid a commit": not (Release in kinds and RollBack in kinds),
            "ended without a word": (self.step in ENDED) == self.ended,
            "switched twice": kinds.count(Switch) <= 1,
            "switched before the chain was ready": Switch not in kinds or ChainReady in self.heard,
            "copied more often than the cap": kinds.count(CopyStale) <= self.round_cap,
        }
        if self.ended:
            (finish,) = [instruction for instruction in self.told if isinstance(instruction, Finish)]
            aborted = finish.outcome is Step.ABORTED
            promises |= {
                "ended otherwise than it says": finish.outcome is self.step and self.step in ENDED,
                "aborted without rolling back, or the other way round": aborted == (roll_backs == 1),
                "aborted without a reason, or committed with one": aborted == bool(finish.reason),
            }
        broken = [promise for promise, kept in promises.items() if not kept]
        if broken:
            raise BrokenPromise(f"{'; '.join(broken)} in {self}")
