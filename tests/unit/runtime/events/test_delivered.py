"""What came of an event is remembered, within bounds."""

import threading

import pytest

from runtime.events.catalogue import Type
from runtime.events.delivered import Delivered
from runtime.events.envelope import Event, make


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def event(identity: str, source: str = "/me") -> Event:
    return make(Type.STAGE_RELEASE, source, "smollm", {"pipeline": "smollm", "stage": 0}, id=identity)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_an_event_is_known_by_source_and_id_whatever_else_it_says():
    delivered = Delivered[str]()
    assert delivered.outcome(event("1")) is None
    delivered.remember(event("1"), "done")
    assert delivered.outcome(event("1")) == "done"
    assert delivered.outcome(event("2")) is None
    assert delivered.outcome(event("1", "/you")) is None


def test_the_newest_outcome_counts():
    delivered = Delivered[str]()
    delivered.remember(event("1"), "begun")
    delivered.remember(event("1"), "done")
    assert delivered.outcome(event("1")) == "done"


def test_what_was_asked_for_longest_ago_is_forgotten_first():
    delivered = Delivered[int](capacity=3)
    for number in range(3):
        delivered.remember(event(str(number)), number)
    assert delivered.outcome(event("0")) == 0
    delivered.remember(event("3"), 3)
    assert [delivered.outcome(event(str(number))) for number in range(4)] == [0, None, 2, 3]


def test_outcomes_are_forgotten_at_an_age_however_often_they_were_asked_for(clock: Clock):
    delivered = Delivered[str](age_s=10, clock=clock)
    delivered.remember(event("1"), "done")
    for clock.now in (5.0, 9.9):
        assert delivered.outcome(event("1")) == "done"
    clock.now = 10.0
    assert delivered.outcome(event("1")) is None


def test_it_stays_within_its_capacity_under_threads():
    delivered = Delivered[int](capacity=50)
    wrong: list[int | None] = []

    def work(worker: int) -> None:
        for number in range(500):
            one = event(f"{number % 80}")
            delivered.remember(one, number % 80)
            if delivered.outcome(one) not in {number % 80, None}:
                wrong.append(worker)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(delivered._outcomes) == 50
