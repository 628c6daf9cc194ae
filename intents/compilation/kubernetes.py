"""Kubernetes objects that keep pods where the intents want them, and apart where packets must not pass.

| object | one for each | does |
|---|---|---|
| a Deployment's fragment | workload | label, node affinity, pod (anti-)affinity of its pods |
| ValidatingAdmissionPolicy and its binding | intent | refuses pods without that affinity, or on a forbidden node |
| NetworkPolicy | workload with a forbidden peer | denies all, then allows the others |

Fragments (`is_fragment`) are for server-side apply, or as strategic merge patch: they hold only what Midstream wants
of a Deployment that somebody else owns. Objects that are about a workload are made from all intents at once, since
NetworkPolicies add up: two that each forbid one peer would together allow both.

How pods are told to be a workload's: by the label `midstream.dev/workload`, which the fragment sets. The admission
policies also know a subject by the labels that the intent speaks of, so a new Deployment with `midstream.dev/data:
health` is held to the rule before any inventory has it.

Node affinity lists, for each label, the values that occur on nodes and meet the rule (`In`, never `NotIn`, which also
matches nodes without the label). A node with a new value is not allowed until intents are compiled again. Host names
are used where a rule is about names, and where a value is no legal label. An intent's `at_least` becomes affinity of
that many of its subjects: those whose chosen nodes meet it, the first by name.

Pipelines and their stages have no objects: their heads place them (`intents.compilation.manifests`).

Caveats. Pod anti-affinity compares the raw values of a label: `DE` and `deu` count as two jurisdictions there. Where
a workload's pods must share a zone with others, Kubernetes follows whichever pod is scheduled first.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

from intents.compilation.judging import TOPOLOGY_LABEL
from intents.compilation.problem import for_each
from intents.model import labels
from intents.model.intent import IsolationRule, PlacementRule, SpreadRule
from intents.model.labels import WORKLOAD
from intents.model.predicate import Conjunction, Predicate, both, term

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from intents.compilation.problem import Problem
    from intents.compilation.rules import Rule
    from intents.model.intent import Topology

INTENT = "midstream.dev/intent"
HOSTNAME = "kubernetes.io/hostname"
MANAGED_BY = {"app.kubernetes.io/managed-by": "midstream-intents"}

_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_KEY = re.compile(
    r"([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*/)?"
    r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)
_OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

Part = dict[str, tuple[str, ...]]
"""By label key the values that are allowed: one `nodeSelectorTerm`."""


def is_fragment(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest is a fragment of an object that somebody else owns."""
    return bool(manifest["kind"] == "Deployment")


def workload_value(name: str) -> str:
    """Return the value of the label `midstream.dev/workload` for a workload: its name, if that is a legal value."""
    return name if _LABEL_VALUE.fullmatch(name) else _shortened(name)


def object_name(name: str) -> str:
    """Return a legal object name: the name itself, if it is one."""
    return name if _OBJECT_NAME.fullmatch(name) else _shortened(name)


def _shortened(name: str) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50].strip("-") or "x"
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def metadata(name: str, intents: Iterable[str], namespace: str | None = None) -> dict[str, Any]:
    """Return an object's metadata: managed by Midstream, and the intents that it is for."""
    names = sorted(intents)
    found: dict[str, Any] = {
        "name": name,
        "labels": {**MANAGED_BY, INTENT: names[0]},
        "annotations": {"midstream.dev/intents": ",".join(names)},
    }
    return found if namespace is None else {**found, "namespace": namespace}


def fragment(
    problem: Problem, name: str, about: Sequence[Rule], asked_of: Mapping[Rule, frozenset[str]]
) -> dict[str, Any]:
    """Return the fragment of a workload's Deployment.

    Args:
        problem: The problem that was solved.
        name: The workload.
        about: All rules about it.
        asked_of: By `at_least` rule the subjects that are to meet it.
    """
    workload = problem.inventory.workload[name]
    affinity: dict[str, Any] = {}
    required = node_terms(problem, required_nodes(problem, name, about, asked_of))
    preferred = [
        {"weight": 100, "preference": node_selector_term(part)}
        for rule in about
        if not rule.hard and isinstance(rule.rule, PlacementRule)
        for part in node_terms(problem, [rule.rule.nodes])
    ]
    node_affinity: dict[str, Any] = {}
    if required:
        terms = {"nodeSelectorTerms": [node_selector_term(part) for part in required]}
        node_affinity["requiredDuringSchedulingIgnoredDuringExecution"] = terms
    if preferred:
        node_affinity["preferredDuringSchedulingIgnoredDuringExecution"] = preferred
    if node_affinity:
        affinity["nodeAffinity"] = node_affinity
    affinity.update(_pod_affinity(problem, name, about))
    pod: dict[str, Any] = {"metadata": {"labels": {WORKLOAD: workload_value(name)}}}
    if affinity:
        pod["spec"] = {"affinity": affinity}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(object_name(name), {rule.id.intent for rule in about}, workload.namespace),
        "spec": {"template": pod},
    }


