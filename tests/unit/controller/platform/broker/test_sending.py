"""One attempt over HTTP, and what answers mean."""

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from controller.platform.broker.sending import Answer, HttpSender, retry_after_s
from controller.platform.broker.wire import STRUCTURED
from tests.unit.controller.platform.broker.house import event
from tests.unit.runtime.head.fake_time import now, run

EVENT = {"ce-specversion": "1.0", "ce-id": "9", "ce-source": "/s", "ce-type": "answer"}


def attempt(handler: Any, *, structured: bool = False, prefer_reply: bool = True, timeout_s: float = 30.0) -> Answer:
    result = []

    async def scenario():
        async with httpx.AsyncClient(transport=httpx.MockTransport(handler), timeout=5.0) as http:
            send = HttpSender(http, 1000)
            result.append(
                await send("http://a", event(), structured=structured, timeout_s=timeout_s, prefer_reply=prefer_reply)
            )

    run(scenario())
    return result[0]


def canned(*arguments: Any, **named: Any) -> Answer:
    return attempt(lambda _: httpx.Response(*arguments, **named))


def test_an_event_goes_out_in_the_binary_mode_and_asks_for_a_reply():
    asked = []
    attempt(lambda request: asked.append(request) or httpx.Response(202))
    assert (asked[0].headers["ce-id"], asked[0].headers["prefer"]) == ("1", "reply")


def test_or_in_the_structured_mode_and_without():
    asked = []
    attempt(lambda request: asked.append(request) or httpx.Response(202), structured=True, prefer_reply=False)
    assert "prefer" not in asked[0].headers
    assert asked[0].headers["content-type"].startswith(STRUCTURED)
    assert json.loads(asked[0].content)["id"] == "1"


@pytest.mark.parametrize("status", [200, 201, 204])
def test_an_event_in_the_answer_is_a_reply(status: int):
    answer = canned(status, headers=EVENT, content=b"x")
    assert (answer.good, answer.reply.attributes["id"], answer.reply.data) == (True, "9", b"x")


def test_a_structured_reply_is_read_too():
    document = {"specversion": "1.0", "id": "9", "source": "/s", "type": "answer", "data": {"a": 1}}
    answer = canned(200, headers={"content-type": STRUCTURED}, content=json.dumps(document).encode())
    assert json.loads(answer.reply.data) == {"a": 1}


def test_202_is_never_a_reply():
    answer = canned(202, headers=EVENT, content=b"x")
    assert (answer.good, answer.reply, answer.ignored) == (True, None, False)


def test_a_sink_replies_nothing():
    answer = attempt(lambda _: httpx.Response(200, headers={**EVENT, "ce-id": ""}), prefer_reply=False)
    assert (answer.good, answer.reply) == (True, None)


@pytest.mark.parametrize(("body", "ignored"), [(b"", False), (b"OK", True)])
def test_something_else_than_an_event_is_ignored(body: bytes, ignored: bool):
    answer = canned(200, content=body)
    assert (answer.good, answer.reply, answer.ignored) == (True, None, ignored)


@pytest.mark.parametrize(
    "response",
    [
        {"headers": {**EVENT, "ce-id": ""}},
        {"headers": {"content-type": STRUCTURED}, "content": b"{"},
        {"headers": {"content-type": "application/cloudevents-batch+json"}, "content": b"[]"},
    ],
)
def test_a_broken_event_is_a_bad_gateway(response: dict[str, Any]):
    answer = canned(200, **response)
    assert (answer.status, answer.retried, answer.malformed) == (502, True, True)
    assert answer.body.startswith(b"the answer is no valid event: ")


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("refused"), httpx.ReadError(""), httpx.RemoteProtocolError("not HTTP")]
)
def test_who_cannot_be_reached_is_a_500_as_knative_has_it(error: Exception):
    def fail(_: httpx.Request) -> httpx.Response:
        raise error

    answer = attempt(fail)
    assert (answer.status, answer.retried, answer.body.startswith(b"dispatch error: http://a: ")) == (500, True, True)


def test_who_does_not_answer_in_time_is_one_too():
    async def never(_: httpx.Request) -> httpx.Response:
        await asyncio.sleep(1000)
        raise AssertionError

    async def timed(request: httpx.Request) -> httpx.Response:
        began = now()
        try:
            return await never(request)
        finally:
            took.append(now() - began)

    took: list[float] = []
    answer = attempt(timed, timeout_s=7.0)
    assert (answer.status, answer.body) == (500, b"dispatch error: no answer from http://a within 7 s")
    assert took == [7.0]


def test_an_answer_without_end_is_not_read_to_the_end():
    answer = canned(200, content=b"x" * 5000)
    assert (answer.status, answer.body) == (500, b"dispatch error: http://a: the answer has more than 1000 bytes")


def test_a_redirect_is_not_followed():
    answer = canned(307, headers={"location": "http://elsewhere"})
    assert (answer.status, answer.good, answer.retried) == (307, False, False)


@pytest.mark.parametrize(("status", "seconds"), [(429, 12.0), (503, 12.0), (500, 0.0), (200, 0.0)])
def test_more_time_can_be_asked_for(status: int, seconds: float):
    assert canned(status, headers={"retry-after": "12"}).retry_after_s == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        ("Sat, 31 Jan 2026 12:01:00 GMT", 60.0),
        ("Sat, 31 Jan 2026 11:00:00 GMT", 0.0),
        ("9" * 50, 0.0),
        ("-5", 0.0),
        ("soon", 0.0),
        ("", 0.0),
        ("Sat, 31 Jan 2026 12:01:00 -0000", 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float):
    assert retry_after_s(text, datetime(2026, 1, 31, 12, tzinfo=UTC)) == seconds
