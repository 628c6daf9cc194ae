"""Checks of where replicas run: placement and spread rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intents.model import labels
from intents.proof import words
from intents.proof.limits import NodeLimit
from intents.proof.report import Check

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intents.model.intent import PlacementRule, SpreadRule, Topology
    from intents.model.inventory import Inventory
    from intents.proof.observed import Observed

_LABEL = {
    "zone": labels.ZONE,
    "region": labels.REGION,
    "jurisdiction": labels.JURISDICTION,
    "provider": labels.PROVIDER,
}


def check_placement(observed: Observed, intent: str, subjects: Sequence[str], rule: PlacementRule) -> Iterator[Check]:
    """Check that subjects run only on nodes that satisfy a rule."""
    limit = NodeLimit(observed.inventory, rule.nodes)
    running = [name for name in subjects if observed.expected_to_run(name)]
    reasons = {name: _why_not_placed(observed, limit, name) for name in running}
    if rule.strength == "preferred":
        met = [name for name, reason in reasons.items() if reason is None]
        said = f"preferred: met by {len(met)} of {len(running)}"
        yield Check(", ".join(subjects), words.placement(rule), _places(observed, running), True, said, intent)
    elif rule.at_least is not None:
        met = [name for name, reason in reasons.items() if reason is None]
        holds = len(met) >= rule.at_least
        said = f"{len(met)} of {len(running)} do: {', '.join(met) or 'none'}"
        looked_at = _places(observed, running)
        yield Check(", ".join(subjects), words.placement(rule), looked_at, holds, said, intent, breach=not holds)
    else:
        for name, reason in reasons.items():
            looked_at = _places(observed, [name])
            said = reason or f"runs on {', '.join(observed.nodes_of(name))}"
            breach = reason is not None and bool(observed.nodes_of(name))
            yield Check(name, words.placement(rule), looked_at, reason is None, said, intent, breach)


def _why_not_placed(observed: Observed, limit: NodeLimit, workload: str) -> str | None:
    nodes = observed.nodes_of(workload)
    if not nodes:
        return "runs nowhere, so there is nothing to prove it by"
    return next((reason for node in nodes if (reason := limit.why_not(node)) is not None), None)


def _places(observed: Observed, workloads: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{name} on {node}" for name in workloads for node in observed.nodes_of(name))


def check_spread(observed: Observed, intent: str, subjects: Sequence[str], rule: SpreadRule) -> Iterator[Check]:
    """Check that subjects share, or do not share, a topology with other workloads."""
    line = words.spread(rule)
    others = observed.subjects(rule.others)
    if all(set(others) <= {name} for name in subjects):
        empty = "no other workload matches: the rule says nothing"
        yield Check(", ".join(subjects), line, tuple(others), False, empty, intent)
    for name in subjects:
        rest = [each for each in others if each != name]
        looked_at = _places(observed, [name, *rest])
        if not rest or not observed.expected_to_run(name):
            continue
        reason = _why_not_spread(observed, name, rest, rule)
        holds = reason is None or rule.strength == "preferred"
        said = reason or f"compared with {', '.join(rest)}"
        if reason is not None and holds:
            said = f"preferred, and not met: {reason}"
        breach = not holds and bool(observed.nodes_of(name))
        yield Check(name, line, looked_at, holds, said, intent, breach)


def _why_not_spread(observed: Observed, subject: str, others: Sequence[str], rule: SpreadRule) -> str | None:
    mine = observed.nodes_of(subject)
    if not mine:
        return "runs nowhere, so there is nothing to prove it by"
    where = {name: observed.nodes_of(name) for name in (subject, *others)}
    if not any(where[name] for name in others):
        return None  # nobody runs that it could be compared with
    values: dict[str, str] = {}  # by node
    for name, nodes in where.items():
        for node in nodes:
            found = topology_value(observed.inventory, node, rule.topology)
            if found is None:
                return f"{name} runs on {node}, whose {rule.topology} is not known"
            values[node] = found
    if rule.relation == "together":
        strays = [(name, node) for name in others for node in where[name] if values[node] != values[mine[0]]]
        strays += [(subject, node) for node in mine if values[node] != values[mine[0]]]
        if strays:
            name, node = strays[0]
            return f"{name} runs in {values[node]} ({node}), {subject} in {values[mine[0]]} ({mine[0]})"
        return None
    for name in others:
        for node in where[name]:
            shared = next((own for own in mine if _overlap(values[own], values[node], rule.topology)), None)
            if shared is not None:
                return f"{name} runs in {values[node]} too ({node}; {subject} on {shared})"
    return None


def topology_value(inventory: Inventory, node: str, topology: Topology) -> str | None:
    """Return what a node has of a topology, in a form that can be compared; None: it is not known."""
    if node not in inventory.node:
        return None
    if topology == "node":
        return node
    value = inventory.node[node].labels.get(_LABEL[topology])
    if value is None:
        return None
    return labels.jurisdiction(value) if topology == "jurisdiction" else value.casefold()


def _overlap(one: str, other: str, topology: Topology) -> bool:
    if topology != "jurisdiction":
        return one == other
    return one == other or one.startswith(other + "-") or other.startswith(one + "-")
