"""Watching with a switch store in memory: what is installed there can be spoiled, and ports can go down."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from typer.testing import CliRunner

from intents import targets as targets_module
from intents.errors import EnforcementError
from intents.intent_commands import app
from intents.live_midstream import (
    PIPELINE,
    Change,
    HeadAway,
    LayoutRefused,
    MidstreamSource,
    RunningPipeline,
)
from intents.model.intent import IntentMetadata, IntentSpec, PlacementRule, PrivacyIntent
from intents.model.inventory import Inventory, read_inventory
from intents.model.predicate import term
from intents.mover import Mover, Told
from intents.proof.drift import Phase
from intents.proof.drift_loop import Clock, DriftLoop
from intents.proof.observed import Observed
from intents.store import IntentStore
from intents.targets import Targets
from intents.watching import Watched, with_live_links
from loadgen.server import free_port
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


class Head:
    """A pipeline beside what the file has, its name the last of all: the others' derived addresses stay as they are."""

    def __init__(self) -> None:
        self.running = RunningPipeline(
            "zephyr", ("ward-1", "ward-2"), 1, layers=(15, 15), there=frozenset({"ward-1", "ward-2"})
        )
        self.asked: list[str] = []
        self.away = False
        self.refusal: Exception | None = None

    def read(self) -> RunningPipeline:
        if self.away:
            raise HeadAway("away")
        return self.running

    def ask_for(self, layers: str, key: str) -> Change:
        self.asked.append(layers)
        if self.refusal is not None:
            raise self.refusal
        stages = [stage.split("@") for stage in layers.split(",")]
        self.running = replace(
            self.running,
            nodes=tuple(node for _, node in stages),
            layers=tuple(int(count) for count, _ in stages),
            epoch=self.running.epoch + 1,
        )
        return Change(id="change-1", state="committed")

    def await_end(self, change: str) -> Change:
        raise AssertionError("the change had ended")


TRUSTED = PrivacyIntent(
    metadata=IntentMetadata(name="trusted"),
    specs=(
        IntentSpec(
            subjects=term(PIPELINE, "zephyr"), placement=(PlacementRule(nodes=term("midstream.dev/trust", "trusted")),)
        ),
    ),
)


class TestRunningPipeline:
    """Layers leave a node that is not trusted any more."""

    @pytest.fixture
    def head(self) -> Head:
        return Head()

    @pytest.fixture
    def loop(self, site: Site, head: Head) -> DriftLoop:
        site.change("midstream.dev/trust: certified", "midstream.dev/trust: trusted")  # ward-2
        IntentStore(site.state).put(TRUSTED)
        self.moves: list[Told] = []
        watched = site.watched()
        watched.ask_head = head.read
        watched.mover = Mover(head, lambda _: None, self.moves.append)
        ticks = itertools.count()
        return DriftLoop(watched, Clock(lambda: float(next(ticks))))

    def untrust(self, site: Site) -> None:
        text = site.inventory.read_text()
        first, second = text.split("name: ward-2", 1)
        second = second.replace("midstream.dev/trust: trusted", "midstream.dev/trust: untrusted", 1)
        site.inventory.write_text(f"{first}name: ward-2{second}")

    def test_layers_leave_and_the_time_until_then_is_measured(self, site: Site, head: Head, loop: DriftLoop):
        loop.step()
        assert (site.told, loop.settled, head.asked) == ([], [], [])
        self.untrust(site)
        loop.step()
        assert [each.intent for each in site.told] == ["trusted"]
        assert "zephyr-stage-1" in site.told[0].reason
        assert (head.asked, [each.what for each in self.moves]) == (["30@ward-1"], ["requested", "moved"])
        (settled,) = loop.settled
        assert (settled.how, 0 < settled.detect_s < settled.compliant_s) == ("re-established", True)
        loop.step()
        assert len(head.asked) == 1

    def test_layers_leave_even_if_routes_cannot_be_enforced(
        self, site: Site, head: Head, loop: DriftLoop, monkeypatch: pytest.MonkeyPatch
    ):
        def fail(*_: object) -> None:
            raise EnforcementError("s1 does not answer")

        monkeypatch.setattr(Targets, "restore", fail)
        self.untrust(site)
        loop.step()
        assert (head.asked, [each.what for each in self.moves]) == (["30@ward-1"], ["requested", "moved"])

    def test_what_cannot_be_moved_is_never_called_closed(self, site: Site, head: Head, loop: DriftLoop):
        head.refusal = LayoutRefused("the intents forbid it", "forbidden")
        self.untrust(site)
        for _ in range(3):
            loop.step()
        assert (loop.settled, loop.drift.phase, len(head.asked)) == ([], Phase.CLOSED, 1)
        assert [each.what for each in self.moves] == ["requested", "not moved"]
        head.refusal = None
        site.inventory.write_text(site.inventory.read_text().replace("version: 2", "version: 3"))
        loop.step()
        assert loop.settled[-1].how == "re-established"

    def test_stages_count_where_a_cluster_says_what_else_runs(
        self, site: Site, loop: DriftLoop, monkeypatch: pytest.MonkeyPatch
    ):
        def only_pods(_: Targets, inventory: Inventory) -> Observed:
            return Observed({}, (), inventory.model_copy(update={"workloads": ()}), inventory.version)

        monkeypatch.setattr(Targets, "observe", only_pods)
        placement = loop._world.observe().placement
        assert placement == {"zephyr-stage-0": ("ward-1",), "zephyr-stage-1": ("ward-2",)}

    def test_without_a_mover_it_is_only_told(self, site: Site, head: Head, loop: DriftLoop):
        watched = loop._world
        assert isinstance(watched, Watched)
        watched.mover = None
        self.untrust(site)
        loop.step()
        assert (head.asked, loop.settled, [each.intent for each in site.told]) == ([], [], ["trusted"])

    def test_a_head_that_is_away_moves_nothing_and_cuts_nothing_off(self, site: Site, head: Head, loop: DriftLoop):
        loop.step()
        before = forwarding()
        head.away = True
        loop.step()
        assert (loop.drift.phase, forwarding()) == (Phase.WATCHING, before)
        self.untrust(site)
        loop.step()
        assert [each.intent for each in site.told] == ["trusted"]  # the stages count where they were last


