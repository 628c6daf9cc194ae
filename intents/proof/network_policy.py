"""Whether NetworkPolicies let a pod send packets to another pod.

Needed where no switch sees the packets: between two pods of one node. The rules are Kubernetes': a pod that no policy
selects for a direction is open in it; one that is selected may only do what some rule of such a policy allows; a
connection needs the sender's egress and the receiver's ingress.

Judged so that "kept apart" is never said too early: a rule limited to ports, and any `ipBlock`, count as allowing.
Nothing is known of a namespace but its name (`kubernetes.io/metadata.name`): a selector of its other labels counts as
covering it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_NAMESPACE_NAME = "kubernetes.io/metadata.name"


@dataclass(frozen=True, slots=True)
class Pod:
    """What policies know of a pod: its namespace and labels."""

    namespace: str
    labels: Mapping[str, str]


def allows(manifests: Iterable[Mapping[str, Any]], source: Pod, target: Pod) -> bool:
    """Whether a packet from `source` to `target` is let through by the NetworkPolicies among these manifests."""
    policies = [each for each in manifests if each.get("kind") == "NetworkPolicy"]
    return _open(policies, "egress", source, target) and _open(policies, "ingress", target, source)


def _open(policies: Iterable[Mapping[str, Any]], direction: Literal["egress", "ingress"], pod: Pod, other: Pod) -> bool:
    selecting = [
        policy
        for policy in policies
        if policy["metadata"].get("namespace", "default") == pod.namespace
        and direction in _directions(policy["spec"])
        and _selects(policy["spec"].get("podSelector") or {}, pod.labels)
    ]
    if not selecting:
        return True
    side = "to" if direction == "egress" else "from"
    return any(
        not rule.get(side)  # everybody
        or any(_reaches(peer, policy["metadata"].get("namespace", "default"), other) for peer in rule[side])
        for policy in selecting
        for rule in policy["spec"].get(direction) or ()
    )


def _directions(spec: Mapping[str, Any]) -> set[str]:
    types = spec.get("policyTypes") or (["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])
    return {str(each).lower() for each in types}


def _reaches(peer: Mapping[str, Any], namespace: str, pod: Pod) -> bool:
    """Whether a peer of a rule covers the pod."""
    if "ipBlock" in peer:
        return True
    if "namespaceSelector" in peer:
        if not _may_select_namespace(peer["namespaceSelector"] or {}, pod.namespace):
            return False
    elif pod.namespace != namespace:
        return False
    return _selects(peer.get("podSelector") or {}, pod.labels)


def _may_select_namespace(selector: Mapping[str, Any], namespace: str) -> bool:
    known = {_NAMESPACE_NAME: namespace}
    return _selects(
        {
            "matchLabels": {key: value for key, value in (selector.get("matchLabels") or {}).items() if key in known},
            "matchExpressions": [each for each in selector.get("matchExpressions") or () if each["key"] in known],
        },
        known,
    )


def _selects(selector: Mapping[str, Any], carried: Mapping[str, str]) -> bool:
    """Whether a label selector covers these labels; an empty one covers everything."""
    if any(carried.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_expression(each, carried) for each in selector.get("matchExpressions") or ())


def _expression(expression: Mapping[str, Any], carried: Mapping[str, str]) -> bool:
    value = carried.get(expression["key"])
    match expression["operator"]:
        case "In":
            return value in expression["values"]
        case "NotIn":
            return value not in expression["values"]
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case other:
            raise ValueError(f"a label selector has the operator {other!r}; there are In, NotIn, Exists, DoesNotExist")
