"""Effects of a change under a test's control: each can be blocked, made to fail, or be interrupted, without a clock."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runtime.layout import Layout
from runtime.migration.coordinator import ChangeEffects, Cost
from runtime.migration.errors import ChangeUnneeded
from runtime.migration.protocol import Carry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runtime.migration.stop_rule import CopyRound

DEADLINE_S = 10.0
LAYERS = 4


class StageGone(RuntimeError):
    """What an effect meets when the stages it waits for were ended."""


@dataclass
class Gate:
    """Where an effect waits until the test lets it through, or until the change is interrupted."""

    interruptible: bool
    _entered: threading.Event = field(default_factory=threading.Event)
    _opened: threading.Event = field(default_factory=threading.Event)
    _interrupted: bool = False

    def pass_through(self) -> None:
        self._entered.set()
        if not self._opened.wait(DEADLINE_S):
            raise AssertionError("the test never opened this gate")
        if self._interrupted:
            raise StageGone("the new stages were ended")

    def wait_until_entered(self) -> None:
        assert self._entered.wait(DEADLINE_S), "the effect never began"

    def open(self) -> None:
        self._opened.set()

    def interrupt(self) -> None:
        if self.interruptible:
            self._interrupted = True
            self._opened.set()


class FakeEffects(ChangeEffects):
    """Effects in memory, recorded in `calls`. Its epochs skip numbers, as an aborted change makes them do.

    `on_switch` runs inside the switch, after the flip, with the epoch of the new chain.
    """

    def __init__(self, layout: str = "2,2") -> None:
        self.serving = Layout.parse(layout, LAYERS)
        self.calls: list[str] = []
        self.awaited: list[bool] = []  # of every `prepare`
        self.rounds: list[CopyRound] = []
        self.idle = True
        self.on_switch: Callable[[int], None] = lambda _: None
        self.epochs = 1
        self._target: Layout | None = None
        self._failures: dict[str, Exception] = {}
        self._gates: dict[str, Gate] = {}

    def fail(self, effect: str, error: Exception) -> None:
        """Let `effect` raise `error`, once."""
        self._failures[effect] = error

    def block(self, effect: str, *, interruptible: bool = True) -> Gate:
        """Make `effect` wait at a gate, once."""
        self._gates[effect] = gate = Gate(interruptible)
        return gate

    def open_all(self) -> None:
        for gate in list(self._gates.values()):
            gate.open()

    def count(self, effect: str) -> int:
        return self.calls.count(effect)

    @contextmanager
    def _called(self, effect: str) -> Iterator[None]:
        self.calls.append(effect)
        gate, error = self._gates.get(effect), self._failures.pop(effect, None)
        if gate is not None:
            gate.pass_through()
            del self._gates[effect]
        if error is not None:
            raise error
        yield

    def layout(self) -> Layout:
        return self.serving

    def plan(self, text: str, precision: str | None) -> Layout:
        self.calls.append("plan")
        target = Layout.parse(text or str(self.serving), LAYERS).in_precision(precision or self.serving.precision)
        if target == self.serving:
            raise ChangeUnneeded(f"the pipeline already has the layout {target}")
        return target

    def prepare(self, target: Layout, cost: Cost, *, awaited: bool) -> int:
        self.awaited.append(awaited)
        with self._called("prepare"):
            self._target = target
            cost.peak_extra_bytes, self.epochs = 4096, self.epochs + 2
            return self.epochs

    def copy_stale(self, cost: Cost) -> CopyRound:
        with self._called("copy_stale"):
            copied = self.rounds.pop(0)
            cost.bytes_moved += copied.sent_bytes
            return copied

    def switch(self, cost: Cost, carry: Carry, hold_s: float) -> bool:
        self.on_switch(self.epochs)
        with self._called("switch" if carry is Carry.NOTHING else f"switch and {carry}"):
            return self.idle

    def interrupt(self) -> None:
        self.calls.append("interrupt")
        for gate in list(self._gates.values()):
            gate.interrupt()

    def roll_back(self) -> None:
        with self._called("roll_back"):
            self._target = None

    def release(self, cost: Cost) -> None:
        with self._called("release"):
            cost.requests_carried = 3
            if self._target is not None:
                self.serving, self._target = self._target, None

    def pause_ms(self, since: float, until: float) -> float | None:
        return round(1e3 * (until - since), 1)