class TestCommands:
    """`--head` of `watch` and `check`."""

    @pytest.fixture
    def url(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> str:
        IntentStore(site.state).put(TRUSTED)  # ward-2 is certified, not trusted
        head = Head()
        monkeypatch.setattr(MidstreamSource, "read", lambda _: head.read())
        monkeypatch.setattr(MidstreamSource, "ask_for", lambda _, layers, key: head.ask_for(layers, key))
        return "http://127.0.0.1:1"

    def test_layers_are_moved_unless_told_otherwise_and_check_sees_them(self, site: Site, url: str):
        assert site.types("check").exit_code == 2  # the intent is about no workload of the file: nothing is proven
        checked = site.types("check", "--head", url, "--pipeline", "zephyr", "--json")
        assert (checked.exit_code, "zephyr-stage-1" in checked.stdout) == (2, True)
        only_told = site.types("watch", "--once", "--head", url, "--pipeline", "zephyr", "--no-move")
        assert (only_told.exit_code, "requested" in only_told.stdout) == (2, False)
        told = site.types("watch", "--once", "--head", url, "--pipeline", "zephyr")
        lines = [json.loads(line) for line in told.stdout.splitlines()]
        assert (told.exit_code, [next(iter(line)) for line in lines]) == (
            0,
            ["violated", "requested", "moved", "settled"],
        )
        assert (lines[1]["intents"], lines[1]["from"], lines[1]["to"]) == (
            ["trusted"],
            "15@ward-1,15@ward-2",
            "30@ward-1",
        )
        assert site.types("check", "--head", url, "--pipeline", "zephyr").exit_code == 0

    def test_a_broker_that_is_away_is_told_and_hinders_nothing(self, site: Site, url: str):
        broker = f"http://127.0.0.1:{free_port()}"
        told = site.types("watch", "--once", "--head", url, "--pipeline", "zephyr", "--broker", broker)
        (requested,) = [json.loads(line) for line in told.stdout.splitlines() if "requested" in line]
        assert told.exit_code == 0
        assert requested["why"].startswith(f"the event could not be published: {broker}")

    def test_what_is_no_name_of_a_pipeline_is_refused(self, site: Site, url: str):
        told = site.types("watch", "--once", "--head", url, "--pipeline", "Not A Name")
        assert (told.exit_code, "no name of a pipeline" in told.stderr) == (1, True)
