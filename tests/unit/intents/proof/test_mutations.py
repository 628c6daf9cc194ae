"""Random networks, correct flow rules, and one change to them: what the change does is told by a naive reference.

The reference looks at every rule of the list for every packet, knows no index, no cell of addresses and no cache, and
was written for these tests alone. The checker must agree with it, about correct states and about broken ones.
"""

from __future__ import annotations

import copy
import ipaddress
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from intents.model.addressing import addressing
from intents.model.intent import IsolationRule, PlacementRule, RouteRule
from intents.model.inventory import Inventory, Link, Node, Switch, Workload
from intents.model.labels import DATA, JURISDICTION
from intents.model.predicate import named
from intents.proof.checker import check
from tests.unit.intents.proof.networks import NOT_US, address, intent, observed, rule, way

SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


@dataclass
class Seen:
    """What can happen to a packet, found the slow way."""

    switches: set[str] = field(default_factory=set)
    nodes: set[str] = field(default_factory=set)
    loops: bool = False


def naive_walk(inventory: Inventory, flows: list[dict], source: str, target: str, node: str, seen: Seen) -> bool:
    """Fill `seen`; return whether a copy arrives at a node where the target runs, whatever rule is taken."""
    given_ = addressing(inventory)
    goal = inventory.workload[target].node
    packet = {"IPV4_SRC": address(inventory, source), "IPV4_DST": address(inventory, target)}

    def matches(flow: dict, in_port: int) -> bool:
        for criterion in flow["selector"]["criteria"]:
            kind = criterion["type"]
            if kind in packet and ipaddress.ip_address(packet[kind]) not in ipaddress.ip_network(criterion["ip"]):
                return False
            if kind == "IN_PORT" and int(criterion["port"]) != in_port:
                return False
        return True

    def enter(switch: str, in_port: int, path: list[tuple[str, int]]) -> bool:
        if path:
            seen.switches.add(switch)
        if (switch, in_port) in path:
            seen.loops = True
            return False
        mine = [f for f in flows if f["deviceId"] == given_.device[switch] and matches(f, in_port)]
        best = [f for f in mine if f["priority"] == max(each["priority"] for each in mine)]
        leaves = [leave(switch, flow, in_port, [*path, (switch, in_port)]) for flow in best]
        return bool(best) and all(leaves)

    def leave(switch: str, flow: dict, in_port: int, path: list[tuple[str, int]]) -> bool:
        arrived = False
        for port in {int(each["port"]) for each in flow["treatment"].get("instructions", ())} - {in_port}:
            for each in inventory.nodes:
                if each.switch == switch and given_.node_port[each.name] == port:
                    seen.switches.add(switch)
                    seen.nodes.add(each.name)
                    arrived |= each.name == goal
            for index, link in enumerate(inventory.links):
                for end, other, own, far in (
                    (link.a, link.b, *given_.link_ports[index]),
                    (link.b, link.a, *reversed(given_.link_ports[index])),
                ):
                    if end == switch and own == port and link.up:
                        seen.switches.add(switch)
                        arrived |= enter(other, far, path)
        return arrived

    return enter(str(inventory.node[node].switch), given_.node_port[node], [])


def naive_verdict(inventory: Inventory, flows: list[dict], pairs: list[tuple[str, str]]) -> tuple[bool, bool]:
    """Return whether "chat and its peers are connected, and no packet enters a US switch" holds, and is safe.

    A switch without a jurisdiction counts as one in the US.
    """
    holds = safe = True
    for source, target in pairs:
        start, goal = inventory.workload[source].node, inventory.workload[target].node
        if start == goal:
            continue
        seen = Seen()
        arrives = naive_walk(inventory, flows, source, target, str(start), seen)
        allowed = {each.name for each in inventory.switches if each.labels.get(JURISDICTION, "US") != "US"}
        clean = seen.switches <= allowed and seen.nodes <= {goal}
        safe &= clean
        holds &= clean and arrives and not seen.loops
    return holds, safe


