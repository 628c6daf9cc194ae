"""A typed intent on one line, to be compared in tables: `[data=health] nodes(jurisdiction=EU); apart(...)`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intents.knowledge.base import knowledge

if TYPE_CHECKING:
    from intents.model.intent import IntentSpec, PrivacyIntent, RouteRule, TransferRule
    from intents.model.predicate import Predicate, Term

_EU = knowledge().areas["eu",].codes
_EEA = knowledge().areas["eea",].codes
_DIRECTION = {"both": "<->", "from_subjects": "->", "to_subjects": "<-"}


def line(intent: PrivacyIntent) -> str:
    """Return the intent on one line."""
    return " || ".join(_spec(spec) for spec in intent.specs)


def _spec(spec: IntentSpec) -> str:
    rules: list[str] = []
    for place in spec.placement:
        least = f" at least {place.at_least}" if place.at_least else ""
        rules.append(f"nodes({predicate(place.nodes)}){least}{_soft(place.strength)}")
    rules += [
        f"{each.relation}({predicate(each.others)} by {each.topology}){_soft(each.strength)}" for each in spec.spread
    ]
    rules += [_route(route) for route in spec.routes]
    rules += [f"isolated({_DIRECTION[each.direction]} {predicate(each.peers)})" for each in spec.isolation]
    rules += [_transfer(each) for each in spec.transfer]
    return f"[{predicate(spec.subjects)}] {'; '.join(rules)}"


def _route(route: RouteRule) -> str:
    said = [_DIRECTION[route.direction] + (f" {predicate(route.peers)}" if route.peers is not None else "")]
    said += [f"switches {predicate(route.switches)}"] if route.switches is not None else []
    said += [f"links {predicate(route.links)}"] if route.links is not None else []
    said += [f"via {predicate(each)}" for each in route.through]
    said += [f"at most {route.max_latency_ms:g} ms"] if route.max_latency_ms is not None else []
    said += [f"at least {route.min_bandwidth_mbps:g} Mbps"] if route.min_bandwidth_mbps is not None else []
    return f"route({', '.join(said)}){_soft(route.strength)}"


def _transfer(rule: TransferRule) -> str:
    said = ["+".join(rule.state)] + (["forbidden"] if rule.forbidden else [])
    for name, limit in (("nodes", rule.nodes), ("switches", rule.switches), ("links", rule.links)):
        said += [f"{name} {predicate(limit)}"] if limit is not None else []
    return f"transfer({', '.join(said)})"


def _soft(strength: str) -> str:
    return " preferred" if strength == "preferred" else ""


def predicate(wanted: Predicate) -> str:
    """Return a predicate in words."""
    parts = [" & ".join(_term(term) for term in part.all_of) or "anything" for part in wanted.any_of]
    return " | ".join(parts) or "nothing"


def _term(term: Term) -> str:
    values = {_EU: "EU", _EEA: "EEA"}.get(term.values, ",".join(term.values))
    return f"{term.key.rpartition('/')[2]}{'=' if term.op == 'in' else '!='}{values}"
