"""What a set of intents was compiled into: placements, routes, and what enforces them.

Everything here is plain data. A route's `links` are positions in `Inventory.links`, so a result belongs to the
inventory (and its version) that it was compiled for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intents.model.intent import State


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a workload that some intent selects may run, and where it should.

    Attributes:
        workload: Its name.
        allowed_nodes: Nodes that meet every hard placement rule about it and that no rule isolates it from, sorted. A
            rule with `at_least` below the number of its subjects takes no node away: it asks nothing of one alone.
        node: The one of them that is chosen, together with those of the other workloads.
    """

    workload: str
    allowed_nodes: tuple[str, ...]
    node: str


@dataclass(frozen=True, slots=True)
class Route:
    """The path of the packets from `source` to `target` (workloads, or nodes where an intent has nodes as peers).

    Attributes:
        source: Sends.
        target: Receives; the way back is a route of its own.
        path: Switches in order, the first and the last included; empty where both are on one node.
        links: The links between them: one less than switches, as positions in `Inventory.links`.
    """

    source: str
    target: str
    path: tuple[str, ...]
    links: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a migration of this state of a workload may touch.

    Attributes:
        workload: Its name.
        state: Which of its state.
        forbidden: No migration at all; the other fields are then empty.
        nodes: Names of the nodes that meet the transfer and the placement rules; old and new node must be among them.
        switches: Names of the switches that meet the transfer rules.
        links: Links that meet the transfer rules, up or not, as positions in `Inventory.links`.
    """

    workload: str
    state: State
    forbidden: bool
    nodes: tuple[str, ...]
    switches: tuple[str, ...]
    links: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Compiled:
    """The result; every tuple is sorted, so that equal inputs give equal results.

    Attributes:
        placements: One for each workload that some intent selects.
        routes: One for each ordered pair that a route rule speaks of and that may exchange packets.
        blocked: Ordered pairs that must not: isolated, or without a path within the route rules.
        transfers: One for each workload that a transfer rule is about, and kind of state.
        kubernetes: Manifests, see `intents.compilation.kubernetes`.
        flows: Flow rules in the form of ONOS' REST API, see `intents.compilation.onos`. Parts of them are shared:
            copy before changing one.
    """

    placements: tuple[Placement, ...] = ()
    routes: tuple[Route, ...] = ()
    blocked: tuple[tuple[str, str], ...] = ()
    transfers: tuple[Transfer, ...] = ()
    kubernetes: tuple[dict[str, Any], ...] = ()
    flows: tuple[dict[str, Any], ...] = ()


NOTHING = Compiled()
"""What no intents come to."""
