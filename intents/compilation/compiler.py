"""The whole way from typed intents to what enforces them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intents.compilation.compiled import Compiled, Placement, Transfer
from intents.compilation.explanation import explain
from intents.compilation.judging import Judge
from intents.compilation.manifests import manifests
from intents.compilation.nearest import nearest_change
from intents.compilation.onos import flow_rules
from intents.compilation.paths import SearchBound
from intents.compilation.placement import place
from intents.compilation.problem import Problem
from intents.compilation.routing import route
from intents.compilation.vacuous import find_vacuous
from intents.compilation.words import listed, rule_words
from intents.errors import IntentFormatError
from intents.model.intent import TransferRule
from intents.model.refusal import Refusal, RefusalKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intents.model.intent import PrivacyIntent, State
    from intents.model.inventory import Inventory


def compile_intents(inventory: Inventory, intents: Sequence[PrivacyIntent]) -> Compiled | Refusal:
    """Compile all active intents together; a refusal enforces nothing.

    Raises:
        IntentFormatError: two intents have one name.
    """
    names = [intent.metadata.name for intent in intents]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise IntentFormatError(f"two intents are named {twice[0]!r}: rename one, or give only its last version")
    judge = Judge(inventory)
    vacuous = find_vacuous(inventory, intents, judge)
    if vacuous is not None:
        return vacuous
    problem = Problem(inventory, intents, judge)
    soft = [rule for rule in problem.rules if not rule.hard]
    try:
        chosen = place(problem, problem.hard, soft)
        if chosen is None:
            return _refusal(problem, intents)
        routes, blocked = route(problem, problem.rules, chosen)
    except SearchBound as bound:
        return Refusal(
            RefusalKind.UNSATISFIABLE,
            f"not decided, so refused: {bound}",
            "fewer way points, or fewer workloads that depend on each other, can be decided",
        )
    allowed = {name: tuple(sorted(nodes)) for name, nodes in problem.allowed_nodes(problem.hard).items()}
    return Compiled(
        placements=tuple(Placement(name, allowed[name], chosen[name]) for name in problem.movable),
        routes=tuple(routes.values()),
        blocked=tuple(sorted({(source.name, target.name) for source, target in blocked})),
        transfers=_transfers(problem, allowed),
        kubernetes=manifests(problem, blocked, chosen),
        flows=flow_rules(problem, routes, blocked, chosen),
    )


def _refusal(problem: Problem, intents: Sequence[PrivacyIntent]) -> Refusal:
    explanation = explain(problem)
    change = nearest_change(problem, intents, explanation)
    nearest = None if change is None else change.words
    said = [rule_words(rule) for rule in explanation.rules]
    if len(explanation.intents) > 1:
        return Refusal(
            RefusalKind.CONFLICT,
            f"the intents {listed(explanation.intents)} cannot hold together: {'; '.join(said)}",
            nearest,
            (*explanation.intents, *said),
        )
    together = "; ".join(said) if len(said) > 1 else said[0] if said else "no node"
    return Refusal(
        RefusalKind.UNSATISFIABLE,
        f"no placement and routes meet {'all of these: ' if len(said) > 1 else ''}{together}",
        nearest,
        tuple(said),
    )


def _transfers(problem: Problem, allowed: Mapping[str, tuple[str, ...]]) -> tuple[Transfer, ...]:
    inventory, judge = problem.inventory, problem.judge
    about: dict[tuple[str, State], list[TransferRule]] = {}
    for rule in problem.rules:
        if isinstance(rule.rule, TransferRule):
            for name in rule.subjects:
                for state in rule.rule.state:
                    about.setdefault((name, state), []).append(rule.rule)
    found = []
    for (name, state), rules in sorted(about.items()):
        if any(limit.forbidden for limit in rules):
            found.append(Transfer(name, state, forbidden=True, nodes=(), switches=(), links=()))
            continue
        nodes, switches = set(allowed[name]), set(inventory.switch)
        links = set(range(len(inventory.links)))
        for limit in rules:
            nodes &= nodes if limit.nodes is None else judge.nodes(limit.nodes)
            switches &= switches if limit.switches is None else judge.switches(limit.switches)
            links &= links if limit.links is None else judge.links(limit.links)
        found.append(
            Transfer(
                name,
                state,
                forbidden=False,
                nodes=tuple(sorted(nodes)),
                switches=tuple(sorted(switches)),
                links=tuple(sorted(links)),
            )
        )
    return tuple(found)
