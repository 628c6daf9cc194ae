"""The reconfigure function behind func-python, with a head that says what the test tells it to."""

import asyncio
import time
from typing import Any

import httpx
import pytest
from function.func import Reconfigure, new

from runtime.events.from_journal import from_report
from runtime.head.event_function import Settings

CHANGES = "/reconfigurations"
KEY = "/tests#event-1"
REQUESTED = "reconfiguration.requested"
WANTED = {"pipeline": "smollm", "layers": "8,22"}


def report(state: str = "committed", **fields: Any) -> dict[str, Any]:
    """What the head says of a change."""
    return {
        "id": "change-1",
        "boot": "b00t",
        "request": KEY,
        "state": state,
        "step": state,
        "from": "15,15",
        "to": "8,22",
        "epoch": 2,
        "reason": None if state != "aborted" else "in step prepare: it was cancelled",
        "method": "pre_copy",
        "started_at": 1_790_000_000.0,
        "ended_at": None if state == "running" else 1_790_000_001.5,
        "total_ms": 1500.0,
        "steps_ms": {"plan": 0.5, "prepare": 1400.0},
        "rounds": 2,
        "bytes_moved": 4096,
        "pause_ms": 7.5,
        "traceparent": None,
        "requests_carried": 3,
        **fields,
    }


@pytest.fixture
def function(head):
    return Reconfigure(Settings(pipeline="smollm", endpoint=head.url))


@pytest.fixture
def ask(function, client, event, send):
    """Send a request for a layout, and return the answer."""

    async def ask(data: object = WANTED, kind: str = REQUESTED, **attributes: str) -> httpx.Response:
        return await send(client(function), event(kind, data, **attributes))

    return ask


class TestWhatBecameOfAChange:
    @pytest.mark.parametrize("state", ["committed", "aborted"])
    async def test_the_reply_is_the_event_that_the_head_publishes(self, head, ask, state):
        head.says(CHANGES, (202, report("running")))
        head.says(f"{CHANGES}/change-1", (200, report(state)))
        response = await ask()
        assert response.status_code == 200
        reply = response.json()
        published = from_report(report(state), "smollm")
        assert (reply["id"], reply["source"]) == (published.id, published.source)
        assert (reply["type"], reply["data"]) == (f"dev.midstream.reconfiguration.{state}", published.data)
        assert reply["data"]["request"] == "event-1"

    async def test_the_head_is_told_all_of_the_request(self, head, ask):
        head.says(CHANGES, (200, report()))
        wanted = {**WANTED, "method": "recompute", "fallback": "recompute", "precision": "bfloat16", "generation": 7}
        await ask(wanted)
        (call,) = head.calls
        assert call.body == {key: wanted[key] for key in ("layers", "method", "fallback", "precision", "generation")}
        assert call.key == KEY

    async def test_a_request_that_was_carried_out_before_gets_the_same_reply(self, head, ask):
        head.says(CHANGES, (202, report()), (200, {**report(), "repeated": True}))
        first, second = await ask(), await ask()
        assert first.json() == second.json()

    async def test_the_trace_goes_on_in_the_reply(self, head, ask):
        head.says(CHANGES, (200, report()))
        trace = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "vendor=1"}
        reply = (await ask(**trace)).json()
        assert {name: reply[name] for name in trace} == trace


class TestRefusedForGood:
    async def test_a_layout_that_is_there_already_is_committed_and_unchanged(self, head, ask):
        head.refuses(CHANGES, 409, "unchanged", "the pipeline already has the layout 8,22")
        reply = (await ask()).json()
        assert reply["type"] == "dev.midstream.reconfiguration.committed"
        data = reply["data"]
        assert (data["unchanged"], data["change"], data["from"], data["epoch"]) == (True, None, None, 0)
        assert (data["to"], data["request"]) == ("8,22", "event-1")

    @pytest.mark.parametrize(("status", "kind"), [(422, "invalid"), (409, "superseded"), (422, "forbidden")])
    async def test_what_cannot_be_met_is_aborted_with_the_reason(self, head, ask, status, kind):
        head.refuses(CHANGES, status, kind, "99 layers are wanted, but the model has 30")
        reply = (await ask()).json()
        assert reply["type"] == "dev.midstream.reconfiguration.aborted"
        assert reply["data"]["reason"] == "99 layers are wanted, but the model has 30"
        assert (reply["data"]["unchanged"], reply["data"]["change"]) == (False, None)

    async def test_the_same_request_gets_an_event_of_the_same_id_and_another_one_does_not(self, head, ask):
        head.refuses(CHANGES, 422, "invalid")
        ids = [(await ask(id=identity)).json()["id"] for identity in ("event-1", "event-1", "event-2")]
        assert ids[0] == ids[1] != ids[2]


