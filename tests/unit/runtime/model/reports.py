"""Reports for tests: one that remembers, one that interrupts."""

from collections.abc import Iterator
from contextlib import contextmanager

from runtime.model.progress import Advance


class MemoryReport:
    """Remembers which steps were announced."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    @contextmanager
    def step(self, what: str, total_bytes: int | None = None) -> Iterator[Advance]:
        self.steps.append(what)
        yield lambda _done: None


class InterruptingReport:
    """Raises `error` when the step that starts with `at` first reports bytes."""

    def __init__(self, at: str, error: BaseException) -> None:
        self.at, self.error = at, error

    @contextmanager
    def step(self, what: str, total_bytes: int | None = None) -> Iterator[Advance]:
        def advance(_done: int) -> None:
            if what.startswith(self.at):
                raise self.error

        yield advance
