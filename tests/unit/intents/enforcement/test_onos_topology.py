"""An inventory with the network as ONOS sees it."""

from __future__ import annotations

from typing import Any

import pytest

from intents.enforcement.onos import OnosStore
from intents.enforcement.onos_topology import with_topology
from intents.errors import EnforcementError
from intents.model.addressing import addressing
from intents.model.inventory import Inventory, Node
from intents.model.labels import JURISDICTION
from tests.support.onos_server import OnosServer
from tests.unit.intents.proof.networks import DIAMOND

GIVEN = addressing(DIAMOND)


def onos_of(inventory: Inventory) -> OnosServer:
    """ONOS in front of the network of this inventory."""
    given = addressing(inventory)
    server = OnosServer()
    server.devices = [
        {"id": given.device[each.name], "available": True, "annotations": {"name": each.name}}
        for each in inventory.switches
    ]
    for index, link in enumerate(inventory.links):
        ends = [
            {"device": given.device[name], "port": str(port)}
            for name, port in zip((link.a, link.b), given.link_ports[index], strict=True)
        ]
        for src, dst in (ends, reversed(ends)):
            server.links.append({"src": src, "dst": dst, "type": "DIRECT", "state": "ACTIVE"})
    server.hosts = [
        {
            "ipAddresses": [given.node_ip[node.name]],
            "locations": [{"elementId": given.device[str(node.switch)], "port": str(given.node_port[node.name])}],
        }
        for node in inventory.nodes
    ]
    return server


def seen(server: OnosServer, before: Inventory = DIAMOND) -> Inventory:
    environ = {"ONOS_USER": "onos", "ONOS_PASSWORD": "rocks"}
    with OnosStore("http://localhost:8181", environ, server.transport) as onos:
        return with_topology(before, onos.devices(), onos.links(), onos.hosts(), "2")


def test_a_network_that_is_as_written_down_stays_so():
    inventory = seen(onos_of(DIAMOND))
    assert inventory.version == "2"
    assert [(each.name, each.labels, each.switch) for each in inventory.nodes] == [
        (each.name, each.labels, each.switch) for each in DIAMOND.nodes
    ]
    assert [(each.name, each.up, each.latency_ms) for each in inventory.links] == [
        (each.name, True, each.latency_ms) for each in DIAMOND.links
    ]
    assert addressing(inventory) == GIVEN


@pytest.mark.parametrize("direction", [0, 1])
def test_a_link_that_onos_lost_in_one_direction_is_down(direction: int):
    server = onos_of(DIAMOND)
    del server.links[direction]
    assert [each.up for each in seen(server).links] == [False, True, True, True]


def test_links_of_a_device_that_is_away_are_down():
    server = onos_of(DIAMOND)
    server.devices[1]["available"] = False
    assert [each.name for each in seen(server).links if not each.up] == ["s1-s2", "s2-s4"]


def test_a_node_that_moved_hangs_where_it_was_seen():
    server = onos_of(DIAMOND)
    server.hosts[0]["locations"] = [{"elementId": GIVEN.device["s2"], "port": "9"}]
    assert (seen(server).node["n1"].switch, seen(server).node["n1"].port) == ("s2", 9)


def test_a_node_that_was_never_or_twice_seen_hangs_nowhere():
    server = onos_of(DIAMOND)
    server.hosts[0]["locations"].append({"elementId": GIVEN.device["s2"], "port": "9"})
    del server.hosts[1]
    assert seen(server).node["n1"].switch is None
    assert seen(server).node["n2"].switch is None


def test_switches_and_links_that_nobody_wrote_down_are_taken_with_their_annotations():
    server = onos_of(DIAMOND)
    annotations = {"name": "s9", JURISDICTION: "BE", "protocol": "OF_13"}
    server.devices.append({"id": "of:00000000000000ff", "available": True, "annotations": annotations})
    ends = [{"device": "of:00000000000000ff", "port": "1"}, {"device": GIVEN.device["s1"], "port": "9"}]
    server.links += [{"src": ends[0], "dst": ends[1]}, {"src": ends[1], "dst": ends[0]}]
    inventory = seen(server)
    assert inventory.switch["s9"].labels == {JURISDICTION: "BE"}
    assert [(each.a_port, each.b_port, each.up) for each in inventory.links if each.name == "s1-s9"] == [(9, 1, True)]


def test_without_a_host_for_it_a_node_keeps_its_labels_and_address():
    before = Inventory(nodes=(Node(name="n1", labels={JURISDICTION: "DE"}),))
    inventory = with_topology(before, [], [], [], "2")
    assert inventory.node["n1"].labels == {JURISDICTION: "DE"}
    assert inventory.node["n1"].ip == "10.0.0.1"


@pytest.mark.parametrize("broken", [{"devices": [{"id": "of:1"}]}, {"links": [{"src": {}}]}, {"hosts": [{}]}])
def test_an_answer_outside_the_contract_is_an_error(broken: dict[str, Any]):
    server = onos_of(DIAMOND)
    for what, value in broken.items():
        setattr(server, what, value)
    with pytest.raises(EnforcementError, match="cannot be read"):
        seen(server)
