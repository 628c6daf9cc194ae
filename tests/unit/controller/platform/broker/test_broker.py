"""The broker: all triggers or none, triggers that come and go, and the end."""

import asyncio
import dataclasses

import pytest

from controller.platform.broker.broker import Broker, PublishError
from controller.platform.broker.delivery import HOPS
from controller.platform.broker.filters import Matching
from controller.platform.broker.ring import Wanted
from controller.platform.broker.sending import Answer
from controller.platform.broker.trigger import Delivery
from controller.platform.broker.wire import Event
from tests.unit.controller.platform.broker.house import GOOD, Gate, count, event, house, settled, trigger, until
from tests.unit.runtime.head.fake_time import run


def of_type(kind: str) -> Matching:
    return Matching((("type", kind),))


def seen(broker: Broker) -> list[int]:
    return [entry.sequence for entry in broker.ring.page(0, Wanted(), 100).events]


class TestPublishing:
    def test_an_event_goes_to_every_trigger_that_wants_it(self):
        async def scenario():
            broker, subscribers = house(
                trigger("a", filter=of_type("t")), trigger("b"), trigger("c", filter=of_type("u"))
            )
            assert broker.publish(event()) == 1
            await settled(broker)
            assert [subscribers.ids(name) for name in "abc"] == [["1"], ["1"], []]

        run(scenario())

    def test_an_event_that_nobody_wants_is_accepted(self):
        async def scenario():
            broker, _ = house()
            assert broker.publish(event()) == 1

        run(scenario())

    def test_when_one_queue_is_full_no_trigger_has_the_event(self):
        async def scenario():
            broker, subscribers = house(trigger("slow", filter=of_type("t")), trigger("quick"), queued_events=2)
            gate = Gate()
            subscribers.behaviour["http://slow"] = gate
            broker.publish(event("1"))
            await gate.entered.get()
            broker.publish(event("2"))
            await until(lambda: len(subscribers.ids("quick")) == 2)
            with pytest.raises(PublishError, match="no room for the event at the trigger slow") as refused:
                broker.publish(event("3"))
            assert (refused.value.status, refused.value.retry_after_s) == (429, 1.0)
            assert broker.publish(event("4", kind="u")) == 3  # slow does not want it
            gate.open()
            await settled(broker)
            assert subscribers.ids("slow") == ["1", "2"]
            assert subscribers.ids("quick") == ["1", "2", "4"]
            assert seen(broker) == [1, 2, 3]
            assert count(broker, "events_refused_total", reason="full") == 1
            assert broker.publish(event("3")) == 4

        run(scenario())

    def test_an_event_given_twice_is_delivered_twice(self):
        async def scenario():
            broker, subscribers = house(trigger())
            broker.publish(event())
            broker.publish(event())
            await settled(broker)
            assert subscribers.ids("a") == ["1", "1"]

        run(scenario())

    @pytest.mark.parametrize("hops", ["1", "0"])
    def test_an_event_without_hops_left_is_refused(self, hops: str):
        async def scenario():
            broker, subscribers = house(trigger())
            with pytest.raises(PublishError, match="too many hops") as refused:
                broker.publish(event(**{HOPS: hops}))
            assert (refused.value.status, refused.value.retry_after_s) == (400, None)
            assert subscribers.ids("a") == seen(broker) == []

        run(scenario())

    @pytest.mark.parametrize("hops", ["x", "-1", "9" * 30, "\u0663", "255", "2"])
    def test_any_other_count_of_hops_is_taken_and_not_shown_to_subscribers(self, hops: str):
        async def scenario():
            broker, subscribers = house(trigger())
            broker.publish(event(**{HOPS: hops}))
            await settled(broker)
            ((_, told),) = subscribers.got["http://a"]
            assert HOPS not in told.attributes

        run(scenario())


