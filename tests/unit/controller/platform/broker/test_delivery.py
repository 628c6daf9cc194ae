"""Delivery to one subscriber: order, retries, dead letters and replies, in fake time."""

import asyncio
import base64
import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.platform.broker.broker import PublishError
from controller.platform.broker.delivery import HOPS, REPLY_DESTINATION
from controller.platform.broker.filters import Matching
from controller.platform.broker.ring import Wanted
from controller.platform.broker.sending import Answer
from controller.platform.broker.trigger import Delivery
from controller.platform.broker.wire import Event
from tests.unit.controller.platform.broker.house import GOOD, Gate, count, event, house, settled, trigger, until
from tests.unit.runtime.head.fake_time import run

BUSY = Answer(503)
WANTED = Wanted()


def of_type(kind: str) -> Matching:
    return Matching((("type", kind),))


class TestOrder:
    def test_an_event_waits_for_those_before_it_of_its_subject_and_no_other(self):
        async def scenario():
            broker, subscribers = house(trigger())
            gate = Gate()
            subscribers.behaviour["http://a"] = gate
            for one in (event("1"), event("2"), event("3", "other"), event("4", None), event("5", None)):
                broker.publish(one)
            assert {await gate.entered.get() for _ in range(3)} == {"1", "3", "4"}
            assert gate.entered.empty()
            gate.open()
            await settled(broker)
            assert sorted(subscribers.ids("a")) == ["1", "2", "3", "4", "5"]

        run(scenario())

    def test_a_failing_event_holds_back_only_its_own_subject(self):
        async def scenario():
            broker, subscribers = house(trigger(delivery=Delivery(retries=2, backoff_s=10.0)))
            subscribers.answers("a", BUSY, GOOD)
            broker.publish(event("1"))
            broker.publish(event("2", "other"))
            broker.publish(event("3"))
            await settled(broker)
            assert subscribers.ids("a") == ["1", "2", "1", "3"]
            assert subscribers.times("a") == [0.0, 0.0, 10.0, 10.0]

        run(scenario())

    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(st.tuples(st.sampled_from(["x", "y", "z", None]), st.integers(0, 3)), max_size=25),
        st.integers(1, 4),
    )
    def test_each_subject_is_in_order_whatever_fails_and_however_many_run_at_once(self, wanted, requests: int):
        async def scenario():
            broker, subscribers = house(trigger(delivery=Delivery(retries=2, backoff_s=1.0)), requests=requests)
            failures = {str(number): times for number, (_, times) in enumerate(wanted)}

            async def behave(told: Event) -> Answer:
                await asyncio.sleep(0.1)
                name = told.attributes["id"]
                failures[name] -= 1
                return GOOD if failures[name] < 0 else BUSY

            subscribers.behaviour["http://a"] = behave
            for number, (subject, _) in enumerate(wanted):
                broker.publish(event(str(number), subject))
            await settled(broker)
            assert subscribers.most_under_way <= requests
            for subject in {subject for subject, _ in wanted}:
                came = [
                    int(told.attributes["id"]) for _, told in subscribers.got["http://a"] if told.subject == subject
                ]
                expected = [
                    number
                    for number, (of, times) in enumerate(wanted)
                    if of == subject
                    for _ in range(min(times, 2) + 1)
                ]
                assert came == expected

        run(scenario())

    def test_a_slow_subscriber_does_not_hold_up_another(self):
        async def scenario():
            broker, subscribers = house(trigger("slow"), trigger("quick"))
            gate = Gate()
            subscribers.behaviour["http://slow"] = gate
            broker.publish(event("1"))
            broker.publish(event("2"))
            assert await gate.entered.get() == "1"
            await until(lambda: subscribers.ids("quick") == ["1", "2"])
            gate.open()
            await settled(broker)
            assert subscribers.ids("slow") == ["1", "2"]

        run(scenario())

    def test_who_waits_to_try_again_takes_no_place_from_others(self):
        async def scenario():
            broker, subscribers = house(trigger(delivery=Delivery(retries=1, backoff_s=100.0)), requests=1)
            subscribers.answers("a", BUSY, GOOD)
            broker.publish(event("1"))
            broker.publish(event("2", "other"))
            await settled(broker)
            assert list(zip(subscribers.ids("a"), subscribers.times("a"), strict=True)) == [
                ("1", 0.0),
                ("2", 0.0),
                ("1", 100.0),
            ]

        run(scenario())


