"""NetworkPolicies for pairs that exchange no packet.

A NetworkPolicy can only allow, and several add up. So there is one for each workload that has a forbidden peer, made
from all intents: it denies everything in that direction and allows the workloads of the inventory that are not
forbidden, by label and namespace. What the inventory does not know is denied with it; only the cluster's DNS stays
reachable for a workload whose outgoing packets are limited, since nothing works without names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intents.compilation.judging import workload_endpoint
from intents.compilation.kubernetes import metadata, object_name, workload_value
from intents.model.labels import WORKLOAD

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intents.compilation.judging import Endpoint
    from intents.compilation.problem import Problem
    from intents.compilation.rules import Pair, Rule

NAMESPACE_NAME = "kubernetes.io/metadata.name"
_DNS = {
    "to": [
        {
            "namespaceSelector": {"matchLabels": {NAMESPACE_NAME: "kube-system"}},
            "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
        }
    ],
    "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}],
}


def network_policies(
    problem: Problem, blocked: Sequence[Pair], about: Mapping[str, Sequence[Rule]]
) -> list[dict[str, Any]]:
    """Return one policy for each workload that a rule about packets is about and that has a forbidden peer."""
    limiting = {
        name: {rule.id.intent for rule in rules if rule.id.kind in {"isolation", "routes"}}
        for name, rules in about.items()
    }
    to: dict[str, set[Endpoint]] = {}
    of: dict[str, set[Endpoint]] = {}
    for source, target in blocked:
        if source.kind == "workload" and limiting.get(source.name):
            to.setdefault(source.name, set()).add(target)
        if target.kind == "workload" and limiting.get(target.name):
            of.setdefault(target.name, set()).add(source)
    found = []
    for name in sorted(to.keys() | of.keys()):
        spec: dict[str, Any] = {"podSelector": {"matchLabels": {WORKLOAD: workload_value(name)}}, "policyTypes": []}
        if name in of:
            spec["policyTypes"].append("Ingress")
            spec["ingress"] = [{"from": _allowed(problem, of[name])}]
        if name in to:
            spec["policyTypes"].append("Egress")
            spec["egress"] = [{"to": _allowed(problem, to[name])}, _DNS]
        found.append(
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": metadata(
                    object_name(f"midstream-{name}"),
                    limiting[name],
                    problem.inventory.workload[name].namespace,
                ),
                "spec": spec,
            }
        )
    return found


def _allowed(problem: Problem, forbidden: set[Endpoint]) -> list[dict[str, Any]]:
    """Peers by namespace. An empty list of peers would allow everybody; a workload itself is always among them."""
    by_namespace: dict[str, list[str]] = {}
    for workload in problem.inventory.workloads:
        if workload_endpoint(workload.name) not in forbidden:
            by_namespace.setdefault(workload.namespace, []).append(workload_value(workload.name))
    return [
        {
            "namespaceSelector": {"matchLabels": {NAMESPACE_NAME: namespace}},
            "podSelector": {"matchExpressions": [{"key": WORKLOAD, "operator": "In", "values": sorted(names)}]},
        }
        for namespace, names in sorted(by_namespace.items())
    ]