class TestTriggers:
    def test_a_trigger_gets_what_comes_after_it(self):
        async def scenario():
            broker, subscribers = house()
            broker.publish(event("1"))
            assert broker.put_trigger(trigger()) is True
            broker.publish(event("2"))
            await settled(broker)
            assert subscribers.ids("a") == ["2"]

        run(scenario())

    def test_a_removed_trigger_gets_nothing_more_and_what_waited_is_told(self):
        async def scenario():
            broker, subscribers = house(trigger())
            gate = Gate()
            subscribers.behaviour["http://a"] = gate
            for name in "123":
                broker.publish(event(name))
            await gate.entered.get()
            assert [str(one) for one in await broker.remove_trigger("a")] == [f"t /test#{name}" for name in "123"]
            assert subscribers.under_way == 0
            assert broker.triggers() == []
            assert b"midstream_broker_queue_depth{" not in metrics(broker)
            assert await broker.remove_trigger("a") is None
            broker.put_trigger(trigger())
            gate.open()
            broker.publish(event("4"))
            await settled(broker)
            assert subscribers.ids("a") == ["1", "4"]

        run(scenario())

    def test_a_replaced_filter_holds_from_now_on(self):
        async def scenario():
            broker, subscribers = house(trigger())
            broker.put_trigger(dataclasses.replace(trigger(), filter=of_type("u")))
            broker.publish(event("1"))
            broker.publish(event("2", kind="u"))
            await settled(broker)
            assert subscribers.ids("a") == ["2"]

        run(scenario())

    def test_the_depth_of_each_queue_is_counted(self):
        async def scenario():
            broker, subscribers = house(trigger())
            gate = Gate()
            subscribers.behaviour["http://a"] = gate
            broker.publish(event("1"))
            broker.publish(event("2"))
            assert count(broker, "queue_depth", trigger="a") == 2
            gate.open()
            await settled(broker)
            assert count(broker, "queue_depth", trigger="a") == 0

        run(scenario())


class TestStopping:
    def test_what_was_accepted_is_delivered_and_nothing_more_accepted(self):
        async def scenario():
            broker, subscribers = house(trigger(delivery=Delivery(retries=3, backoff_s=1.0)))
            subscribers.answers("a", Answer(503), Answer(200))
            broker.publish(event("1"))
            broker.publish(event("2"))
            stopping = asyncio.create_task(broker.stop(10.0))
            await asyncio.sleep(0)
            with pytest.raises(PublishError, match="stopping") as refused:
                broker.publish(event("3"))
            assert (refused.value.status, refused.value.retry_after_s) == (503, 1.0)
            assert await stopping == {}
            assert subscribers.ids("a") == ["1", "1", "2"]

        run(scenario())

    def test_answers_are_delivered_too(self):
        async def scenario():
            broker, subscribers = house(trigger("b", filter=of_type("u")), trigger("a", filter=of_type("t")))

            async def slow(told: Event) -> Answer:
                await asyncio.sleep(4)
                return GOOD if told.attributes["id"] == "2" else Answer(200, reply=event("2", kind="u"))

            subscribers.behaviour |= {"http://a": slow, "http://b": slow}
            broker.publish(event("1"))
            assert await broker.stop(10.0) == {}
            assert subscribers.ids("b") == ["2"]

        run(scenario())

    def test_what_cannot_be_delivered_in_time_is_said(self, caplog: pytest.LogCaptureFixture):
        async def scenario():
            broker, subscribers = house(trigger(), trigger("b"))
            subscribers.behaviour["http://a"] = Gate()
            broker.publish(event("1"))
            broker.publish(event("2"))
            left = await broker.stop(5.0)
            assert {name: [one.attributes["id"] for one in events] for name, events in left.items()} == {
                "a": ["1", "2"]
            }

        run(scenario())
        assert "trigger a: t /test#2 was not delivered" in caplog.text

    def test_watchers_do_not_hold_up_the_end(self):
        async def scenario():
            broker, _ = house()
            watching = asyncio.create_task(broker.ring.wait(0, Wanted(), 10, 1000.0))
            await asyncio.sleep(0)
            await broker.stop(1.0)
            async with asyncio.timeout(1):
                assert (await watching).events == []

        run(scenario())


def metrics(broker: Broker) -> bytes:
    from prometheus_client import generate_latest

    return generate_latest(broker.metrics.registry)