class TestRetries:
    @pytest.mark.parametrize("status", [404, 408, 409, 429, 500, 502, 503, 599])
    def test_what_may_pass_is_tried_again(self, status: int):
        async def scenario():
            broker, subscribers = house(trigger(delivery=Delivery(retries=3, backoff_s=1.0)))
            subscribers.answers("a", Answer(status), GOOD)
            broker.publish(event())
            await settled(broker)
            assert subscribers.times("a") == [0.0, 1.0]
            assert count(broker, "events_delivered_total", trigger="a") == 1
            assert count(broker, "deliveries_retried_total", trigger="a") == 1

        run(scenario())

    @pytest.mark.parametrize("status", [300, 307, 400, 401, 403, 405, 410, 413, 415, 422])
    def test_what_cannot_pass_is_given_up_at_once(self, status: int):
        async def scenario():
            broker, subscribers = house(trigger())
            subscribers.answers("a", Answer(status))
            broker.publish(event())
            await settled(broker)
            assert subscribers.times("a") == [0.0]
            assert count(broker, "events_dead_total", trigger="a") == 1

        run(scenario())

    @pytest.mark.parametrize(
        ("linear", "times"), [(False, [0.0, 2.0, 6.0, 14.0, 30.0]), (True, [0.0, 0.0, 2.0, 6.0, 12.0])]
    )
    def test_the_schedule_is_knatives(self, linear: bool, times: list[float]):
        async def scenario():
            broker, subscribers = house(trigger(delivery=Delivery(retries=4, linear=linear, backoff_s=2.0)))
            subscribers.answers("a", BUSY)
            broker.publish(event())
            await settled(broker)
            assert subscribers.times("a") == times

        run(scenario())

    def test_a_subscriber_that_asks_for_more_time_gets_it(self):
        async def scenario():
            broker, subscribers = house(trigger(delivery=Delivery(retries=2, backoff_s=1.0, most_retry_after_s=30.0)))
            subscribers.answers("a", Answer(429, retry_after_s=20.0), Answer(503, retry_after_s=1e9), GOOD)
            broker.publish(event())
            await settled(broker)
            assert subscribers.times("a") == [0.0, 20.0, 50.0]

        run(scenario())

    def test_a_replaced_trigger_is_followed_at_once(self):
        async def scenario():
            broker, subscribers = house(trigger(delivery=Delivery(retries=2, backoff_s=3000.0)))
            subscribers.answers("a", BUSY)
            broker.publish(event())
            await until(lambda: subscribers.ids("a") != [])
            assert broker.put_trigger(dataclasses.replace(trigger(), subscriber="http://moved")) is False
            await settled(broker, within_s=1)
            assert subscribers.ids("moved") == ["1"]

        run(scenario())


class TestDeadLetters:
    def letters(self, *answers: Answer, retries: int = 1) -> tuple[list[Event], float]:
        result = []

        async def scenario():
            delivery = Delivery(retries=retries, backoff_s=1.0, dead_letter_sink="http://sink")
            broker, subscribers = house(trigger(delivery=delivery))
            subscribers.answers("a", *answers)
            broker.publish(event())
            await settled(broker)
            assert [how["prefer_reply"] for how in subscribers.asked if how["url"] == "http://sink"] == [False]
            result.append(([told for _, told in subscribers.got["http://sink"]], count(broker, "events_lost_total")))

        run(scenario())
        return result[0]

    def test_a_letter_says_where_it_failed_and_how(self):
        (letter,), lost = self.letters(Answer(422, b"no such layer"))
        assert letter.attributes["knativeerrordest"] == "http://a"
        assert letter.attributes["knativeerrorcode"] == "422"
        assert base64.b64decode(letter.attributes["knativeerrordata"]) == b"no such layer"
        assert letter.attributes["id"] == "1"
        assert lost == 0

    def test_it_comes_after_the_last_retry(self):
        (letter,), _ = self.letters(BUSY, Answer(500, b"dispatch error: gone"))
        assert base64.b64decode(letter.attributes["knativeerrordata"]) == b"dispatch error: gone"

    def test_what_was_said_is_cut_as_knative_cuts_it(self):
        (letter,), _ = self.letters(Answer(400, b"x" * 10_000))
        assert len(letter.attributes["knativeerrordata"]) == 1024

    def test_without_words_there_is_no_data(self):
        (letter,), _ = self.letters(Answer(400))
        assert "knativeerrordata" not in letter.attributes

    def test_a_sink_is_tried_again_too_and_then_the_event_is_lost(self, caplog: pytest.LogCaptureFixture):
        async def scenario():
            delivery = Delivery(retries=2, backoff_s=1.0, dead_letter_sink="http://sink")
            broker, subscribers = house(trigger(delivery=delivery))
            subscribers.answers("a", Answer(400))
            subscribers.answers("sink", Answer(500))
            broker.publish(event())
            broker.publish(event("2"))
            await settled(broker)
            assert subscribers.ids("sink") == ["1", "1", "1", "2", "2", "2"]
            assert count(broker, "events_lost_total", trigger="a") == 2

        run(scenario())
        assert "was not taken by its dead letter sink either" in caplog.text

    def test_watchers_see_what_was_given_up_also_without_a_sink(self):
        async def scenario():
            broker, subscribers = house(trigger())
            subscribers.answers("a", Answer(422, b"no such layer"))
            broker.publish(event())
            await settled(broker)
            accepted, given_up = broker.ring.page(0, WANTED, 10).events
            assert accepted.undelivered is None
            lost = given_up.undelivered
            assert (lost.trigger, lost.destination, lost.code, lost.message) == ("a", "http://a", 422, "no such layer")
            assert bytes(given_up.event) == bytes(accepted.event)

        run(scenario())

    def test_letters_to_the_broker_itself_come_to_an_end(self):
        async def scenario():
            delivery = Delivery(retries=0, dead_letter_sink="http://self")
            broker, subscribers = house(trigger(delivery=delivery), hops=5)
            subscribers.answers("a", Answer(400))

            async def publish(letter: Event) -> Answer:
                try:
                    broker.publish(letter)
                except PublishError as error:
                    return Answer(error.status)
                return GOOD

            subscribers.behaviour["http://self"] = publish
            broker.publish(event())
            await settled(broker)
            assert len(subscribers.ids("a")) == 5

        run(scenario())


