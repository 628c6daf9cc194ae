"""I5 from an intent to a change: the guard's service, a head that asks it, and the functions that ask the head."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime.events.catalogue import Type
from runtime.events.publisher import Publisher
from runtime.head.control_client import ControlClient, ControlError
from runtime.migration.guard import Permission
from runtime.migration.http_guard import HttpGuard
from runtime.migration.stop_rule import CopyRound
from tests.integration.functions.guard import TOKEN, GuardService
from tests.integration.functions.head import Head, until
from tests.integration.functions.process import FunctionProcess, make_event
from tests.unit.runtime.events.sink import Sink

STALE, FITS = CopyRound(1000, 1.0, 600), CopyRound(600, 1.0, 0)


@pytest.fixture
def guard(tmp_path: Path) -> Iterator[GuardService]:
    with GuardService(tmp_path).running() as running:
        yield running


@pytest.fixture
def head(port: int, guard: GuardService) -> Iterator[Head]:
    permission = Permission(HttpGuard(guard.url, TOKEN), "smollm", "head")
    with Head(port, "2@edge-1,2@edge-3", permission).running() as running:
        running.effects.rounds = [STALE, FITS]
        yield running


@pytest.fixture
def client(head: Head) -> Iterator[ControlClient]:
    with ControlClient(f"http://127.0.0.1:{head.port}") as opened:
        yield opened


def refused(ask: Callable[[], Any]) -> ControlError:
    with pytest.raises(ControlError) as error:
        ask()
    return error.value


def test_a_change_within_the_intents_is_made(head: Head, client: ControlClient):
    report = client.wait(client.reconfigure("1@edge-1,3@edge-3")["id"])
    assert (report["state"], head.layers) == ("committed", "1@edge-1,3@edge-3")


def test_a_change_to_a_forbidden_node_is_refused_with_the_reason(head: Head, client: ControlClient):
    error = refused(lambda: client.reconfigure("2@edge-1,2@edge-2"))
    assert (error.refused, error.kind) == (True, "forbidden")
    assert "node edge-2" in str(error)
    assert "jurisdiction" in str(error)
    assert (head.changes, head.layers) == (0, "2@edge-1,2@edge-3")


def test_over_http_that_is_a_422(head: Head):
    response = httpx.post(
        f"http://127.0.0.1:{head.port}/midstream/v1/reconfigurations", json={"layers": "2@edge-1,2@edge-2"}
    )
    assert (response.status_code, response.json()["error"]["type"]) == (422, "forbidden")


def test_an_intent_that_goes_frees_the_node(head: Head, guard: GuardService, client: ControlClient):
    guard.store.remove("eu-only")
    assert client.wait(client.reconfigure("2@edge-1,2@edge-2")["id"])["state"] == "committed"


def test_a_world_that_changes_during_pre_copy_aborts_the_change(head: Head, guard: GuardService, client: ControlClient):
    gate = head.effects.block("copy_stale", interruptible=False)
    change = client.reconfigure("4@edge-3")["id"]
    gate.wait_until_entered()
    guard.move("edge-3", "US")
    gate.open()
    report = client.wait(change)
    assert (report["state"], head.layers) == ("aborted", "2@edge-1,2@edge-3")
    assert "node edge-3" in report["reason"]
    assert "switch and copy" not in head.effects.calls


@pytest.mark.parametrize("stage", [0, 1])
def test_stages_come_only_where_they_may(head: Head, client: ControlClient, stage: int):
    error = refused(lambda: client.attach_stage(stage, "edge-2", 20))
    assert (error.kind, head.changes) == ("forbidden", 0)


def test_a_stage_leaves_its_layers_only_to_who_may_have_them(head: Head, guard: GuardService, client: ControlClient):
    guard.move("edge-1", "US")
    error = refused(lambda: client.release_stage(1, 20))
    assert (error.kind, head.changes, head.layers) == ("forbidden", 0, "2@edge-1,2@edge-3")


def test_without_the_guard_nothing_is_changed(head: Head, guard: GuardService, client: ControlClient):
    guard.stop()
    error = refused(lambda: client.reconfigure("1@edge-1,3@edge-3"))
    assert (error.refused, error.kind, head.changes) == (False, "guard_silent", 0)
    assert "nobody allows smollm on edge-1, edge-3" in str(error)


def test_a_guard_with_another_token_allows_nothing(port: int, guard: GuardService):
    permission = Permission(HttpGuard(guard.url, "wrong"), "smollm", "head")
    head = Head(port, "2@edge-1,2@edge-3", permission)
    with head.running(), ControlClient(f"http://127.0.0.1:{port}") as client:
        error = refused(lambda: client.reconfigure("1@edge-1,3@edge-3"))
    assert (error.kind, "HTTP 401" in str(error)) == ("guard_silent", True)


def test_the_reconfigure_function_answers_aborted(head: Head, start: Callable[..., FunctionProcess]):
    function = start("reconfigure").wait_alive()
    wanted = make_event("reconfiguration.requested", {"layers": "2@edge-1,2@edge-2"})
    first, second = function.send(wanted), function.send(wanted)
    told = first.json()
    assert (first.status_code, told["type"]) == (200, "dev.midstream.reconfiguration.aborted")
    assert told["data"]["change"] is None
    assert "node edge-2" in told["data"]["reason"]
    assert second.json()["data"] == told["data"]


def test_while_the_guard_is_away_the_broker_is_to_try_again(
    head: Head, guard: GuardService, start: Callable[..., FunctionProcess]
):
    function = start("reconfigure").wait_alive()
    guard.stop()
    response = function.send(make_event("reconfiguration.requested", {"layers": "1@edge-1,3@edge-3"}))
    assert (response.status_code, response.json()["error"]["type"]) == (503, "guard_silent")


def test_an_aborted_change_is_told_to_the_sink(head: Head, guard: GuardService, client: ControlClient):
    with Sink() as sink:
        publisher = Publisher(sink.url, "smollm", head.coordinator.boot)
        head.journal.listen(publisher.told)
        gate = head.effects.block("copy_stale", interruptible=False)
        change = client.reconfigure("4@edge-3")["id"]
        gate.wait_until_entered()
        guard.move("edge-3", "US")
        gate.open()
        client.wait(change)
        until(lambda: Type.RECONFIGURATION_ABORTED in {each.type for each in sink.taken}, "the abort was told")
        publisher.close()
    assert "node edge-3" in sink.taken[-1].data["reason"]