class TestTryAgain:
    @pytest.mark.parametrize(
        ("status", "kind"),
        [(409, "busy"), (503, "asleep"), (401, "access_denied"), (404, "unknown"), (500, "internal")],
    )
    async def test_what_may_work_later_is_sent_again(self, head, ask, status, kind):
        head.refuses(CHANGES, status, kind)
        response = await ask()
        assert (response.status_code, int(response.headers["retry-after"]) > 0) == (503, True)
        error = response.json()["error"]
        assert (error["type"], error["code"]) == (kind, 503)

    async def test_a_head_that_is_not_there(self, client, event, send):
        function = Reconfigure(Settings(pipeline="smollm", endpoint="http://127.0.0.1:1"))
        response = await send(client(function), event(REQUESTED, WANTED))
        assert (response.status_code, response.json()["error"]["type"]) == (503, "head_unreachable")
        assert "retry-after" in response.headers

    async def test_another_change_of_a_head_that_was_started_again_is_not_taken_for_this_one(self, head, ask):
        head.says(CHANGES, (202, report("running")))
        head.says(f"{CHANGES}/change-1", (200, report(boot="other")))
        response = await ask()
        assert (response.status_code, response.json()["error"]["type"]) == (503, "head_restarted")

    async def test_an_end_that_does_not_come_in_time(self, head, function, ask):
        head.may_answer.clear()
        function._longest_s = 0.05
        response = await ask()
        assert (response.status_code, response.json()["error"]["type"]) == (503, "late")

    async def test_whoever_waits_is_told_when_the_function_ends_and_new_events_are_not_taken(self, head, function, ask):
        head.may_answer.clear()
        waiting = asyncio.create_task(ask())
        await asyncio.to_thread(head.asked.wait, 10)
        before = time.monotonic()
        function.stop()
        for response in (await waiting, await ask()):
            assert (response.status_code, response.json()["error"]["type"]) == (503, "ending")
        assert time.monotonic() - before < 10  # the head would have answered after 30 s
        assert len(head.calls) == 1


class TestNoReplyIsMadeUp:
    @pytest.mark.parametrize(
        "nonsense",
        [{"hello": 1}, {**report(), "state": "dancing"}, {**report(), "total_ms": -1}, {**report(), "steps_ms": None}],
    )
    async def test_a_head_that_says_what_makes_no_sense(self, head, ask, nonsense):
        head.says(CHANGES, (202, nonsense))
        response = await ask()
        assert (response.status_code, response.json()["error"]["type"]) == (502, "bad_head_answer")

    async def test_a_change_that_is_said_to_run_after_its_end(self, head, ask):
        head.says(CHANGES, (200, {**report("running"), "ended_at": 1.0}))
        assert (await ask()).json()["type"] != "dev.midstream.reconfiguration.committed"


class TestWrongEvents:
    @pytest.mark.parametrize(
        ("changes", "status", "param"),
        [
            ({"type": "dev.midstream.stage.release", "data": {"pipeline": "smollm", "stage": 0}}, 422, "type"),
            ({"type": "dev.midstream.reconfiguration.wished"}, 422, "type"),
            ({"data": {"pipeline": "smollm"}}, 422, "data.layers"),
            ({"data": {**WANTED, "layers": "many"}}, 422, "data.layers"),
            ({"data": {**WANTED, "pipeline": "other"}, "subject": "other"}, 422, "data.pipeline"),
            ({"data": "15,15"}, 422, "data"),
            ({"subject": "other"}, 422, "subject"),
            ({"source": "a b"}, 400, "source"),
        ],
    )
    async def test_they_get_an_error_body_and_the_head_hears_nothing(
        self, head, function, client, event, send, changes, status, param
    ):
        response = await send(client(function), {**event(REQUESTED, WANTED), **changes})
        assert response.status_code == status
        assert response.json()["error"]["param"] == param
        assert head.calls == []


class TestProbes:
    async def test_they_do_not_depend_on_the_head(self, client):
        probes = client(Reconfigure(Settings(pipeline="smollm", endpoint="http://127.0.0.1:1")))
        for probe in ("liveness", "readiness"):
            assert (await probes.get(f"/health/{probe}")).status_code == 200

    async def test_a_function_that_ends_is_alive_but_not_ready(self, function, client):
        probes = client(function)
        function.stop()
        assert (await probes.get("/health/liveness")).status_code == 200
        assert (await probes.get("/health/readiness")).status_code == 500


class TestSettings:
    def test_a_function_that_knows_no_pipeline_does_not_start(self, monkeypatch):
        monkeypatch.delenv("MIDSTREAM_PIPELINE", raising=False)
        with pytest.raises(SystemExit, match="MIDSTREAM_PIPELINE is not set"):
            new()

    def test_an_endpoint_that_is_no_address(self, monkeypatch):
        monkeypatch.setenv("MIDSTREAM_PIPELINE", "smollm")
        monkeypatch.setenv("MIDSTREAM_ENDPOINT", "http://127.0.0.1:port")
        with pytest.raises(SystemExit, match="MIDSTREAM_ENDPOINT"):
            new()

    def test_what_the_environment_says(self, monkeypatch):
        monkeypatch.setenv("MIDSTREAM_PIPELINE", "smollm")
        monkeypatch.delenv("MIDSTREAM_ENDPOINT", raising=False)
        assert new().ready() == (True, "ready")
