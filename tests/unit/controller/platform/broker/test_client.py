"""The client, against canned answers."""

import json
from collections.abc import Callable

import httpx
import pytest

from controller.platform.broker.client import BrokerClient, BrokerError


def client(handler: Callable[[httpx.Request], httpx.Response], address: str = "http://127.0.0.1:8090/") -> BrokerClient:
    return BrokerClient(address, httpx.MockTransport(handler))


def page(*numbers: int, up_to: int) -> dict[str, object]:
    events = [{"sequence": number, "at": 1.0, "event": {"id": str(number)}, "undelivered": None} for number in numbers]
    return {"events": events, "next": up_to, "missed": False}


def test_an_event_is_sent_and_its_number_given():
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(202, headers={"midstream-sequence": "7"})

    with client(answer) as broker:
        assert broker.send({"ce-id": "1"}, b"{}") == 7
    assert (str(asked[0].url), asked[0].headers["ce-id"], asked[0].content) == ("http://127.0.0.1:8090/", "1", b"{}")
    assert "authorization" not in asked[0].headers


def test_the_token_is_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MIDSTREAM_CONTROL_TOKEN", "t0ken")
    asked = []
    with client(lambda request: asked.append(request) or httpx.Response(202)) as broker:
        broker.send({}, b"")
    assert asked[0].headers["authorization"] == "Bearer t0ken"


def test_a_watcher_goes_on_where_it_was_until_its_time_is_over():
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(dict(request.url.params))
        return httpx.Response(200, json=page(3, 5, up_to=6) if len(asked) == 1 else page(9, up_to=9))

    with client(answer) as broker:
        watching = broker.watch(2, subject="smollm")
        assert [next(watching).sequence for _ in range(3)] == [3, 5, 9]
        assert [seen.sequence for seen in broker.watch(2, within_s=0.0)] == [9]
    assert [(query["after"], query.get("subject")) for query in asked] == [
        ("2", "smollm"),
        ("6", "smollm"),
        ("2", None),
    ]
    assert asked[0]["wait"] == "30.0"


def test_triggers_are_put_under_their_name():
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path}")
        return httpx.Response(200, json={"undelivered": 2, "triggers": []})

    with client(answer) as broker:
        broker.put_trigger({"metadata": {"name": "a"}})
        assert broker.delete_trigger("a") == 2
        assert broker.triggers() == []
    assert asked == ["PUT /triggers/a", "DELETE /triggers/a", "GET /triggers"]


@pytest.mark.parametrize("manifest", [{}, {"metadata": None}, {"metadata": {"name": ""}}])
def test_a_trigger_without_a_name_is_refused(manifest):
    with client(lambda _: httpx.Response(200)) as broker, pytest.raises(BrokerError, match="needs a name"):
        broker.put_trigger(manifest)


@pytest.mark.parametrize(("status", "refused"), [(400, True), (429, True), (503, False)])
def test_a_refusal_is_told_in_the_brokers_words(status: int, refused: bool):
    content = json.dumps({"error": {"message": "no room"}}).encode()
    with client(lambda _: httpx.Response(status, content=content)) as broker, pytest.raises(BrokerError) as error:
        broker.send({}, b"")
    assert (str(error.value), error.value.refused, error.value.status) == ("no room", refused, status)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"error": 5}', b'{"error": {}}'])
def test_another_server_is_recognised(content: bytes):
    with (
        client(lambda _: httpx.Response(404, content=content)) as broker,
        pytest.raises(BrokerError, match="not as a broker"),
    ):
        broker.send({}, b"")


def test_a_broker_that_is_not_there_is_named():
    def fail(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with (
        client(fail) as broker,
        pytest.raises(BrokerError, match=r"127.0.0.1:8090 \(refused\); is `midstream up`") as error,
    ):
        broker.send({}, b"")
    assert error.value.refused is False


def test_an_address_that_is_none_is_refused():
    with pytest.raises(BrokerError, match="is no address such as"):
        BrokerClient("http://127.0.0.1:port")
