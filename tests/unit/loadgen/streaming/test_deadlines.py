import asyncio

import pytest
import uvloop

from loadgen.clock import now_ns
from loadgen.streaming.deadlines import Deadlines, PreciseTimer

MS = 1_000_000


def on_both_loops(check):
    asyncio.run(check())
    uvloop.run(check())


def test_no_deadline_is_early_and_most_are_within_a_millisecond_on_either_loop():
    async def check() -> None:
        late = []
        with Deadlines() as deadlines:
            for n in range(60):
                due = now_ns() + 1_300_000 + n * 7_000
                await deadlines.sleep_until(due)
                late.append(now_ns() - due)
        assert min(late) >= 0
        assert sorted(late)[10] < MS  # a busy machine may delay many, a coarse timer would delay all of them

    on_both_loops(check)


def test_callbacks_come_in_the_order_of_their_moments_whatever_the_order_of_asking():
    async def check() -> None:
        seen: list[int] = []
        with Deadlines() as deadlines:
            start = now_ns() + 2 * MS
            for n in (3, 1, 2, 0):
                deadlines.at(start + n * MS, lambda n=n: seen.append(n))
            deadlines.at(start + 3 * MS, lambda: seen.append(4))
            await deadlines.sleep_until(start + 5 * MS)
        assert seen == [0, 1, 2, 3, 4]

    on_both_loops(check)


async def test_a_moment_that_is_past_is_now():
    with Deadlines() as deadlines:
        called = asyncio.Event()
        deadlines.at(now_ns() - MS, called.set)
        async with asyncio.timeout(5):
            await called.wait()
            await deadlines.sleep_until(0)


async def test_a_cancelled_deadline_is_not_called_and_lets_go_of_what_it_held():
    with Deadlines() as deadlines:
        seen: list[str] = []
        deadline = deadlines.at(now_ns() + MS, lambda: seen.append("cancelled"))
        deadline.cancel()
        await deadlines.sleep_until(now_ns() + 3 * MS)
        assert (seen, deadline.callback) == ([], None)


async def test_a_callback_may_ask_for_the_next_one():
    with Deadlines() as deadlines:
        moments: list[int] = []
        done = asyncio.Event()

        def again() -> None:
            moments.append(now_ns())
            if len(moments) == 5:
                done.set()
            else:
                deadlines.at(moments[-1] + MS, again)

        deadlines.at(now_ns() + MS, again)
        async with asyncio.timeout(10):
            await done.wait()
        assert len(moments) == 5


async def test_a_cancelled_sleeper_leaves_nothing_behind():
    with Deadlines() as deadlines:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await deadlines.sleep_until(now_ns() + 60_000 * MS)
        await deadlines.sleep_until(now_ns() + MS)


async def test_a_timer_that_is_disarmed_stays_silent_and_closing_twice_is_harmless():
    seen: list[int] = []
    timer = PreciseTimer(lambda: seen.append(1))
    timer.arm(now_ns() + MS)
    timer.arm(None)
    await asyncio.sleep(0.01)
    timer.close()
    timer.close()
    assert seen == []
