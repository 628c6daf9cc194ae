"""The ring of recent events."""

import asyncio

from controller.platform.broker.ring import Page, Ring, Wanted
from tests.unit.controller.platform.broker.house import event
from tests.unit.runtime.head.fake_time import now, run

ALL = Wanted()


def numbers(page: Page) -> list[int]:
    return [entry.sequence for entry in page.events]


def ring(events: int, *, most: int = 10, most_bytes: int = 1 << 20) -> Ring:
    made = Ring(most, most_bytes)
    for number in range(1, events + 1):
        made.append(event(str(number), "even" if number % 2 == 0 else "odd", "t" if number < 3 else "u"))
    return made


def test_a_reader_goes_on_where_it_was():
    async def scenario():
        events = ring(5)
        first = events.page(0, ALL, 3)
        assert (numbers(first), first.next, first.missed) == ([1, 2, 3], 3, False)
        second = events.page(first.next, ALL, 3)
        assert (numbers(second), second.next) == ([4, 5], 5)

    run(scenario())


def test_only_what_is_wanted_is_shown_and_the_rest_not_looked_at_again():
    async def scenario():
        events = ring(5)
        assert numbers(events.page(0, Wanted(subject="even"), 9)) == [2, 4]
        assert numbers(events.page(0, Wanted(type="u", subject="odd"), 9)) == [3, 5]
        nothing = events.page(0, Wanted(subject="other"), 9)
        assert (numbers(nothing), nothing.next) == ([], 5)

    run(scenario())


def test_the_oldest_go_first_and_a_slow_reader_is_told():
    async def scenario():
        events = ring(15)
        page = events.page(2, ALL, 100)
        assert (numbers(page), page.missed) == (list(range(6, 16)), True)
        assert events.page(5, ALL, 100).missed is False

    run(scenario())


def test_bytes_are_bounded_too():
    async def scenario():
        assert len(ring(10, most_bytes=len(event("1", "odd").to_json()) * 4).page(0, ALL, 100).events) in {3, 4}

    run(scenario())


def test_a_reader_that_outlived_a_broker_gets_everything():
    async def scenario():
        page = ring(2).page(500, ALL, 9)
        assert (numbers(page), page.next, page.missed) == ([1, 2], 2, True)

    run(scenario())


def test_a_watcher_waits_for_what_it_wants():
    async def scenario():
        events = ring(2)
        watching = asyncio.create_task(events.wait(2, Wanted(subject="even"), 9, 60.0))
        await asyncio.sleep(1)
        events.append(event("3", "odd"))
        await asyncio.sleep(1)
        assert not watching.done()
        events.append(event("4", "even"))
        assert numbers(await watching) == [4]
        assert now() == 2.0

    run(scenario())


def test_a_watcher_waits_no_longer_than_it_said():
    async def scenario():
        page = await ring(2).wait(2, ALL, 9, 60.0)
        assert (numbers(page), page.next, now()) == ([], 2, 60.0)

    run(scenario())
