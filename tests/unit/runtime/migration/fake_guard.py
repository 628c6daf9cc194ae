"""A guard under a test's control."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runtime.migration.guard import Question, Ruling
from tests.unit.runtime.migration.fake_effects import DEADLINE_S

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from runtime.migration.guard import State


@dataclass
class FakeGuard:
    """Forbids nodes and ways, keeps what it was asked, and is silent when told to be.

    `before_answer` is called with each question, before it is answered.
    """

    nodes: set[str] = field(default_factory=set)
    ways: set[tuple[str, str]] = field(default_factory=set)
    known: bool = True
    asked: list[Question] = field(default_factory=list)
    before_answer: Callable[[Question], None] = lambda _: None
    hung: threading.Event | None = None

    def judge(
        self, pipeline: str, old: Sequence[str], new: Sequence[str], transfers: Sequence[tuple[str, str]], state: State
    ) -> Ruling:
        assert pipeline == "smollm"
        question = Question(tuple(old), tuple(new), tuple(transfers), state)
        self.asked.append(question)
        if self.hung is not None:
            assert self.hung.wait(DEADLINE_S)
        self.before_answer(question)
        if not self.known:
            return Ruling(allowed=False, reason="it is away", known=False)
        wrong = sorted({*old, *new} & self.nodes) or sorted(self.ways.intersection(transfers))
        return Ruling(allowed=not wrong, reason=f"{wrong[0]} is in the US" if wrong else "")
