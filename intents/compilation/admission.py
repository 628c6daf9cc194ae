"""One ValidatingAdmissionPolicy an intent: the API server itself refuses pods that an intent forbids.

A pod is a subject's if its label `midstream.dev/workload` names one, or if its own labels meet what the intent says of
its subjects. When such a pod is created, or an existing pod is given such labels, it needs a required node affinity
that implies the intent's (each of its terms narrows one of ours), the required pod (anti-)affinity, and, where a node
is already named in it, an allowed node. A binding only names pod and node: there the pod is known by its name, a
workload's name and what Kubernetes appends to it (and not that of another workload with a longer name).

Other updates pass: pods that were there before the policy could otherwise not even be deleted, as taking a finalizer
away is an update. Whether *they* comply is for the checks to say, not for admission. `failurePolicy: Fail`: where the
expressions cannot be evaluated, the answer is no.

Pods of a pipeline are not held to what an intent says of the pipeline, by name or by label: the stages in them go where
the head puts them, and nobody gives these pods an affinity. A pod that says itself what data it has is held to that.

Only required rules are enforced so. An intent without a rule that limits nodes has no policy.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pycountry

from intents.compilation.kubernetes import (
    INTENT,
    MANAGED_BY,
    compared_with,
    has_label,
    metadata,
    node_terms,
    object_name,
    off_nodes,
    pod_affinity_term,
    workload_value,
)
from intents.compilation.problem import for_each
from intents.model import labels
from intents.model.intent import IsolationRule, PlacementRule, SpreadRule
from intents.model.labels import WORKLOAD

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from intents.compilation.kubernetes import Part
    from intents.compilation.problem import Problem
    from intents.compilation.rules import Rule
    from intents.model.predicate import Conjunction, Predicate, Term

_RULES = [
    {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["pods"]},
    {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods/binding"]},
]
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


@dataclass(frozen=True, slots=True)
class _Group:
    """Subjects of which one thing is asked: who they are, and the predicates that their nodes meet."""

    names: tuple[str, ...]
    about: Predicate | None
    nodes: tuple[Predicate, ...]
    spread: tuple[Rule, ...] = ()

    @property
    def parts(self) -> tuple[Conjunction, ...]:
        """What the intent says of its subjects, as far as pods' labels tell."""
        parts = self.about.any_of if self.about is not None else ()
        elsewhere = {labels.NAME, labels.PIPELINE}
        return tuple(part for part in parts if part.all_of and elsewhere.isdisjoint(each.key for each in part.all_of))


def admission_policy(
    problem: Problem,
    intent: str,
    rules: Sequence[Rule],
    asked_of: Mapping[Rule, frozenset[str]],
    by_heads: frozenset[str] = frozenset(),
) -> list[dict[str, Any]]:
    """Return the policy of an intent and its binding, or nothing if it has no rule about nodes.

    Args:
        problem: The problem that was solved.
        intent: The intent's name.
        rules: Its hard rules.
        asked_of: By `at_least` rule the subjects that are to meet it.
        by_heads: Workloads that are pipelines or stages.
    """
    groups = [each for each in _groups(problem, rules, asked_of, by_heads) if each.names or each.parts]
    if not groups:
        return []
    variables = [
        _variable("isBinding", "request.resource.resource == 'pods' && request.subResource == 'binding'"),
        _variable("labels", "!variables.isBinding && has(object.metadata.labels) ? object.metadata.labels : {}"),
        _variable(
            "oldLabels",
            "request.operation == 'UPDATE' && has(oldObject.metadata.labels) ? oldObject.metadata.labels : {}",
        ),
        _variable("nodeTerms", _affinity("nodeAffinity", ".nodeSelectorTerms")),
        _variable("apartTerms", _affinity("podAntiAffinity")),
        _variable("togetherTerms", _affinity("podAffinity")),
    ]
    validations: list[dict[str, str]] = []
    for number, group in enumerate(groups):
        new = f"variables.new{number}"
        variables.append(_variable(f"new{number}", _newly(group)))
        if group.nodes:
            allowed = sorted(frozenset.intersection(*map(problem.judge.nodes, group.nodes)))
            validations.extend(_node_validations(problem, intent, group, new, allowed))
        validations.extend(_spread_validation(problem, intent, rule, group.names, new) for rule in group.spread)
    name = object_name(f"midstream-{intent}")
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": metadata(name, [intent]),
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"matchPolicy": "Equivalent", "resourceRules": _RULES},
            "variables": variables,
            "validations": validations,
        },
    }
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name, "labels": {**MANAGED_BY, INTENT: intent}},
        "spec": {"policyName": name, "validationActions": ["Deny"]},
    }
    return [policy, binding]


