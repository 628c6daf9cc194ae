"""Runs changes: feeds the pure protocol with events and carries out what it instructs.

One change at a time. Its effects (start processes, copy, flip, release) run one after the other on a thread of their
own, so that none overlaps another; the protocol itself runs on a second thread that never blocks on an effect, so a
lease that lapses or a stage that dies is heard at once. Stopping a change first *interrupts* the effect under way by
ending the new stages it waits for.

Where intents bound the pipeline, a change needs their guard's permission when it is planned, before each round of
pre-copy, and once more right before the cutover: the world may have changed meanwhile.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from runtime.migration.errors import ChangeBusy, ChangeUnknown, NotMovableError
from runtime.migration.protocol import (
    ENDED,
    ArmLease,
    Cancelled,
    Carry,
    ChainReady,
    ChangeMachine,
    CopyStale,
    Event,
    Failed,
    Fallback,
    Finish,
    Instruction,
    LeaseLapsed,
    Method,
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

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.layout import Layout
    from runtime.migration.guard import Permission
    from runtime.migration.journal import Journal
    from runtime.migration.stop_rule import CopyRound

_KEPT_CHANGES = 100
_HOLD_S = 5.0
_BULK_HOLD_S = 150.0


@dataclass(frozen=True, slots=True)
class Leases:
    """The most seconds a change may spend in each step before it is aborted (or, once committed, forced)."""

    prepare_s: float = 120.0
    load_s: float = 600.0
    pre_copy_s: float = 240.0
    cutover_s: float = 10.0
    bulk_cutover_s: float = 180.0
    release_s: float = 15.0

    def of(self, step: Step, *, bulk: bool = False, loads: bool = False) -> float:
        """Return the lease of a step.

        A `bulk` cutover carries all KV over during the pause; who prepares another precision `loads` the model.
        """
        if bulk and step is Step.CUTOVER:
            return self.bulk_cutover_s
        if loads and step is Step.PREPARE:
            return self.load_s
        return {
            Step.PREPARE: self.prepare_s,
            Step.PRE_COPY: self.pre_copy_s,
            Step.CUTOVER: self.cutover_s,
            Step.RELEASE: self.release_s,
        }[step]


@dataclass(slots=True)
class Cost:
    """What a change cost, filled in by its effects: bytes of KV copied, extra bytes held at the peak, requests."""

    bytes_moved: int = 0
    peak_extra_bytes: int = 0
    requests_carried: int = 0
    prepare_ms: dict[str, dict[str, float]] = field(default_factory=dict)


class ChangeEffects(Protocol):
    """What a change needs done. Each call blocks until it is done, or raises."""

    def layout(self) -> Layout:
        """Return the layout that serves now."""

    def plan(self, text: str, precision: str | None) -> Layout:
        """Check a target layout and precision; raise ChangeRefused when it does not work. Touches nothing.

        An empty `text`, and None for the precision, mean those that serve.
        """

    def prepare(self, target: Layout, cost: Cost, *, awaited: bool) -> int:
        """Start, load, bind and connect the stages of `target`, and probe their chain; return its epoch.

        `awaited`: a function waits for the end of the change, and cannot wait for long.
        """

    def copy_stale(self, cost: Cost) -> CopyRound:
        """Copy what is stale of the moving layers, once."""

    def switch(self, cost: Cost, carry: Carry, hold_s: float) -> bool:
        """Flip the route; return whether there was no request at all. Raises NotMovableError.

        Batches may be held back for `hold_s` seconds while the KV is carried over.
        """

    def interrupt(self) -> None:
        """End the new stages so that an effect that waits for them fails now."""

    def roll_back(self) -> None:
        """Serve from the old chain alone and discard what is left of the new one."""

    def release(self, cost: Cost) -> None:
        """Let the stages go that only the old layout needs."""

    def pause_ms(self, since: float, until: float) -> float | None:
        """Return by how much the largest gap between answers in this time (unix seconds) exceeds the usual one."""


@dataclass(frozen=True, slots=True)
class Move:
    """The coming ("prepared") or going ("released") of one stage, for which a change is made: what the world is told.

    `stage` is its number in the layout that was asked for, which may have stages that are away.
    """

    what: str
    stage: int
    node: str


@dataclass(slots=True)
class Change:
    """One change and its report. `id` is unique together with `boot`; `request` is the key it was asked for with."""

    id: str
    machine: ChangeMachine
    boot: str
    request: str | None = None
    traceparent: str | None = None
    move: Move | None = None
    cost: Cost = field(default_factory=Cost)
    started_at: float = field(default_factory=time.time)
    ended_at: float | None = None
    cutover_at: float | None = None
    pause_ms: float | None = None
    epoch: int = 0
    steps_ms: dict[str, float] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)
    events: queue.Queue[Event] = field(default_factory=queue.Queue)

    def report(self) -> dict[str, Any]:
        """Return plain data; times in unix seconds and ms, sizes in bytes."""
        step = self.machine.step
        state = str(step) if step in ENDED else "running"
        return {
            "id": self.id,
            "boot": self.boot,
            "request": self.request,
            "traceparent": self.traceparent,
            "state": state,
            "step": str(step),
            "from": str(self.machine.source),
            "to": str(self.machine.target),
            "from_precision": self.machine.source.precision,
            "to_precision": self.machine.target.precision,
            "epoch": self.epoch,
            "reason": self.machine.reason,
            "method": str(self.machine.method),
            "stop_reason": self.machine.stop_reason,
            "carried_by": str(self.machine.carry),
            "started_at": self.started_at,
            "cutover_at": self.cutover_at,
            "ended_at": self.ended_at,
            "total_ms": round(1e3 * ((self.ended_at or time.time()) - self.started_at), 1),
            "steps_ms": dict(self.steps_ms),
            "pause_ms": self.pause_ms,
            "rounds": len(self.machine.rounds),
            "bytes_moved": self.cost.bytes_moved,
            "peak_extra_bytes": self.cost.peak_extra_bytes,
            "requests_carried": self.cost.requests_carried,
            "prepare_ms": self.cost.prepare_ms,
        }


class Coordinator:
    """Accepts changes, one at a time, and runs them. Thread-safe.

    Args:
        effects: carry out what a change needs done.
        journal: is told of everything.
        leases: how long each step may take.
        permission: what every change needs; None when no intents bound this pipeline.

    """

    def __init__(
        self,
        effects: ChangeEffects,
        journal: Journal,
        leases: Leases | None = None,
        permission: Permission | None = None,
    ) -> None:
        self._effects = effects
        self._journal = journal
        self._leases = leases or Leases()
        self._permission = permission
        self.boot = secrets.token_hex(4)  # change ids begin again with every start
        self._lock = threading.Lock()
        self._let_go = threading.Condition(self._lock)
        self._changes: dict[str, Change] = {}
        self._current: Change | None = None
        self._holder: str | None = None  # whoever has stopped changes for the moment
        self._count = 0
        # One thread: effects of one change never overlap.
        self._worker = ThreadPoolExecutor(1, "change-effects")

    @property
    def current(self) -> Change | None:
        """The change under way, if any."""
        return self._current

    @property
    def last(self) -> Change | None:
        """The change that was accepted last."""
        with self._lock:
            return next(reversed(self._changes.values()), None)

    def request(
        self,
        text: str,
        method: Method = Method.PRE_COPY,
        fallback: Fallback = Fallback.ABORT,
        request: str | None = None,
        traceparent: str | None = None,
        move: Move | None = None,
        precision: str | None = None,
    ) -> Change:
        """Accept a change to the layout `text`, or a precision, and start it.

        See `ChangeMachine` for how KV is moved, and `ChangeEffects.plan` for what is not given.

        `request` is what the change was asked for with and `traceparent` in which trace, for its report; `move` the
        stage for whose coming or going it is made.

        Raises:
            ChangeBusy: another one is under way.
            ChangeForbidden, GuardSilent: the intents, or their guard, do not allow it; nothing was touched.
            GuardAsked: not known yet; ask again in a moment.
            ChangeRefused, LayoutError: the plan does not work; nothing was touched.

        """
        with self._lock:
            if self._current is not None:
                raise ChangeBusy(self._current.id)
            if self._holder is not None:
                raise ChangeBusy(self._holder)
            started_at, clock = time.time(), time.perf_counter()
            target = self._effects.plan(text, precision)
            if self._permission is not None:
                self._permission.begin(_carried_from(self._effects.layout(), method), target)
            self._count += 1
            machine = ChangeMachine(f"change-{self._count}", self._effects.layout(), target, method, fallback)
            change = Change(machine.change, machine, self.boot, request, traceparent, move, started_at=started_at)
            change.steps_ms[Step.PLAN] = round(1e3 * (time.perf_counter() - clock), 1)
            self._changes[change.id] = self._current = change
            while len(self._changes) > _KEPT_CHANGES:
                del self._changes[next(iter(self._changes))]
        self._journal.tell(change.id, "planned", **change.report())
        threading.Thread(target=self._run, args=(change,), name=change.id, daemon=True).start()
        return change

    def find(self, change_id: str) -> Change:
        """Return a change by id; raises ChangeUnknown."""
        with self._lock:
            if change_id not in self._changes:
                known = ", ".join(self._changes) or "none yet"
                raise ChangeUnknown(f"no change {change_id!r}; known are: {known}")
            return self._changes[change_id]

    def cancel(self, change_id: str) -> Change:
        """Stop a change if it is not committed yet; raises ChangeUnknown."""
        change = self.find(change_id)
        change.events.put(Cancelled("it was cancelled"))
        return change

    def post(self, event: Event) -> None:
        """Tell the change under way of something; without one, nothing happens."""
        change = self._current
        if change is not None:
            change.events.put(event)

    @contextlib.contextmanager
    def stopped(self, holder: str, reason: str) -> Iterator[None]:
        """Stop the change under way because of `reason`, wait for its end, and refuse new ones until the block ends.

        A change that is committed already is completed instead. Who asks for a change meanwhile is told of `holder`.
        Waits while somebody else holds changes back.
        """
        with self._let_go:
            self._let_go.wait_for(lambda: self._holder is None)
            self._holder, change = holder, self._current
        if change is not None:
            change.events.put(Failed(reason))
            change.ended.wait()
        try:
            yield
        finally:
            self.let_go()

    def hold(self, holder: str) -> bool:
        """Refuse new changes until `let_go`; False when one is under way, or somebody else holds them back."""
        with self._lock:
            if self._current is not None or self._holder is not None:
                return False
            self._holder = holder
            return True

    def let_go(self) -> None:
        """Accept changes again."""
        with self._let_go:
            self._holder = None
            self._let_go.notify_all()

    def settled(self, epoch: int) -> None:
        """The first result of `epoch` was revealed."""
        change = self._current
        if change is not None and change.epoch == epoch:
            change.events.put(Settled())

    def close(self) -> None:
        """Start no further effect."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    # -- the protocol's thread ---------------------------------------------------------------------------------------

    def _run(self, change: Change) -> None:
        machine = change.machine
        deadline: float | None = None
        clock = time.perf_counter()
        pending: Event = Planned()
        while True:
            before = machine.step
            instructions = machine.handle(pending)
            if machine.step is not before:
                now = time.perf_counter()
                if before is not Step.PLAN:
                    change.steps_ms[before] = round(1e3 * (now - clock), 1)
                clock = now
                self._journal.tell(
                    change.id, str(machine.step), **({"reason": machine.reason} if machine.reason else {})
                )
            for instruction in instructions:
                if isinstance(instruction, ArmLease):
                    lease_s = self._leases.of(instruction.step, bulk=_is_bulk(machine), loads=_loads(machine))
                    deadline = time.monotonic() + lease_s
                elif isinstance(instruction, Finish):
                    self._finish(change)
                    return
                else:
                    self._start_effect(change, instruction)
            pending = self._next_event(change, deadline)

    def _next_event(self, change: Change, deadline: float | None) -> Event:
        step = change.machine.step
        # A roll-back has no lease: it must end, and the engine's own checks end a pipeline that cannot.
        wait_s = None if deadline is None or step is Step.ABORTING else max(0.0, deadline - time.monotonic())
        try:
            return change.events.get(timeout=wait_s)
        except queue.Empty:
            return LeaseLapsed(step)

    def _finish(self, change: Change) -> None:
        ended_at = time.time()
        pause_ms = self._effects.pause_ms(change.started_at, ended_at)
        with self._lock:  # whoever sees that it has ended can ask for the next one
            change.pause_ms, change.ended_at = pause_ms, ended_at
            self._current = None
        report, move = change.report(), change.move
        if move is not None and change.machine.step is Step.COMMITTED:
            ms = report["total_ms"]
            self._journal.tell(change.id, f"stage {move.what}", stage=move.stage, node=move.node, ms=ms)
        self._journal.tell(change.id, "ended", **report)
        change.ended.set()

    # -- effects -----------------------------------------------------------------------------------------------------

    def _start_effect(self, change: Change, instruction: Instruction) -> None:
        if isinstance(instruction, RollBack):
            self._effects.interrupt()
        with contextlib.suppress(RuntimeError):  # closed: the pipeline is going, and with it this change
            self._worker.submit(self._carry_out, change, instruction)

    def _carry_out(self, change: Change, instruction: Instruction) -> None:
        effects, events = self._effects, change.events
        try:
            match instruction:
                case Prepare():
                    if change.machine.step is not Step.PREPARE:
                        return  # stopped before it began
                    clock = time.perf_counter()
                    change.epoch = effects.prepare(change.machine.target, change.cost, awaited=change.move is not None)
                    self._tell_stages(change, "stage prepared", change.machine.target, change.machine.source, clock)
                    events.put(ChainReady())
                case CopyStale():
                    self._require_permission(change)
                    events.put(RoundCopied(effects.copy_stale(change.cost)))
                case Switch(carry=carry):
                    self._require_permission(change)
                    if change.machine.step is not Step.CUTOVER:
                        return  # stopped before it began
                    change.cutover_at = time.time()
                    hold_s = _BULK_HOLD_S if _is_bulk(change.machine) else _HOLD_S
                    events.put(Switched(idle=effects.switch(change.cost, carry, hold_s)))
                case RollBack():
                    effects.roll_back()
                    events.put(RolledBack())
                case Release():
                    clock = time.perf_counter()
                    effects.release(change.cost)
                    self._tell_stages(change, "stage released", change.machine.source, change.machine.target, clock)
                    events.put(Released())
        except NotMovableError as error:
            events.put(NotMovable(str(error)))
        except Exception as error:  # noqa: BLE001 - whatever an effect raises stops the change, with its reason
            self._journal.tell(change.id, "failed", what=type(instruction).__name__, error=str(error))
            if isinstance(instruction, RollBack):
                # The old chain could not be restored: its owner has ended the pipeline, and said so.
                events.put(RolledBack())
            elif isinstance(instruction, Release):
                events.put(Released())
            else:
                events.put(Failed(str(error)))

    def _require_permission(self, change: Change) -> None:
        machine = change.machine
        if self._permission is not None:
            self._permission.require(_carried_from(machine.source, machine.method), machine.target)

    def _tell_stages(self, change: Change, event: str, layout: Layout, other: Layout, since: float) -> None:
        """Tell of every stage of `layout` that `other` does not have, unless the change is for one stage."""
        if change.move is not None:
            return
        ms = round(1e3 * (time.perf_counter() - since), 1)
        for index, stage in enumerate(layout.stages):
            if stage not in other.stages or layout.precision != other.precision:
                self._journal.tell(change.id, event, stage=index, node=stage.node, layers=str(stage.layers), ms=ms)


def _carried_from(source: Layout, method: Method) -> Layout | None:
    """Return where KV is carried over from; None when all of it is computed again, so no byte comes from there."""
    return None if method is Method.RECOMPUTE else source


def _loads(machine: ChangeMachine) -> bool:
    """Whether the model has to be loaded in another precision."""
    return machine.source.precision != machine.target.precision


def _is_bulk(machine: ChangeMachine) -> bool:
    """Whether all KV is carried over during the pause, not only what pre-copy left."""
    return machine.carry is Carry.RECOMPUTE or (machine.carry is Carry.COPY and not machine.rounds)
