"""The stage function behind func-python, with a head that says what the test tells it to."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from function import func
from function.func import Stage, StageSettings, new

ATTACH, RELEASE = "/stages/1/attach", "/stages/1/release"
PREPARE_EVENT, RELEASE_EVENT = "stage.prepare", "stage.release"
MINE = {"pipeline": "smollm", "stage": 1}


def moved(state: str, change: str | None = "change-4") -> dict[str, Any]:
    """What the head says when a stage came or went."""
    report = {"id": change, "boot": "b00t", "state": "committed"} if change else None
    return {"stage": 1, "node": "edge-2", "change": report, "state": state, "ms": 812.5}


class WatchedTurn:
    """A lock that tells when somebody wants it."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self.wanted = threading.Event()

    def acquire(self, timeout: float) -> bool:
        self.wanted.set()
        return self._lock.acquire(timeout=timeout)

    def release(self) -> None:
        self._lock.release()


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.01)


@pytest.fixture
def settings(head):
    return StageSettings(pipeline="smollm", endpoint=head.url, stage=1, node="edge-2", drain_s=10.0, attach_s=2.0)


@pytest.fixture
def function(settings):
    return Stage(settings)


@pytest.fixture
def ask(function, client, event, send):
    """Send an event to the function, and return the answer."""

    async def ask(kind: str, data: object = MINE, **attributes: str) -> httpx.Response:
        return await send(client(function), event(kind, data, **attributes))

    return ask


@pytest.fixture
async def attached(head, function, signals):
    """A function that has come."""
    head.says(ATTACH, (200, moved("attached")))
    function.start({})
    await until(lambda: function.ready()[0])
    return function


class TestComing:
    async def test_it_attaches_to_its_node_and_is_ready_from_then_on(self, head, function, client, signals):
        head.says(ATTACH, (200, moved("attached")))
        head.may_answer.clear()
        function.start({})
        await until(head.asked.is_set)
        probes = client(function)
        response = await probes.get("/health/readiness")
        assert (response.status_code, "not attached yet" in response.text) == (500, True)
        head.may_answer.set()
        await until(lambda: function.ready()[0])
        assert (await probes.get("/health/readiness")).text == "attached"
        asked = {"node": "edge-2", "within_s": 2.0, "holder": function._instance}
        assert [(call.path, call.body, call.key) for call in head.calls] == [(ATTACH, asked, None)]

    async def test_it_goes_on_trying_until_the_head_lets_it(self, head, function, signals):
        head.says(ATTACH, head.refusal(409, "busy"), head.refusal(422, "invalid"), (200, moved("unchanged", None)))
        function.start({})
        await until(lambda: function.ready()[0])
        assert len(head.calls) == 3

    async def test_it_is_alive_and_not_ready_without_a_head_and_says_why(self, settings, client, signals):
        function = Stage(replace(settings, endpoint="http://127.0.0.1:1"))
        function.start({})
        await until(lambda: "cannot reach" in function.ready()[1])
        probes = client(function)
        assert (await probes.get("/health/liveness")).status_code == 200
        assert (await probes.get("/health/readiness")).status_code == 500
        function.end()

    async def test_it_is_not_alive_when_it_can_never_attach_again(self, function, client, signals, monkeypatch):
        def breaks(node: str | None) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(function, "_attach", breaks)
        function.start({})
        await until(lambda: not function.alive()[0])
        response = await client(function).get("/health/liveness")
        assert (response.status_code, "a bug" in response.text) == (500, True)

    async def test_a_release_that_was_asked_for_meanwhile_is_not_undone(self, head, function, ask, signals):
        head.says(ATTACH, head.refusal(409, "busy"))
        head.says(RELEASE, (200, moved("released")))
        function.start({})
        await until(head.asked.is_set)
        assert (await ask(RELEASE_EVENT)).status_code == 200
        await until(lambda: not any(thread.name == "attach" for thread in threading.enumerate()))
        assert head.calls[-1].path == RELEASE


