"""The nearest change with which intents that cannot be met could be: found by trying, never by guessing.

Changes to the rules that explain the refusal are tried in a fixed order, from small to large:

1. one number less strict: `at_least` down to what exists, the latency bound or the bandwidth to what a path offers;
2. one more value in one term of one rule ("allow also FR");
3. one label on one node, switch or link: first where it is missing, then, except for places, where it says otherwise;
4. one link that is down brought up;
5. one rule left out;
6. one intent left out.

Each candidate is compiled again, from the changed inventory and intents, against *all* intents; the first that works
is reported. Of elements with equal labels on the same switch only the first is tried. The number of trials is bounded
by the size of the inventory, so in a large one a nearer change of a late kind may be passed over for a plainer one;
what is reported works all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from intents.compilation.judging import Judge
from intents.compilation.paths import Limits, SearchBound
from intents.compilation.placement import place
from intents.compilation.problem import Problem
from intents.compilation.rules import rules_of_spec
from intents.compilation.vacuous import find_vacuous
from intents.compilation.words import rule_words, short
from intents.model import labels
from intents.model.intent import PlacementRule, RouteRule
from intents.model.inventory import Inventory
from intents.model.predicate import Conjunction, Predicate, Term

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intents.compilation.explanation import Explanation
    from intents.compilation.rules import AnyRule, Rule
    from intents.model.intent import IntentSpec, PrivacyIntent
    from intents.model.inventory import Link, Node, Switch

PLACES = frozenset({labels.REGION, labels.ZONE, labels.JURISDICTION})
"""Labels that say where something stands: a suggestion to change one would be a suggestion to lie."""

TRIALS = 120
"""Most candidates that are compiled, of each kind, in an inventory of up to `SMALL` elements; fewer in larger ones."""
SMALL = 200


@dataclass(frozen=True, slots=True)
class Change:
    """A candidate: in words, and what the world and the intents would be with it."""

    words: str
    inventory: Inventory
    intents: tuple[PrivacyIntent, ...]


def nearest_change(problem: Problem, intents: Sequence[PrivacyIntent], explanation: Explanation) -> Change | None:
    """Return the first candidate that makes all intents hold, or None."""
    inventory = problem.inventory
    size = len(inventory.nodes) + len(inventory.switches) + len(inventory.links)
    trials = max(3, TRIALS * SMALL // max(SMALL, size))
    given = tuple(sorted(intents, key=lambda each: each.metadata.name))
    for kind in (_numbers, _values, _labels, _links_up, _without_rule, _without_intent):
        for change in islice(kind(problem, given, explanation), trials):
            if works(change.inventory, change.intents):
                return change
    return None


def works(inventory: Inventory, intents: Sequence[PrivacyIntent]) -> bool:
    """Whether all of these intents, none of them about nothing, hold together."""
    judge = Judge(inventory)
    if find_vacuous(inventory, intents, judge) is not None:
        return False
    problem = Problem(inventory, intents, judge)
    try:
        return place(problem, problem.hard) is not None
    except SearchBound:
        return False


def _numbers(problem: Problem, intents: tuple[PrivacyIntent, ...], explanation: Explanation) -> Iterator[Change]:
    for rule in explanation.rules:
        what = rule.rule
        if isinstance(what, PlacementRule) and what.at_least is not None:
            for count in range(min(what.at_least, len(rule.subjects) + 1) - 1, 0, -1):
                yield _with_rule(
                    problem,
                    intents,
                    rule,
                    what.model_copy(update={"at_least": count}),
                    f"ask for at least {count} instead of {what.at_least}",
                )
        if isinstance(what, RouteRule) and what.max_latency_ms is not None:
            for latency in _latencies(problem, rule, what.max_latency_ms):
                yield _with_rule(
                    problem,
                    intents,
                    rule,
                    what.model_copy(update={"max_latency_ms": latency}),
                    f"allow {latency:g} ms instead of {what.max_latency_ms:g} ms",
                )
        if isinstance(what, RouteRule) and what.min_bandwidth_mbps is not None:
            offered = {link.bandwidth_mbps for link in problem.inventory.links if link.up}
            for bandwidth in sorted((each for each in offered if each < what.min_bandwidth_mbps), reverse=True):
                yield _with_rule(
                    problem,
                    intents,
                    rule,
                    what.model_copy(update={"min_bandwidth_mbps": bandwidth}),
                    f"ask for {bandwidth:g} Mb/s instead of {what.min_bandwidth_mbps:g} Mb/s",
                )


def _latencies(problem: Problem, rule: Rule, bound: float) -> list[float]:
    """Latencies above the bound that some path of the rule has, without the bound, from where its ends run now."""
    found = set()
    chosen = {name: node for name in problem.movable if (node := problem.inventory.workload[name].node) is not None}
    limits = problem.limits((rule,))
    free = Limits(limits.switches, limits.links, limits.through)
    for source, target in problem.needed([rule]):
        ends = [problem.node_of(each, chosen) for each in (source, target)]
        switches = [None if node is None else problem.inventory.node[node].switch for node in ends]
        if switches[0] is not None and switches[1] is not None:
            path = problem.paths.find(free, switches[0], switches[1])
            if path is not None:
                found.add(path.cost[0] / 1_000_000)
    return sorted(each for each in found if each > bound)


def _values(problem: Problem, intents: tuple[PrivacyIntent, ...], explanation: Explanation) -> Iterator[Change]:
    for rule in explanation.rules:
        for field, predicate, elements in _judged(problem, rule):
            for part, conjunction in enumerate(predicate.any_of):
                for position, term in enumerate(conjunction.all_of):
                    if term.key == labels.NAME:
                        continue
                    others = [each for each in conjunction.all_of if each is not term]
                    for value, example in _missing_values(term, others, elements):
                        wider = _wider(term, value)
                        if wider is None:
                            continue
                        changed = _replaced(predicate, part, position, wider)
                        words = (
                            f"allow also {short(term.key)} {value}: {example}"
                            if term.op == "in"
                            else f"do not forbid {short(term.key)} {value}: {example}"
                        )
                        yield _with_predicate(problem, intents, rule, field, changed, words)


def _missing_values(
    term: Term, others: list[Term], elements: Sequence[Node | Switch | Link]
) -> Iterator[tuple[str, str]]:
    """Values that elements have which fail this term only, each with the first such element."""
    seen: set[str] = set()
    for element in sorted(elements, key=lambda each: each.name):
        value = _value(element, term.key)
        if value is None or value.casefold() in seen or term.holds(value) is True:
            continue
        if all(each.holds(_value(element, each.key)) is True for each in others):
            seen.add(value.casefold())
            yield value, element.name


def _value(element: Node | Switch | Link, key: str) -> str | None:
    if key == labels.NAME:
        return element.name
    return element.labels.get(key)


def _wider(term: Term, value: str) -> Term | None:
    if term.op == "in":
        return Term(key=term.key, op="in", values=(*term.values, value))
    kept = tuple(each for each in term.values if not labels.value_matches(term.key, value, each))
    return Term(key=term.key, op="not_in", values=kept) if kept else None


def _replaced(predicate: Predicate, part: int, position: int, term: Term) -> Predicate:
    parts = list(predicate.any_of)
    terms = list(parts[part].all_of)
    terms[position] = term
    parts[part] = Conjunction(all_of=tuple(terms))
    return Predicate(any_of=tuple(parts))


def _labels(problem: Problem, intents: tuple[PrivacyIntent, ...], explanation: Explanation) -> Iterator[Change]:
    candidates = [
        (element.labels.get(key) is not None, order, element, key, value)
        for order, (element, key, value) in enumerate(_labels_that_help(problem, explanation))
    ]
    for _, _, element, key, value in sorted(candidates, key=lambda each: each[:2]):
        inventory = _labelled(problem.inventory, element, key, value)
        had = element.labels.get(key)
        instead = "" if had is None else f" instead of {had}"
        yield Change(f"label {_kind(element)} {element.name} {short(key)}={value}{instead}", inventory, intents)


def _labels_that_help(problem: Problem, explanation: Explanation) -> Iterator[tuple[Node | Switch | Link, str, str]]:
    seen: set[object] = set()
    for rule in explanation.rules:
        for _, predicate, elements in _judged(problem, rule):
            for element in sorted(elements, key=lambda each: each.name):
                if _meets(problem, element, predicate):
                    continue
                for part in predicate.any_of:
                    failing = [each for each in part.all_of if each.holds(_value(element, each.key)) is not True]
                    if len(failing) != 1 or failing[0].key == labels.NAME or failing[0].op != "in":
                        continue
                    key, value = failing[0].key, failing[0].values[0]
                    where = getattr(element, "switch", element.name)
                    kind = (where, tuple(sorted(element.labels.items())), key, value)
                    if kind not in seen and (key not in PLACES or key not in element.labels):
                        seen.add(kind)
                        yield element, key, value


def _meets(problem: Problem, element: Node | Switch | Link, predicate: Predicate) -> bool:
    if _kind(element) == "link":
        return problem.inventory.links.index(element) in problem.judge.links(predicate)
    return predicate.holds(element.name, element.labels) is True


def _links_up(problem: Problem, intents: tuple[PrivacyIntent, ...], _: Explanation) -> Iterator[Change]:
    inventory = problem.inventory
    down = [(link.name, position) for position, link in enumerate(inventory.links) if not link.up]
    for name, position in sorted(down):
        links = list(inventory.links)
        links[position] = links[position].model_copy(update={"up": True})
        yield Change(f"bring link {name} up", _with_elements(inventory, "links", tuple(links)), intents)


def _without_rule(problem: Problem, intents: tuple[PrivacyIntent, ...], explanation: Explanation) -> Iterator[Change]:
    for rule in explanation.rules:
        changed = _changed(intents, rule, None)
        if changed is not None:
            yield Change(f"drop the rule of {rule_words(rule)}", problem.inventory, changed)


def _without_intent(problem: Problem, intents: tuple[PrivacyIntent, ...], explanation: Explanation) -> Iterator[Change]:
    if len(intents) > 1:
        for name in explanation.intents:
            rest = tuple(intent for intent in intents if intent.metadata.name != name)
            yield Change(f"drop the intent {name}", problem.inventory, rest)


def _judged(problem: Problem, rule: Rule) -> Iterator[tuple[str, Predicate, Sequence[Node | Switch | Link]]]:
    """The predicates of a rule about nodes, switches and links: field, predicate, what it is judged on."""
    inventory, what = problem.inventory, rule.rule
    if isinstance(what, PlacementRule):
        yield "nodes", what.nodes, inventory.nodes
    if isinstance(what, RouteRule):
        if what.switches is not None:
            yield "switches", what.switches, inventory.switches
        if what.links is not None:
            yield "links", what.links, inventory.links
        for number, point in enumerate(what.through):
            yield f"through.{number}", point, inventory.switches


def _with_predicate(
    problem: Problem, intents: tuple[PrivacyIntent, ...], rule: Rule, field: str, predicate: Predicate, words: str
) -> Change:
    name, _, number = field.partition(".")
    value: object = predicate
    if number and isinstance(rule.rule, RouteRule):
        points = list(rule.rule.through)
        points[int(number)] = predicate
        value = tuple(points)
    return _with_rule(problem, intents, rule, rule.rule.model_copy(update={name: value}), words)


def _with_rule(
    problem: Problem, intents: tuple[PrivacyIntent, ...], rule: Rule, changed: AnyRule, words: str
) -> Change:
    return Change(f"{words} (intent {rule.id.intent})", problem.inventory, _changed(intents, rule, changed) or intents)


def _changed(intents: tuple[PrivacyIntent, ...], rule: Rule, to: AnyRule | None) -> tuple[PrivacyIntent, ...] | None:
    """The intents with one rule replaced or, with None, left out; None if nothing would be left of them."""
    changed = []
    for intent in intents:
        if intent.metadata.name != rule.id.intent:
            changed.append(intent)
            continue
        specs: list[IntentSpec] = []
        for number, spec in enumerate(intent.specs):
            if number != rule.id.spec:
                specs.append(spec)
                continue
            rules = list(getattr(spec, rule.id.kind))
            rules[rule.id.position : rule.id.position + 1] = [] if to is None else [to]
            other = spec.model_copy(update={rule.id.kind: tuple(rules)})
            if any(True for _ in rules_of_spec(other)):
                specs.append(other)
        if specs:
            changed.append(intent.model_copy(update={"specs": tuple(specs)}))
    return tuple(changed) or None


def _labelled(inventory: Inventory, element: Node | Switch | Link, key: str, value: str) -> Inventory:
    field = f"{_kind(element)}s" if _kind(element) != "switch" else "switches"
    changed = element.model_copy(update={"labels": {**element.labels, key: value}})
    elements = tuple(changed if each is element else each for each in getattr(inventory, field))
    return _with_elements(inventory, field, elements)


def _with_elements(inventory: Inventory, field: str, elements: tuple[object, ...]) -> Inventory:
    """The inventory with other elements; made anew, since a copy would keep what it remembers of the old ones."""
    same = {each: getattr(inventory, each) for each in Inventory.model_fields}
    return Inventory.model_construct(**{**same, field: elements})


def _kind(element: Node | Switch | Link) -> str:
    return type(element).__name__.lower()
