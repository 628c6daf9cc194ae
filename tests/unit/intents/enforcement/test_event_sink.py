"""Requests for a layout as events, read by the code that reads everybody's."""

import json
from typing import Any

import httpx
import pytest

from intents.enforcement.event_sink import EventSink
from intents.errors import EnforcementError
from intents.moves import Broken, Move
from runtime.events.catalogue import Type
from runtime.events.envelope import read_http

BROKEN = Broken("smollm", ("eu-only", "home"), "smollm-stage-1: node ärgerlich\nis not one\x00", ("edge-2",))
MOVE = Move(BROKEN, "15@edge-1,15@edge-2", "30@edge-1", "0123456789abcdef")


def sink(
    answer: httpx.Response | Exception, told: list[httpx.Request], url: str = "http://127.0.0.1:8090"
) -> EventSink:
    def respond(request: httpx.Request) -> httpx.Response:
        told.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return EventSink(url, "s3cret", httpx.MockTransport(respond))


def test_it_is_a_valid_event_whatever_the_reason_has_in_it():
    told: list[httpx.Request] = []
    sink(httpx.Response(202), told).publish(MOVE)
    event = read_http(dict(told[0].headers), told[0].content)
    assert (event.type, event.subject) == (Type.RECONFIGURATION_REQUESTED, "smollm")
    assert (event.source, event.id) == ("/midstream/intents/smollm", "eu-only.0123456789abcdef.1")
    assert event.key == MOVE.key
    assert json.loads(told[0].content) == {"pipeline": "smollm", "layers": "30@edge-1", "method": "recompute"}
    assert event.extensions["intent"] == "eu-only,home"
    assert event.extensions["reason"] == "smollm-stage-1: node ?rgerlich is not one "


@pytest.mark.parametrize(("url", "token"), [("http://127.0.0.1:8090", "Bearer s3cret"), ("http://broker:80", None)])
def test_only_a_broker_on_this_machine_gets_the_token(url: str, token: str | None):
    told: list[httpx.Request] = []
    sink(httpx.Response(202), told, url).publish(MOVE)
    assert told[0].headers.get("authorization") == token


def test_who_answers_when_the_change_has_ended_has_the_event_too():
    sink(httpx.ReadTimeout("slow"), []).publish(MOVE)


@pytest.mark.parametrize(
    ("answer", "says"),
    [(httpx.ConnectError("refused"), "refused"), (httpx.Response(503), "HTTP 503"), (httpx.Response(422), "HTTP 422")],
)
def test_an_event_that_is_not_taken_is_an_error(answer: Any, says: str):
    with pytest.raises(EnforcementError, match=says):
        sink(answer, []).publish(MOVE)


@pytest.mark.parametrize("url", ["127.0.0.1:8090", "http://user:s3cret@broker", "http://127.0.0.1:x", "ftp://broker"])
def test_what_is_no_address_is_refused_without_showing_a_password(url: str):
    with pytest.raises(EnforcementError, match="address") as error:
        EventSink(url)
    assert "s3cret" not in str(error.value)