class TestEvents:
    async def test_a_release_is_answered_with_what_the_head_publishes(self, head, attached, ask):
        head.says(RELEASE, (200, moved("released")))
        reply = (await ask(RELEASE_EVENT)).json()
        assert reply["type"] == "dev.midstream.stage.released"
        assert (reply["source"], reply["id"]) == ("/midstream/pipelines/smollm", "b00t.change-4.stage-1.released")
        assert reply["data"] == {**MINE, "node": "edge-2", "change": "change-4", "ms": 812.5}
        assert attached.ready() == (True, "released")  # else no event to prepare could reach it

    async def test_a_stage_that_comes_back_goes_where_the_event_says(self, head, attached, ask):
        reply = (await ask(PREPARE_EVENT, {**MINE, "node": "edge-3"})).json()
        assert (reply["type"], reply["id"]) == ("dev.midstream.stage.prepared", "b00t.change-4.stage-1.prepared")
        assert head.calls[-1].body["node"] == "edge-3"

    async def test_without_a_node_it_stays_on_its_node(self, head, attached, ask):
        await ask(PREPARE_EVENT)
        assert "node" not in head.calls[-1].body

    async def test_told_again_without_a_change_the_event_has_the_same_id(self, head, attached, ask):
        head.says(RELEASE, (200, moved("idle", None)))
        first, second, other = [(await ask(RELEASE_EVENT, id=identity)).json() for identity in ("a", "a", "b")]
        assert first["id"] == second["id"] != other["id"]
        assert first["data"]["change"] is None

    async def test_a_stage_does_not_go_where_the_intents_forbid_it(self, head, attached, ask):
        head.refuses(RELEASE, 422, "forbidden", "node edge-2 is in the US")
        response = await ask(RELEASE_EVENT)
        error = response.json()["error"]
        assert (response.status_code, error["type"], error["message"]) == (422, "forbidden", "node edge-2 is in the US")

    async def test_the_last_stage_is_not_released(self, head, attached, ask):
        head.refuses(RELEASE, 409, "last_stage", "stage 1 is the last one")
        response = await ask(RELEASE_EVENT)
        assert (response.status_code, response.json()["error"]["type"]) == (422, "last_stage")
        assert attached.ready() == (True, "attached")

    @pytest.mark.parametrize(
        ("status", "kind"), [(409, "busy"), (504, "late"), (409, "aborted"), (503, "asleep"), (401, "access_denied")]
    )
    async def test_what_may_work_later_is_sent_again(self, head, attached, ask, status, kind):
        head.refuses(RELEASE, status, kind)
        response = await ask(RELEASE_EVENT)
        assert (response.status_code, response.json()["error"]["type"]) == (503, kind)
        assert "retry-after" in response.headers
        assert attached.ready() == (True, "attached")

    async def test_an_answer_that_makes_no_sense_is_not_told_on(self, head, attached, ask):
        head.says(RELEASE, (200, {"stage": 1}))
        assert (await ask(RELEASE_EVENT)).status_code == 502

    async def test_an_event_for_another_stage_is_none_of_its_business(self, head, ask):
        response = await ask(RELEASE_EVENT, {**MINE, "stage": 0})
        assert (response.status_code, response.content, head.calls) == (204, b"", [])

    async def test_by_event_the_stage_is_released_whoever_holds_it_and_once(self, head, attached, ask):
        head.says(RELEASE, (200, moved("released")))
        await ask(RELEASE_EVENT)
        assert ("holder" in head.calls[-1].body, bool(head.calls[-1].key)) == (False, True)

    @pytest.mark.parametrize(
        ("kind", "data", "param"),
        [
            (RELEASE_EVENT, {"pipeline": "smollm", "stage": -1}, "data.stage"),
            ("reconfiguration.requested", {"pipeline": "smollm", "layers": "8,22"}, "type"),
        ],
    )
    async def test_events_that_are_not_for_this_function(self, head, ask, kind, data, param):
        response = await ask(kind, data)
        assert (response.status_code, response.json()["error"]["param"]) == (422, param)
        assert head.calls == []


