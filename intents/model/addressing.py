"""Addresses and ports of an inventory that does not give them.

Device ids, ports and IP addresses are assigned in the order of names, around those that are given, so that compiler,
checker, a test network and a later run agree: nodes get 10.0.0.0/9, workloads 10.128.0.0/9.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from intents.model.inventory import Inventory, Link

_NODES = int(ipaddress.IPv4Address("10.0.0.0"))
_WORKLOADS = int(ipaddress.IPv4Address("10.128.0.0"))


@dataclass(frozen=True, slots=True)
class Addressing:
    """Who has which address.

    Attributes:
        device: OpenFlow id (`of:` and 16 hex digits) by switch.
        node_ip: IPv4 address by node.
        workload_ip: IPv4 address by workload.
        node_port: Port of its switch that a node hangs on, by node.
        link_ports: Ports at a and b, by index in `Inventory.links`.
    """

    device: Mapping[str, str]
    node_ip: Mapping[str, str]
    workload_ip: Mapping[str, str]
    node_port: Mapping[str, int]
    link_ports: tuple[tuple[int, int], ...]

    @property
    def ip(self) -> dict[str, str]:
        """Addresses by name, the workload's where a node has the same one."""
        return {**self.node_ip, **self.workload_ip}

    def towards(self, inventory: Inventory, link: int, switch: str) -> int:
        """Return the port at `switch` that the link with this index is plugged into."""
        each: Link = inventory.links[link]
        return self.link_ports[link][0 if each.a == switch else 1]


def addressing(inventory: Inventory) -> Addressing:
    """Return the addresses of an inventory, those given and those derived."""
    taken_devices = {switch.device for switch in inventory.switches if switch.device is not None}
    free_devices = (f"of:{number:016x}" for number in count(1) if f"of:{number:016x}" not in taken_devices)
    device = {
        switch.name: switch.device or next(free_devices)
        for switch in sorted(inventory.switches, key=lambda each: each.name)
    }
    taken_ips = {node.ip for node in inventory.nodes} | {workload.ip for workload in inventory.workloads}
    ports: dict[str, set[int]] = {name: set() for name in device}
    for node in inventory.nodes:
        if node.switch is not None and node.port is not None:
            ports[node.switch].add(node.port)
    for link in inventory.links:
        for end, port in ((link.a, link.a_port), (link.b, link.b_port)):
            if port is not None:
                ports[end].add(port)
    node_port = {
        node.name: node.port or _free_port(ports[node.switch])
        for node in sorted(inventory.nodes, key=lambda each: each.name)
        if node.switch is not None
    }
    order = sorted(range(len(inventory.links)), key=lambda index: (inventory.links[index].name, index))
    link_ports: dict[int, tuple[int, int]] = {}
    for index in order:
        link = inventory.links[index]
        link_ports[index] = (link.a_port or _free_port(ports[link.a]), link.b_port or _free_port(ports[link.b]))
    return Addressing(
        device=device,
        node_ip=_ips(_NODES, taken_ips, ((node.name, node.ip) for node in inventory.nodes)),
        workload_ip=_ips(_WORKLOADS, taken_ips, ((each.name, each.ip) for each in inventory.workloads)),
        node_port=node_port,
        link_ports=tuple(link_ports[index] for index in range(len(inventory.links))),
    )


def _free_port(taken: set[int]) -> int:
    port = next(number for number in count(1) if number not in taken)
    taken.add(port)
    return port


def _ips(start: int, taken: set[str | None], elements: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    free = (text for number in count(start + 1) if (text := str(ipaddress.IPv4Address(number))) not in taken)
    return {name: given or next(free) for name, given in sorted(elements)}
