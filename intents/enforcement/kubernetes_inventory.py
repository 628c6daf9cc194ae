"""The computing part of an inventory, from a cluster: nodes with their labels, and workloads where their pods run.

A pod belongs to the workload that its label `midstream.dev/workload` names, else `app.kubernetes.io/name`, else to one
of its own name. A workload has the labels that all of its pods share: where they differ, it is not known. A pod counts
from when it has a node until it is gone; one that has ended (`Succeeded`, `Failed`) does not, one that is being deleted
does, as it still holds what it holds.

The network part stays as it was (`intents.enforcement.onos_topology` brings it up to date).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intents.errors import EnforcementError
from intents.model.inventory import Inventory, Node, Workload
from intents.model.labels import WORKLOAD

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intents.enforcement.kubernetes import Cluster

_NAMES = (WORKLOAD, "app.kubernetes.io/name")
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
        before: Where nodes hang, switches and links.

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
        EnforcementError: two namespaces have a workload of one name, or a field is missing.
    """
    try:
        found_nodes = tuple(_node(each, before) for each in nodes)
        known = {node.name for node in found_nodes}
        grouped: dict[str, list[Mapping[str, Any]]] = {}
        for pod in pods:
            if (pod.get("status") or {}).get("phase") not in _ENDED:
                grouped.setdefault(_workload_name(pod), []).append(pod)
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


def _workload(name: str, pods: Sequence[Mapping[str, Any]], known: set[str]) -> Workload:
    namespaces = sorted({_namespace(pod) for pod in pods})
    if len(namespaces) > 1:
        raise EnforcementError(
            f"namespaces {' and '.join(namespaces)} both have a workload {name}: label one of them {_NAMES[0]}=..."
        )
    carried = [pod["metadata"].get("labels") or {} for pod in pods]
    shared = set.intersection(*({*each.items()} for each in carried))
    nodes = [node for node in _nodes(pods) if node in known]
    addresses = [address for pod in pods if (address := (pod.get("status") or {}).get("podIP")) and _is_ipv4(address)]
    return Workload(
        name=name,
        labels=dict(sorted(shared)),
        node=nodes[0] if nodes else None,
        replicas=len(pods),
        ip=addresses[0] if len(pods) == 1 and addresses else None,
        namespace=namespaces[0],
    )


def _nodes(pods: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(sorted({node for pod in pods if (node := (pod.get("spec") or {}).get("nodeName"))}))


def _workload_name(pod: Mapping[str, Any]) -> str:
    carried = pod["metadata"].get("labels") or {}
    return str(next((carried[key] for key in _NAMES if carried.get(key)), pod["metadata"]["name"]))


def _namespace(pod: Mapping[str, Any]) -> str:
    return str(pod["metadata"].get("namespace", "default"))


def _is_ipv4(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).version == 4
    except ValueError:
        return False
