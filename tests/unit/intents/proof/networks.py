"""Small networks with hand-made flow rules: what the tests of the proof look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intents.model.addressing import addressing
from intents.model.intent import IntentMetadata, IntentSpec, PrivacyIntent
from intents.model.inventory import Inventory, Link, Node, Switch, Workload
from intents.model.labels import DATA, JURISDICTION, TRUST
from intents.model.predicate import term
from intents.proof.checker import Observed

if TYPE_CHECKING:
    from collections.abc import Sequence

HEALTH = term(DATA, "health")
NOT_US = term(JURISDICTION, "US", op="not_in")

# A diamond: s1 to s4 by s2 (in the EU) or by s3 (in the US).
DIAMOND = Inventory(
    nodes=(
        Node(name="n1", switch="s1", labels={JURISDICTION: "DE", TRUST: "trusted"}),
        Node(name="n2", switch="s4", labels={JURISDICTION: "FR", TRUST: "trusted"}),
        Node(name="n3", switch="s3", labels={JURISDICTION: "US"}),
    ),
    workloads=(
        Workload(name="chat", node="n1", labels={DATA: "health"}),
        Workload(name="store", node="n2", labels={DATA: "public"}),
    ),
    switches=(
        Switch(name="s1", labels={JURISDICTION: "DE"}),
        Switch(name="s2", labels={JURISDICTION: "NL"}),
        Switch(name="s3", labels={JURISDICTION: "US"}),
        Switch(name="s4", labels={JURISDICTION: "FR"}),
    ),
    links=(
        Link(a="s1", b="s2", latency_ms=5),
        Link(a="s2", b="s4", latency_ms=5),
        Link(a="s1", b="s3", latency_ms=1),
        Link(a="s3", b="s4", latency_ms=1, bandwidth_mbps=10),
    ),
)


def intent(name: str = "i", **rules: Any) -> PrivacyIntent:
    spec = IntentSpec(**({"subjects": HEALTH} | rules))
    return PrivacyIntent(metadata=IntentMetadata(name=name), specs=(spec,))


def rule(
    inventory: Inventory,
    switch: str,
    source: str | None,
    target: str | None,
    *ports: int,
    priority: int = 100,
    **more: Any,
) -> dict[str, Any]:
    """Return a flow rule; source and target are workloads or nodes, or None for any."""
    criteria: list[dict[str, Any]] = [{"type": "ETH_TYPE", "ethType": "0x0800"}]
    for kind, name in (("IPV4_SRC", source), ("IPV4_DST", target)):
        if name is not None:
            criteria.append({"type": kind, "ip": f"{address(inventory, name)}/32"})
    return {
        "deviceId": addressing(inventory).device[switch],
        "priority": priority,
        "isPermanent": True,
        "timeout": 0,
        "selector": {"criteria": [*criteria, *more.get("criteria", [])]},
        "treatment": {"instructions": more.get("instructions", [{"type": "OUTPUT", "port": port} for port in ports])},
    }


def address(inventory: Inventory, name: str) -> str:
    given = addressing(inventory)
    return given.workload_ip[name] if name in given.workload_ip else given.node_ip[name]


def port(inventory: Inventory, switch: str, towards: str) -> int:
    """Return the port of a switch that leads to a node or to the switch next to it."""
    given = addressing(inventory)
    if towards in inventory.node:
        return given.node_port[towards]
    index = next(index for index, link in enumerate(inventory.links) if {link.a, link.b} == {switch, towards})
    return given.towards(inventory, index, switch)


def way(inventory: Inventory, source: str, target: str, path: Sequence[str], node: str) -> list[dict[str, Any]]:
    """Return the flow rules that carry packets along a path of switches to a node."""
    return [
        rule(inventory, switch, source, target, port(inventory, switch, following))
        for switch, following in zip(path, [*path[1:], node], strict=True)
    ]


def both_ways(inventory: Inventory, path: Sequence[str]) -> list[dict[str, Any]]:
    """Return the flow rules between chat on n1 and store on n2."""
    there = way(inventory, "chat", "store", path, "n2")
    return there + way(inventory, "store", "chat", list(reversed(path)), "n1")


def observed(inventory: Inventory, flows: Sequence[dict[str, Any]] = (), **changes: Any) -> Observed:
    """Return the state in which workloads run where the inventory says."""
    placement = {each.name: (each.node,) for each in inventory.workloads if each.node is not None}
    given = {"placement": placement, "flows": list(flows), "inventory": inventory, "version": inventory.version}
    return Observed(**(given | changes))
