"""When an idle pipeline falls asleep, and when it must not."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from runtime.engine.sleep import Sleep
from runtime.migration.journal import Journal
from tests.unit.runtime.engine.waiting import eventually


class Bench:
    """A pipeline that nobody asks for anything."""

    def __init__(self) -> None:
        self.stopped = True
        self.asked = threading.Event()
        self.done: list[str] = []
        dispatcher: Any = SimpleNamespace(idle_s=lambda: 60.0, suspend=lambda _: True)
        coordinator: Any = SimpleNamespace(hold=lambda _: True, let_go=lambda: None)
        self.sleep = Sleep(
            0.01,
            dispatcher,
            coordinator,
            Journal(),
            lambda: self.done.append("ended"),
            lambda: self.done.append("brought back"),
            self.done.append,
            stays=self.stays,
        )

    def stays(self) -> bool:
        self.asked.set()
        return self.stopped


def test_what_is_stopped_stays_awake_as_it_has_to_hear_of_changes_and_sleeps_later() -> None:
    bench = Bench()
    bench.sleep.start()
    for _ in range(3):
        bench.asked.clear()
        assert bench.asked.wait(20)
    assert bench.done == []
    bench.stopped = False
    assert eventually(lambda: bench.done == ["ended"])
    bench.sleep.wake()
    assert eventually(lambda: bench.done == ["ended", "brought back"])
    bench.sleep.close()
