"""What the semantics say, naively: every placement and every simple path is tried. For small inventories only."""

from __future__ import annotations

from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

from intents.model import labels

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from intents.model.intent import IntentSpec, PrivacyIntent, RouteRule
    from intents.model.inventory import Inventory
    from intents.model.predicate import Predicate

KEYS = {
    "zone": labels.ZONE,
    "region": labels.REGION,
    "jurisdiction": labels.JURISDICTION,
    "provider": labels.PROVIDER,
}
End = tuple[str, str]  # kind, name
Path = tuple[tuple[str, ...], tuple[int, ...]]


def specs(intents: Sequence[PrivacyIntent]) -> list[IntentSpec]:
    return [spec for intent in intents for spec in intent.specs]


def meeting(predicate: Predicate, elements: Any) -> set[str]:
    return {each.name for each in elements if predicate.holds(each.name, each.labels) is True}


def movable(inventory: Inventory, intents: Sequence[PrivacyIntent]) -> list[str]:
    return sorted({name for spec in specs(intents) for name in meeting(spec.subjects, inventory.workloads)})


def placements(inventory: Inventory, names: Sequence[str]) -> Iterator[dict[str, str]]:
    fixed = {each.name: each.node for each in inventory.workloads if each.node and each.name not in names}
    for nodes in product(sorted(inventory.node), repeat=len(names)):
        yield {**fixed, **dict(zip(names, nodes, strict=True))}


def feasible(inventory: Inventory, intents: Sequence[PrivacyIntent], names: Sequence[str] | None = None) -> bool:
    names = movable(inventory, intents) if names is None else names
    return any(all_hold(inventory, intents, where) for where in placements(inventory, names))


def all_hold(inventory: Inventory, intents: Sequence[PrivacyIntent], where: Mapping[str, str]) -> bool:
    every = specs(intents)
    return (
        all(placement_holds(inventory, spec, where) and spread_holds(inventory, spec, where) for spec in every)
        and all(stays(inventory, spec, where) and off_isolated_nodes(inventory, spec, where) for spec in every)
        and routes_exist(inventory, every, where)
    )


def stays(inventory: Inventory, spec: IntentSpec, where: Mapping[str, str]) -> bool:
    pinned = any(rule.forbidden and {"prompts", "kv", "weights"} <= set(rule.state) for rule in spec.transfer)
    return not pinned or all(
        inventory.workload[name].node in {None, where[name]} for name in meeting(spec.subjects, inventory.workloads)
    )


def placement_holds(inventory: Inventory, spec: IntentSpec, where: Mapping[str, str]) -> bool:
    subjects = meeting(spec.subjects, inventory.workloads)
    for rule in spec.placement:
        met = sum(where[name] in meeting(rule.nodes, inventory.nodes) for name in subjects)
        if rule.strength == "required" and met < (len(subjects) if rule.at_least is None else rule.at_least):
            return False
    return True


def off_isolated_nodes(inventory: Inventory, spec: IntentSpec, where: Mapping[str, str]) -> bool:
    """What runs on a node talks to it."""
    subjects = meeting(spec.subjects, inventory.workloads)
    return not any(where[name] in meeting(rule.peers, inventory.nodes) for rule in spec.isolation for name in subjects)


def spread_holds(inventory: Inventory, spec: IntentSpec, where: Mapping[str, str]) -> bool:
    subjects = meeting(spec.subjects, inventory.workloads)

    def value(name: str, topology: str) -> str | None:
        node = inventory.node[where[name]]
        found = node.name if topology == "node" else node.labels.get(KEYS[topology])
        return labels.jurisdiction(found) if topology == "jurisdiction" and found else found

    for rule in spec.spread:
        if rule.strength != "required":
            continue
        others = {name for name in meeting(rule.others, inventory.workloads) if name in where}
        for one in subjects:
            if value(one, rule.topology) is None:
                return False
            for other in others - {one} if rule.relation == "apart" else (others | subjects) - {one}:
                a, b = value(one, rule.topology), value(other, rule.topology)
                if a is None or b is None or (a == b) != (rule.relation == "together"):
                    return False
    return True


def covered(inventory: Inventory, spec: IntentSpec, rule: RouteRule, where: Mapping[str, str]) -> set[tuple[End, End]]:
    """Ordered pairs that a rule is about."""
    subjects = {("workload", name) for name in meeting(spec.subjects, inventory.workloads)}
    peers = {("workload", name) for name in where} if rule.peers is None else ends(inventory, rule.peers)
    return directed(subjects, peers, rule.direction)


def ends(inventory: Inventory, predicate: Predicate) -> set[End]:
    found = {("workload", name) for name in meeting(predicate, inventory.workloads)}
    return found | {("node", name) for name in meeting(predicate, inventory.nodes)}


