import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from runtime.head.control_client import ControlClient, ControlError

Handler = Callable[[httpx.Request], httpx.Response]


def client(handler: Handler, endpoint: str = "http://127.0.0.1:8000") -> ControlClient:
    return ControlClient(endpoint, transport=httpx.MockTransport(handler))


def canned(response: httpx.Response) -> ControlClient:
    return client(lambda _: response)


@pytest.mark.parametrize("endpoint", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_the_control_api_is_found_beside_the_openai_api(endpoint: str):
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url}")
        return httpx.Response(200, json={"layers": "15,15"})

    with client(answer, endpoint) as control:
        assert control.status() == {"layers": "15,15"}
    assert asked == ["GET http://h:1/midstream/v1/status"]


def test_a_change_is_asked_for_with_what_shall_be_other():
    def answer(request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.path) == ("POST", "/midstream/v1/reconfigurations")
        return httpx.Response(202, json={"id": "change-1", "asked": json.loads(request.content)})

    how = {"method": "pre_copy", "fallback": "abort"}
    with client(answer) as control:
        assert control.reconfigure("8,12,10")["asked"] == {"layers": "8,12,10", **how}
        assert control.reconfigure(precision="bfloat16")["asked"] == {"precision": "bfloat16", **how}


def test_waiting_asks_again_until_the_change_has_ended():
    reports = iter([{"ended_at": None}, {"ended_at": None}, {"ended_at": 1.5, "state": "committed"}])
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(200, json=next(reports))

    with client(answer) as control:
        assert control.wait("change-1")["state"] == "committed"
    assert asked == ["http://127.0.0.1:8000/midstream/v1/reconfigurations/change-1?wait=30.0"] * 3


@pytest.mark.parametrize(("subject", "path"), [("change-1", "/story/change-1"), (None, "/story")])
def test_a_story_is_that_of_a_subject_or_of_everything(subject: str | None, path: str):
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path == f"/midstream/v1{path}"
        return httpx.Response(200, json={"events": [{"event": "planned"}]})

    with client(answer) as control:
        assert control.story(subject) == [{"event": "planned"}]


def test_a_trace_comes_as_it_is():
    with canned(httpx.Response(200, json={"traceEvents": []})) as control:
        assert control.trace() == {"traceEvents": []}


@pytest.mark.parametrize("status", [401, 403, 404, 409, 422])
def test_a_refusal_is_told_in_the_servers_words(status: int):
    error = {"error": {"message": "layers add up to 29", "type": "invalid", "param": None, "code": status}}
    with canned(httpx.Response(status, json=error)) as control, pytest.raises(ControlError) as told:
        control.reconfigure("14,15")
    assert (str(told.value), told.value.refused) == ("layers add up to 29", True)


def test_a_refusal_of_the_web_framework_is_told_too():
    detail = httpx.Response(422, json={"detail": [{"loc": ["body", "layers"], "msg": "Field required"}]})
    with canned(detail) as control, pytest.raises(ControlError, match="Field required") as told:
        control.reconfigure("")
    assert told.value.refused


def test_a_server_without_a_control_api_is_told_apart():
    with canned(httpx.Response(404, json={"detail": "Not Found"})) as control, pytest.raises(ControlError) as told:
        control.status()
    assert str(told.value) == (
        "http://127.0.0.1:8000 answers, but has no control API: it was not started by `midstream serve`"
    )


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_failure_of_the_server_is_no_refusal(status: int):
    with canned(httpx.Response(status, text="Internal Server Error")) as control, pytest.raises(ControlError) as told:
        control.status()
    assert (str(told.value), told.value.refused) == (f"HTTP {status}", False)


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"[1]", b'"text"', b"null", b"{}", b"\xff\xfe"])
def test_an_answer_outside_the_contract_is_a_control_error_and_nothing_else(status: int, body: bytes):
    with canned(httpx.Response(status, content=body)) as control, pytest.raises(ControlError) as told:
        control.status()
    assert told.value.refused == (status == 400)


@pytest.mark.parametrize("body", [{"error": "no such model"}, {"error": {"message": "no such model"}}])
def test_an_error_of_another_kind_of_server_is_told_in_its_words(body: dict[str, object]):
    with canned(httpx.Response(400, json=body)) as control, pytest.raises(ControlError, match=r"^no such model$"):
        control.status()


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("refused"), httpx.ReadTimeout(""), httpx.RemoteProtocolError("cut")]
)
def test_a_server_that_cannot_be_reached_is_named_with_what_to_do(error: Exception):
    def fail(_: httpx.Request) -> httpx.Response:
        raise error

    with client(fail) as control, pytest.raises(ControlError) as told:
        control.status()
    assert str(told.value).startswith(f"cannot reach http://127.0.0.1:8000 ({error or type(error).__name__})")
    assert "Name another server with --endpoint" in str(told.value)
    assert not told.value.refused
    assert told.value.__cause__ is error


@pytest.mark.parametrize("endpoint", ["localhost:8000", "127.0.0.1:8000", "http://[::1", "http://h:port", "ftp://h"])
def test_an_endpoint_that_is_no_address_is_a_control_error(endpoint: str):
    with pytest.raises(ControlError), ControlClient(endpoint) as control:
        control.status()


def test_the_token_of_the_environment_is_sent_when_there_is_one(monkeypatch: pytest.MonkeyPatch):
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("Authorization"))
        return httpx.Response(200, json={"layers": "15,15"})

    for token in ("", "s3cret"):
        monkeypatch.setenv("MIDSTREAM_CONTROL_TOKEN", token)
        with client(answer) as control:
            control.status()
    assert seen == [None, "Bearer s3cret"]


def test_no_proxy_is_asked_for_the_way_to_this_machine(monkeypatch: pytest.MonkeyPatch):
    """It would be told the token, and cannot reach a server here."""

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"epoch": 7}')

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        with ControlClient(f"http://127.0.0.1:{server.server_port}") as client:
            assert client.status() == {"epoch": 7}