@st.composite
def networks(draw: st.DrawFn) -> Inventory:
    """Two to five switches with a node each, links between them, some in the US, some with no label, some down."""
    count = draw(st.integers(2, 5))
    places = st.sampled_from([{JURISDICTION: "DE"}, {JURISDICTION: "DE"}, {JURISDICTION: "US"}, {}])
    switches = tuple(Switch(name=f"s{n}", labels=draw(places)) for n in range(count))
    nodes = tuple(Node(name=f"n{n}", switch=f"s{n}") for n in range(count))
    ends = [(a, b) for a in range(count) for b in range(a + 1, count)]
    chosen = draw(st.lists(st.sampled_from(ends), min_size=1, max_size=8))  # some twice: parallel links
    links = tuple(Link(a=f"s{a}", b=f"s{b}", up=draw(st.integers(0, 7)) > 0) for a, b in chosen)
    where = st.sampled_from([each.name for each in nodes])
    workloads = (
        Workload(name="chat", node=draw(where), labels={DATA: "health"}),
        Workload(name="peer-0", node=draw(where)),
        Workload(name="peer-1", node=draw(where)),
    )
    return Inventory(nodes=nodes, workloads=workloads, switches=switches, links=links)


PAIRS = [pair for peer in ("peer-0", "peer-1") for pair in (("chat", peer), (peer, "chat"))]
ROUTES = RouteRule(peers=named("peer-0", "peer-1"), switches=NOT_US)


def correct_flows(inventory: Inventory) -> list[dict[str, Any]] | None:
    """Route all pairs outside the US; None: there is no way."""
    allowed = {each.name for each in inventory.switches if each.labels.get(JURISDICTION, "US") != "US"}
    graph = nx.MultiGraph()
    graph.add_nodes_from(allowed)
    first: dict[frozenset[str], Link] = {}
    for link in inventory.links:  # the rules of `way` take the first of parallel links
        first.setdefault(frozenset((link.a, link.b)), link)
    graph.add_edges_from((each.a, each.b) for each in first.values() if each.up and {each.a, each.b} <= allowed)
    flows = []
    for source, target in PAIRS:
        start, goal = (inventory.workload[each].node for each in (source, target))
        ends = [str(inventory.node[str(each)].switch) for each in (start, goal)]
        if start == goal:
            continue
        if not set(ends) <= allowed or not nx.has_path(graph, *ends):
            return None
        flows += way(inventory, source, target, nx.shortest_path(graph, *ends), str(goal))
    return flows


