"""Small random inventories and typed intents about them.

A world is drawn from one number: most subjects and peers exist, most labels are there, so that few worlds are refused
for trivial reasons. Drawing each label by Hypothesis itself gives worlds of which nearly all speak of nothing.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from intents.model import labels
from intents.model.intent import (
    IntentMetadata,
    IntentSpec,
    IsolationRule,
    PlacementRule,
    PrivacyIntent,
    RouteRule,
    SpreadRule,
    TransferRule,
)
from intents.model.inventory import Inventory
from intents.model.predicate import Conjunction, Predicate, Term

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

World = tuple[Inventory, list[PrivacyIntent]]
VALUES = {
    labels.JURISDICTION: ("DE", "DE", "FR", "US"),
    labels.TRUST: ("trusted", "trusted", "untrusted"),
    labels.ZONE: ("a", "b"),
    labels.DATA: ("health", "public"),
}
KINDS = ("placement", "placement", "spread", "routes", "routes", "routes", "isolation", "transfer")


def intent(name: str, *specs: IntentSpec, **fields: Any) -> PrivacyIntent:
    """An intent of these specs, or of one with these fields."""
    return PrivacyIntent(metadata=IntentMetadata(name=name), specs=specs or (IntentSpec(**fields),))


def worlds(*, most: int = 3, parallel: bool = True) -> st.SearchStrategy[World]:
    """An inventory and up to `most` intents about it; with `parallel`, there may be several links between switches."""
    return st.integers(0, 2**32).map(lambda seed: random_world(random.Random(seed), most=most, parallel=parallel))


def random_world(rng: random.Random, *, most: int = 3, parallel: bool = True) -> World:
    inventory = random_inventory(rng, parallel=parallel)
    return inventory, [
        intent(f"i{number}", random_spec(rng, inventory)) for number in range(1, rng.randint(1, most) + 1)
    ]


def _labels(rng: random.Random, *keys: str) -> dict[str, str]:
    return {key: rng.choice(VALUES[key]) for key in keys if rng.random() < 0.85}


def random_inventory(rng: random.Random, *, parallel: bool) -> Inventory:
    switches = [f"s{number}" for number in range(1, rng.randint(2, 5) + 1)]
    nodes = [f"n{number}" for number in range(1, rng.randint(1, 4) + 1)]
    workloads = [f"w{number}" for number in range(1, rng.randint(1, 3) + 1)]
    joined = [tuple(sorted(rng.sample(switches, 2))) for _ in range(rng.randint(1, 9))]
    place = (labels.JURISDICTION, labels.TRUST, labels.ZONE)
    return Inventory.model_validate(
        {
            "nodes": [
                {"name": name, "labels": _labels(rng, *place), "switch": rng.choice([*switches * 2, None])}
                for name in nodes
            ],
            "workloads": [
                {"name": name, "labels": _labels(rng, labels.DATA), "node": rng.choice([*nodes * 2, None])}
                for name in workloads
            ],
            "switches": [{"name": name, "labels": _labels(rng, *place[:2])} for name in switches],
            "links": [
                {
                    "a": a,
                    "b": b,
                    "labels": _labels(rng, labels.TRUST) if rng.random() < 0.3 else {},
                    "latency_ms": rng.choice([1, 2, 5]),
                    "bandwidth_mbps": rng.choice([100, 1000, 1000]),
                    "up": rng.random() < 0.85,
                }
                for a, b in (joined if parallel else sorted(set(joined)))
            ],
        }
    )


def _predicate(rng: random.Random, names: Sequence[str], *keys: str) -> Predicate:
    def term() -> Term:
        key = rng.choice([*keys, *([labels.NAME] if names else [])])
        from_ = names if key == labels.NAME else VALUES[key]
        values = tuple({rng.choice(from_): None for _ in range(rng.randint(1, 2))})
        return Term(key=key, op=rng.choice(["in", "in", "not_in"]), values=values)

    def conjunction() -> Conjunction:
        return Conjunction(all_of=tuple(term() for _ in range(rng.choice([1, 1, 1, 2]))))

    return Predicate(any_of=tuple(conjunction() for _ in range(rng.choice([1, 1, 2]))))


def _meeting(draw: Callable[[], Predicate], elements: Sequence[Any]) -> Predicate:
    """A predicate that some element meets, nearly always."""
    for _ in range(8):
        predicate = draw()
        if any(predicate.holds(each.name, each.labels) is True for each in elements):
            return predicate
    return predicate


def random_spec(rng: random.Random, inventory: Inventory) -> IntentSpec:
    chosen = [rng.choice(KINDS) for _ in range(rng.choice([1, 1, 2, 3]))]
    rules: dict[str, list[Any]] = {}
    for kind in chosen:
        rules.setdefault(kind, []).append(_rule(rng, inventory, kind))
    fields = {kind: tuple(each) for kind, each in rules.items()}
    return IntentSpec(subjects=_workloads(rng, inventory), **fields)


def _workloads(rng: random.Random, inventory: Inventory) -> Predicate:
    return _meeting(lambda: _predicate(rng, sorted(inventory.workload), labels.DATA), inventory.workloads)


def _rule(rng: random.Random, inventory: Inventory, kind: str) -> Any:
    strength = rng.choice(["required", "required", "preferred"])
    direction = rng.choice(["both", "both", "from_subjects", "to_subjects"])

    def nodes() -> Predicate:
        return _predicate(rng, sorted(inventory.node), labels.JURISDICTION, labels.TRUST)

    def switches() -> Predicate:
        return _predicate(rng, sorted(inventory.switch), labels.JURISDICTION, labels.TRUST)

    def links() -> Predicate:
        names = sorted({link.name for link in inventory.links})
        return _predicate(rng, names, labels.JURISDICTION, labels.TRUST)

    def peers() -> Predicate:
        everybody = [*inventory.workloads, *inventory.nodes]
        names = sorted({each.name for each in everybody})
        return _meeting(lambda: _predicate(rng, names, labels.DATA, labels.ZONE), everybody)

    if kind == "placement":
        at_least = rng.choice([None, None, 1, 2])
        return PlacementRule(nodes=_meeting(nodes, inventory.nodes), at_least=at_least, strength=strength)
    if kind == "spread":
        relation, topology = rng.choice(["apart", "together"]), rng.choice(["node", "zone", "jurisdiction"])
        return SpreadRule(relation=relation, others=_workloads(rng, inventory), topology=topology, strength=strength)
    if kind == "isolation":
        return IsolationRule(peers=peers(), direction=direction)
    if kind == "transfer":
        return TransferRule(forbidden=True) if rng.random() < 0.5 else TransferRule(nodes=nodes())
    return RouteRule(
        peers=rng.choice([None, peers()]),
        direction=direction,
        switches=_meeting(switches, inventory.switches),
        links=links() if rng.random() < 0.2 else None,
        through=tuple(_meeting(switches, inventory.switches) for _ in range(rng.choice([0, 0, 0, 1, 1, 2]))),
        max_latency_ms=rng.choice([None, None, None, 1, 3, 6]),
        min_bandwidth_mbps=rng.choice([None, None, None, 1000]),
        strength=strength,
    )
