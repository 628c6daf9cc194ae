"""The broker over HTTP, without sockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from controller.platform.broker.broker import Broker
from controller.platform.broker.ingress import make_app
from controller.platform.broker.wire import STRUCTURED
from runtime.head.access import AccessPolicy
from tests.unit.controller.platform.broker.house import Gate, Subscribers, count, house, settled, trigger
from tests.unit.runtime.head.fake_time import now, run

EVENT = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t", "ce-subject": "smollm"}
MANIFEST = {
    "apiVersion": "eventing.knative.dev/v1",
    "kind": "Trigger",
    "metadata": {"name": "b"},
    "spec": {"broker": "default", "subscriber": {"uri": "http://b"}},
}


class Served:
    """A broker behind its ingress."""

    def __init__(self, broker: Broker, subscribers: Subscribers, http: httpx.AsyncClient) -> None:
        self.broker = broker
        self.subscribers = subscribers
        self.http = http

    async def send(self, name: str = "1", **headers: str) -> httpx.Response:
        own = {header.replace("_", "-"): text for header, text in headers.items()}
        return await self.http.post("/", headers={**EVENT, "ce-id": name, **own}, content=b"{}")


@asynccontextmanager
async def served(
    *triggers: Any, token: str | None = None, on_loopback: bool = True, **limits: int
) -> AsyncIterator[Served]:
    broker, subscribers = house(*triggers, **limits)
    app = make_app(broker, {"stage": "http://127.0.0.1:8081"}, AccessPolicy(on_loopback, token))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8090") as http:
        yield Served(broker, subscribers, http)


def told(response: httpx.Response) -> str:
    error = response.json()["error"]
    assert error["code"] == response.status_code
    return str(error["message"])


class TestEvents:
    @pytest.mark.parametrize(
        ("headers", "content"),
        [
            (EVENT, b"anything"),
            (
                {"content-type": STRUCTURED},
                json.dumps({"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": 5}).encode(),
            ),
        ],
    )
    def test_an_event_of_either_mode_and_any_type_is_accepted(self, headers: dict[str, str], content: bytes):
        async def scenario():
            async with served(trigger()) as house:
                response = await house.http.post("/", headers=headers, content=content)
                assert (response.status_code, response.content) == (202, b"")
                assert response.headers["midstream-sequence"] == "1"
                await settled(house.broker)
                assert house.subscribers.ids("a") == ["1"]

        run(scenario())

    @pytest.mark.parametrize(
        ("headers", "content", "status", "kind"),
        [
            ({}, b"", 400, "malformed_event"),
            ({"content-type": "application/json"}, b"{}", 400, "malformed_event"),
            ({**EVENT, "ce-id": ""}, b"", 400, "malformed_event"),
            ({"content-type": STRUCTURED}, b"[" * 50_000, 400, "malformed_event"),
            ({"content-type": "application/cloudevents-batch+json"}, b"[]", 415, "batch"),
            (EVENT, b"x" * 2001, 413, "too_large"),
        ],
    )
    def test_anything_else_is_refused_and_goes_nowhere(self, headers, content: bytes, status: int, kind: str):
        async def scenario():
            async with served(trigger(), event_bytes=2000 if status == 413 else 100_000) as house:
                response = await house.http.post("/", headers=headers, content=content)
                assert (response.status_code, response.json()["error"]["type"]) == (status, kind)
                assert house.broker.ring.last == 0
                assert house.subscribers.got == {}
                assert count(house.broker, "events_refused_total", reason=kind) == 1

        run(scenario())

    def test_a_body_is_bounded_also_when_its_length_is_not_said(self):
        async def scenario():
            async def endless() -> AsyncIterator[bytes]:
                while True:
                    yield b"x" * 1000

            async with served(event_bytes=5000) as house:
                assert (await house.http.post("/", headers=EVENT, content=endless())).status_code == 413

        run(scenario())

    def test_a_full_queue_is_a_429_and_a_broker_that_stops_a_503_both_with_a_time_to_try_again(self):
        async def scenario():
            async with served(trigger(), queued_events=1) as house:
                gate = Gate()
                house.subscribers.behaviour["http://a"] = gate
                await house.send()
                full = await house.send("2")
                assert (full.status_code, full.headers["retry-after"]) == (429, "1")
                assert "trigger a" in told(full)
                gate.open()
                await settled(house.broker)
                assert (await house.send("2")).status_code == 202
                house.broker.close()
                stopping = await house.send("3")
                assert (stopping.status_code, stopping.headers["retry-after"]) == (503, "1")
                assert (await house.http.get("/healthz")).status_code == 503

        run(scenario())

    def test_other_methods_and_paths_are_answered_in_the_same_form(self):
        async def scenario():
            async with served() as house:
                assert told(await house.http.get("/")) == "Method Not Allowed"
                assert told(await house.http.get("/nothing")) == "Not Found"

        run(scenario())


class TestWatching:
    def test_recent_events_can_be_read_as_cloudevents_json(self):
        async def scenario():
            async with served() as house:
                await house.send(content_type="application/json")
                page = (await house.http.get("/events")).json()
                assert (page["next"], page["missed"]) == (1, False)
                (entry,) = page["events"]
                assert (entry["sequence"], entry["undelivered"]) == (1, None)
                expected = {
                    "specversion": "1.0",
                    "id": "1",
                    "source": "/s",
                    "type": "t",
                    "subject": "smollm",
                    "data": {},
                }
                assert entry["event"] == {**expected, "datacontenttype": "application/json"}

        run(scenario())

    def test_a_poll_waits_for_an_event_that_is_wanted(self):
        async def scenario():
            async with served() as house:
                query = {"after": "0", "wait": "30", "subject": "smollm", "type": "u"}
                polling = asyncio.create_task(house.http.get("/events", params=query))
                await house.send("1")
                await house.send("2", ce_type="u")
                page = (await polling).json()
                assert [entry["event"]["id"] for entry in page["events"]] == ["2"]
                assert page["next"] == 2

        run(scenario())

    def test_a_poll_ends_and_no_later_than_the_broker_allows(self):
        async def scenario():
            async with served() as house:
                assert (await house.http.get("/events?wait=1e6", timeout=None)).json()["events"] == []
                assert now() == 60.0

        run(scenario())

    def test_a_reader_can_begin_with_what_comes_next(self):
        async def scenario():
            async with served() as house:
                await house.send()
                assert (await house.http.get("/events?after=latest&wait=9")).json() == {
                    "events": [],
                    "next": 1,
                    "missed": False,
                }

        run(scenario())

    @pytest.mark.parametrize("query", ["after=-1", "after=x", "wait=nan", "wait=-1", "limit=1e9", "after=1e400"])
    def test_a_query_that_means_nothing_is_refused(self, query: str):
        async def scenario():
            async with served() as house:
                response = await house.http.get(f"/events?{query}")
                assert response.status_code == 400
                assert "must be a number from 0 to" in told(response)

        run(scenario())


class TestTriggers:
    def test_triggers_are_put_shown_replaced_and_removed_live(self):
        async def scenario():
            async with served() as house:
                assert (await house.http.put("/triggers/b", json=MANIFEST)).status_code == 201
                assert (await house.http.put("/triggers/b", json=MANIFEST)).status_code == 200
                shown = (await house.http.get("/triggers/b")).json()
                assert (shown["subscriber"], shown["queue_depth"], shown["manifest"]) == ("http://b", 0, MANIFEST)
                assert (await house.http.get("/triggers")).json() == {"triggers": [shown]}
                await house.send()
                await settled(house.broker)
                assert house.subscribers.ids("b") == ["1"]
                assert (await house.http.delete("/triggers/b")).json() == {"name": "b", "undelivered": 0}
                for response in (await house.http.delete("/triggers/b"), await house.http.get("/triggers/b")):
                    assert response.status_code == 404
                    assert "there is no trigger 'b'" in told(response)

        run(scenario())

    def test_a_service_is_found_by_its_name(self):
        async def scenario():
            async with served() as house:
                spec = {
                    "subscriber": {"ref": {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": "stage"}}
                }
                response = await house.http.put("/triggers/b", json={**MANIFEST, "spec": spec})
                assert response.json()["subscriber"] == "http://127.0.0.1:8081"

        run(scenario())

    @pytest.mark.parametrize(
        ("path", "content", "status", "message"),
        [
            ("b", b"{", 400, "the body is no JSON"),
            ("b", b"[" * 50_000, 400, "the body is no JSON"),
            ("b", b"\xff", 400, "the body is no JSON"),
            ("b", b"[]", 422, "the trigger is []"),
            ("other", json.dumps(MANIFEST).encode(), 422, "metadata.name is 'b', but the path says 'other'"),
            ("b", json.dumps({**MANIFEST, "spec": {}}).encode(), 422, "spec.subscriber is missing"),
        ],
    )
    def test_a_wrong_trigger_changes_nothing(self, path: str, content: bytes, status: int, message: str):
        async def scenario():
            async with served(trigger()) as house:
                before = (await house.http.get("/triggers")).json()
                response = await house.http.put(f"/triggers/{path}", content=content)
                assert response.status_code == status
                assert message in told(response)
                assert (await house.http.get("/triggers")).json() == before

        run(scenario())


class TestAccess:
    @pytest.mark.parametrize("headers", [{"origin": "https://evil.example"}, {"host": "evil.example"}])
    @pytest.mark.parametrize(
        ("method", "path"), [("POST", "/"), ("GET", "/events"), ("PUT", "/triggers/b"), ("GET", "/metrics")]
    )
    def test_web_pages_are_refused(self, headers: dict[str, str], method: str, path: str):
        async def scenario():
            async with served() as house:
                response = await house.http.request(method, path, headers={**EVENT, **headers})
                assert response.status_code == 403
                assert "does not answer web pages" in told(response)
                assert house.broker.ring.last == 0

        run(scenario())

    def test_with_a_token_only_who_knows_it_may(self):
        async def scenario():
            async with served(token="t0ken") as house:
                refused = await house.send()
                assert (refused.status_code, "MIDSTREAM_CONTROL_TOKEN" in told(refused)) == (401, True)
                assert "t0ken" not in refused.text
                assert (await house.send(authorization="Bearer t0ken")).status_code == 202
                assert (await house.http.get("/healthz")).status_code == 200

        run(scenario())

    def test_beyond_loopback_it_is_closed(self):
        async def scenario():
            async with served(on_loopback=False) as house:
                assert (await house.send()).status_code == 403

        run(scenario())


def test_the_counters_can_be_scraped():
    async def scenario():
        async with served(trigger()) as house:
            await house.send()
            await settled(house.broker)
            text = (await house.http.get("/metrics")).text
            assert "midstream_broker_events_accepted_total 1.0" in text
            assert 'midstream_broker_events_delivered_total{trigger="a"} 1.0' in text
            assert 'midstream_broker_queue_depth{trigger="a"} 0.0' in text

    run(scenario())
