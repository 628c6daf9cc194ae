"""Who has which address."""

from intents.model.addressing import addressing
from intents.model.inventory import Inventory, Node, Workload


def test_addresses_are_told_by_name_and_a_workload_goes_before_a_node_of_its_name():
    found = addressing(
        Inventory(
            version="1",
            nodes=(Node(name="store"), Node(name="edge", ip="10.9.9.9")),
            workloads=(Workload(name="chat"), Workload(name="store", ip="10.200.0.7")),
        )
    )
    assert found.ip == {"edge": "10.9.9.9", "chat": found.workload_ip["chat"], "store": "10.200.0.7"}
