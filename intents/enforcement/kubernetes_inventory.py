"""The computing part of an inventory, from a cluster: nodes with their labels, and workloads where their pods run.

A pod belongs to the workload that its label `midstream.dev/workload` names, else `app.kubernetes.io/name`, else to one
of its own name. A workload has the labels that all of its pods share: where they differ, it is not known. A pod counts
from when it has a node until it is gone; one that has ended (`Succeeded`, `Failed`) does not, one that is being deleted
does, as it still holds what it holds.

What the inventory already has is read from the namespace that it has there. The same name elsewhere, and a name that
several namespaces have and the inventory has not, becomes `<namespace>/<name>`: its labels count, and an intent that
speaks of the bare name finds nothing, so it does not hold. Only where a pod of another namespace says by its label
`midstream.dev/workload` that it is a workload of the inventory, it cannot be told who is meant: nothing is read then.

Pods that Midstream itself runs (`midstream.dev/role`) carry their pipeline's label, but are no stages of it: those are
where the head says (`intents.live_midstream`). So the label is not taken over.

The network part stays as it was (`intents.enforcement.onos_topology` brings it up to date).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intents.errors import EnforcementError
from intents.model.inventory import Inventory, Node, Workload
from intents.model.labels import PIPELINE, WORKLOAD

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intents.enforcement.kubernetes import Cluster

_NAMES = (WORKLOAD, "app.kubernetes.io/name")
_ROLE = "midstream.dev/role"
_ENDED = frozenset({"Succeeded", "Failed"})


@dataclass(frozen=True, slots=True)
class ClusterState:
    """What was read: the inventory, the nodes where replicas run by workload, and pods by workload."""

    inventory: Inventory
    placement: Mapping[str, tuple[str, ...]]
    pods: Mapping[str, tuple[tuple[str, str], ...]]  # namespace and name


def read_cluster(cluster: Cluster, before: Inventory) -> ClusterState:
    """Read nodes and pods.

    Args:
        cluster: The cluster.
        before: Where nodes hang, switches and links, and the namespaces of workloads.

    Raises:
        EnforcementError: the API server does not answer, or what it has cannot be an inventory.
    """
    nodes, node_version = cluster.list("/api/v1/nodes")
    pods, pod_version = cluster.list("/api/v1/pods")
    return state_of(nodes, pods, before, f"{node_version}.{pod_version}")


def state_of(
    nodes: Sequence[Mapping[str, Any]], pods: Sequence[Mapping[str, Any]], before: Inventory, version: str
) -> ClusterState:
    """Return the state that these nodes and pods make.

    Raises:
        EnforcementError: a pod says that it is a workload which the inventory has elsewhere, or a field is missing.
    """
    try:
        found_nodes = tuple(_node(each, before) for each in nodes)
        known = {node.name for node in found_nodes}
        grouped = _grouped([pod for pod in pods if (pod.get("status") or {}).get("phase") not in _ENDED], before)
        workloads = tuple(_workload(name, each, known) for name, each in sorted(grouped.items()))
        inventory = before.model_dump() | {
            "version": version,
            "nodes": [each.model_dump() for each in found_nodes],
            "workloads": [each.model_dump() for each in workloads],
        }
        return ClusterState(
            inventory=Inventory.model_validate(inventory),
            placement={name: _nodes(each) for name, each in grouped.items()},
            pods={
                name: tuple((_namespace(pod), pod["metadata"]["name"]) for pod in each)
                for name, each in grouped.items()
            },
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EnforcementError(f"what the cluster has cannot be read: {error!r}") from error


def _node(node: Mapping[str, Any], before: Inventory) -> Node:
    name = node["metadata"]["name"]
    addresses = (node.get("status") or {}).get("addresses") or ()
    internal = [each["address"] for each in addresses if each["type"] == "InternalIP" and _is_ipv4(each["address"])]
    known = before.node.get(name)
    return Node(
        name=name,
        labels=node["metadata"].get("labels") or {},
        switch=known.switch if known is not None else None,
        port=known.port if known is not None else None,
        ip=internal[0] if internal else (known.ip if known is not None else None),
    )


def _grouped(pods: Sequence[Mapping[str, Any]], before: Inventory) -> dict[str, list[Mapping[str, Any]]]:
    homes: dict[str, set[str]] = {}
    for pod in pods:
        homes.setdefault(_workload_name(pod), set()).add(_namespace(pod))
    homes |= {each.name: {each.namespace} for each in before.workloads}
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for pod in pods:
        name, namespace = _workload_name(pod), _namespace(pod)
        if homes[name] != {namespace}:
            if name in before.workload and _labels(pod).get(WORKLOAD):
                raise EnforcementError(
                    f"pod {namespace}/{pod['metadata']['name']} says by its label {WORKLOAD} that it is {name}, which "
                    f"the inventory has in namespace {before.workload[name].namespace}: change the one or the other"
                )
            name = f"{namespace}/{name}"
        grouped.setdefault(name, []).append(pod)
    return grouped


def _workload(name: str, pods: Sequence[Mapping[str, Any]], known: set[str]) -> Workload:
    shared = set.intersection(*({*_own_labels(pod).items()} for pod in pods))
    nodes = [node for node in _nodes(pods) if node in known]
    addresses = [address for pod in pods if (address := (pod.get("status") or {}).get("podIP")) and _is_ipv4(address)]
    return Workload(
        name=name,
        labels=dict(sorted(shared)),
        node=nodes[0] if nodes else None,
        replicas=len(pods),
        ip=addresses[0] if len(pods) == 1 and addresses else None,
        namespace=_namespace(pods[0]),
    )


def _nodes(pods: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(sorted({node for pod in pods if (node := (pod.get("spec") or {}).get("nodeName"))}))


def _workload_name(pod: Mapping[str, Any]) -> str:
    carried = _labels(pod)
    return str(next((carried[key] for key in _NAMES if carried.get(key)), pod["metadata"]["name"]))


def _labels(pod: Mapping[str, Any]) -> Mapping[str, str]:
    return pod["metadata"].get("labels") or {}


def _own_labels(pod: Mapping[str, Any]) -> Mapping[str, str]:
    carried = _labels(pod)
    return {key: value for key, value in carried.items() if key != PIPELINE} if _ROLE in carried else carried


def _namespace(pod: Mapping[str, Any]) -> str:
    return str(pod["metadata"].get("namespace", "default"))


def _is_ipv4(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).version == 4
    except ValueError:
        return False
