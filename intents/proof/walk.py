"""Walking a packet through the flow tables, switch by switch, down every way that it may take.

A *journey* is one such way: the switches that the packet enters, the links that it crosses, and its end. Rules that
send several copies, and rules of which any may be taken, each make journeys of their own. A packet that is sent back to
the port it came in by is not sent (OpenFlow asks for IN_PORT by name), nor is one sent to a link that is down or to a
port where nothing hangs.

A packet *surely* reaches a place if, whichever of the alternative rules are taken, one of its copies arrives there.
That is judged switch by switch, so it may be too careful, never too generous.
"""

from __future__ import annotations

import enum
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intents.model.addressing import addressing
from intents.proof.tables import FlowTables

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from intents.model.inventory import Inventory
    from intents.proof.tables import Rule

_MOST_HOPS = 512
_MOST_JOURNEYS = 4096


class End(enum.Enum):
    """How a journey ends."""

    ARRIVED = "arrived"  # handed to a node
    DROPPED = "dropped"  # no rule, or a rule that drops
    LOST = "lost"  # sent where nothing hangs, or to a link that is down
    LOOP = "loop"  # came back to a switch by the same port
    UNKNOWN = "unknown"  # cannot be followed any further


@dataclass(frozen=True, slots=True)
class Journey:
    """One way that a packet may take.

    Attributes:
        switches: Names of the switches that it enters, in order.
        links: Indices of the links that it crosses, in order.
        end: How it ends.
        where: The node that it is handed to; else what ended it, in words.
    """

    switches: tuple[str, ...]
    links: tuple[int, ...]
    end: End
    where: str

    def __str__(self) -> str:
        path = " > ".join(self.switches)
        return f"{path} > {self.where}" if self.end is End.ARRIVED else f"{path}: {self.where}"


@dataclass(frozen=True, slots=True)
class Walk:
    """Every journey of one packet, and the nodes that a copy surely reaches."""

    journeys: tuple[Journey, ...]
    reached: frozenset[str]


class Network:
    """An inventory's switches with what is installed on them.

    Args:
        inventory: Who hangs where.
        flows: ONOS flow rules as installed.
    """

    def __init__(self, inventory: Inventory, flows: Iterable[Mapping[str, Any]]) -> None:
        self.inventory = inventory
        self.addresses = addressing(inventory)
        self.tables = FlowTables(flows)
        self.node_ip = {name: int(ipaddress.IPv4Address(ip)) for name, ip in self.addresses.node_ip.items()}
        self.workload_ip = {name: int(ipaddress.IPv4Address(ip)) for name, ip in self.addresses.workload_ip.items()}
        self.switch_of_device = {device: name for name, device in self.addresses.device.items()}
        # What hangs on (switch, port): nodes, and links with the switch and port at their other end.
        self._nodes: dict[tuple[str, int], list[str]] = {}
        for node in inventory.nodes:
            if node.switch is not None:
                self._nodes.setdefault((node.switch, self.addresses.node_port[node.name]), []).append(node.name)
        self._links: dict[tuple[str, int], list[tuple[int, str, int]]] = {}
        for index, link in enumerate(inventory.links):
            a_port, b_port = self.addresses.link_ports[index]
            self._links.setdefault((link.a, a_port), []).append((index, link.b, b_port))
            self._links.setdefault((link.b, b_port), []).append((index, link.a, a_port))
        self._ports: dict[str, list[int]] = {}
        for switch, port in (*self._nodes, *self._links):
            self._ports.setdefault(switch, []).append(port)
        self._walks: dict[tuple[str, int | None, int, int], Walk] = {}

    def from_node(self, node: str, source: int, target: int) -> Walk:
        """Walk a packet that a node sends; a node without a switch sends none."""
        switch = self.inventory.node[node].switch
        if switch is None:
            return Walk((), frozenset())
        return self.from_switch(switch, self.addresses.node_port[node], source, target)

    def forwards(self, node: str, source: int, target: int) -> bool:
        """Whether the switch that a node hangs on has a rule by which such a packet could leave it."""
        switch = self.inventory.node[node].switch
        return switch is not None and self.addresses.device[switch] in self.tables.forwarding(source, target)

    def from_switch(self, switch: str, in_port: int | None, source: int, target: int) -> Walk:
        """Walk a packet that comes into a switch by a port (None: by any)."""
        key = (switch, in_port, source, target)
        if key not in self._walks:
            self._walks[key] = _Walker(self, source, target).walk(switch, in_port)
        return self._walks[key]

    def beyond(self, switch: str, port: int) -> tuple[Sequence[str], Sequence[tuple[int, str, int]]]:
        """Return the nodes and the links (index, switch and port at the other end) that a port leads to."""
        return self._nodes.get((switch, port), ()), self._links.get((switch, port), ())

    def ports(self, switch: str) -> Sequence[int]:
        """Return the ports of a switch at which something hangs."""
        return self._ports.get(switch, ())


