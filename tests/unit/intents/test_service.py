"""The service that running pipelines ask: over files that change, for pipelines of several stages."""

import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from intents.errors import IntentsError
from intents.model.intent import (
    PlacementRule,
    PrivacyIntent,
)
from intents.model.predicate import term
from intents.service import Current, _address, flows_of, guard_application
from intents.store import IntentStore
from tests.unit.intents.pipelines import INVENTORY, intent


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    inventory, state = tmp_path / "inventory.yaml", tmp_path / "intents"
    inventory.write_text(yaml.safe_dump(INVENTORY))
    with IntentStore(state).locked():
        IntentStore(state).put(intent())
    return inventory, state


@pytest.fixture
def current(files: tuple[Path, Path]) -> Current:
    return Current(*files)


def client(current: Current, token: str | None = None, **headers: str) -> httpx.AsyncClient:
    service = guard_application(current, tuple, "127.0.0.1", token)
    return httpx.AsyncClient(transport=httpx.ASGITransport(service), base_url="http://127.0.0.1:7180", headers=headers)


def question(*nodes: str) -> dict[str, Any]:
    return {"workload": "smollm", "old_nodes": [], "new_nodes": list(nodes), "transfers": [], "state": ["prompts"]}


async def holds(http: httpx.AsyncClient, *nodes: str) -> bool:
    answer = await http.post("/check", json=question(*nodes))
    assert answer.status_code == 200, answer.text
    return bool(answer.json()["holds"])


class TestService:
    async def test_it_answers_with_the_reason(self, current: Current):
        async with client(current) as http:
            assert await holds(http, "edge-1")
            answer = (await http.post("/check", json=question("edge-2"))).json()
            assert not answer["holds"]
            assert "edge-2" in answer["reason"]

    async def test_an_intent_that_comes_or_goes_counts_at_once(self, current: Current, files: tuple[Path, Path]):
        store = IntentStore(files[1])
        async with client(current) as http:
            assert await holds(http, "edge-3")
            store.put(intent("german", placement=(PlacementRule(nodes=term("midstream.dev/jurisdiction", "DE")),)))
            assert not await holds(http, "edge-3")
            store.remove("german")
            assert await holds(http, "edge-3")

    async def test_an_inventory_that_changes_counts_at_once(self, current: Current, files: tuple[Path, Path]):
        changed = json.loads(json.dumps(INVENTORY))
        changed["nodes"][0]["labels"]["midstream.dev/jurisdiction"] = "US"
        async with client(current) as http:
            assert await holds(http, "edge-1")
            files[0].write_text(yaml.safe_dump(changed))
            assert not await holds(http, "edge-1")

    @pytest.mark.parametrize("broken", ["inventory", "intents"])
    async def test_what_cannot_be_read_allows_nothing(self, current: Current, files: tuple[Path, Path], broken: str):
        inventory, state = files
        async with client(current) as http:
            assert (await http.get("/healthz")).status_code == 200
            if broken == "inventory":
                inventory.unlink()
            else:
                (state / "odd.yaml").write_text("kind: Odd")
            for answer in (await http.post("/check", json=question("edge-1")), await http.get("/healthz")):
                assert answer.status_code == 503
                assert "holds" not in answer.json()
            assert (await http.get("/intents")).status_code == 503
            inventory.write_text(yaml.safe_dump(INVENTORY))
            (state / "odd.yaml").unlink(missing_ok=True)
            assert await holds(http, "edge-1")

    async def test_files_are_read_again_only_when_they_have_changed(self, current: Current):
        assert current.guard() is current.guard()

    async def test_the_active_intents_are_listed(self, current: Current):
        async with client(current) as http:
            (listed,) = (await http.get("/intents")).json()["intents"]
        assert PrivacyIntent.model_validate(listed) == intent()

    async def test_with_a_token_only_its_holder_is_answered(self, current: Current):
        async with client(current, "s3cret") as http:
            assert (await http.get("/intents")).status_code == 401
            assert (await http.post("/check", json=question("edge-1"))).status_code == 401
            assert (await http.get("/healthz")).status_code == 200
        async with client(current, "s3cret", authorization="Bearer s3cret") as http:
            assert (await http.get("/intents")).status_code == 200
            assert await holds(http, "edge-1")

    @pytest.mark.parametrize("headers", [{"origin": "http://evil.example"}, {"host": "evil.example"}])
    async def test_web_pages_do_not_learn_where_sensitive_data_lies(self, current: Current, headers: dict[str, str]):
        async with client(current) as http:
            assert (await http.get("/intents", headers=headers)).status_code == 403

    def test_beyond_loopback_a_token_is_needed(self, current: Current):
        with pytest.raises(IntentsError, match="token"):
            guard_application(current, tuple, "0.0.0.0", None)  # noqa: S104
        guard_application(current, tuple, "0.0.0.0", "s3cret")  # noqa: S104


class TestFlows:
    def test_rules_are_read_again_each_time(self, tmp_path: Path):
        path = tmp_path / "flows.json"
        path.write_text('{"flows": []}')
        read = flows_of(path)
        assert list(read()) == []
        path.write_text('[{"deviceId": "of:1"}]')
        assert list(read()) == [{"deviceId": "of:1"}]
        assert list(flows_of(None)()) == []

    @pytest.mark.parametrize("content", ["{", "{}", "3"])
    def test_what_is_no_list_is_an_error(self, tmp_path: Path, content: str):
        path = tmp_path / "flows.json"
        path.write_text(content)
        with pytest.raises(IntentsError, match=r"flows\.json"):
            flows_of(path)()


class TestCommand:
    def test_the_address_is_read(self):
        assert _address("127.0.0.1:7180") == ("127.0.0.1", 7180)
        assert _address("localhost:0") == ("127.0.0.1", 0)
        assert _address("[::1]:7180") == ("::1", 7180)
        for wrong in ("7180", "edge-1:7180", "127.0.0.1", "127.0.0.1:70000", "127.0.0.1:x", ":7180"):
            with pytest.raises(IntentsError, match="--listen"):
                _address(wrong)

    def test_files_that_cannot_be_read_end_it_with_one_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        import typer

        from intents.service import guard as command

        monkeypatch.setitem(os.environ, "XDG_STATE_HOME", str(tmp_path))
        app = typer.Typer()
        app.command()(command)
        result = CliRunner().invoke(app, ["--inventory", str(tmp_path / "none.yaml")])
        assert result.exit_code == 1
        assert result.output.startswith("midstream: ")
        assert "none.yaml" in result.output
