"""Watching with a switch store in memory: what is installed there can be spoiled, and ports can go down."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from typer.testing import CliRunner

from intents import targets as targets_module
from intents.intent_commands import app
from intents.model.inventory import Inventory, read_inventory
from intents.proof.drift_loop import Clock, DriftLoop
from intents.store import IntentStore
from intents.targets import Targets
from intents.watching import Watched, with_live_links
from tests.unit.intents.test_intent_commands import INVENTORY

if TYPE_CHECKING:
    from intents.proof.drift import Violated

GERMAN = "{{name: {}, labels: {{midstream.dev/jurisdiction: DE"
AMERICAN = "{{name: {}, labels: {{midstream.dev/jurisdiction: US"
WAY = "Traffic between triage and billing must never cross a US switch."


class Switches:
    """A store of flow rules that tells of ports, in place of the OpenFlow controller."""

    rules: ClassVar[list[dict[str, Any]]] = []
    up: ClassVar[dict[str, dict[int, bool]]] = {}
    happened: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, _: str) -> None:
        pass

    def __enter__(self) -> "Switches":  # noqa: PYI034
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def apply(self, flows: Any) -> None:
        Switches.rules = [dict(rule) for rule in flows]

    def read(self) -> list[dict[str, Any]]:
        return list(Switches.rules)

    def switches(self) -> dict[str, dict[int, bool]]:
        return Switches.up

    def events(self, after: int, wait_s: float) -> list[dict[str, Any]]:
        return [each for each in Switches.happened if each["number"] > after]


class Site:
    def __init__(self, folder: Path) -> None:
        self.inventory = folder / "inventory.yaml"
        self.inventory.write_text(Path(INVENTORY).read_text())
        self.state = folder / "state"
        self.told: list[Violated] = []

    def types(self, command: str, *words: str) -> Any:
        options = ("-i", str(self.inventory), "--state", str(self.state), "--openflow", "/nowhere")
        return CliRunner().invoke(app, [command, *options, *words])

    def watched(self) -> Watched:
        return Watched(self.inventory, IntentStore(self.state), Targets(openflow=Path("/nowhere")), self.told.append)

    def change(self, old: str, new: str) -> None:
        text = self.inventory.read_text()
        assert old in text
        self.inventory.write_text(text.replace(old, new).replace("version: 1", "version: 2"))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(targets_module, "OpenFlowStore", Switches)
    Switches.rules, Switches.up, Switches.happened = [], {}, []
    made = Site(tmp_path)
    assert made.types("apply", "--yes", "--name", "way", WAY).exit_code == 0
    return made


def forwarding() -> list[dict[str, Any]]:
    return [rule for rule in Switches.rules if rule["treatment"]["instructions"]]


def test_all_is_well_and_nothing_is_touched(site: Site):
    before = list(Switches.rules)
    told = site.types("watch", "--once")
    assert (told.exit_code, told.stdout) == (0, "")
    assert Switches.rules == before


def test_a_rule_that_is_gone_is_put_back_and_told(site: Site):
    before = sorted(map(str, Switches.rules))
    Switches.rules.remove(forwarding()[0])
    told = site.types("watch", "--once")
    assert told.exit_code == 0
    lines = [json.loads(line) for line in told.stdout.splitlines()]
    assert lines[0]["violated"] == "way"
    assert lines[-1]["settled"] == "re-established"
    assert sorted(map(str, Switches.rules)) == before


def test_a_switch_that_turns_american_is_avoided_and_without_another_way_all_is_cut_off(site: Site):
    site.change(GERMAN.format("s2"), "{name: s2, labels: {midstream.dev/jurisdiction: US")
    loop = DriftLoop(site.watched(), Clock(lambda: 0.0))
    loop.step()
    assert loop.settled[-1].how == "re-established"
    site.change(GERMAN.format("s4"), "{name: s4, labels: {midstream.dev/jurisdiction: US")
    loop.step()
    assert loop.settled[-1].how == "closed"
    assert forwarding() == []
    told = site.types("watch", "--once")
    assert told.exit_code == 2


def port_of(inventory: Inventory, a: str, b: str) -> tuple[str, int]:
    given = targets_module.Targets(openflow=Path("/nowhere")).observe(inventory).network.addresses
    index = next(index for index, link in enumerate(inventory.links) if {link.a, link.b} == {a, b})
    link = inventory.links[index]
    return given.device[link.a], given.link_ports[index][0]


def test_a_port_that_goes_down_takes_its_link_out_of_the_inventory(site: Site):
    inventory = read_inventory(site.inventory)
    device, port = port_of(inventory, "s1", "s2")
    live = with_live_links(inventory, {device: {port: False}})
    assert [link.name for link in live.links if not link.up] == ["s1-s2", "s3-s5"]
    assert live.version != inventory.version
    assert with_live_links(inventory, {device: {port: True}}) is inventory
    assert with_live_links(inventory, {}) is inventory


def test_packets_take_another_way_when_a_switch_tells_of_a_dead_port(site: Site):
    device, port = port_of(read_inventory(site.inventory), "s1", "s2")
    watched = site.watched()
    Switches.up = {device: {port: False}}
    Switches.happened = [{"number": 1, "kind": "port_down", "device": device, "port": port}]
    loop = DriftLoop(watched, Clock(lambda: 0.0))
    loop.step(watched.wait(0.0))
    assert [each.intent for each in site.told] == ["way"]
    assert loop.settled[-1].how == "re-established"
    assert watched.wait(0.0) == []


def test_an_inventory_that_cannot_be_read_proves_nothing(site: Site):
    site.inventory.write_text("nodes: [")
    told = site.types("watch", "--once")
    assert told.exit_code == 2
    assert forwarding() == []