class TestReplies:
    def test_an_event_in_the_answer_is_published_one_hop_older(self):
        async def scenario():
            asked, answered = trigger("a", filter=of_type("asked")), trigger("b", filter=of_type("answered"))
            broker, subscribers = house(asked, answered)
            subscribers.answers("a", Answer(200, reply=event("2", kind="answered")))
            broker.publish(event(kind="asked"))
            await settled(broker)
            (_, told), *more = subscribers.got["http://b"]
            assert more == []
            assert told.attributes == event("2", kind="answered").attributes
            assert HOPS not in told.attributes
            assert count(broker, "replies_total", trigger="a") == 1
            assert count(broker, "events_accepted_total") == 2

        run(scenario())

    def test_answers_that_go_in_circles_end_as_a_dead_letter(self):
        async def scenario():
            delivery = Delivery(retries=3, dead_letter_sink="http://sink")
            broker, subscribers = house(trigger(delivery=delivery), hops=4)
            subscribers.answers("a", Answer(200, reply=event("again")))
            broker.publish(event())
            await settled(broker)
            assert subscribers.ids("a") == ["1", "again", "again", "again"]
            ((_, letter),) = subscribers.got["http://sink"]
            assert letter.attributes["knativeerrordest"] == REPLY_DESTINATION
            assert letter.attributes["knativeerrorcode"] == "400"
            assert b"too many hops" in base64.b64decode(letter.attributes["knativeerrordata"])

        run(scenario())

    def test_a_reply_for_which_there_is_no_room_is_tried_again_without_asking_the_subscriber_again(self):
        async def scenario():
            asked, answered = trigger("a", filter=of_type("asked")), trigger("b", filter=of_type("answered"))
            broker, subscribers = house(asked, answered, queued_events=1)
            gate = Gate()
            subscribers.behaviour["http://b"] = gate
            broker.publish(event("first", kind="answered"))
            await gate.entered.get()
            subscribers.answers("a", Answer(200, reply=event("2", kind="answered")))
            broker.publish(event(kind="asked"))
            await until(lambda: count(broker, "events_refused_total", reason="full") == 1)
            gate.open()
            await settled(broker)
            assert subscribers.ids("a") == ["1"]
            assert subscribers.ids("b") == ["first", "2"]

        run(scenario())

    def test_an_answer_that_is_no_event_is_ignored_and_said(self, caplog: pytest.LogCaptureFixture):
        async def scenario():
            broker, subscribers = house(trigger())
            subscribers.answers("a", Answer(200, b"thank you"))
            broker.publish(event())
            await settled(broker)
            assert count(broker, "replies_ignored_total", trigger="a") == 1
            assert count(broker, "events_delivered_total", trigger="a") == 1

        run(scenario())
        assert "on a cluster that is a failure" in caplog.text

    def test_a_broken_event_in_the_answer_is_a_failure(self):
        async def scenario():
            delivery = Delivery(retries=1, dead_letter_sink="http://sink")
            broker, subscribers = house(trigger(delivery=delivery))
            subscribers.answers("a", Answer(502, b"the answer is no valid event", malformed=True))
            broker.publish(event())
            await settled(broker)
            ((_, letter),) = subscribers.got["http://sink"]
            assert letter.attributes["knativeerrorcode"] == "502"
            assert count(broker, "replies_malformed_total", trigger="a") == 2

        run(scenario())