def _groups(
    problem: Problem, rules: Sequence[Rule], asked_of: Mapping[Rule, frozenset[str]], by_heads: frozenset[str]
) -> Iterable[_Group]:
    for number in sorted({rule.id.spec for rule in rules}):
        own = [rule for rule in rules if rule.id.spec == number]
        nodes = [rule.rule.nodes for rule in own if isinstance(rule.rule, PlacementRule) and for_each(rule)]
        spread = [rule for rule in own if isinstance(rule.rule, SpreadRule)]
        topologies = sorted({rule.rule.topology for rule in spread if isinstance(rule.rule, SpreadRule)} - {"node"})
        nodes.extend(has_label(problem, topology) for topology in topologies)
        for rule in own:
            if isinstance(rule.rule, IsolationRule):
                nodes.extend(off_nodes(problem, rule.rule))
        if nodes or spread:
            yield _Group(tuple(sorted(own[0].subjects - by_heads)), own[0].about, tuple(nodes), tuple(spread))
        for rule in own:
            if isinstance(rule.rule, PlacementRule) and rule in asked_of:
                yield _Group(tuple(sorted(asked_of[rule] - by_heads)), None, (rule.rule.nodes,))


def _node_validations(
    problem: Problem, intent: str, group: _Group, new: str, allowed: Sequence[str]
) -> Iterable[dict[str, str]]:
    parts = node_terms(problem, group.nodes)
    yield _validation(
        f"!{new} || ({_implied(parts)})",
        f"intent {intent}: pods of this workload need a required node affinity that keeps them on its nodes",
    )
    yield _validation(
        f"!{new} || !has(object.spec.nodeName) || object.spec.nodeName in {_list(['', *allowed])}",
        f"intent {intent}: pods of this workload must not run on this node",
    )
    if not group.names:
        return
    yield _validation(
        f"!variables.isBinding || !({_named(problem, group.names)}) || object.target.name in {_list(allowed)}",
        f"intent {intent}: pods of this workload must not be bound to this node",
    )


def _spread_validation(problem: Problem, intent: str, rule: Rule, subjects: Sequence[str], new: str) -> dict[str, str]:
    relation = rule.rule.relation if isinstance(rule.rule, SpreadRule) else "apart"
    each = []
    for name in subjects:
        names = compared_with(problem, name, rule)
        if names and isinstance(rule.rule, SpreadRule):
            wanted = pod_affinity_term(problem, rule.rule.topology, names)
            own = f"variables.labels['{WORKLOAD}'] != {_text(workload_value(name))}"
            each.append(f"({own} || variables.{relation}Terms.exists(t, {_same_term(wanted, relation)}))")
    return _validation(
        f"!{new} || !('{WORKLOAD}' in variables.labels) || ({' && '.join(each) or 'true'})",
        f"intent {intent}: pods of this workload need the required pod {'anti-' * (relation == 'apart')}affinity",
    )


def _same_term(wanted: Mapping[str, Any], relation: str) -> str:
    """Whether a pod's term is as strict as ours: other pods may be added to those it keeps apart from, no others."""
    (expression,) = wanted["labelSelector"]["matchExpressions"]
    values = _list(expression["values"])
    found = "t.labelSelector.matchExpressions[0]"
    conditions = [
        f"t.topologyKey == {_text(wanted['topologyKey'])}",
        "has(t.labelSelector)",
        "!has(t.labelSelector.matchLabels)",
        "has(t.labelSelector.matchExpressions)",
        "size(t.labelSelector.matchExpressions) == 1",
        f"{found}.key == '{WORKLOAD}'",
        f"{found}.operator == 'In'",
        f"{values}.all(v, v in {found}.values)",
        "has(t.namespaces)",
        f"{_list(wanted['namespaces'])}.all(n, n in t.namespaces)",
    ]
    if relation == "together":
        conditions += [
            f"{found}.values.all(v, v in {values})",
            f"t.namespaces.all(n, n in {_list(wanted['namespaces'])})",
            "!has(t.namespaceSelector)",
        ]
    return " && ".join(conditions)