class TestLeaving:
    async def test_it_releases_its_stage_within_the_drain_time(self, head, attached):
        head.says(RELEASE, (200, moved("released")))
        attached.stop()
        assert head.calls[-1].path == RELEASE
        assert 0 < head.calls[-1].body["within_s"] <= 10
        assert attached.ready() == (False, "ending")

    async def test_while_another_change_is_under_way_it_asks_again(self, head, attached, caplog):
        head.says(RELEASE, head.refusal(409, "busy"), head.refusal(504, "late"), (200, moved("released")))
        with caplog.at_level(logging.INFO):
            attached.stop()
        assert [call.path for call in head.calls[1:]] == [RELEASE] * 3
        assert "stage 1 of smollm: released in 812.5 ms" in caplog.text

    @pytest.mark.parametrize("kind", ["last_stage", "aborted", "access_denied"])
    async def test_what_the_head_refuses_for_good_is_said_once(self, head, attached, caplog, kind):
        head.refuses(RELEASE, 409, kind, "there is nobody to take the layers")
        attached.stop()
        assert [call.path for call in head.calls[1:]] == [RELEASE]
        assert "leaving without being released: there is nobody to take the layers" in caplog.text

    async def test_what_was_released_by_event_is_released_once_more(self, head, attached, ask):
        """Another layout may have brought its layers back; the head knows."""
        head.says(RELEASE, (200, moved("released")), (200, moved("idle", None)))
        await ask(RELEASE_EVENT)
        attached.stop()
        assert [call.path for call in head.calls[1:]] == [RELEASE, RELEASE]

    async def test_a_stage_that_was_sent_away_stays_so_when_its_function_starts_anew(self, head, function, signals):
        head.says(ATTACH, (200, moved("released", None)))
        function.start({})
        await until(lambda: function.ready()[0])
        assert function.ready() == (True, "released")

    async def test_a_head_that_is_gone_does_not_hold_it(self, settings, caplog, monkeypatch):
        monkeypatch.setattr(func, "_HEAD_BACK_S", 0.3)
        function = Stage(replace(settings, endpoint="http://127.0.0.1:1", drain_s=50.0))
        function.stop()
        assert "leaving without being released: cannot reach" in caplog.text

    async def test_a_head_that_hangs_does_not_hold_it(self, head, settings, caplog):
        head.may_answer.clear()
        before = time.monotonic()
        Stage(replace(settings, drain_s=1.0)).stop()
        assert time.monotonic() - before < 10  # the head would have answered after 30 s
        assert "leaving" in caplog.text

    async def test_the_drain_time_begins_with_the_signal(self, head, attached):
        attached.end()
        attached._deadline = time.monotonic() - 1  # the server took its time before it called `stop`
        calls = len(head.calls)
        attached.stop()
        assert len(head.calls) == calls

    async def test_it_never_raises(self, attached, caplog, monkeypatch):
        def breaks(within_s: float) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(attached, "_release", breaks)
        attached.stop()
        assert "a bug" in caplog.text

    async def test_an_attach_under_way_ends_before_the_release(self, head, function, signals):
        head.says(ATTACH, (200, moved("attached")))
        head.says(RELEASE, (200, moved("released")))
        head.may_answer.clear()
        function.start({})
        await until(head.asked.is_set)
        function._turn = turn = WatchedTurn(function._turn)
        leaving = asyncio.create_task(asyncio.to_thread(function._leave, time.monotonic() + 20))
        await until(turn.wanted.is_set)
        assert [call.path for call in head.calls] == [ATTACH]
        head.may_answer.set()
        await leaving
        assert [call.path for call in head.calls] == [ATTACH, RELEASE]


class TestSettings:
    @pytest.fixture(autouse=True)
    def environment(self, monkeypatch):
        monkeypatch.setenv("MIDSTREAM_PIPELINE", "smollm")
        monkeypatch.setenv("MIDSTREAM_STAGE", "1")
        for name in ("MIDSTREAM_ENDPOINT", "MIDSTREAM_NODE", "MIDSTREAM_DRAIN_SECONDS"):
            monkeypatch.delenv(name, raising=False)

    def test_what_need_not_be_said(self):
        assert new()._settings == StageSettings(
            pipeline="smollm", endpoint="http://127.0.0.1:8000", stage=1, node=None, drain_s=25.0
        )

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("MIDSTREAM_PIPELINE", ""),
            ("MIDSTREAM_STAGE", ""),
            ("MIDSTREAM_STAGE", "-1"),
            ("MIDSTREAM_STAGE", "first"),
            ("MIDSTREAM_NODE", "edge_1"),
            ("MIDSTREAM_DRAIN_SECONDS", "0"),
            ("MIDSTREAM_DRAIN_SECONDS", "51"),
            ("MIDSTREAM_DRAIN_SECONDS", "nan"),
            ("MIDSTREAM_DRAIN_SECONDS", "soon"),
            ("MIDSTREAM_ENDPOINT", "http://127.0.0.1:port"),
        ],
    )
    def test_what_makes_no_sense_is_named(self, monkeypatch, name, value):
        monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit, match=name):
            new()
