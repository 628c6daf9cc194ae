"""The routes as ONOS intents (`POST /onos/v1/intents`, one object each), where ONOS' constraints can say the limits.

A PointToPointIntent leaves the path to ONOS, which also moves it when a link fails. The switches that the hard rules
forbid become an ObstacleConstraint, the way points of the chosen path a WaypointConstraint. What ONOS cannot be told
reliably is left to flow rules, and named: limits on links (it knows no labels of them), bandwidth that is a property
and not a reservation, and latency (ONOS takes it from annotations of its own, and a link without one counts as none).
Preferred rules do not reach ONOS either; they are not lost where flow rules are used instead.

Enforce a pair by its flow rules or by its intent, not by both. The drops of `intents.compilation.onos` are needed with
either: an intent only adds a path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intents.compilation.judging import Judge
from intents.compilation.onos import ROUTE, ip_of, selector
from intents.compilation.problem import Problem
from intents.model.addressing import addressing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intents.compilation.compiled import Compiled, Route
    from intents.compilation.judging import Endpoint
    from intents.compilation.paths import Limits
    from intents.model.intent import PrivacyIntent
    from intents.model.inventory import Inventory

APPLICATION = "org.onosproject.core"
"""Whose the intents are; ONOS only takes the name of an application that it knows, and this one always is."""


def onos_intents(
    inventory: Inventory, intents: Sequence[PrivacyIntent], compiled: Compiled
) -> tuple[tuple[dict[str, Any], ...], tuple[tuple[str, str], ...]]:
    """Return the intents for the routes of `compiled`, and the pairs that need flow rules instead."""
    problem = Problem(inventory, intents, Judge(inventory))
    chosen = {placement.workload: placement.node for placement in compiled.placements}
    routes = {(route.source, route.target): route for route in compiled.routes}
    addresses = addressing(inventory)
    found: list[dict[str, Any]] = []
    left_out: list[tuple[str, str]] = []
    for pair, rules in sorted(problem.pairs(problem.rules).items()):
        route = routes.get((pair[0].name, pair[1].name))
        if route is None or not route.path:
            continue
        limits = problem.limits(tuple(rule for rule in rules if rule.hard))
        if limits.links is not None or limits.latency is not None:
            left_out.append((route.source, route.target))
            continue
        ends = []
        for endpoint, switch in ((pair[0], route.path[0]), (pair[1], route.path[-1])):
            port = addresses.node_port[_node(problem, endpoint, chosen)]
            ends.append({"device": addresses.device[switch], "port": str(port)})
        found.append(
            {
                "type": "PointToPointIntent",
                "appId": APPLICATION,
                "priority": ROUTE,
                "selector": selector(ip_of(addresses, pair[0]), ip_of(addresses, pair[1])),
                "ingressPoint": ends[0],
                "egressPoint": ends[1],
                "constraints": _constraints(inventory, limits, route, addresses.device),
            }
        )
    return tuple(found), tuple(left_out)


def _node(problem: Problem, endpoint: Endpoint, chosen: dict[str, str]) -> str:
    return str(problem.node_of(endpoint, chosen))


def _constraints(inventory: Inventory, limits: Limits, route: Route, device: Mapping[str, str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if limits.switches is not None:
        obstacles = sorted(device[name] for name in inventory.switch if name not in limits.switches)
        if obstacles:
            found.append({"type": "ObstacleConstraint", "obstacles": obstacles})
    points = [name for name in route.path if any(name in point for point in limits.through)]
    if points:
        found.append({"type": "WaypointConstraint", "waypoints": [device[name] for name in points]})
    return found
