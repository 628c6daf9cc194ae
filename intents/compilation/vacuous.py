"""Intents that speak of nothing: no subject, no peer, or a name that does not exist.

An intent about nothing would hold whatever happens, so it is refused before anything is compiled.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from intents.compilation.judging import names_in, workload_endpoint
from intents.compilation.rules import rules_of_spec
from intents.compilation.words import listed, predicate_words
from intents.model.intent import IsolationRule, PlacementRule, RouteRule, SpreadRule
from intents.model.refusal import Refusal, RefusalKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from intents.compilation.judging import Judge
    from intents.compilation.rules import AnyRule
    from intents.model.intent import IntentSpec, PrivacyIntent
    from intents.model.inventory import Inventory
    from intents.model.predicate import Predicate


def find_vacuous(inventory: Inventory, intents: Sequence[PrivacyIntent], judge: Judge) -> Refusal | None:
    """Return the refusal of the first intent (by name) that speaks of nothing, or None."""
    known = {
        "workload": sorted(inventory.workload),
        "node": sorted(inventory.node),
        "switch": sorted(inventory.switch),
        "link": sorted({link.name for link in inventory.links}),
    }
    for intent in sorted(intents, key=lambda each: each.metadata.name):
        name = intent.metadata.name
        for spec in intent.specs:
            for kinds, predicate in [(("workload",), spec.subjects), *_predicates(spec)]:
                refusal = _unknown_name(name, kinds, predicate, known)
                if refusal is not None:
                    return refusal
            subjects = judge.workloads(spec.subjects)
            if not subjects:
                return _refusal(name, f"no workload has {predicate_words(spec.subjects)}", _who(inventory))
            for _, _, rule in rules_of_spec(spec):
                missing = _without_peer(rule, subjects, judge)
                if missing is not None:
                    return _refusal(name, missing, _who(inventory))
    return None


def _predicates(spec: IntentSpec) -> Iterator[tuple[tuple[str, ...], Predicate]]:
    for _, _, rule in rules_of_spec(spec):
        yield from predicates_of(rule)


def predicates_of(rule: AnyRule) -> Iterator[tuple[tuple[str, ...], Predicate]]:
    """Go through the predicates of a rule, each with the kinds of elements that it is about."""
    given: list[tuple[tuple[str, ...], Predicate | None]]
    if isinstance(rule, PlacementRule):
        given = [(("node",), rule.nodes)]
    elif isinstance(rule, SpreadRule):
        given = [(("workload",), rule.others)]
    elif isinstance(rule, RouteRule):
        given = [(("workload", "node"), rule.peers), (("switch",), rule.switches), (("link",), rule.links)]
        given.extend((("switch",), each) for each in rule.through)
    elif isinstance(rule, IsolationRule):
        given = [(("workload", "node"), rule.peers)]
    else:
        given = [(("node",), rule.nodes), (("switch",), rule.switches), (("link",), rule.links)]
    yield from ((kinds, predicate) for kinds, predicate in given if predicate is not None)


def _unknown_name(
    intent: str, kinds: tuple[str, ...], predicate: Predicate, known: Mapping[str, Sequence[str]]
) -> Refusal | None:
    names = [name for kind in kinds for name in known[kind]]
    for name in sorted(names_in(predicate) - set(names)):
        kind = " or ".join(kinds)
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.6) or _folded(name, names)
        return _refusal(
            intent,
            f"there is no {kind} named {name!r}",
            f"name the {kind} {close[0]!r}" if close else f"name one of {listed(names)}" if names else None,
        )
    return None


def _folded(name: str, names: Iterable[str]) -> list[str]:
    return [each for each in names if each.casefold() == name.casefold()]


def _without_peer(rule: AnyRule, subjects: frozenset[str], judge: Judge) -> str | None:
    if isinstance(rule, SpreadRule):
        others = judge.workloads(rule.others)
        if any(others - {subject} for subject in subjects):
            return None
        return f"no other workload has {predicate_words(rule.others)}"
    if isinstance(rule, RouteRule | IsolationRule) and rule.peers is not None:
        peers = judge.peers(rule.peers)
        if any(peers - {workload_endpoint(subject)} for subject in subjects):
            return None
        return f"no other workload or node has {predicate_words(rule.peers)}"
    return None


def _who(inventory: Inventory) -> str | None:
    names = sorted(inventory.workload)
    return f"speak of one of the workloads {listed(names)}" if names else None


def _refusal(intent: str, message: str, nearest: str | None) -> Refusal:
    return Refusal(RefusalKind.VACUOUS, f"intent {intent}: {message}", nearest, (intent,))
