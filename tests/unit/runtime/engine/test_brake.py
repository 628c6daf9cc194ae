"""What has become forbidden computes nothing, until it is allowed or another chain serves; silence changes nothing."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from runtime.engine.brake import Brake
from runtime.layout import Layout
from runtime.migration.guard import Permission
from runtime.migration.journal import Journal
from tests.unit.runtime.engine.waiting import eventually
from tests.unit.runtime.migration.fake_guard import FakeGuard

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Layout.parse("3@a,3@b", 6)
ELSEWHERE = Layout.parse("3@a,3@c", 6)
WHY = "the intents forbid smollm on a, b: b is in the US"


class Bench:
    """A brake with a guard, and a pipeline that serves what it is told to."""

    def __init__(self, period_s: float = 60.0) -> None:
        self.guard, self.journal = FakeGuard(), Journal()
        self.serving: Layout | None = HERE
        self.told: list[str | None] = []
        self.brake = Brake(
            Permission(self.guard, "smollm", "local", answer_s=0.2),
            lambda: self.serving,
            self.journal,
            lambda: self.told.append(self.brake.stopped),
            period_s,
        )

    @property
    def events(self) -> list[dict[str, Any]]:
        return [entry.as_dict() for entry in self.journal.story("pipeline")]

    def forbidden(self) -> Bench:
        self.guard.nodes.add("b")
        self.brake.look()
        assert self.brake.stopped == WHY
        return self


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def running() -> Iterator[Bench]:
    bench = Bench(period_s=0.01)
    bench.brake.start()
    yield bench
    bench.brake.close()


def test_what_is_allowed_is_not_stopped_and_nothing_is_told(bench: Bench) -> None:
    bench.brake.look()
    assert (bench.brake.stopped, set(bench.told), bench.events) == (None, {None}, [])
    (asked,) = bench.guard.asked
    assert (asked.new, asked.transfers, asked.state) == (("a", "b"), (("a", "b"),), "prompts")


def test_what_is_forbidden_is_stopped_for_that_reason_until_it_is_allowed(bench: Bench) -> None:
    bench.forbidden()
    bench.brake.look()
    assert set(bench.told) == {WHY}
    bench.guard.nodes.clear()
    bench.brake.look()
    assert bench.told[-1] is None
    assert [entry["event"] for entry in bench.events] == ["stopped", "no longer stopped"]


def test_a_chain_that_serves_since_is_not_stopped_before_it_was_asked_for(bench: Bench) -> None:
    bench.forbidden().serving = ELSEWHERE
    assert bench.brake.stopped is None
    bench.brake.look()
    assert (bench.brake.stopped, bench.told) == (None, [WHY, None])
    assert [entry["event"] for entry in bench.events] == ["stopped", "no longer stopped"]


def test_what_is_fallen_back_to_is_stopped_as_before_even_if_the_guard_is_silent_now(bench: Bench) -> None:
    bench.forbidden().serving = ELSEWHERE
    bench.brake.look()
    bench.guard.known = False
    bench.serving = HERE
    assert bench.brake.stopped == WHY
    bench.brake.look()
    assert bench.brake.stopped == WHY


def test_once_a_change_is_complete_nothing_is_stopped_that_was_not_asked_for_since(bench: Bench) -> None:
    bench.forbidden().serving = ELSEWHERE
    bench.brake.forget()
    bench.serving = HERE
    assert bench.brake.stopped is None
    bench.brake.look()
    assert bench.brake.stopped == WHY


def test_an_answer_that_comes_when_another_chain_serves_does_not_stop_that(bench: Bench) -> None:
    bench.guard.nodes.add("b")

    def flip(_: object) -> None:
        bench.serving = ELSEWHERE

    bench.guard.before_answer = flip
    bench.brake.look()
    assert bench.brake.stopped is None


@pytest.mark.parametrize("silence", ["unknown", "hung"])
@pytest.mark.parametrize("before", ["allowed", "forbidden"])
def test_the_last_word_of_a_silent_guard_stands(bench: Bench, silence: str, before: str) -> None:
    if before == "forbidden":
        bench.forbidden()
    bench.guard.known, stopped = False, bench.brake.stopped
    bench.guard.hung = threading.Event() if silence == "hung" else None
    bench.brake.look()
    assert bench.brake.stopped == stopped
    if bench.guard.hung is not None:
        bench.guard.hung.set()


def test_of_what_does_not_serve_nothing_is_asked(bench: Bench) -> None:
    bench.forbidden().serving = None
    assert bench.brake.stopped is None
    asked = len(bench.guard.asked)
    bench.brake.look()
    assert len(bench.guard.asked) == asked


def test_it_looks_by_itself_again_and_again(running: Bench) -> None:
    running.guard.nodes.add("b")
    assert eventually(lambda: running.brake.stopped == WHY)
    running.guard.nodes.clear()
    assert eventually(lambda: running.brake.stopped is None)


def test_it_looks_at_once_when_told(bench: Bench) -> None:
    bench.brake.start()
    bench.guard.nodes.add("b")
    bench.brake.forget()
    assert eventually(lambda: bench.brake.stopped == WHY)
    bench.brake.close()


def test_whatever_goes_wrong_with_a_look_the_next_one_is_made(running: Bench) -> None:
    def fail_once() -> Layout | None:
        running.brake._serving = lambda: HERE
        raise RuntimeError("can't start new thread")

    running.brake._serving = fail_once
    running.guard.nodes.add("b")
    assert eventually(lambda: running.brake.stopped == WHY)
    assert running.events[0]["event"] == "not looked"


def test_a_guard_that_takes_long_is_asked_less_often() -> None:
    bench = Bench(period_s=0.001)
    bench.guard.before_answer = lambda _: time.sleep(0.01)
    bench.brake.start()
    time.sleep(0.5)
    bench.brake.close()
    assert 1 <= len(bench.guard.asked) <= 4
