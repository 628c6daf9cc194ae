"""All Kubernetes objects of a set of intents, in the order to apply them in: what refuses comes first.

Pipelines and their stages have none: a stage is no Deployment, but a process in a pod that has no name of its own for
it, and the pipeline's head says on which node. Where a stage may be is compiled, proven and watched like all else; what
moves it is a request for another layout (`intents.mover`). An object that names a stage would select no pod, and a
required affinity would be asked of pods that nobody gives one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from intents.compilation.admission import admission_policy
from intents.compilation.kubernetes import fragment
from intents.compilation.network_policy import network_policies
from intents.compilation.problem import for_each
from intents.model.intent import PlacementRule
from intents.model.labels import PIPELINE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intents.compilation.problem import Problem
    from intents.compilation.rules import Pair, Rule
    from intents.model.inventory import Inventory

_STAGE = re.compile(r"(.+)-stage-[0-9]+")


def manifests(problem: Problem, blocked: Sequence[Pair], chosen: Mapping[str, str]) -> tuple[dict[str, Any], ...]:
    """Return the objects; see `intents.compilation.kubernetes` for what they are."""
    asked_of = _asked_of(problem, chosen)
    by_heads = placed_by_heads(problem.inventory)
    about: dict[str, list[Rule]] = {name: [] for name in problem.movable if name not in by_heads}
    for rule in problem.rules:
        for name in rule.subjects - by_heads:
            about[name].append(rule)
    found: list[dict[str, Any]] = []
    for intent in sorted({rule.id.intent for rule in problem.rules}):
        rules = [rule for rule in problem.hard if rule.id.intent == intent]
        found.extend(admission_policy(problem, intent, rules, asked_of, by_heads))
    found.extend(network_policies(problem, blocked, about))
    found.extend(fragment(problem, name, rules, asked_of) for name, rules in about.items())
    return tuple(found)


def placed_by_heads(inventory: Inventory) -> frozenset[str]:
    """Return the workloads that are pipelines or stages, also stages that have no label while they do not run."""
    found = {each.name: each.labels[PIPELINE] for each in inventory.workloads if PIPELINE in each.labels}
    pipelines = set(found.values())
    unlabelled = (
        each.name
        for each in inventory.workloads
        if each.name in pipelines or ((stage := _STAGE.fullmatch(each.name)) and stage[1] in pipelines)
    )
    return frozenset((*found, *unlabelled))


def _asked_of(problem: Problem, chosen: Mapping[str, str]) -> dict[Rule, frozenset[str]]:
    """By hard rule about some of its subjects, those that are to meet it: as many as it asks for, first by name."""
    found = {}
    for rule in problem.hard:
        if isinstance(rule.rule, PlacementRule) and rule.rule.at_least is not None and not for_each(rule):
            nodes = problem.judge.nodes(rule.rule.nodes)
            meeting = [name for name in sorted(rule.subjects) if chosen[name] in nodes]
            found[rule] = frozenset(meeting[: rule.rule.at_least])
    return found