class _Walker:
    """One walk: collects journeys while it goes down every branch."""

    def __init__(self, network: Network, source: int, target: int) -> None:
        self._network = network
        self._source = source
        self._target = target
        self._journeys: list[Journey] = []

    def walk(self, switch: str, in_port: int | None) -> Walk:
        reached = self._enter(switch, in_port, (switch,), (), frozenset())
        return Walk(tuple(dict.fromkeys(self._journeys)), reached)

    def _enter(
        self,
        switch: str,
        in_port: int | None,
        switches: tuple[str, ...],
        links: tuple[int, ...],
        seen: frozenset[tuple[str, int | None]],
    ) -> frozenset[str]:
        """Follow the packet from here; return the nodes that it surely reaches."""
        if (switch, in_port) in seen:
            return self._end(switches, links, End.LOOP, f"comes back to {switch}")
        if len(switches) > _MOST_HOPS or len(self._journeys) > _MOST_JOURNEYS:
            return self._end(switches, links, End.UNKNOWN, "too many ways to follow")
        seen = seen | {(switch, in_port)}
        device = self._network.addresses.device[switch]
        reached: frozenset[str] | None = None
        for rule in self._network.tables.alternatives(device, self._source, self._target, in_port):
            by_rule = self._take(rule, switch, in_port, switches, links, seen)
            reached = by_rule if reached is None else reached & by_rule
        return reached or frozenset()

    def _take(
        self,
        rule: Rule | None,
        switch: str,
        in_port: int | None,
        switches: tuple[str, ...],
        links: tuple[int, ...],
        seen: frozenset[tuple[str, int | None]],
    ) -> frozenset[str]:
        if rule is None:
            return self._end(switches, links, End.DROPPED, f"{switch} has no rule for it")
        if rule.opaque is not None:
            self._end(switches, links, End.UNKNOWN, f"{rule} does what cannot be followed ({rule.opaque})")
        if rule.drops:
            return self._end(switches, links, End.DROPPED, f"{rule} drops it")
        outputs = dict.fromkeys(rule.outputs)
        if rule.floods:
            outputs |= dict.fromkeys(self._network.ports(switch))
        reached: frozenset[str] = frozenset()
        for port in outputs:
            if port == in_port:
                if not rule.floods:
                    self._end(switches, links, End.DROPPED, f"{rule} sends it back to the port it came in by")
                continue
            reached |= self._leave(rule, switch, port, switches, links, seen)
        return reached

    def _leave(
        self,
        rule: Rule,
        switch: str,
        port: int,
        switches: tuple[str, ...],
        links: tuple[int, ...],
        seen: frozenset[tuple[str, int | None]],
    ) -> frozenset[str]:
        nodes, beyond = self._network.beyond(switch, port)
        if not nodes and not beyond:
            return self._end(switches, links, End.LOST, f"{rule} sends it to port {port}, where nothing hangs")
        reached = frozenset(nodes)
        for node in nodes:
            self._end(switches, links, End.ARRIVED, node)
        for index, other, other_port in beyond:
            link = self._network.inventory.links[index]
            if not link.up:
                self._end(switches, links, End.LOST, f"{rule} sends it to link {link.name}, which is down")
                continue
            reached |= self._enter(other, other_port, (*switches, other), (*links, index), seen)
        return reached

    def _end(self, switches: tuple[str, ...], links: tuple[int, ...], end: End, where: str) -> frozenset[str]:
        self._journeys.append(Journey(switches, links, end, where))
        return frozenset()
