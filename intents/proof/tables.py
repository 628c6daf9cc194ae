"""Flow tables of all switches, read from ONOS-shaped flow rules as they are installed.

A packet is an IPv4 packet of known source and target whose other fields are free. A rule matches it surely, or not, or
*perhaps*: when it also asks for a field that is free (protocol, ports, MAC, VLAN), or is not yet surely in force
(`PENDING_ADD`, `PENDING_REMOVE`). What may happen to a packet are therefore alternatives: every rule that perhaps
matches with a higher priority, and then every rule of the highest priority at which one surely matches (OpenFlow leaves
open which of them is taken). Without a sure match, the packet may be dropped: a table miss is a drop.

Read are tables with id 0 and the criteria ETH_TYPE, IPV4_SRC, IPV4_DST and IN_PORT; outputs are ports and `ALL` or
`FLOOD`. Any other treatment (the controller, NORMAL, groups, other tables, rewritten addresses) makes the rule
*opaque*: nothing can be proven about a packet that it matches.
"""

from __future__ import annotations

import bisect
import ipaddress
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_IPV4 = 0x0800
_LAST = 0xFFFFFFFF
_EVERY_PORT = frozenset({"ALL", "FLOOD"})
_INERT = frozenset({"NOACTION", "METER", "QUEUE"})
_IN_FORCE = frozenset({"ADDED"})
_NOT_IN_FORCE = frozenset({"REMOVED", "FAILED"})


