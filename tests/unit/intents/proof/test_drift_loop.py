"""The drift loop on a pretended world: labels, links, pods, rules and nodes change, and it re-establishes or closes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import networkx as nx

from intents.errors import EnforcementError
from intents.model.addressing import addressing
from intents.model.intent import PlacementRule, RouteRule
from intents.model.inventory import Inventory
from intents.model.labels import JURISDICTION
from intents.model.predicate import named
from intents.proof.checker import Observed, check
from intents.proof.closing import flows_that_stay, workloads_to_evict
from intents.proof.drift import Changed, ChangeKind, Phase, Violated
from intents.proof.drift_loop import Clock, DriftLoop
from tests.unit.intents.proof.networks import DIAMOND, NOT_US, both_ways, intent, observed, rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intents.model.intent import PrivacyIntent
    from intents.proof.report import Check

ROUTES = intent("routes", routes=(RouteRule(peers=named("store"), switches=NOT_US),))
IN_EU = intent("place", placement=(PlacementRule(nodes=NOT_US),))


@dataclass
class PretendedWorld:
    """The diamond; planning routes along allowed switches, closing takes flows and pods away. Each effect takes 1 s."""

    inventory: Inventory = DIAMOND
    now_s: float = 0.0
    flows: list[dict[str, Any]] = field(default_factory=lambda: both_ways(DIAMOND, ["s1", "s2", "s4"]))
    placement: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"chat": ("n1",), "store": ("n2",)})
    told: list[Violated] = field(default_factory=list)
    broken: str | None = None
    done: list[str] = field(default_factory=list)

    def intents(self) -> Sequence[PrivacyIntent]:
        return [ROUTES, IN_EU]

    def observe(self) -> Observed:
        self._spend("observe")
        return Observed(self.placement, list(self.flows), self.inventory, self.inventory.version)

    def replan(self) -> bool:
        self._spend("replan")
        allowed = {name for name, each in self.inventory.switch.items() if each.labels.get(JURISDICTION, "US") != "US"}
        links = [each for each in self.inventory.links if each.up and {each.a, each.b} <= allowed]
        graph = nx.Graph((each.a, each.b) for each in links)
        if not ({"s1", "s4"} <= set(graph) and nx.has_path(graph, "s1", "s4")) or "n1" not in self.inventory.node:
            return False
        self.flows = both_ways(self.inventory, nx.shortest_path(graph, "s1", "s4"))
        self.placement = {"chat": ("n1",), "store": ("n2",)}
        return True

    def close(self, checks: Sequence[Check]) -> None:
        self._spend("close")
        given = addressing(self.inventory)
        self.flows = flows_that_stay(checks, given.ip, self.flows)
        for name in workloads_to_evict(checks, self.placement):
            del self.placement[name]

    def violated(self, violated: Violated) -> None:
        self.told.append(violated)

    def _spend(self, what: str) -> None:
        self.now_s += 1.0
        self.done.append(what)
        if self.broken == what:
            raise EnforcementError(f"cannot {what}")

    def change(self, **of: object) -> None:
        version = str(int(self.inventory.version) + 1)
        update = {**self.inventory.model_dump(), "version": version, **of}
        self.inventory = Inventory.model_validate(update)


def loop_of(world: PretendedWorld) -> DriftLoop:
    loop = DriftLoop(world, Clock(lambda: world.now_s))
    loop.step()
    assert loop.drift.phase is Phase.WATCHING
    world.done.clear()
    return loop


def report(world: PretendedWorld):
    return check(world.intents(), Observed(world.placement, world.flows, world.inventory, world.inventory.version))


def links(**down: bool) -> list[dict[str, Any]]:
    return [
        each.model_copy(update={"up": not down.get(each.name.replace("-", "_"), False)}).model_dump()
        for each in DIAMOND.links
    ]


def test_a_deleted_rule_is_put_back():
    world = PretendedWorld()
    loop = loop_of(world)
    del world.flows[0]
    loop.step([Changed(world.now_s, ChangeKind.RULE_CHANGED, "s1")])
    assert report(world).holds
    assert [each.intent for each in world.told] == ["routes"]
    assert (loop.settled[0].how, loop.settled[0].detect_s, loop.settled[0].compliant_s) == ("re-established", 1.0, 3.0)


def test_a_pod_that_moved_into_the_us_is_evicted_before_anything_is_planned():
    world = PretendedWorld()
    loop = loop_of(world)
    world.placement["chat"] = ("n3",)
    loop.step([Changed(world.now_s, ChangeKind.POD_MOVED, "chat")])
    assert world.done == ["observe", "close", "replan", "observe"]
    assert report(world).holds
    assert {each.intent for each in world.told} == {"routes", "place"}


def test_a_link_that_fails_without_another_way_closes():
    world = PretendedWorld()
    loop = loop_of(world)
    world.change(links=links(s2_s4=True))
    loop.step([Changed(world.now_s, ChangeKind.LINK_FAILED, "s2-s4")])
    assert loop.settled[0].how == "closed"
    assert world.flows == []
    assert report(world).safe
    world.change(links=links())
    loop.step([Changed(world.now_s, ChangeKind.LINK_RESTORED, "s2-s4")])
    assert loop.settled[1].how == "re-established"
    assert report(world).holds


def test_a_label_that_changes_under_a_route_closes_it_at_once():
    world = PretendedWorld()
    loop = loop_of(world)
    switches = [each.model_dump() for each in DIAMOND.switches]
    switches[1]["labels"] = {JURISDICTION: "US"}
    world.change(switches=switches)
    loop.step([Changed(world.now_s, ChangeKind.LABELS_CHANGED, "s2")])
    assert world.done[:2] == ["observe", "close"]
    assert report(world).safe
    assert loop.drift.phase is Phase.CLOSED


def test_a_node_that_goes_away_closes():
    world = PretendedWorld()
    loop = loop_of(world)
    world.change(
        nodes=[each.model_dump() for each in DIAMOND.nodes if each.name != "n1"],
        workloads=[each.model_dump() | {"node": None} for each in DIAMOND.workloads],
    )
    loop.step([Changed(world.now_s, ChangeKind.NODE_GONE, "n1")])
    assert loop.settled[0].how == "closed"
    assert world.flows == []


def test_a_state_that_cannot_be_read_is_closed():
    world = PretendedWorld()
    loop = loop_of(world)
    world.broken = "observe"
    loop.step()
    assert loop.drift.phase is Phase.CLOSED
    assert world.flows == []


def test_a_plan_that_cannot_be_applied_is_tried_again_then_closed():
    world = PretendedWorld(broken="replan")
    loop = loop_of(world)
    del world.flows[0]
    loop.step()
    assert world.done == ["observe", "replan", "replan", "replan", "close", "observe"]
    assert loop.settled[0].how == "closed"
    assert world.flows == []


def test_nothing_is_done_while_everything_holds():
    world = PretendedWorld()
    loop = loop_of(world)
    loop.step()
    loop.step([Changed(world.now_s, ChangeKind.POD_MOVED, "other")])
    assert world.done == ["observe", "observe"]
    assert loop.settled == []


def test_it_runs_until_it_is_stopped():
    world = PretendedWorld()
    loop = loop_of(world)
    waits = iter([[], [], [Changed(0.0, ChangeKind.POD_MOVED, "x")]])
    left = [3]

    def stopped() -> bool:
        left[0] -= 1
        return left[0] < 0

    loop.run(lambda: next(waits), stopped)
    assert world.done == ["observe"] * 3


ADDRESSES = {"chat": "10.128.0.1", "store": "10.128.0.2"}


class TestClosing:
    def failed(self, flows: list[dict[str, Any]], asked: PrivacyIntent = ROUTES) -> list[Check]:
        return list(check([asked], observed(DIAMOND, flows)).failures)

    def test_only_flows_of_the_failed_pair_go(self):
        us_way = both_ways(DIAMOND, ["s1", "s3", "s4"])
        other = rule(DIAMOND, "s1", "n1", "n2", 2)
        drop = rule(DIAMOND, "s1", "chat", None, priority=1)
        assert flows_that_stay(self.failed(us_way), ADDRESSES, [*us_way, other, drop]) == [other, drop]

    def test_a_flow_that_leaves_an_end_open_goes_too(self):
        us_way = both_ways(DIAMOND, ["s1", "s3", "s4"])
        wide = rule(DIAMOND, "s2", None, "n2", 2)
        assert flows_that_stay(self.failed(us_way), ADDRESSES, [wide]) == []

    def test_a_state_in_doubt_closes_everything(self):
        other = rule(DIAMOND, "s1", "n1", "n2", 2)
        stale = check([ROUTES], observed(DIAMOND, [other], version="0")).failures
        assert flows_that_stay(stale, ADDRESSES, [other]) == []

    def test_replicas_go_only_for_placement(self):
        moved = check([IN_EU], observed(DIAMOND, placement={"chat": ("n3",)})).failures
        assert workloads_to_evict(moved, ["chat", "store"]) == ["chat"]
        assert flows_that_stay(moved, ADDRESSES, both_ways(DIAMOND, ["s1", "s2", "s4"])) != []
        assert workloads_to_evict(self.failed([]), ["chat", "store"]) == []
