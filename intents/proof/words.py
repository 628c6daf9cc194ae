"""Rules and predicates in short words, for the lines of a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intents.model.intent import IsolationRule, PlacementRule, RouteRule, SpreadRule, TransferRule
    from intents.model.predicate import Predicate, Term


def predicate(asked: Predicate) -> str:
    """Return a predicate as a line, such as `jurisdiction is DE or FR`."""
    parts = [" and ".join(_term(each) for each in part.all_of) or "anything" for part in asked.any_of]
    return "; or ".join(parts) or "nothing"


def _term(asked: Term) -> str:
    relation = "is" if asked.op == "in" else "is not"
    return f"{asked.key.removeprefix('midstream.dev/')} {relation} {' or '.join(asked.values)}"


def placement(rule: PlacementRule) -> str:
    """Return a placement rule as a line."""
    who = "runs" if rule.at_least is None else f"at least {rule.at_least} run"
    return f"{_strength(rule.strength)}{who} on nodes where {predicate(rule.nodes)}"


def spread(rule: SpreadRule) -> str:
    """Return a spread rule as a line."""
    relation = "shares no" if rule.relation == "apart" else "shares the"
    return f"{_strength(rule.strength)}{relation} {rule.topology} with {predicate(rule.others)}"


def route(rule: RouteRule) -> str:
    """Return a route rule as a line."""
    limits = []
    if rule.switches is not None:
        limits.append(f"switches where {predicate(rule.switches)}")
    if rule.links is not None:
        limits.append(f"links where {predicate(rule.links)}")
    limits += [f"through a switch where {predicate(point)}" for point in rule.through]
    if rule.max_latency_ms is not None:
        limits.append(f"at most {rule.max_latency_ms:g} ms")
    if rule.min_bandwidth_mbps is not None:
        limits.append(f"links of at least {rule.min_bandwidth_mbps:g} Mbit/s")
    return f"{_strength(rule.strength)}packets cross only {', '.join(limits)}"


def isolation(rule: IsolationRule) -> str:
    """Return an isolation rule as a line."""
    return f"exchanges no packet with {predicate(rule.peers)}"


def transfer(rule: TransferRule) -> str:
    """Return a transfer rule as a line."""
    what = " and ".join(rule.state)
    if rule.forbidden:
        return f"{what} are never moved"
    limits = [
        f"{name} where {predicate(asked)}"
        for name, asked in (("nodes", rule.nodes), ("switches", rule.switches), ("links", rule.links))
        if asked is not None
    ]
    return f"{what} move only over {', '.join(limits)}"


def _strength(strength: str) -> str:
    return "preferably " if strength == "preferred" else ""