def directed(subjects: set[End], peers: set[End], direction: str) -> set[tuple[End, End]]:
    out = {(one, other) for one in subjects for other in peers if one != other}
    back = {(other, one) for one, other in out}
    return {"from_subjects": out, "to_subjects": back, "both": out | back}[direction]


def rules_about(
    inventory: Inventory, every: Sequence[IntentSpec], where: Mapping[str, str]
) -> dict[Any, list[RouteRule]]:
    found: dict[Any, list[RouteRule]] = {}
    named = {
        pair for spec in every for rule in spec.routes if rule.peers for pair in covered(inventory, spec, rule, where)
    }
    for spec in every:
        subjects = {("workload", name) for name in meeting(spec.subjects, inventory.workloads)}
        for rule in spec.routes:
            pairs = covered(inventory, spec, rule, where)
            if rule.peers is None:
                everybody = {end for pair in named for end in pair}
                pairs |= named & directed(subjects, everybody, rule.direction)
            for pair in pairs:
                found.setdefault(pair, []).append(rule)
    return found


def isolated(inventory: Inventory, every: Sequence[IntentSpec]) -> set[tuple[End, End]]:
    found: set[tuple[End, End]] = set()
    for spec in every:
        subjects = {("workload", name) for name in meeting(spec.subjects, inventory.workloads)}
        for rule in spec.isolation:
            found |= directed(subjects, ends(inventory, rule.peers), rule.direction)
    return found


def node_of(end: End, where: Mapping[str, str]) -> str | None:
    return end[1] if end[0] == "node" else where.get(end[1])


def paths_between(inventory: Inventory, one: str | None, other: str | None) -> list[Path]:
    """Every simple path between two nodes over links that are up."""
    if one is None or other is None:
        return []
    if one == other:
        return [((), ())]
    start, end = inventory.node[one].switch, inventory.node[other].switch
    if start is None or end is None:
        return []
    found: list[Path] = []

    def go(path: tuple[str, ...], links: tuple[int, ...]) -> None:
        if path[-1] == end:
            found.append((path, links))
            return
        for number, link in enumerate(inventory.links):
            if link.up and path[-1] in (link.a, link.b):
                to = link.b if path[-1] == link.a else link.a
                if to not in path:
                    go((*path, to), (*links, number))

    go((start,), ())
    return found


def path_meets(inventory: Inventory, rule: RouteRule, path: Path) -> bool:
    switches, links = path
    if not switches:
        return not rule.through
    for number, (a, b) in zip(links, pairwise(switches), strict=True):
        link = inventory.links[number]
        if not link.up or {a, b} != {link.a, link.b}:
            return False
        known = (inventory.switch[link.a].labels, inventory.switch[link.b].labels)
        if rule.links is not None and rule.links.holds_for_link(link.name, link.labels, known) is not True:
            return False
        if rule.min_bandwidth_mbps is not None and link.bandwidth_mbps < rule.min_bandwidth_mbps:
            return False
    if rule.switches is not None and not set(switches) <= meeting(rule.switches, inventory.switches):
        return False
    if any(not set(switches) & meeting(point, inventory.switches) for point in rule.through):
        return False
    return rule.max_latency_ms is None or latency(inventory, path) <= rule.max_latency_ms


def latency(inventory: Inventory, path: Path) -> float:
    return sum(inventory.links[number].latency_ms for number in path[1])


def compliant(inventory: Inventory, rules: Sequence[RouteRule], pair: tuple[End, End], where: Any) -> list[Path]:
    hard = [rule for rule in rules if rule.strength == "required"]
    every = paths_between(inventory, node_of(pair[0], where), node_of(pair[1], where))
    return [path for path in every if all(path_meets(inventory, rule, path) for rule in hard)]


def cost(inventory: Inventory, rules: Sequence[RouteRule], path: Path) -> tuple[int, float, int]:
    soft = [rule for rule in rules if rule.strength == "preferred"]
    broken = sum(not path_meets(inventory, rule, path) for rule in soft)
    return broken, latency(inventory, path), len(path[1])


def routes_exist(inventory: Inventory, every: Sequence[IntentSpec], where: Mapping[str, str]) -> bool:
    about = rules_about(inventory, every, where)
    cut = isolated(inventory, every)
    for spec in every:
        subjects = {("workload", name) for name in meeting(spec.subjects, inventory.workloads)}
        for rule in spec.routes:
            if rule.strength != "required":
                continue
            own = covered(inventory, spec, rule, where)
            if rule.peers is not None:
                if own & cut or not all(compliant(inventory, about[pair], pair, where) for pair in own):
                    return False
                continue
            among = {pair for pair in own if subjects.issuperset(pair)}
            if not all(compliant(inventory, about[pair], pair, where) for pair in among):
                return False
            for subject in subjects:
                having = [pair for pair in own if subject in pair]
                if having and not any(compliant(inventory, about[pair], pair, where) for pair in having):
                    return False
    return True
