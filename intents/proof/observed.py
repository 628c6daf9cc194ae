"""What was found to run and to be installed, and what everything that checks needs to know about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence  # noqa: TC003 - part of the public signature
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from intents.model.inventory import Inventory  # noqa: TC001 - part of the public signature
from intents.model.labels import WORKLOAD
from intents.proof.network_policy import Pod
from intents.proof.walk import Network

if TYPE_CHECKING:
    from intents.model.predicate import Predicate


@dataclass(frozen=True)
class Observed:
    """A state to be checked.

    Attributes:
        placement: Nodes where replicas really run, by workload.
        flows: ONOS flow rules as they are installed.
        inventory: The current snapshot of labels, switches and links.
        version: Version of the snapshot that placement and flows were read with.
        kubernetes: Manifests in force; of these the NetworkPolicies count.
    """

    placement: Mapping[str, tuple[str, ...]]
    flows: Sequence[dict[str, Any]]
    inventory: Inventory
    version: str
    kubernetes: Sequence[Mapping[str, Any]] = ()

    @cached_property
    def network(self) -> Network:
        """The switches with what is installed on them."""
        return Network(self.inventory, self.flows)

    @cached_property
    def who(self) -> Mapping[int, Endpoint]:
        """Workloads and nodes by their address."""
        workloads = (self.workload_end(name) for name in self.network.workload_ip)
        nodes = (self.node_end(name) for name in self.network.node_ip)
        return {each.address: each for each in (*workloads, *nodes)}

    @cached_property
    def residents(self) -> Mapping[str, Sequence[Endpoint]]:
        """Workloads by the node that they run on."""
        found: dict[str, list[Endpoint]] = {}
        for each in self.who.values():
            if not each.is_node:
                for node in each.nodes:
                    found.setdefault(node, []).append(each)
        return found

    def nodes_of(self, workload: str) -> tuple[str, ...]:
        """Return the nodes where replicas of a workload run."""
        return tuple(self.placement.get(workload, ()))

    def subjects(self, selector: Predicate) -> list[str]:
        """Return the names of the workloads that surely satisfy the selector."""
        return [each.name for each in self.inventory.workloads if selector.holds(each.name, each.labels)]

    def expected_to_run(self, workload: str) -> bool:
        """Whether it has, or should have, any replica."""
        return self.inventory.workload[workload].replicas > 0 or bool(self.nodes_of(workload))

    def ends(self, selector: Predicate) -> list[Endpoint]:
        """Return the workloads and nodes that surely satisfy the selector."""
        nodes = [each.name for each in self.inventory.nodes if selector.holds(each.name, each.labels)]
        return [self.workload_end(name) for name in self.subjects(selector)] + [self.node_end(name) for name in nodes]

    def workload_end(self, name: str) -> Endpoint:
        """Return a workload as an end of a packet's way; a node that is gone carries none."""
        nodes = tuple(node for node in self.nodes_of(name) if node in self.inventory.node)
        return Endpoint(name, self.network.workload_ip[name], nodes, is_node=False)

    def node_end(self, name: str) -> Endpoint:
        """Return a node as an end of a packet's way."""
        return Endpoint(name, self.network.node_ip[name], (name,), is_node=True)

    def pod(self, workload: str) -> Pod:
        """Return what a NetworkPolicy knows of a workload's pods."""
        each = self.inventory.workload[workload]
        return Pod(each.namespace, {**each.labels, WORKLOAD: workload})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where packets begin or end: its address, and the nodes that it is on."""

    name: str
    address: int
    nodes: tuple[str, ...]
    is_node: bool
