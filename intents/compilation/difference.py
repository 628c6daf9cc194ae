"""From what is enforced to what is to be, in an order in which nothing forbidden ever passes.

1. New drops, and guards: drops of the pairs whose old path may not be used any longer.
2. New and changed Kubernetes objects, those that refuse first.
3. New routes, each from its last switch to its first: a packet follows the old path up to the first switch that knows
   the new one, and the new path from there. Where the old path is still allowed nothing is interrupted.
4. Old routes are removed, from the first switch to the last.
5. Guards and drops that are no longer wanted, then Kubernetes objects.

An old path is still allowed if it is within the new intents. A changed path that is not is guarded, and so is one with
way points or a latency bound: half of the old path and half of the new might meet neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from intents.compilation.judging import Judge
from intents.compilation.kubernetes import is_fragment
from intents.compilation.onos import CUT_OFF, ROUTE
from intents.compilation.problem import Problem
from intents.model.addressing import addressing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intents.compilation.compiled import Compiled, Route
    from intents.compilation.paths import Limits
    from intents.model.intent import PrivacyIntent
    from intents.model.inventory import Inventory

GUARD = CUT_OFF + 100

Addresses = tuple[str, str]
"""Source and destination that a flow rule matches (empty: any)."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do: `add` also replaces a rule with the same match, or an object with the same name.

    To `remove` a fragment means to apply it again: it has nothing left but metadata.
    """

    action: Literal["add", "remove"]
    what: Literal["flow", "manifest"]
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Enforced:
    """What is (or is to be) enforced, and the inventory that it was compiled for."""

    inventory: Inventory
    compiled: Compiled


def difference(old: Enforced, new: Enforced, intents: Sequence[PrivacyIntent]) -> tuple[Step, ...]:
    """Return the steps from `old` to `new`, where `intents` are those that `new` was compiled from."""
    before = {flow_key(rule): rule for rule in old.compiled.flows}
    after = {flow_key(rule): rule for rule in new.compiled.flows}
    added = [rule for key, rule in after.items() if before.get(key) != rule]
    removed = [rule for key, rule in before.items() if key not in after]
    used: dict[Addresses, list[Mapping[str, Any]]] = {}
    for rule in before.values():
        if not is_drop(rule):
            used.setdefault(addresses(rule), []).append(rule)
    changing = {addresses(rule) for rule in (*added, *removed) if not is_drop(rule)} & used.keys()
    allowed = _still_allowed(old, new.inventory, intents)
    guards = [_guard(rule) for pair in sorted(changing - allowed) for rule in used[pair]]
    at = _positions(new)
    forward = sorted((rule for rule in added if not is_drop(rule)), key=lambda rule: -at[flow_key(rule)])
    at_old = _positions(old)
    backward = sorted((rule for rule in removed if not is_drop(rule)), key=lambda rule: at_old[flow_key(rule)])
    return (
        *(Step("add", "flow", rule) for rule in added if is_drop(rule)),
        *(Step("add", "flow", guard) for guard in guards),
        *_objects_added(old.compiled, new.compiled),
        *(Step("add", "flow", rule) for rule in forward),
        *(Step("remove", "flow", rule) for rule in backward),
        *(Step("remove", "flow", guard) for guard in guards),
        *(Step("remove", "flow", rule) for rule in removed if is_drop(rule)),
        *_objects_removed(old.compiled, new.compiled),
    )


def _still_allowed(old: Enforced, inventory: Inventory, intents: Sequence[PrivacyIntent]) -> set[Addresses]:
    """Addresses of the old routes that are within the intents, in the inventory of today."""
    problem = Problem(inventory, intents, Judge(inventory))
    limits = {
        (source.name, target.name): problem.limits(rules)
        for (source, target), rules in problem.pairs(problem.hard).items()
    }
    ip = _addresses_by_name(old.inventory)
    return {
        (ip[route.source], ip[route.target])
        for route in old.compiled.routes
        if route.source in ip
        and route.target in ip
        and _usable(route, limits.get((route.source, route.target)), old.inventory, inventory)
    }


def _addresses_by_name(inventory: Inventory) -> dict[str, str]:
    """Addresses of workloads and nodes, without the names that a workload and a node have in common."""
    found = addressing(inventory)
    common = found.node_ip.keys() & found.workload_ip.keys()
    return {name: ip for name, ip in (*found.node_ip.items(), *found.workload_ip.items()) if name not in common}


def _usable(route: Route, limits: Limits | None, old: Inventory, new: Inventory) -> bool:
    if limits is None or limits.through or limits.latency is not None:
        return False
    if limits.switches is not None and not limits.switches.issuperset(route.path):
        return False
    return all(
        any(
            link == old.links[number] and link.up and (limits.links is None or position in limits.links)
            for position, link in enumerate(new.links)
        )
        for number in route.links
    )


def flow_key(rule: Mapping[str, Any]) -> tuple[str, int, int, Addresses]:
    """Return what a switch tells rules apart by: of two rules with one key the later replaces the earlier."""
    return rule["deviceId"], rule["tableId"], rule["priority"], addresses(rule)


def addresses(rule: Mapping[str, Any]) -> Addresses:
    """Return the source and destination that a rule matches."""
    found = {each["type"]: each["ip"].partition("/")[0] for each in rule["selector"]["criteria"] if "ip" in each}
    return found.get("IPV4_SRC", ""), found.get("IPV4_DST", "")


def is_drop(rule: Mapping[str, Any]) -> bool:
    """Whether a rule drops what it matches."""
    return not rule["treatment"]["instructions"]


def _guard(rule: Mapping[str, Any]) -> dict[str, Any]:
    """Return a drop that beats this rule."""
    return {**rule, "priority": GUARD, "treatment": {"instructions": []}}


def _positions(state: Enforced) -> dict[tuple[str, int, int, Addresses], int]:
    """How far along its route each forwarding rule stands."""
    addressed = addressing(state.inventory)
    found = {}
    for route in state.compiled.routes:
        sources = {ips[route.source] for ips in (addressed.workload_ip, addressed.node_ip) if route.source in ips}
        targets = {ips[route.target] for ips in (addressed.workload_ip, addressed.node_ip) if route.target in ips}
        for pair in product(sources, targets):
            for position, switch in enumerate(route.path):
                found[addressed.device[switch], 0, ROUTE, pair] = position
    return found


def _objects_added(old: Compiled, new: Compiled) -> list[Step]:
    before = {_object_key(each): each for each in old.kubernetes}
    return [Step("add", "manifest", each) for each in new.kubernetes if before.get(_object_key(each)) != each]


def _objects_removed(old: Compiled, new: Compiled) -> list[Step]:
    kept = {_object_key(each) for each in new.kubernetes}
    gone = [each for each in reversed(old.kubernetes) if _object_key(each) not in kept]
    bare = ("apiVersion", "kind", "metadata")
    return [
        Step("remove", "manifest", {key: each[key] for key in bare} if is_fragment(each) else each) for each in gone
    ]


def _object_key(manifest: Mapping[str, Any]) -> tuple[str, str, str]:
    return manifest["kind"], manifest["metadata"].get("namespace", ""), manifest["metadata"]["name"]
