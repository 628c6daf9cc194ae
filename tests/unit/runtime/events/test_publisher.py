"""A publisher and a real sink that refuses, is slow, is gone and comes back."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from runtime.events.catalogue import Type
from runtime.events.envelope import Event, make, read_http
from runtime.events.publisher import Limits, Publisher, PublisherError
from runtime.migration.journal import Journal
from tests.unit.runtime.engine.waiting import DEADLINE_S, eventually
from tests.unit.runtime.events.sink import Sink

QUICK = Limits(first_pause_s=0.005, longest_pause_s=0.02, timeout_s=DEADLINE_S)

Start = Callable[..., Publisher]


def event(identity: object) -> Event:
    data = {"pipeline": "smollm", "stage": 0}
    return make(Type.STAGE_RELEASE, "/midstream/pipelines/smollm", "smollm", data, id=str(identity))


def fates(publisher: Publisher) -> dict[str, int]:
    return {str(fate): count for fate, count in publisher.fates.items() if count}


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink() as sink:
        yield sink


@pytest.fixture
def start(sink: Sink) -> Iterator[Start]:
    """Starts publishers to the sink, and ends them."""
    started: list[Publisher] = []

    def start(limits: Limits = QUICK, **options: Any) -> Publisher:
        started.append(Publisher(sink.url, "smollm", "b007", limits=limits, **options))
        return started[-1]

    yield start
    sink.free.set()
    for publisher in started:
        publisher.close(0.0)


class TestDelivery:
    def test_events_come_as_they_were_published_in_the_binary_mode(self, sink: Sink, start: Start):
        publisher = start()
        events = [event(number) for number in range(50)]
        for one in events:
            publisher.publish(one)
        sink.wait_for(50)
        assert sink.taken == events
        assert eventually(lambda: fates(publisher) == {"delivered": 50})

    @pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
    def test_what_the_sink_cannot_take_now_comes_again_and_nothing_overtakes_it(
        self, sink: Sink, start: Start, status: int
    ):
        sink.answers.extend([202, status, status, status])
        publisher = start()
        for number in range(4):
            publisher.publish(event(number))
        assert sink.wait_for(4) == ["0", "1", "2", "3"]
        assert [one.id for one in sink.tries] == ["0", "1", "1", "1", "1", "2", "3"]
        assert eventually(lambda: fates(publisher) == {"delivered": 4})

    @pytest.mark.parametrize("status", [301, 400, 401, 404, 409, 422])
    def test_what_the_sink_refuses_is_dropped_and_told(
        self, sink: Sink, start: Start, status: int, caplog: pytest.LogCaptureFixture
    ):
        sink.answers.append(status)
        publisher = start()
        publisher.publish(event("bad"))
        publisher.publish(event("good"))
        assert sink.wait_for(1) == ["good"]
        assert eventually(lambda: fates(publisher) == {"refused": 1, "delivered": 1})
        assert f"smollm#bad (dev.midstream.stage.release) is not published: refused HTTP {status}" in caplog.text

    def test_the_sink_may_say_when_to_come_again(self, sink: Sink, start: Start):
        sink.answers.append((503, {"retry-after": "1"}))
        publisher = start()
        begun_at = time.monotonic()
        publisher.publish(event(1))
        sink.wait_for(1)
        assert time.monotonic() - begun_at >= 0.95

    @pytest.mark.parametrize("nonsense", ["soon", "-1", "1e9", "Sat, 31 Jan 2026 12:00:00 GMT"])
    def test_other_words_for_when_are_not_heard(self, sink: Sink, start: Start, nonsense: str):
        sink.answers.append((503, {"retry-after": nonsense}))
        start().publish(event(1))
        assert sink.wait_for(1) == ["1"]

    def test_a_sink_that_is_gone_gets_everything_when_it_is_back(
        self, sink: Sink, start: Start, caplog: pytest.LogCaptureFixture
    ):
        caplog.set_level(logging.INFO)
        publisher = start()
        publisher.publish(event(0))
        sink.wait_for(1)
        sink.close()
        for number in range(1, 4):
            publisher.publish(event(number))
        assert eventually(lambda: "does not take events for now" in caplog.text)
        sink.open()
        assert sink.wait_for(4) == ["0", "1", "2", "3"]
        assert eventually(lambda: "takes events again" in caplog.text)
        assert caplog.text.count("does not take events for now") == 1

    def test_a_sink_too_slow_to_answer_gets_an_event_twice_with_one_id(self, sink: Sink, start: Start):
        sink.free.clear()
        publisher = start(Limits(first_pause_s=0.005, timeout_s=0.1))
        publisher.publish(event(1))
        assert eventually(lambda: len(sink.tries) >= 2)
        sink.free.set()
        assert set(sink.wait_for(2)) == {"1"}
        assert eventually(lambda: fates(publisher) == {"delivered": 1})

    def test_what_is_too_old_is_given_up(self, sink: Sink, start: Start):
        now = [0.0]
        publisher = start(clock=lambda: now[0])
        sink.close()
        publisher.publish(event("old"))
        now[0] = QUICK.give_up_s + 1
        assert eventually(lambda: fates(publisher) == {"given_up": 1})
        sink.open()
        publisher.publish(event("new"))
        assert sink.wait_for(1) == ["new"]


class TestBounds:
    def test_publishing_never_waits_for_the_sink(self, sink: Sink, start: Start):
        sink.free.clear()
        publisher = start()
        begun_at = time.monotonic()
        for number in range(500):
            publisher.publish(event(number))
        assert time.monotonic() - begun_at < DEADLINE_S / 4
        assert not sink.taken

    def test_old_events_give_way_to_new_ones_and_are_counted(
        self, sink: Sink, start: Start, caplog: pytest.LogCaptureFixture
    ):
        sink.free.clear()
        publisher = start(Limits(queue=3, timeout_s=DEADLINE_S))
        publisher.publish(event("in flight"))
        assert eventually(lambda: len(sink.tries) == 1)
        for number in range(10):
            publisher.publish(event(number))
        assert fates(publisher) == {"crowded_out": 7}
        sink.free.set()
        assert sink.wait_for(4) == ["in flight", "7", "8", "9"]
        assert caplog.text.count("crowded_out") == 7

    def test_closing_delivers_what_waits(self, sink: Sink, start: Start):
        publisher = start()
        for number in range(20):
            publisher.publish(event(number))
        publisher.close(DEADLINE_S)
        assert [one.id for one in sink.taken] == [str(number) for number in range(20)]
        publisher.publish(event("late"))
        assert fates(publisher) == {"delivered": 20, "closed": 1}

    def test_closing_does_not_wait_for_a_sink_that_is_stuck(self, sink: Sink, start: Start):
        sink.free.clear()
        publisher = start()
        for number in range(3):
            publisher.publish(event(number))
        assert eventually(lambda: len(sink.tries) == 1)
        begun_at = time.monotonic()
        publisher.close(0.1)
        assert time.monotonic() - begun_at < DEADLINE_S / 4
        assert fates(publisher) == {"closed": 2}

    def test_closing_does_not_sit_out_a_pause(self, sink: Sink, start: Start, caplog: pytest.LogCaptureFixture):
        sink.answers.extend([503, 503])
        publisher = start(Limits(first_pause_s=1000.0, longest_pause_s=1000.0))
        publisher.publish(event(1))
        publisher.publish(event(2))
        assert eventually(lambda: "does not take events for now" in caplog.text)
        publisher.close(DEADLINE_S)
        assert [one.id for one in sink.tries] == ["1", "1", "2"]
        assert fates(publisher) == {"closed": 1, "delivered": 1}

    def test_closing_twice_is_fine_and_leaves_no_thread(self, sink: Sink, start: Start):
        publisher = start()
        publisher.close(DEADLINE_S)
        publisher.close(DEADLINE_S)
        assert not publisher._thread.is_alive()

    def test_many_threads_may_publish_at_once_and_each_keeps_its_order(self, sink: Sink, start: Start):
        publisher = start()

        def work(worker: int) -> None:
            for number in range(40):
                publisher.publish(event(f"{worker}-{number}"))

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ids = sink.wait_for(160)
        for worker in range(4):
            assert [one for one in ids if one.startswith(f"{worker}-")] == [f"{worker}-{n}" for n in range(40)]


class TestSettings:
    def test_without_a_sink_there_is_no_publisher(self):
        assert Publisher.from_environment({}, "smollm", "b007") is None
        assert Publisher.from_environment({"K_SINK": ""}, "smollm", "b007") is None

    def test_extensions_of_the_environment_are_added_and_replace_an_events_own(self, sink: Sink):
        environment = {"K_SINK": sink.url, "K_CE_OVERRIDES": '{"extensions": {"team": "blue", "count": 3}}'}
        publisher = Publisher.from_environment(environment, "smollm", "b007")
        assert publisher is not None
        headers, body = event(1).to_http_binary()
        publisher.publish(read_http({**headers, "ce-team": "red", "ce-other": "kept"}, body))
        sink.wait_for(1)
        publisher.close(DEADLINE_S)
        assert sink.taken[0].extensions == {"team": "blue", "count": "3", "other": "kept"}

    @pytest.mark.parametrize("overrides", ["", "{}", '{"extensions": null}', '{"extensions": {}}'])
    def test_overrides_may_be_empty(self, sink: Sink, overrides: str):
        publisher = Publisher.from_environment({"K_SINK": sink.url, "K_CE_OVERRIDES": overrides}, "smollm", "b007")
        assert publisher is not None
        publisher.close(DEADLINE_S)

    @pytest.mark.parametrize(
        ("environment", "says"),
        [
            ({"K_SINK": "broker"}, "'broker' is no address such as http://"),
            ({"K_SINK": "http://"}, "is no address such as"),
            ({"K_SINK": "ftp://broker"}, "is no address such as"),
            ({"K_SINK": "http://broker:99999999"}, "is no address such as"),
            ({"K_SINK": "http://me:secret@broker"}, "a password in it"),
            ({"K_SINK": "http://me:secret@broker:port"}, "the sink is no address such as"),
            ({"K_CE_OVERRIDES": "{"}, "K_CE_OVERRIDES is no JSON"),
            ({"K_CE_OVERRIDES": "[]"}, "K_CE_OVERRIDES must be such as"),
            ({"K_CE_OVERRIDES": '{"extensions": ["a"]}'}, "K_CE_OVERRIDES must be such as"),
            ({"K_CE_OVERRIDES": '{"extensions": {"a-b": "c"}}'}, "lower-case letters"),
            ({"K_CE_OVERRIDES": '{"extensions": {"type": "x"}}'}, "type cannot be overridden"),
        ],
    )
    def test_settings_that_cannot_be_used(self, environment: dict[str, str], says: str):
        with pytest.raises(PublisherError, match=says) as caught:
            Publisher.from_environment({"K_SINK": "http://127.0.0.1:1", **environment}, "smollm", "b007")
        assert "secret" not in str(caught.value)

    def test_a_pipeline_whose_name_no_event_can_have(self):
        with pytest.raises(PublisherError, match="lower-case letters"):
            Publisher("http://127.0.0.1:1", "My Pipeline", "b007")


def test_what_the_journal_tells_is_published(sink: Sink, start: Start):
    journal, publisher = Journal(), start()
    journal.listen(publisher.told)
    journal.tell("chatcmpl-1", "started", epoch=1, prompt_tokens=5)
    journal.tell("pipeline", "node lost", node="edge-1", reason="no heartbeat")
    sink.wait_for(1)
    (told,) = sink.taken
    assert (told.type, told.subject, told.source) == (Type.NODE_LOST, "edge-1", "/midstream/pipelines/smollm")
    assert told.id.startswith("b007.edge-1.")
