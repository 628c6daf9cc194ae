"""All Kubernetes objects of a set of intents, in the order to apply them in: what refuses comes first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intents.compilation.admission import admission_policy
from intents.compilation.kubernetes import fragment
from intents.compilation.network_policy import network_policies
from intents.compilation.problem import for_each
from intents.model.intent import PlacementRule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intents.compilation.problem import Problem
    from intents.compilation.rules import Pair, Rule


def manifests(problem: Problem, blocked: Sequence[Pair], chosen: Mapping[str, str]) -> tuple[dict[str, Any], ...]:
    """Return the objects; see `intents.compilation.kubernetes` for what they are."""
    asked_of = _asked_of(problem, chosen)
    about: dict[str, list[Rule]] = {name: [] for name in problem.movable}
    for rule in problem.rules:
        for name in rule.subjects:
            about[name].append(rule)
    found: list[dict[str, Any]] = []
    for intent in sorted({rule.id.intent for rule in problem.rules}):
        rules = [rule for rule in problem.hard if rule.id.intent == intent]
        found.extend(admission_policy(problem, intent, rules, asked_of))
    found.extend(network_policies(problem, blocked, about))
    found.extend(fragment(problem, name, rules, asked_of) for name, rules in about.items())
    return tuple(found)


def _asked_of(problem: Problem, chosen: Mapping[str, str]) -> dict[Rule, frozenset[str]]:
    """By hard rule about some of its subjects, those that are to meet it: as many as it asks for, first by name."""
    found = {}
    for rule in problem.hard:
        if isinstance(rule.rule, PlacementRule) and rule.rule.at_least is not None and not for_each(rule):
            nodes = problem.judge.nodes(rule.rule.nodes)
            meeting = [name for name in sorted(rule.subjects) if chosen[name] in nodes]
            found[rule] = frozenset(meeting[: rule.rule.at_least])
    return found
