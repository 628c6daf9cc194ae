"""Which elements of an inventory meet a predicate: judged once for each different set of labels, and remembered.

Met means judged `True`; unknown counts as not met. Of several thousand nodes most share their labels, so a predicate
is evaluated once for each combination of the labels that it speaks of, not once for each node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

from intents.model import labels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from intents.model.intent import Topology
    from intents.model.inventory import Inventory, Node, Switch, Workload
    from intents.model.predicate import Predicate

T = TypeVar("T")

TOPOLOGY_LABEL: Mapping[Topology, str] = {
    "zone": labels.ZONE,
    "region": labels.REGION,
    "jurisdiction": labels.JURISDICTION,
    "provider": labels.PROVIDER,
}
"""The label whose value a topology compares; `node` compares the node itself."""


class Endpoint(NamedTuple):
    """Who sends or receives packets: a workload, or the node itself (the two may have one name)."""

    kind: str
    name: str


def workload_endpoint(name: str) -> Endpoint:
    """Return the endpoint that is the workload with this name."""
    return Endpoint("workload", name)


class Judge:
    """Names of the elements of one inventory that meet a predicate."""

    def __init__(self, inventory: Inventory) -> None:
        self.inventory = inventory
        self._workloads: dict[Predicate, frozenset[str]] = {}
        self._nodes: dict[Predicate, frozenset[str]] = {}
        self._switches: dict[Predicate, frozenset[str]] = {}
        self._links: dict[Predicate, frozenset[int]] = {}
        self._topology: dict[tuple[Topology, str], str | None] = {}

    def workloads(self, predicate: Predicate) -> frozenset[str]:
        """Names of the workloads that meet the predicate."""
        return _remembered(self._workloads, predicate, lambda: _meeting(predicate, self.inventory.workloads))

    def nodes(self, predicate: Predicate) -> frozenset[str]:
        """Names of the nodes that meet the predicate."""
        return _remembered(self._nodes, predicate, lambda: _meeting(predicate, self.inventory.nodes))

    def switches(self, predicate: Predicate) -> frozenset[str]:
        """Names of the switches that meet the predicate."""
        return _remembered(self._switches, predicate, lambda: _meeting(predicate, self.inventory.switches))

    def links(self, predicate: Predicate) -> frozenset[int]:
        """Positions of the links that meet the predicate, up or not."""
        return _remembered(self._links, predicate, lambda: self._meeting_links(predicate))

    def peers(self, predicate: Predicate) -> frozenset[Endpoint]:
        """Workloads and nodes that meet the predicate."""
        return frozenset(
            {Endpoint("workload", name) for name in self.workloads(predicate)}
            | {Endpoint("node", name) for name in self.nodes(predicate)}
        )

    def topology(self, topology: Topology, node: str) -> str | None:
        """Return the value that a node has for a topology, in one spelling; None: it does not carry the label."""
        if topology == "node":
            return node
        found = (topology, node)
        if found not in self._topology:
            value = self.inventory.node[node].labels.get(TOPOLOGY_LABEL[topology])
            if value is not None:
                value = labels.jurisdiction(value) if topology == "jurisdiction" else value.casefold()
            self._topology[found] = value
        return self._topology[found]

    def labelled(self, topology: Topology) -> frozenset[str]:
        """Names of the nodes that have a value for a topology."""
        return frozenset(name for name in self.inventory.node if self.topology(topology, name) is not None)

    def apart(self, topology: Topology, one: str, other: str) -> bool:
        """Whether two nodes are known to share no value; a subdivision shares with its country."""
        a, b = self.topology(topology, one), self.topology(topology, other)
        if a is None or b is None:
            return False
        return a != b and not (topology == "jurisdiction" and (a.startswith(b + "-") or b.startswith(a + "-")))

    def together(self, topology: Topology, one: str, other: str) -> bool:
        """Whether two nodes are known to share one value."""
        value = self.topology(topology, one)
        return value is not None and value == self.topology(topology, other)

    def _meeting_links(self, predicate: Predicate) -> frozenset[int]:
        switch = self.inventory.switch
        keys = sorted(predicate.keys() - {labels.NAME})
        by_name = bool(names_in(predicate))
        judged: dict[object, bool] = {}
        met = []
        for position, link in enumerate(self.inventory.links):
            ends = (switch[link.a].labels, switch[link.b].labels)
            signature = (
                link.name if by_name else None,
                *((link.labels.get(key), ends[0].get(key), ends[1].get(key)) for key in keys),
            )
            if signature not in judged:
                judged[signature] = predicate.holds_for_link(link.name, link.labels, ends) is True
            if judged[signature]:
                met.append(position)
        return frozenset(met)


def _remembered(memory: dict[Predicate, T], predicate: Predicate, judge: Callable[[], T]) -> T:
    if predicate not in memory:
        memory[predicate] = judge()
    return memory[predicate]


def _meeting(predicate: Predicate, elements: Iterable[Node | Workload | Switch]) -> frozenset[str]:
    keys = sorted(predicate.keys() - {labels.NAME})
    spoken_of = names_in(predicate)
    judged: dict[object, bool] = {}
    met = []
    for element in elements:
        own = element.labels
        signature = (element.name if element.name in spoken_of else None, *[own.get(key) for key in keys])
        if signature not in judged:
            judged[signature] = predicate.holds(element.name, own) is True
        if judged[signature]:
            met.append(element.name)
    return frozenset(met)


def names_in(predicate: Predicate) -> frozenset[str]:
    """Return the names that the predicate's terms about `name` speak of."""
    return frozenset(
        value for part in predicate.any_of for term in part.all_of if term.key == labels.NAME for value in term.values
    )
