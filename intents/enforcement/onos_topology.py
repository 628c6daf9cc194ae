"""The network part of an inventory, as ONOS sees it: switches, links, and where nodes hang.

ONOS names switches by their device id; an annotation `name` overrides it. Annotations with a `/` in their name are
labels (`midstream.dev/jurisdiction`). A link is up when ONOS knows it as active in both directions and both devices are
available. A node hangs where ONOS saw a host with the node's address; one that ONOS never saw hangs nowhere, so
nothing that needs the network is ever proven about it.

What ONOS does not know is taken from the inventory before, by device and port: labels, latency and bandwidth that an
operator wrote down. A link that ONOS no longer sees stays, and is down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intents.errors import EnforcementError
from intents.model.addressing import addressing
from intents.model.inventory import Inventory, Link, Node, Switch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_End = tuple[str, int]  # device and port


def with_topology(
    before: Inventory,
    devices: Sequence[Mapping[str, Any]],
    links: Sequence[Mapping[str, Any]],
    hosts: Sequence[Mapping[str, Any]],
    version: str,
) -> Inventory:
    """Return the inventory with the switches, links and locations of nodes that ONOS knows.

    Args:
        before: Nodes, workloads, and what an operator wrote down of the network.
        devices: `GET /devices`.
        links: `GET /links`.
        hosts: `GET /hosts`.
        version: Version of the result.

    Raises:
        EnforcementError: ONOS answered outside its contract.
    """
    try:
        return _merge(before, devices, links, hosts, version)
    except (KeyError, TypeError, ValueError) as error:
        raise EnforcementError(f"the topology that ONOS answered cannot be read: {error!r}") from error


def _merge(
    before: Inventory,
    devices: Sequence[Mapping[str, Any]],
    links: Sequence[Mapping[str, Any]],
    hosts: Sequence[Mapping[str, Any]],
    version: str,
) -> Inventory:
    given = addressing(before)
    name_of = {given.device[switch.name]: switch.name for switch in before.switches}
    for each in devices:
        annotated = (each.get("annotations") or {}).get("name")
        name_of.setdefault(str(each["id"]), str(annotated or each["id"]))
    labels_of = {str(each["id"]): _labels(each) for each in devices}
    available = {str(each["id"]) for each in devices if each["available"]}
    switches = [
        Switch(
            name=name,
            device=device,
            labels=(dict(before.switch[name].labels) if name in before.switch else {}) | labels_of.get(device, {}),
        )
        for device, name in sorted(name_of.items(), key=lambda item: item[1])
    ]
    located = _located(hosts)
    nodes = []
    for node in before.nodes:
        place = located.get(given.node_ip[node.name])
        switch = None if place is None else name_of.get(place[0])
        port = place[1] if place is not None and switch is not None else None
        nodes.append(Node(**(node.model_dump() | {"switch": switch, "port": port, "ip": given.node_ip[node.name]})))
    workloads = [
        each.model_copy(update={"ip": given.workload_ip[each.name]}) for each in before.workloads
    ]  # addresses must not move because names of other workloads come and go
    return Inventory(
        metadata=before.metadata,
        version=version,
        nodes=tuple(nodes),
        workloads=tuple(workloads),
        switches=tuple(switches),
        links=tuple(_links(before, links, name_of, available)),
    )


def _links(
    before: Inventory, links: Sequence[Mapping[str, Any]], name_of: Mapping[str, str], available: set[str]
) -> Iterable[Link]:
    active = {
        (_end(each["src"]), _end(each["dst"])): _labels(each)
        for each in links
        if each.get("state", "ACTIVE") == "ACTIVE"
    }
    given = addressing(before)
    known: set[frozenset[_End]] = set()
    for index, link in enumerate(before.links):
        ports = given.link_ports[index]
        a, b = (given.device[link.a], ports[0]), (given.device[link.b], ports[1])
        known.add(frozenset((a, b)))
        labels = dict(link.labels) | active.get((a, b), {})
        yield link.model_copy(
            update={"up": _is_up(a, b, active, available), "a_port": a[1], "b_port": b[1], "labels": labels}
        )
    for (a, b), labels in sorted(active.items()):
        if frozenset((a, b)) not in known:
            known.add(frozenset((a, b)))
            up = _is_up(a, b, active, available)
            yield Link(a=name_of[a[0]], b=name_of[b[0]], a_port=a[1], b_port=b[1], up=up, labels=labels)


def _is_up(a: _End, b: _End, active: Mapping[tuple[_End, _End], object], available: set[str]) -> bool:
    return (a, b) in active and (b, a) in active and {a[0], b[0]} <= available


def _end(point: Mapping[str, Any]) -> _End:
    return str(point["device"]), int(point["port"])


def _located(hosts: Sequence[Mapping[str, Any]]) -> dict[str, _End]:
    """Return where each address is; one that ONOS saw in several places is nowhere for sure."""
    found: dict[str, set[_End]] = {}
    for host in hosts:
        for address in host["ipAddresses"]:
            for place in host["locations"]:
                found.setdefault(str(address), set()).add((str(place["elementId"]), int(place["port"])))
    return {address: next(iter(places)) for address, places in found.items() if len(places) == 1}


def _labels(element: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in (element.get("annotations") or {}).items() if "/" in key}