class UnreadableRule(ValueError):
    """A flow rule lacks something that every flow rule has, or has it in no known form."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """The addresses from `first` to `last`."""

    first: int
    last: int

    def holds(self, address: int) -> bool:
        """Whether the address is one of them."""
        return self.first <= address <= self.last


@dataclass(frozen=True, slots=True)
class Rule:
    """One flow rule.

    Attributes:
        index: Its place in the list that it came from.
        source: Source addresses that it matches; None: any.
        target: Target addresses that it matches; None: any.
        in_port: Port that the packet came in by; None: any.
        perhaps: It matches only some of these packets, or may not be in force.
        outputs: Ports that it sends a copy to.
        floods: It sends a copy to every port but the one that the packet came in by.
        opaque: What it does that cannot be followed; None: nothing.
    """

    index: int
    device: str
    priority: int
    source: Prefix | None
    target: Prefix | None
    in_port: int | None
    perhaps: bool
    outputs: tuple[int, ...]
    floods: bool
    opaque: str | None

    @property
    def drops(self) -> bool:
        """Whether nothing leaves the switch by this rule."""
        return not (self.outputs or self.floods or self.opaque)

    def __str__(self) -> str:
        return f"flow rule {self.index} of {self.device}"


def read_rule(index: int, flow: Mapping[str, Any]) -> Rule | None:
    """Read a flow rule; None if it can never match an IPv4 packet in table 0.

    Raises:
        UnreadableRule: it is no flow rule; the message says what it lacks.
    """
    try:
        if str(flow.get("tableId", 0)) != "0" or flow.get("state") in _NOT_IN_FORCE:
            return None
        source = target = in_port = None
        perhaps = flow.get("state") is not None and flow["state"] not in _IN_FORCE
        for criterion in (flow.get("selector") or {}).get("criteria") or ():
            match criterion["type"]:
                case "ETH_TYPE":
                    if int(str(criterion["ethType"]), 0) != _IPV4:
                        return None
                case "IPV4_SRC":
                    source = _prefix(criterion["ip"])
                case "IPV4_DST":
                    target = _prefix(criterion["ip"])
                case "IN_PORT":
                    in_port = int(criterion["port"])
                case _:
                    perhaps = True
        outputs, floods, opaque = _treatment(flow.get("treatment") or {})
        return Rule(
            index=index,
            device=str(flow["deviceId"]),
            priority=int(flow["priority"]),
            source=source,
            target=target,
            in_port=in_port,
            perhaps=perhaps,
            outputs=outputs,
            floods=floods,
            opaque=opaque,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UnreadableRule(f"flow rule {index} cannot be read: {what}") from error


@lru_cache(maxsize=65536)  # a table names the same few addresses thousands of times
def _prefix(text: str) -> Prefix:
    network = ipaddress.IPv4Network(text, strict=False)
    return Prefix(int(network.network_address), int(network.broadcast_address))


def _treatment(treatment: Mapping[str, Any]) -> tuple[tuple[int, ...], bool, str | None]:
    outputs: list[int] = []
    floods = False
    opaque: str | None = None
    for instruction in (*(treatment.get("instructions") or ()), *(treatment.get("deferred") or ())):
        kind = instruction["type"]
        port = str(instruction.get("port", "")).upper()
        if kind == "OUTPUT" and port in _EVERY_PORT:
            floods = True
        elif kind == "OUTPUT" and port.isdigit():
            outputs.append(int(port))
        elif kind == "OUTPUT":
            opaque = f"OUTPUT to {instruction['port']}"
        elif kind not in _INERT:
            opaque = str(kind)
    return tuple(dict.fromkeys(outputs)), floods, opaque


class FlowTables:
    """The rules of every device, found by source and target address.

    Args:
        flows: ONOS flow rules, as installed.

    Attributes:
        unreadable: What is wrong with each rule that could not be read.
    """

    def __init__(self, flows: Iterable[Mapping[str, Any]]) -> None:
        self.unreadable: list[str] = []
        self._rules: dict[str, dict[tuple[int | None, int | None], list[Rule]]] = defaultdict(lambda: defaultdict(list))
        self._by_source: dict[int | None, list[Rule]] = defaultdict(list)
        self._by_target: dict[int | None, list[Rule]] = defaultdict(list)
        self._leaving_by_target: dict[int | None, list[Rule]] = defaultdict(list)  # without those that drop
        self._cells_to: dict[int, list[int]] = {}
        self._forwarding: dict[tuple[int, int], frozenset[str]] = {}
        for index, flow in enumerate(flows):
            try:
                rule = read_rule(index, flow)
            except UnreadableRule as error:
                self.unreadable.append(str(error))
                continue
            if rule is not None:
                source, target = _single(rule.source), _single(rule.target)
                self._rules[rule.device][source, target].append(rule)
                self._by_source[source].append(rule)
                self._by_target[target].append(rule)
                if not rule.drops:
                    self._leaving_by_target[target].append(rule)

    def alternatives(self, device: str, source: int, target: int, in_port: int | None) -> Sequence[Rule | None]:
        """Return every rule that may be taken; None among them: the packet may be dropped for want of a rule.

        Args:
            device: The switch's OpenFlow id.
            source: The packet's source address.
            target: Its target address.
            in_port: Port that it came in by; None: any.
        """
        table = self._rules.get(device)
        if table is None:
            return (None,)
        found = [
            (rule, rule.perhaps or (rule.in_port is not None and in_port is None))
            for key in ((source, target), (source, None), (None, target), (None, None))
            for rule in table.get(key, ())
            if (rule.source is None or rule.source.holds(source))
            and (rule.target is None or rule.target.holds(target))
            and (rule.in_port is None or in_port is None or rule.in_port == in_port)
        ]
        sure = [rule.priority for rule, perhaps in found if not perhaps]
        floor = max(sure, default=-1)
        taken: list[Rule | None] = [rule for rule, _ in found if rule.priority >= floor]
        return taken if sure else [*taken, None]

    def targets_of(self, source: int) -> list[int]:
        """Return one target address for each way in which rules can treat packets from that source."""
        return _representatives(
            rule.target
            for key in (source, None)
            for rule in self._by_source.get(key, ())
            if rule.source is None or rule.source.holds(source)
        )

    def sources_to(self, target: int) -> list[int]:
        """Return one source address for each way in which rules can treat packets to that target."""
        return _representatives(rule.source for rule in _rules_to(self._by_target, target))

    def forwarding(self, source: int, target: int) -> frozenset[str]:
        """Return the devices with a rule by which such a packet could leave them."""
        if target not in self._cells_to:
            sources = (rule.source for rule in _rules_to(self._leaving_by_target, target))
            self._cells_to[target] = _representatives(sources)
        cells = self._cells_to[target]
        like = cells[bisect.bisect_right(cells, source) - 1]  # treated as this source is
        if (like, target) not in self._forwarding:
            self._forwarding[like, target] = frozenset(
                rule.device
                for rule in _rules_to(self._leaving_by_target, target)
                if rule.source is None or rule.source.holds(like)
            )
        return self._forwarding[like, target]


def _rules_to(by_target: Mapping[int | None, Sequence[Rule]], target: int) -> Iterator[Rule]:
    for key in (target, None):
        for rule in by_target.get(key, ()):
            if rule.target is None or rule.target.holds(target):
                yield rule


def _single(prefix: Prefix | None) -> int | None:
    return prefix.first if prefix is not None and prefix.first == prefix.last else None


def _representatives(prefixes: Iterable[Prefix | None]) -> list[int]:
    """Addresses of which one lies in every cell that the prefixes cut the address space into: where a cell begins."""
    begins = {0}
    for prefix in prefixes:
        if prefix is not None:
            begins.add(prefix.first)
            if prefix.last < _LAST:
                begins.add(prefix.last + 1)
    return sorted(begins)
