"""A guard over HTTP: what it is told, and that every answer but a clear one allows nothing."""

import json
from typing import Any

import httpx
import pytest

from runtime.migration.guard import Ruling
from runtime.migration.http_guard import GuardAddressError, HttpGuard

ASKED = ("smollm", ("a", "b"), ("a", "c"), (("b", "c"),), "kv")
URL = "http://127.0.0.1:7180"


def guard(answer: Any, token: str | None = None, told: list[httpx.Request] | None = None) -> HttpGuard:
    def respond(request: httpx.Request) -> httpx.Response:
        if told is not None:
            told.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)

    return HttpGuard(URL, token, httpx.MockTransport(respond))


def test_the_question_says_where_from_where_to_and_what():
    told: list[httpx.Request] = []
    assert guard({"holds": True}, "s3cret", told).judge(*ASKED) == Ruling(allowed=True)
    (request,) = told
    assert (request.method, str(request.url)) == ("POST", f"{URL}/check")
    assert request.headers["authorization"] == "Bearer s3cret"
    assert json.loads(request.content) == {
        "workload": "smollm",
        "old_nodes": ["a", "b"],
        "new_nodes": ["a", "c"],
        "transfers": [{"source": "b", "target": "c"}],
        "state": ["kv"],
    }


def test_without_a_token_none_is_shown():
    told: list[httpx.Request] = []
    guard({"holds": True}, None, told).judge(*ASKED)
    assert "authorization" not in told[0].headers


def test_a_refusal_comes_with_its_reason():
    assert guard({"holds": False, "reason": "c is in the US"}).judge(*ASKED) == Ruling(
        allowed=False, reason="c is in the US"
    )
    assert guard({"holds": False}).judge(*ASKED).reason == "no reason was given"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"holds": "true"}, "it did not say"),
        ({"holds": 1}, "it did not say"),
        ({}, "it did not say"),
        ([True], "it did not say"),
        (httpx.Response(200, text="all right"), "Expecting value"),
        (httpx.Response(502, text="bad gateway"), "HTTP 502"),
        (httpx.Response(401, json={"error": "a bearer token is required"}), "HTTP 401: a bearer token is required"),
        (httpx.Response(500, json={"holds": True}), "HTTP 500"),
        (httpx.Response(307, json={"holds": True}, headers={"location": "http://127.0.0.1:1/check"}), "HTTP 307"),
        (httpx.Response(503, json={"error": "no inventory"}), "HTTP 503: no inventory"),
        (httpx.ConnectError("Connection refused"), "Connection refused"),
        (httpx.ReadTimeout(""), "ReadTimeout"),
    ],
)
def test_any_other_answer_is_none(answer: Any, says: str):
    ruling = guard(answer).judge(*ASKED)
    assert (ruling.allowed, ruling.known) == (False, False)
    assert ruling.reason.startswith(f"{URL}/check: ")
    assert says in ruling.reason


def test_a_guard_that_is_not_there_allows_nothing():
    ruling = HttpGuard("http://127.0.0.1:1").judge(*ASKED)
    assert (ruling.allowed, ruling.known) == (False, False)


@pytest.mark.parametrize("url", ["", "127.0.0.1:7180", "ftp://a", "http://", "http://a:99999", "http://u:p@a"])
def test_an_address_that_is_none_is_refused(url: str):
    with pytest.raises(GuardAddressError) as refused:
        HttpGuard(url)
    assert "u:p" not in str(refused.value)
