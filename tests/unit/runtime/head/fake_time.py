"""An event loop whose clock only moves when nothing is left to do: hours pass in no time, in exact order."""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine

START_S = 1000.0


class _JumpingSelector(selectors.SelectSelector):
    """Instead of waiting for a time to come, makes it now."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START_S

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events:
            if timeout is None:
                raise RuntimeError("everybody waits and nothing will ever happen")
            self.now += timeout
        return events


class FakeTimeLoop(asyncio.SelectorEventLoop):
    """See the module."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run a scenario to its end in fake time."""
    with asyncio.Runner(loop_factory=FakeTimeLoop) as runner:
        runner.run(scenario)


def now() -> float:
    """Return the seconds of fake time since the scenario began."""
    return asyncio.get_running_loop().time() - START_S