@st.composite
def mutated(draw: st.DrawFn, inventory: Inventory, flows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One change: a rule removed, its port, priority, addresses or device altered, a copy added, a rival beside it."""
    changed = copy.deepcopy(flows)
    index = draw(st.integers(0, len(changed) - 1))
    flow = changed[index]
    ports = st.integers(1, 6)
    match draw(
        st.sampled_from(["remove", "port", "copy", "drop", "priority", "source", "device", "rival", "wildcard"])
    ):
        case "remove":
            del changed[index]
        case "port":
            flow["treatment"]["instructions"] = [{"type": "OUTPUT", "port": draw(ports)}]
        case "copy":
            flow["treatment"].setdefault("instructions", []).append({"type": "OUTPUT", "port": draw(ports)})
        case "drop":
            flow["treatment"]["instructions"] = []
        case "priority":
            rival = copy.deepcopy(flow)
            rival["treatment"]["instructions"] = [{"type": "OUTPUT", "port": draw(ports)}]
            flow["priority"] = draw(st.integers(0, 200))
            changed.append(rival)
        case "source":
            flow["selector"]["criteria"][1]["ip"] = draw(
                st.sampled_from(["10.128.0.0/9", "10.128.0.9/32", "0.0.0.0/0"])
            )
        case "device":
            flow["deviceId"] = draw(st.sampled_from(sorted(addressing(inventory).device.values())))
        case "rival":
            rival = copy.deepcopy(flow)
            rival["treatment"]["instructions"] = [{"type": "OUTPUT", "port": draw(ports)}]
            changed.append(rival)
        case "wildcard":
            criteria = [{"type": "IN_PORT", "port": draw(ports)}] if draw(st.booleans()) else []
            name = draw(st.sampled_from([each.name for each in inventory.switches]))
            changed.append(
                rule(inventory, name, None, None, draw(ports), priority=draw(st.integers(99, 101)), criteria=criteria)
            )
    return changed


@SLOW
@given(data=st.data(), inventory=networks())
def test_whatever_one_changed_rule_does_to_packets_is_seen(data: st.DataObject, inventory: Inventory):
    flows = correct_flows(inventory)
    assume(flows)
    asked = [intent(routes=(ROUTES,))]
    assert check(asked, observed(inventory, flows)).holds
    changed = data.draw(mutated(inventory, flows))
    report = check(asked, observed(inventory, changed))
    assert (report.holds, report.safe) == naive_verdict(inventory, changed, PAIRS)


@st.composite
def any_flows(draw: st.DrawFn, inventory: Inventory) -> list[dict[str, Any]]:
    """Rules without any plan."""
    names = st.sampled_from([None, "chat", "peer-0", "peer-1"])
    flows = []
    for _ in range(draw(st.integers(0, 12))):
        switch = draw(st.sampled_from([each.name for each in inventory.switches]))
        ports = draw(st.lists(st.integers(1, 5), max_size=2))
        criteria = [{"type": "IN_PORT", "port": draw(st.integers(1, 5))}] if draw(st.integers(0, 3)) == 0 else []
        priority = draw(st.integers(1, 3))
        flows.append(rule(inventory, switch, draw(names), draw(names), *ports, priority=priority, criteria=criteria))
    return flows


@SLOW
@given(data=st.data(), inventory=networks())
def test_random_tables_are_judged_as_the_reference_judges_them(data: st.DataObject, inventory: Inventory):
    flows = data.draw(any_flows(inventory))
    report = check([intent(routes=(ROUTES,))], observed(inventory, flows))
    assert (report.holds, report.safe) == naive_verdict(inventory, flows, PAIRS)


@SLOW
@given(data=st.data(), inventory=networks())
def test_a_rule_about_anybody_is_never_milder_than_one_about_those_we_know(data: st.DataObject, inventory: Inventory):
    flows = data.draw(any_flows(inventory))
    known = check([intent(routes=(ROUTES,))], observed(inventory, flows))
    anybody = check([intent(routes=(RouteRule(switches=NOT_US),))], observed(inventory, flows))
    if any("and switch" in each.reason for each in known.failures):
        assert not anybody.safe


@SLOW
@given(data=st.data(), inventory=networks())
def test_isolation_fails_exactly_when_a_packet_arrives(data: st.DataObject, inventory: Inventory):
    flows = data.draw(any_flows(inventory))
    report = check([intent(isolation=(IsolationRule(peers=named("peer-0", "peer-1")),))], observed(inventory, flows))
    together = any(inventory.workload[a].node == inventory.workload[b].node for a, b in PAIRS)
    arrives = False
    for source, target in PAIRS:
        seen = Seen()
        naive_walk(inventory, flows, source, target, str(inventory.workload[source].node), seen)
        arrives |= inventory.workload[target].node in seen.nodes
    assert report.holds == (not together and not arrives)


@SLOW
@given(
    inventory=networks(),
    allowed=st.sets(st.sampled_from(["n0", "n1", "n2", "n3", "n4"]), min_size=1),
    where=st.lists(st.sampled_from(["n0", "n1", "n2", "n3", "n4", "gone"]), max_size=4),
)
def test_a_replica_anywhere_but_on_an_allowed_node_is_seen(inventory: Inventory, allowed: set[str], where: list[str]):
    asked = intent(placement=(PlacementRule(nodes=named(*sorted(allowed))),))
    report = check([asked], observed(inventory, placement={"chat": tuple(where)}))
    assert report.holds == (bool(where) and set(where) <= allowed & set(inventory.node))
