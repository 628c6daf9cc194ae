"""Flow rules in the form of ONOS' REST API (`POST /onos/v1/flows` takes `{"flows": [...]}`).

| priority | rule | where |
|---|---|---|
| 50300 | drop the packets of a pair that is cut off | the switches of both |
| 50200 | send the packets of a pair along its route | every switch of the path |
| 50100 | drop them where the rule above is lost | every switch of the path, if a hard rule names the peers |
| 50000 | drop all other packets from (to) a subject | its and its routes' switches, if a hard rule names no peers |

All match IPv4 packets by source and destination address, a pair's both. A pair has one rule a switch and direction, to
one port, along a path that passes no switch twice, so there are no loops. A drop is a rule without instructions.
Packets between two endpoints on one node meet no switch; what cuts those off is the NetworkPolicy.

ARP is not in these rules. No address resolution may flood (a broadcast would cross every switch), so the controller
has to answer it at the edge, as ONOS' `proxyarp` application does, or nodes need static neighbour entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intents.compilation.judging import workload_endpoint
from intents.model.addressing import addressing
from intents.model.intent import RouteRule

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from intents.compilation.compiled import Route
    from intents.compilation.judging import Endpoint
    from intents.compilation.problem import Problem
    from intents.compilation.rules import Pair
    from intents.model.addressing import Addressing

CUT_OFF = 50300
ROUTE = 50200
PAIR_DEFAULT = 50100
SUBJECT_DEFAULT = 50000

Criteria = list[dict[str, str]]
Instructions = list[dict[str, str]]


def flow_rules(
    problem: Problem, routes: Mapping[Pair, Route], blocked: Iterable[Pair], chosen: Mapping[str, str]
) -> tuple[dict[str, Any], ...]:
    """Return the flow rules, sorted by device, priority (highest first) and addresses."""
    table = _Table(problem, chosen)
    for pair in blocked:
        table.cut_off(pair)
    named, subjects = _defaults(problem)
    for pair, route in routes.items():
        table.route(pair, route)
        if pair in named:
            table.default_of_pair(pair, route)
    crossed: dict[tuple[Endpoint, str], set[str]] = {each: set() for each in subjects}
    for pair, route in routes.items():
        for end in zip(pair, ("IPV4_SRC", "IPV4_DST"), strict=True):
            if end in crossed:
                crossed[end].update(route.path)
    for (endpoint, field), switches in sorted(crossed.items()):
        table.default_of_subject(endpoint, field, switches)
    return table.sorted()


def _defaults(problem: Problem) -> tuple[dict[Pair, None], set[tuple[Endpoint, str]]]:
    """Return the pairs that hard rules name, and the subjects (and which side) of hard rules without peers."""
    named = [rule for rule in problem.hard if isinstance(rule.rule, RouteRule) and rule.rule.peers is not None]
    subjects: set[tuple[Endpoint, str]] = set()
    for rule in problem.hard:
        if isinstance(rule.rule, RouteRule) and rule.rule.peers is None:
            sides = {"from_subjects": ["IPV4_SRC"], "to_subjects": ["IPV4_DST"]}
            for field in sides.get(rule.rule.direction, ["IPV4_SRC", "IPV4_DST"]):
                subjects.update((workload_endpoint(name), field) for name in rule.subjects)
    return problem.needed(named), subjects


class _Table:
    """The rules so far; equal parts are made once."""

    def __init__(self, problem: Problem, chosen: Mapping[str, str]) -> None:
        self._problem = problem
        self._chosen = chosen
        self._addresses: Addressing = addressing(problem.inventory)
        self._rules: list[tuple[tuple[str, int, str, str], dict[str, Any]]] = []
        self._selectors: dict[tuple[str, str], dict[str, Criteria]] = {}
        self._treatments: dict[int, dict[str, Instructions]] = {}

    def cut_off(self, pair: Pair) -> None:
        """Drop the packets of a pair at the switches of both ends."""
        for switch in sorted({switch for end in pair if (switch := self._switch(end)) is not None}):
            self._add(switch, CUT_OFF, self._ip(pair[0]), self._ip(pair[1]), None)

    def route(self, pair: Pair, route: Route) -> None:
        """Send the packets of a pair along its route."""
        if not route.path:
            return
        source, target = self._ip(pair[0]), self._ip(pair[1])
        for switch, link in zip(route.path, route.links, strict=False):
            self._add(switch, ROUTE, source, target, self._addresses.towards(self._problem.inventory, link, switch))
        node = self._problem.node_of(pair[1], self._chosen)
        self._add(route.path[-1], ROUTE, source, target, self._addresses.node_port[str(node)])

    def default_of_pair(self, pair: Pair, route: Route) -> None:
        """Drop the packets of a pair on its route where nothing sends them on."""
        for switch in route.path:
            self._add(switch, PAIR_DEFAULT, self._ip(pair[0]), self._ip(pair[1]), None)

    def default_of_subject(self, endpoint: Endpoint, field: str, crossed: set[str]) -> None:
        """Drop all packets from, or to, a subject that no other rule is about."""
        own = self._switch(endpoint)
        for switch in sorted(crossed | ({own} if own is not None else set())):
            source, target = (self._ip(endpoint), "") if field == "IPV4_SRC" else ("", self._ip(endpoint))
            self._add(switch, SUBJECT_DEFAULT, source, target, None)

    def sorted(self) -> tuple[dict[str, Any], ...]:
        """Return the rules in order."""
        self._rules.sort(key=lambda each: each[0])
        return tuple(rule for _, rule in self._rules)

    def _add(self, switch: str, priority: int, source: str, target: str, port: int | None) -> None:
        device = self._addresses.device[switch]
        rule = {
            "priority": priority,
            "timeout": 0,
            "isPermanent": True,
            "deviceId": device,
            "tableId": 0,
            "treatment": self._treatment(port),
            "selector": self._selector(source, target),
        }
        self._rules.append(((device, -priority, source, target), rule))

    def _treatment(self, port: int | None) -> dict[str, Instructions]:
        key = 0 if port is None else port
        if key not in self._treatments:
            instructions = [] if port is None else [{"type": "OUTPUT", "port": str(port)}]
            self._treatments[key] = {"instructions": instructions}
        return self._treatments[key]

    def _selector(self, source: str, target: str) -> dict[str, Criteria]:
        if (source, target) not in self._selectors:
            self._selectors[source, target] = selector(source, target)
        return self._selectors[source, target]

    def _switch(self, endpoint: Endpoint) -> str | None:
        node = self._problem.node_of(endpoint, self._chosen)
        return None if node is None else self._problem.inventory.node[node].switch

    def _ip(self, endpoint: Endpoint) -> str:
        return ip_of(self._addresses, endpoint)


def ip_of(addresses: Addressing, endpoint: Endpoint) -> str:
    """Return the IPv4 address of a workload or node."""
    return (addresses.node_ip if endpoint.kind == "node" else addresses.workload_ip)[endpoint.name]


def selector(source: str, target: str) -> dict[str, Criteria]:
    """Return what matches IPv4 packets from and to these addresses (empty: any)."""
    criteria = [{"type": "ETH_TYPE", "ethType": "0x800"}]
    criteria.extend(
        {"type": field, "ip": f"{ip}/32"} for field, ip in (("IPV4_SRC", source), ("IPV4_DST", target)) if ip
    )
    return {"criteria": criteria}
