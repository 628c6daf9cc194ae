"""What an API server, a scheduler and a network plugin make of manifests: enough of each to see what they let pass."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from intents.model.inventory import Inventory, Node

Manifest = dict[str, Any]
_VARIABLES = ("object", "oldObject", "request", "variables")


def of_kind(manifests: Iterable[Manifest], kind: str) -> list[Manifest]:
    return [each for each in manifests if each["kind"] == kind]


def pod(fragment: Manifest, name: str, **spec: Any) -> Manifest:
    """The pod that a Deployment with this fragment applied would make."""
    template = fragment["spec"]["template"]
    metadata = {"name": name, "namespace": fragment["metadata"]["namespace"], **template["metadata"]}
    return {"metadata": metadata, "spec": {"containers": [], **template.get("spec", {}), **spec}}


def bare_pod(name: str, labels: Mapping[str, str], **spec: Any) -> Manifest:
    return {"metadata": {"name": name, "namespace": "default", "labels": dict(labels)}, "spec": dict(spec)}


def binding(pod_name: str, node: str) -> Manifest:
    return {"metadata": {"name": pod_name, "namespace": "default"}, "target": {"kind": "Node", "name": node}}


@cache
def _environment() -> Any:
    cel = pytest.importorskip("cel_expr_python.cel", reason="no CEL here; pip install cel-expr-python")
    from cel_expr_python.ext import ext_strings

    return cel.NewEnv(variables=dict.fromkeys(_VARIABLES, cel.Type.DYN), extensions=[ext_strings.ExtStrings()])


@cache
def _compiled(expression: str) -> Any:
    return _environment().compile(expression)


def refusals(
    policies: Iterable[Manifest], obj: Manifest, operation: str = "CREATE", *, old: Manifest | None = None
) -> list[str]:
    """Messages of the validations that refuse an object; an expression that cannot be evaluated refuses, too."""
    bound = "target" in obj
    request = {
        "operation": operation,
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "subResource": "binding" if bound else "",
    }
    messages = []
    for policy in policies:
        assert policy["spec"]["failurePolicy"] == "Fail"
        data: dict[str, Any] = {"object": obj, "oldObject": old, "request": request, "variables": {}}
        for variable in policy["spec"]["variables"]:
            data["variables"] = {
                **data["variables"],
                variable["name"]: _compiled(variable["expression"]).eval(data=data).plain_value(),
            }
        messages += [
            each["message"]
            for each in policy["spec"]["validations"]
            if _compiled(each["expression"]).eval(data=data).plain_value() is not True
        ]
    return messages


def schedulable(spec: Mapping[str, Any], nodes: Sequence[Node]) -> set[str]:
    """Names of the nodes that the required node affinity of a pod allows."""
    affinity = spec.get("affinity", {}).get("nodeAffinity", {})
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return {node.name for node in nodes}
    return {node.name for node in nodes if any(_selects(term, node) for term in required["nodeSelectorTerms"])}


def _selects(term: Mapping[str, Any], node: Node) -> bool:
    labels = {**node.labels, "kubernetes.io/hostname": node.name}
    assert set(term) == {"matchExpressions"}
    return all(_meets(expression, labels) for expression in term["matchExpressions"])


def _meets(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    if expression["operator"] == "Exists":
        return expression["key"] in labels
    assert expression["operator"] == "In", "NotIn also matches what has no such label"
    return labels.get(expression["key"]) in expression["values"]


def admits(policies: Sequence[Manifest], inventory: Inventory, source: str, target: str) -> bool:
    """Whether the network policies let packets of one workload to another."""
    one, other = ({"midstream.dev/workload": name} for name in (source, target))
    spaces = [inventory.workload[name].namespace for name in (source, target)]
    out = [each for each in policies if _about(each, one, spaces[0]) and "Egress" in each["spec"]["policyTypes"]]
    into = [each for each in policies if _about(each, other, spaces[1]) and "Ingress" in each["spec"]["policyTypes"]]
    leaves = not out or any(
        _peer(peer, other, spaces[1]) for each in out for rule in each["spec"]["egress"] for peer in rule["to"]
    )
    enters = not into or any(
        _peer(peer, one, spaces[0]) for each in into for rule in each["spec"]["ingress"] for peer in rule["from"]
    )
    return leaves and enters


def _about(policy: Manifest, labels: Mapping[str, str], namespace: str) -> bool:
    wanted = policy["spec"]["podSelector"]["matchLabels"]
    return policy["metadata"]["namespace"] == namespace and wanted.items() <= labels.items()


def _peer(peer: Mapping[str, Any], labels: Mapping[str, str], namespace: str) -> bool:
    selector = peer["podSelector"]
    return (
        peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": namespace}
        and selector.get("matchLabels", {}).items() <= labels.items()
        and all(_meets(expression, labels) for expression in selector.get("matchExpressions", []))
    )