def _newly(group: _Group) -> str:
    """Whether a pod becomes one of the group's by this request."""
    now, before = _subject("variables.labels", group), _subject("variables.oldLabels", group)
    return f"!variables.isBinding && ({now}) && (request.operation == 'CREATE' || !({before}))"


def _subject(where: str, group: _Group) -> str:
    values = sorted(map(workload_value, group.names))
    conditions = [f"('{WORKLOAD}' in {where} && {where}['{WORKLOAD}'] in {_list(values)})"] if values else []
    conditions.extend("(" + " && ".join(_term(where, each) for each in part.all_of) + ")" for part in group.parts)
    return " || ".join(conditions)


def _term(where: str, term: Term) -> str:
    key = _text(term.key)
    found = f"{where}[{key}].lowerAscii()"
    if term.key == labels.JURISDICTION:
        codes = sorted({spelling for value in term.values for spelling in _spellings(value)})
        prefixes = _list([f"{code}-" for code in codes])
        matches = f"({found} in {_list(codes)} || {prefixes}.exists(p, {found}.startsWith(p)))"
    else:
        matches = f"{found} in {_list(sorted({value.lower() for value in term.values}))}"
    return f"{key} in {where} && {'' if term.op == 'in' else '!'}({matches})"


def _spellings(code: str) -> Iterable[str]:
    """Every spelling of a jurisdiction, in lower case: of its country alpha-2, alpha-3 and, for GB, UK."""
    country, _, subdivision = labels.jurisdiction(code).partition("-")
    found = pycountry.countries.get(alpha_2=country)
    names = {country} | ({found.alpha_3} if found is not None else set()) | ({"UK"} if country == "GB" else set())
    return [(f"{name}-{subdivision}" if subdivision else name).lower() for name in names]


def _named(problem: Problem, names: Sequence[str]) -> str:
    everybody = {object_name(each.name) for each in problem.inventory.workloads}
    conditions = []
    for name in sorted(map(object_name, names)):
        pod = "object.metadata.name"
        longer = sorted(each for each in everybody if each.startswith(f"{name}-"))
        own = f"({pod} == {_text(name)} || {pod}.startsWith({_text(f'{name}-')}))"
        other = f"{_list(longer)}.exists(o, {pod} == o || {pod}.startsWith(o + '-'))"
        conditions.append(f"({own} && !{other})" if longer else own)
    return " || ".join(conditions)


def _implied(parts: Sequence[Part]) -> str:
    """Whether every term of the pod's node affinity narrows one of these parts."""
    narrowed = " || ".join(f"({_narrows(part)})" for part in parts) or "false"
    return f"size(variables.nodeTerms) > 0 && variables.nodeTerms.all(t, {narrowed})"


def _narrows(part: Part) -> str:
    conditions = [
        f"t.matchExpressions.exists(e, e.key == {_text(key)} && e.operator == 'In' && size(e.values) > 0"
        f" && e.values.all(v, v in {_list(values)}))"
        for key, values in part.items()
    ]
    return " && ".join(["has(t.matchExpressions)", *conditions])


def _affinity(kind: str, rest: str = "") -> str:
    steps = ["object.spec.affinity", f"object.spec.affinity.{kind}", f"object.spec.affinity.{kind}.{_REQUIRED}"]
    there = " && ".join(f"has({step})" for step in steps)
    return f"!variables.isBinding && {there} ? {steps[-1]}{rest} : []"


def _validation(expression: str, message: str) -> dict[str, str]:
    return {"expression": expression, "message": message, "reason": "Forbidden"}


def _variable(name: str, expression: str) -> dict[str, str]:
    return {"name": name, "expression": expression}


def _text(value: str) -> str:
    """A CEL string: JSON's escapes are among CEL's, if everything beyond ASCII is escaped without surrogates."""
    quoted = json.dumps(value, ensure_ascii=False)
    return "".join(each if each.isascii() else f"\\U{ord(each):08x}" for each in quoted).replace("\x7f", "\\x7f")


def _list(values: Iterable[str]) -> str:
    return f"[{', '.join(map(_text, values))}]"