def required_nodes(
    problem: Problem, name: str, about: Sequence[Rule], asked_of: Mapping[Rule, frozenset[str]]
) -> list[Predicate]:
    """Return what the nodes of a workload must meet; labels that spreading compares must be there."""
    found = []
    for rule in about:
        if rule.hard and isinstance(rule.rule, PlacementRule):
            if for_each(rule) or name in asked_of.get(rule, frozenset()):
                found.append(rule.rule.nodes)
        elif isinstance(rule.rule, IsolationRule):
            found.extend(off_nodes(problem, rule.rule))
        elif rule.hard and isinstance(rule.rule, SpreadRule) and rule.rule.topology != "node":
            found.append(has_label(problem, rule.rule.topology))
    return found


def off_nodes(problem: Problem, rule: IsolationRule) -> list[Predicate]:
    """Return what keeps a workload off the nodes that it is isolated from."""
    nodes = sorted(problem.judge.nodes(rule.peers))
    return [term(labels.NAME, *nodes, op="not_in")] if nodes else []


def has_label(problem: Problem, topology: Topology) -> Predicate:
    """Return the predicate that a node carries a topology's label, with a value that occurs."""
    key = TOPOLOGY_LABEL[topology]
    values = sorted({node.labels[key] for node in problem.inventory.nodes if key in node.labels})
    return term(key, *values) if values else Predicate(any_of=())


def node_terms(problem: Problem, predicates: Sequence[Predicate]) -> list[Part]:
    """Return node selector terms, any of which is to be met, for predicates that all are to be met.

    Without a predicate there is none, and neither is there where no node meets them.
    """
    if not predicates:
        return []
    parts = Predicate(any_of=(Conjunction(),))
    for predicate in dict.fromkeys(predicates):
        joined = both(parts, predicate)
        parts = Predicate(any_of=tuple(part for part in joined.any_of if _nodes(problem, part)))
    found: dict[tuple[tuple[str, tuple[str, ...]], ...], None] = {}
    for part in parts.any_of:
        found[tuple(sorted(_part(problem, part).items()))] = None
    return [dict(each) for each in sorted(found)]


def _nodes(problem: Problem, part: Conjunction) -> frozenset[str]:
    return problem.judge.nodes(Predicate(any_of=(part,)))


def _part(problem: Problem, conjunction: Conjunction) -> Part:
    part: Part = {}
    meeting = _nodes(problem, conjunction)
    for key in sorted({each.key for each in conjunction.all_of}):
        if key == labels.NAME:
            part[HOSTNAME] = tuple(sorted(meeting))
            continue
        terms = [each for each in conjunction.all_of if each.key == key]
        occurring = {node.labels[key] for node in problem.inventory.nodes if key in node.labels}
        values = sorted(value for value in occurring if all(each.holds(value) is True for each in terms))
        legal = tuple(value for value in values if _LABEL_VALUE.fullmatch(value))
        if legal and _LABEL_KEY.fullmatch(key):
            part[key] = legal
        else:
            part[HOSTNAME] = tuple(sorted(meeting))
    return part


def node_selector_term(part: Part) -> dict[str, Any]:
    """Return a part as Kubernetes writes it; one without a label allows every node that has a host name."""
    expressions = [{"key": key, "operator": "In", "values": list(values)} for key, values in part.items()]
    return {"matchExpressions": expressions or [{"key": HOSTNAME, "operator": "Exists"}]}


def compared_with(problem: Problem, name: str, rule: Rule) -> list[str]:
    """Return the workloads that a spread rule compares a subject with; for `together`, itself included."""
    if not isinstance(rule.rule, SpreadRule):
        return []
    others = problem.judge.workloads(rule.rule.others)
    return sorted(others - {name} if rule.rule.relation == "apart" else others | rule.subjects)


def pod_affinity_term(problem: Problem, topology: Topology, names: Sequence[str]) -> dict[str, Any]:
    """Return the term that speaks of the pods of these workloads, in their namespaces."""
    namespaces = sorted({problem.inventory.workload[name].namespace for name in names})
    values = sorted(map(workload_value, names))
    return {
        "labelSelector": {"matchExpressions": [{"key": WORKLOAD, "operator": "In", "values": values}]},
        "namespaces": namespaces,
        "topologyKey": HOSTNAME if topology == "node" else TOPOLOGY_LABEL[topology],
    }


def _pod_affinity(problem: Problem, name: str, about: Sequence[Rule]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for rule in about:
        if not isinstance(rule.rule, SpreadRule) or not (names := compared_with(problem, name, rule)):
            continue
        one = pod_affinity_term(problem, rule.rule.topology, names)
        kind = found.setdefault("podAntiAffinity" if rule.rule.relation == "apart" else "podAffinity", {})
        if rule.hard:
            kind.setdefault("requiredDuringSchedulingIgnoredDuringExecution", []).append(one)
        else:
            wish = {"weight": 100, "podAffinityTerm": one}
            kind.setdefault("preferredDuringSchedulingIgnoredDuringExecution", []).append(wish)
    return found
