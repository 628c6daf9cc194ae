"""Send packets through flow tables, switch by switch, as an OpenFlow switch would."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intents.model.addressing import addressing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from intents.model.inventory import Inventory


@dataclass(frozen=True)
class Walk:
    """Switches crossed, and the node that the packet left the network at (None: it was dropped)."""

    path: tuple[str, ...]
    node: str | None
    looped: bool = False


class Network:
    """The tables of an inventory's switches."""

    def __init__(self, inventory: Inventory, rules: Iterable[Mapping[str, Any]] = ()) -> None:
        self.addresses = addressing(inventory)
        self.inventory = inventory
        self._name = {device: name for name, device in self.addresses.device.items()}
        self._behind: dict[tuple[str, int], tuple[str, str]] = {
            (str(node.switch), self.addresses.node_port[node.name]): ("node", node.name)
            for node in inventory.nodes
            if node.switch is not None
        }
        for number, link in enumerate(inventory.links):
            if link.up:
                for here, there in ((link.a, link.b), (link.b, link.a)):
                    self._behind[here, self.addresses.towards(inventory, number, here)] = ("switch", there)
        self._tables: dict[str, dict[Any, Mapping[str, Any]]] = {name: {} for name in self.addresses.device}
        for rule in rules:
            self.add(rule)

    def add(self, rule: Mapping[str, Any]) -> None:
        self._tables[self._name[rule["deviceId"]]][self._key(rule)] = rule

    def remove(self, rule: Mapping[str, Any]) -> None:
        self._tables[self._name[rule["deviceId"]]].pop(self._key(rule), None)

    def send(self, source: str, target: str, switch: str | None) -> Walk:
        """Send an IPv4 packet from one address to another, starting at a switch."""
        path: list[str] = []
        while switch is not None:
            if switch in path:
                return Walk(tuple(path), None, looped=True)
            path.append(switch)
            matching = [rule for rule in self._tables[switch].values() if _matches(rule, source, target)]
            best = max(matching, key=lambda rule: rule["priority"], default=None)
            if best is None or not best["treatment"]["instructions"]:
                return Walk(tuple(path), None)
            (instruction,) = best["treatment"]["instructions"]
            kind, name = self._behind.get((switch, int(instruction["port"])), ("node", ""))
            if kind == "node":
                return Walk(tuple(path), name or None)
            switch = name
        return Walk(tuple(path), None)

    def stops(self, source: str, target: str, switch: str) -> bool:
        """Whether some rule of a switch says that it drops these packets."""
        matching = [rule for rule in self._tables[switch].values() if _matches(rule, source, target)]
        best = max(matching, key=lambda rule: rule["priority"], default=None)
        return best is not None and not best["treatment"]["instructions"]

    def tables(self) -> dict[str, dict[Any, Mapping[str, Any]]]:
        return self._tables

    @staticmethod
    def _key(rule: Mapping[str, Any]) -> Any:
        criteria = tuple(sorted((each["type"], each.get("ip", "")) for each in rule["selector"]["criteria"]))
        return rule["tableId"], rule["priority"], criteria


def _matches(rule: Mapping[str, Any], source: str, target: str) -> bool:
    wanted = {"IPV4_SRC": f"{source}/32", "IPV4_DST": f"{target}/32"}
    for each in rule["selector"]["criteria"]:
        if each["type"] == "ETH_TYPE":
            if each["ethType"] != "0x800":
                return False
        elif wanted[each["type"]] != each["ip"]:
            return False
    return True
