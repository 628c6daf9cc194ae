"""The control API over a stand-in for the engine: what its answers become in HTTP, and who is let in."""

import asyncio
from argparse import Namespace
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from runtime.head import control_api
from runtime.head.access import TOKEN_VARIABLE
from runtime.head.control_api import ControlPlugin
from runtime.head.hold import HoldLimits
from runtime.phase import PHASE_VARIABLE, Phase, make_phase_word, open_phase_word

RUNNING = {"id": "change-1", "state": "running", "ended_at": None, "repeated": False}
COMMITTED = {"id": "change-1", "state": "committed", "ended_at": 1.5, "total_ms": 12.5}


class FakeEngine:
    """Answers vLLM's utility calls from a script; the last answer is repeated."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.answers: list[Any] = [{}]
        self.errored = False

    async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[Any]:
        self.calls.append((method, args))
        if self.errored:
            await asyncio.Event().wait()  # as vLLM's client does: nobody fails the future
        return [self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


async def start(engine: FakeEngine, host: str = "127.0.0.1", **headers: str) -> httpx.AsyncClient:
    app, plugin = FastAPI(), ControlPlugin()
    plugin.attach_router(app)
    await plugin.init_state(engine, app.state, Namespace(host=host, uds=None))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost:8000/midstream/v1", headers=headers)


@pytest.fixture
async def http(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    async with await start(engine) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "call"),
    [
        ("GET", "/status", ("midstream.status", ())),
        ("GET", "/reconfigurations/change-1", ("midstream.report", ("change-1",))),
        ("DELETE", "/reconfigurations/change-1", ("midstream.cancel", ("change-1",))),
    ],
)
async def test_a_route_is_a_call_to_the_pipeline(http, engine: FakeEngine, method: str, path: str, call):
    engine.answers = [{"id": "change-1"}]
    response = await http.request(method, path)
    assert (response.status_code, response.json()) == (200, {"id": "change-1"})
    assert engine.calls == [call]


@pytest.mark.parametrize(
    ("path", "call", "key"),
    [
        ("/story", ("midstream.story", (None,)), "events"),
        ("/story/change-1", ("midstream.story", ("change-1",)), "events"),
        ("/trace", ("midstream.trace", ()), "traceEvents"),
    ],
)
async def test_lists_come_wrapped_under_their_name(http, engine: FakeEngine, path: str, call, key: str):
    engine.answers = [[{"event": "planned"}]]
    assert (await http.get(path)).json() == {key: [{"event": "planned"}]}
    assert engine.calls == [call]


async def test_an_accepted_change_is_answered_with_its_first_report(http, engine: FakeEngine):
    engine.answers = [RUNNING]
    response = await http.post("/reconfigurations", json={"layers": "8,12,10"})
    assert (response.status_code, response.json()) == (202, RUNNING)
    order = {"layers": "8,12,10", "precision": None, "method": "pre_copy", "fallback": "abort", "generation": None}
    order |= {"key": None, "traceparent": None}
    assert engine.calls == [("midstream.reconfigure", (order,))]


async def test_a_request_that_was_known_is_answered_with_200(http, engine: FakeEngine):
    engine.answers = [COMMITTED | {"repeated": True}]
    headers = {"Idempotency-Key": "/me#1"}
    response = await http.post("/reconfigurations", json={"layers": "8,12,10", "generation": 3}, headers=headers)
    assert response.status_code == 200
    (order,) = engine.calls[0][1]
    assert (order["key"], order["generation"]) == ("/me#1", 3)


async def test_who_asks_an_engine_that_has_ended_is_told_so(http, engine: FakeEngine, monkeypatch):
    monkeypatch.setattr(control_api, "_LOOK_AGAIN_S", 0.01)
    engine.errored = True
    response = await http.get("/status")
    assert (response.status_code, response.json()["error"]["type"]) == (503, "unavailable")


BUSY = {"refused": "busy", "message": "change-4 is under way", "change": "change-4"}
ASLEEP = {"refused": "asleep", "message": "the pipeline sleeps"}
GUARD_ASKED = {"refused": "guard_asked", "message": "ask again in a moment"}


async def test_a_change_of_a_pipeline_that_sleeps_is_asked_for_until_it_is_awake(http, engine: FakeEngine):
    engine.answers = [ASLEEP, ASLEEP, RUNNING]
    response = await http.post("/reconfigurations", json={"layers": "8,12,10"})
    assert (response.status_code, len(engine.calls)) == (202, 3)


async def test_a_change_is_asked_for_until_the_guard_of_the_intents_has_ruled(http, engine: FakeEngine):
    engine.answers = [GUARD_ASKED, GUARD_ASKED, {"refused": "forbidden", "message": "edge-2 is in the US"}]
    response = await http.post("/reconfigurations", json={"layers": "8,12,10"})
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["message"]) == (422, "forbidden", "edge-2 is in the US")
    engine.answers = [GUARD_ASKED, RUNNING]
    assert (await http.post("/reconfigurations", json={"layers": "8,12,10"})).status_code == 202


async def test_a_stage_is_asked_for_until_the_guard_has_ruled(http, engine: FakeEngine):
    engine.answers = [GUARD_ASKED, {"refused": "forbidden", "message": "edge-2 is in the US"}]
    response = await http.post("/stages/0/attach", json={"node": "edge-2"})
    assert (response.status_code, response.json()["error"]["type"]) == (422, "forbidden")


async def test_a_silent_guard_is_told_at_once(http, engine: FakeEngine):
    engine.answers = [{"refused": "guard_silent", "message": "it is away"}]
    response = await http.post("/reconfigurations", json={"layers": "8,12,10"})
    assert (response.status_code, response.json()["error"]["type"], len(engine.calls)) == (503, "guard_silent", 1)


async def test_a_stage_that_was_sent_away_is_told_so_when_its_function_comes(http, engine: FakeEngine):
    engine.answers = [{"change": None, "node": "local", "away": True}]
    assert (await http.post("/stages/0/attach", json={})).json()["state"] == "released"


async def test_a_stage_that_leaves_waits_for_its_turn_and_answers_when_it_has_left(http, engine: FakeEngine):
    engine.answers = [BUSY, ASLEEP, {"change": RUNNING, "node": "local", "away": True}, RUNNING, COMMITTED]
    body, headers = {"within_s": 20, "holder": "pod-1"}, {"Idempotency-Key": "/me#1"}
    response = await http.post("/stages/1/release", json=body, headers=headers)
    answer = response.json()
    assert (response.status_code, answer["state"], answer["change"], answer["stage"]) == (200, "released", COMMITTED, 1)
    assert [call[0] for call in engine.calls] == ["midstream.release"] * 3 + ["midstream.report"] * 2
    assert engine.calls[0][1] == (1, "pod-1", "/me#1")


async def test_a_stage_that_comes_to_a_node_says_so(http, engine: FakeEngine):
    engine.answers = [{"change": None, "node": "edge-1", "away": False}]
    response = await http.post("/stages/0/attach", json={"node": "edge-1"})
    answer = response.json()
    assert (response.status_code, answer["state"], answer["node"]) == (200, "unchanged", "edge-1")
    assert engine.calls == [("midstream.attach", (0, "edge-1", None, None))]


@pytest.mark.parametrize(
    ("answers", "status", "kind"),
    [
        ([BUSY], 409, "busy"),
        ([ASLEEP], 503, "asleep"),
        ([{"refused": "last_stage", "message": "stage 1 is the last one"}], 409, "last_stage"),
        ([{"change": RUNNING}, RUNNING], 504, "late"),
        ([{"change": RUNNING}, COMMITTED | {"state": "aborted", "reason": "no memory"}], 409, "aborted"),
    ],
)
async def test_a_stage_that_cannot_leave_is_told_why(http, engine: FakeEngine, answers, status: int, kind: str):
    engine.answers = answers
    response = await http.post("/stages/1/release", json={"within_s": 0.01})
    assert (response.status_code, response.json()["error"]["type"]) == (status, kind)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"refused": "busy", "message": "change-4 is under way", "change": "change-4"}, 409),
        ({"refused": "invalid", "message": "layers add up to 29"}, 422),
        ({"refused": "unknown", "message": "no change 'x'"}, 404),
    ],
)
async def test_a_refusal_is_an_error_like_openais(http, engine: FakeEngine, answer: dict[str, str], status: int):
    engine.answers = [answer]
    response = await http.post("/reconfigurations", json={"layers": "14,15"})
    error = {"message": answer["message"], "type": answer["refused"], "param": None, "code": status}
    expected = {"error": error} | ({"change": "change-4"} if status == 409 else {})
    assert (response.status_code, response.json()) == (status, expected)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"layers": ""},
        {"layers": 3},
        {"layers": "1" * 10_001},
        {"layers": "1", "x": 1},
        {"layers": None, "precision": None},
        {"precision": ""},
        {"precision": "b" * 33},
    ],
)
async def test_a_body_that_is_no_request_never_reaches_the_engine(http, engine: FakeEngine, body: dict[str, object]):
    response = await http.post("/reconfigurations", json=body)
    assert response.status_code == 422
    assert engine.calls == []


@pytest.mark.parametrize(
    ("body", "layers", "precision"),
    [
        ({"layers": "1,2"}, "1,2", None),
        ({"precision": "bfloat16"}, "", "bfloat16"),
        ({"layers": "1,2", "precision": "bfloat16"}, "1,2", "bfloat16"),
    ],
)
async def test_what_a_change_does_not_name_stays(http, engine: FakeEngine, body, layers: str, precision: str | None):
    engine.answers = [{"id": "change-1", "repeated": False}]
    assert (await http.post("/reconfigurations", json=body)).status_code == 202
    ((_, (order,)),) = engine.calls
    assert (order["layers"], order["precision"]) == (layers, precision)


async def test_waiting_polls_until_the_change_has_ended(http, engine: FakeEngine):
    engine.answers = [RUNNING, RUNNING, COMMITTED]
    response = await http.get("/reconfigurations/change-1", params={"wait": 60})
    assert response.json() == COMMITTED
    assert len(engine.calls) == 3


async def test_waiting_for_a_change_that_does_not_end_gives_up_in_time(http, engine: FakeEngine):
    engine.answers = [RUNNING]
    assert (await http.get("/reconfigurations/change-1", params={"wait": 0.01})).json() == RUNNING


@pytest.mark.parametrize("wait", ["-1", "301", "long"])
async def test_nobody_may_wait_for_ever(http, engine: FakeEngine, wait: str):
    assert (await http.get("/reconfigurations/change-1", params={"wait": wait})).status_code == 422


def _body(path: str) -> dict[str, str]:
    return {"layers": "1"} if path == "/reconfigurations" else {}


ROUTES = [
    ("GET", "/status"),
    ("POST", "/stages/0/attach"),
    ("POST", "/stages/0/release"),
    ("POST", "/reconfigurations"),
    ("GET", "/reconfigurations/change-1"),
    ("DELETE", "/reconfigurations/change-1"),
    ("GET", "/story"),
    ("GET", "/story/change-1"),
    ("GET", "/trace"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_every_route_refuses_web_pages(http, engine: FakeEngine, method: str, path: str):
    response = await http.request(method, path, json=_body(path), headers={"Origin": "https://evil.example"})
    assert response.status_code == 403
    assert response.json()["error"]["type"] == "access_denied"
    assert engine.calls == []


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_every_route_refuses_a_rebound_name(http, engine: FakeEngine, method: str, path: str):
    response = await http.request(method, path, json=_body(path), headers={"Host": "evil.example:8000"})
    assert (response.status_code, engine.calls) == (403, [])


@pytest.mark.parametrize("host", ["0.0.0.0", "", None])  # noqa: S104 - every spelling of all interfaces
async def test_a_server_beyond_loopback_is_closed_without_a_token(engine: FakeEngine, monkeypatch, host: str | None):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    async with await start(engine, host) as http:
        assert (await http.get("/status")).status_code == 403


async def test_a_server_beyond_loopback_is_open_to_the_holder_of_the_token(engine: FakeEngine, monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, "s3cret")
    async with await start(engine, "0.0.0.0") as http:  # noqa: S104 - a setting; nothing is bound
        assert (await http.get("/status")).status_code == 401
        assert (await http.get("/status", headers={"Authorization": "Bearer wrong"})).status_code == 401
        assert (await http.get("/status", headers={"Authorization": "Bearer s3cret"})).status_code == 200


async def test_generation_is_refused_with_a_503_when_the_word_of_the_engine_says_failed(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(PHASE_VARIABLE, make_phase_word())
    for name, value in HoldLimits(requests=1, seconds=1.0).as_environment().items():
        monkeypatch.setenv(name, value)
    word = open_phase_word()
    assert word is not None
    async with await start(engine) as http:
        assert (await http.post("http://localhost:8000/v1/completions")).status_code == 404  # vLLM's, not here
        word.write(Phase.FAILED)
        response = await http.post("http://localhost:8000/v1/completions")
        assert (response.status_code, "retry-after" in response.headers) == (503, True)
        assert (await http.get("/status")).status_code == 200


async def test_a_server_that_was_started_by_hand_holds_nothing(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(PHASE_VARIABLE, raising=False)
    async with await start(engine) as http:
        assert (await http.post("http://localhost:8000/v1/completions")).status_code == 404
