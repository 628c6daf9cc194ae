"""Rules and predicates in plain words, for refusals and for the changes that they suggest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intents.model.intent import IsolationRule, PlacementRule, RouteRule, SpreadRule, TransferRule

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from intents.compilation.rules import Rule
    from intents.model.predicate import Predicate, Term

SHOWN = 6


def listed(names: Iterable[str], last: str = "and") -> str:
    """Join names as in a sentence; of many only the first are named."""
    each = list(names)
    if len(each) > SHOWN:
        each = [*each[: SHOWN - 1], f"{len(each) - SHOWN + 1} more"]
    return each[0] if len(each) == 1 else f"{', '.join(each[:-1])} {last} {each[-1]}" if each else "none"


def short(key: str) -> str:
    """Return a label's name without its prefix."""
    return key.rpartition("/")[2]


def term_words(term: Term) -> str:
    """Say a term: `trust is trusted`."""
    return f"{short(term.key)} is {'' if term.op == 'in' else 'not '}{listed(sorted(term.values), 'or')}"


def predicate_words(predicate: Predicate) -> str:
    """Say a predicate: `trust is trusted and jurisdiction is DE or FR`."""
    if not predicate.any_of:
        return "nothing"
    parts = [" and ".join(map(term_words, part.all_of)) or "anything" for part in predicate.any_of]
    if len(parts) == 1:
        return parts[0]
    return listed((f"({part})" for part in parts), "or")


def rule_words(rule: Rule) -> str:
    """Say a rule and whose it is: `intent eu: workloads api and db run on nodes where jurisdiction is DE`."""
    who = f"workload{'s' * (len(rule.subjects) > 1)} {listed(sorted(rule.subjects))}"
    return f"intent {rule.id.intent}: {who}: {_limit(rule)}"


def _limit(rule: Rule) -> str:
    what = rule.rule
    if isinstance(what, PlacementRule):
        count = "" if what.at_least is None else f"at least {what.at_least} "
        return f"run {count}on nodes where {predicate_words(what.nodes)}"
    if isinstance(what, SpreadRule):
        relation = "share no" if what.relation == "apart" else "share one"
        return f"{relation} {what.topology} with workloads where {predicate_words(what.others)}"
    if isinstance(what, RouteRule):
        peers = "" if what.peers is None else f" with peers where {predicate_words(what.peers)}"
        return f"packets{peers} only cross {' and '.join(_route(what))}"
    if isinstance(what, IsolationRule):
        return f"exchange no packet with peers where {predicate_words(what.peers)}"
    return _transfer(what)


def _route(rule: RouteRule) -> Sequence[str]:
    said = []
    if rule.switches is not None:
        said.append(f"switches where {predicate_words(rule.switches)}")
    if rule.links is not None:
        said.append(f"links where {predicate_words(rule.links)}")
    said.extend(f"some switch where {predicate_words(each)}" for each in rule.through)
    if rule.max_latency_ms is not None:
        said.append(f"paths of at most {rule.max_latency_ms:g} ms")
    if rule.min_bandwidth_mbps is not None:
        said.append(f"links of at least {rule.min_bandwidth_mbps:g} Mb/s")
    return said


def _transfer(rule: TransferRule) -> str:
    if rule.forbidden:
        return f"migrate no {listed(rule.state, 'or')}"
    limits = (("nodes", rule.nodes), ("switches", rule.switches), ("links", rule.links))
    said = [f"{kind} where {predicate_words(each)}" for kind, each in limits if each is not None]
    return f"migrate {listed(rule.state)} only over {' and '.join(said)}"
