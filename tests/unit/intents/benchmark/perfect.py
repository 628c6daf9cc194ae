"""A plan that does exactly what a case expects, found by trying; it knows expectations and inventory, no translator."""

from itertools import islice, product
from typing import Any

import networkx as nx

from intents.benchmark.cases import EVERY_OTHER, Case, Expectation
from intents.benchmark.judge import TOPOLOGY_LABEL
from intents.benchmark.network import Network
from intents.model.inventory import Inventory
from intents.model.predicate import Predicate, named

MOST_PLACEMENTS = 2000


def refused(kind: str, message: str = "no") -> dict[str, Any]:
    return {"outcome": "refused", "reason": {"kind": kind, "message": message}}


def perfect_plan(case: Case, inventory: Inventory) -> dict[str, Any]:
    """Return the plan that the case expects; fail if there is none."""
    if case.expect.outcome == "refused":
        return refused(case.expect.kinds[0])
    for nodes in islice(_placements(case, inventory), MOST_PLACEMENTS):
        if _spread(case.expect, inventory, nodes):
            plan = _plan(case, inventory, nodes)
            if plan is not None:
                return plan
    raise AssertionError(f"{case.id}: no placement and paths meet what is expected")


def _placements(case: Case, inventory: Inventory):
    """Yield the nodes of all workloads: first as they are, then with ever more of those that are subjects moved."""
    expect = case.expect
    movable = dict.fromkeys(expect.placement)
    movable |= dict.fromkeys(name for route in expect.routes for name in route.source if name not in movable)
    movable |= dict.fromkeys(name for each in (*expect.apart, *expect.together) for name in each.workloads)
    movable |= dict.fromkeys(name for each in expect.at_least for name in each.workloads)
    movable |= dict.fromkeys(name for name in expect.unjudged)
    choices = []
    for name in movable:
        allowed = expect.prefers.get(name) or expect.placement.get(name) or tuple(inventory.node)
        current = inventory.workload[name].node
        choices.append([*([current] if current in allowed else []), *(node for node in allowed if node != current)])
    where = {workload.name: workload.node for workload in inventory.workloads}
    for chosen in product(*choices):
        yield where | dict(zip(movable, chosen, strict=True))


def _spread(expect: Expectation, inventory: Inventory, nodes: dict[str, str | None]) -> bool:
    def value(workload: str, topology: str) -> str | None:
        node = nodes[workload]
        return node if topology == "node" or node is None else inventory.node[node].labels.get(TOPOLOGY_LABEL[topology])

    counts = all(sum(nodes[w] in each.nodes for w in each.workloads) >= each.count for each in expect.at_least)
    apart = all(
        value(a, e.topology) != value(b, e.topology) for e in expect.apart for a in e.workloads for b in e.others
    )
    return (
        counts
        and apart
        and all(
            value(a, e.topology) == value(b, e.topology) for e in expect.together for a in e.workloads for b in e.others
        )
    )


def _plan(case: Case, inventory: Inventory, nodes: dict[str, str | None]) -> dict[str, Any] | None:
    expect, network = case.expect, Network(inventory)
    routes, cut_off = {}, set(expect.blocked)
    wanted: dict[tuple[str, str], list[tuple[Any, bool]]] = {}
    for rule in expect.routes:
        everyone = rule.target == (EVERY_OTHER,)
        for source in rule.source:
            for target in inventory.workload if everyone else rule.target:
                if source == target or (everyone and None in (nodes[source], nodes[target])):
                    continue
                for pair in [(source, target), (target, source)][: 1 + rule.both]:
                    wanted.setdefault(pair, []).append((rule, everyone))
    for pair, rules in wanted.items():
        if pair in cut_off:
            continue
        limits = [rule for rule, _ in rules]
        path = _path(inventory, network, *(nodes.get(name, name) for name in pair), limits)
        if path is not None:
            routes[pair] = path
        elif all(everyone for _, everyone in rules):
            cut_off.add(pair)
        else:
            return None
    for rule in expect.routes:  # what is preferred
        if rule.prefer_path is not None:
            routes[rule.source[0], rule.target[0]] = list(rule.prefer_path)
    return {
        "outcome": "ok",
        "reason": None,
        "intent": {"specs": [_transfer_spec(name, each) for name, each in expect.transfer.items()]},
        "placement": {
            name: {"allowed_nodes": list(allowed), "node": nodes[name]}
            for name, allowed in ({name: tuple(inventory.node) for name in nodes} | expect.placement).items()
        },
        "routes": [{"from": a, "to": b, "path": path} for (a, b), path in sorted(routes.items())],
        "blocked": [list(pair) for pair in sorted(cut_off)],
        "checks": [{"rule": "made up", "holds": True}],
        "tokens": 0,
    }


def _path(inventory: Inventory, network: Network, start: str, end: str, limits: list[Any]) -> list[str] | None:
    if start == end:
        return []
    graph = nx.Graph([(link.a, link.b) for link in inventory.links if link.up])
    first, last = inventory.node[start].switch, inventory.node[end].switch
    paths = [[first]] if first == last else sorted(nx.all_simple_paths(graph, first, last), key=len)
    return next((path for path in paths if not any(network.faults(path, rule) for rule in limits)), None)


def _transfer_spec(name: str, expected: Any) -> dict[str, Any]:
    def only(names: tuple[str, ...] | None) -> dict[str, Any] | None:
        return None if names is None else named(*names).model_dump(mode="json")

    rule = {"state": list(expected.state), "forbidden": expected.forbidden}
    rule |= {"nodes": only(expected.nodes), "switches": only(expected.switches)}
    return {"subjects": Predicate.model_validate(named(name)).model_dump(mode="json"), "transfer": [rule]}
