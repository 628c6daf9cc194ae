"""From a sentence to a running pipeline: the intent function in a process, the guard over its intents, and a head."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from runtime.head.control_client import ControlClient, ControlError
from runtime.migration.guard import Permission
from runtime.migration.http_guard import HttpGuard
from runtime.migration.stop_rule import CopyRound
from tests.integration.functions.guard import TOKEN, GuardService
from tests.integration.functions.head import Head
from tests.integration.functions.process import FunctionProcess, make_event
from tests.unit.runtime.events.sink import Sink

IN_GERMANY = make_event(
    "intent.submitted", {"intent": "home", "text": "Health data must run only on nodes in Germany."}
)


@pytest.fixture
def guard(tmp_path: Path) -> GuardService:
    """The guard's files, with no intent yet."""
    service = GuardService(tmp_path)
    service.store.remove("eu-only")
    return service


@pytest.fixture
def intent(
    guard: GuardService, tmp_path: Path, start: Callable[..., FunctionProcess]
) -> Callable[..., FunctionProcess]:
    def begin(**settings: str) -> FunctionProcess:
        return start(
            "intent",
            MIDSTREAM_INVENTORY=str(tmp_path / "inventory.yaml"),
            MIDSTREAM_INTENT_STATE=str(tmp_path / "intents"),
            MIDSTREAM_INTENT_OUT=str(tmp_path / "enforced"),
            MIDSTREAM_ENDPOINT="",
            **settings,
        ).wait_ready()

    return begin


def test_a_sentence_binds_a_pipeline_that_runs(
    port: int, guard: GuardService, tmp_path: Path, intent: Callable[..., FunctionProcess]
):
    permission = Permission(HttpGuard(guard.url, TOKEN), "smollm", "head")
    function = intent()
    with (
        guard.running(),
        Head(port, "2@edge-1,2@edge-3", permission).running() as head,
        ControlClient(f"http://127.0.0.1:{port}") as client,
    ):
        head.effects.rounds = [CopyRound(1, 1.0, 0)] * 2
        assert client.wait(client.reconfigure("1@edge-1,3@edge-3")["id"])["state"] == "committed"
        told = function.send(IN_GERMANY)
        assert told.status_code == 200, told.text
        assert told.json()["data"]["outcome"] == "ok"
        assert told.json()["data"]["placement"] == {"smollm": "edge-1"}
        with pytest.raises(ControlError, match="node edge-3") as refused:
            client.reconfigure("2@edge-1,2@edge-3")
        assert refused.value.kind == "forbidden"
        assert client.wait(client.reconfigure("4@edge-1", "recompute")["id"])["state"] == "committed"
    manifests = list(yaml.safe_load_all((tmp_path / "enforced" / "manifests.yaml").read_text()))
    assert manifests
    assert "flows" in json.loads((tmp_path / "enforced" / "flows.json").read_text())


def test_a_sentence_that_is_not_understood_changes_nothing(guard: GuardService, intent: Callable[..., FunctionProcess]):
    with Sink() as sink:
        function = intent(K_SINK=sink.url)
        nonsense: dict[str, Any] = {
            **IN_GERMANY,
            "data": {**IN_GERMANY["data"], "text": "Colourless green ideas sleep."},
        }
        for _ in range(2):
            response = function.send(nonsense)
            assert response.status_code == 422
            assert response.json()["error"]["type"] in {"not_understood", "out_of_scope"}
        sink.wait_for(1)
    assert guard.store.active() == ()
    assert [str(each.type) for each in sink.taken] == ["dev.midstream.intent.decided"]


def test_a_violation_is_told_to_the_sink(guard: GuardService, intent: Callable[..., FunctionProcess]):
    with Sink() as sink:
        function = intent(K_SINK=sink.url, MIDSTREAM_WATCH_SECONDS="0.05")
        assert function.send(IN_GERMANY).status_code == 200
        guard.move("edge-1", "US")
        sink.wait_for(1)
    told = sink.taken[0]
    assert (str(told.type), told.data["intent"]) == ("dev.midstream.intent.violated", "home")
    assert "edge-1" in told.data["reason"]


def test_an_event_that_comes_again_to_a_new_instance_is_answered_the_same(intent: Callable[..., FunctionProcess]):
    first = intent().send(IN_GERMANY).json()
    assert intent().send(IN_GERMANY).json() == first
