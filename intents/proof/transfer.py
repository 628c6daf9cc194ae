"""The transfer guard: what a migration would touch, judged before its first byte moves.

No KV cache, weight or prompt byte may cross a node or link that an active intent forbids, before, during and after a
migration. So everything is asked of old and new nodes together, as both hold state while it lasts, and of every switch
and link that the state crosses:

| rule | what it asks of a migration of its subjects |
|---|---|
| placement | old and new nodes satisfy it |
| spread | old and new nodes together satisfy it |
| routes | switches and links of the transfer path satisfy it, and way points if it names no peers |
| isolation | no old or new node is a peer |
| transfer | nothing moves, or nodes, switches and links satisfy it, if the rule is about this state |

What moves was exchanged with peers: where packets to one of them may not go, it may not go either, whoever the peer is.

Preferred rules do not hinder. The path is given as switches, or found by walking packets from node to node through flow
rules as they are installed; without either a rule about switches or links is not proven. A workload that no intent
selects may move; one that the inventory does not know may not, while any intent is active.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from intents.model.intent import State
from intents.proof import words
from intents.proof.limits import NodeLimit, PathLimit
from intents.proof.observed import Observed
from intents.proof.report import Check, Report
from intents.proof.residence import check_placement, check_spread
from intents.proof.walk import End, Journey

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intents.model.intent import IntentSpec, PrivacyIntent
    from intents.model.inventory import Inventory
    from intents.model.predicate import Predicate

EVERY_STATE: tuple[State, ...] = get_args(State)


@dataclass(frozen=True, slots=True)
class Transfer:
    """State that moves from one node to another.

    Attributes:
        source: Node that sends.
        target: Node that receives.
        path: Switches that it crosses, the first and the last included; None: as the flow rules lead it.
    """

    source: str
    target: str
    path: tuple[str, ...] | None = None


class TransferGuard:
    """Judges migrations by the active intents.

    Args:
        inventory: The current snapshot.
        intents: All that are active.
    """

    def __init__(self, inventory: Inventory, intents: Sequence[PrivacyIntent]) -> None:
        self._inventory = inventory
        self._intents = intents

    def judge(
        self,
        workload: str,
        old_nodes: Sequence[str],
        new_nodes: Sequence[str],
        transfers: Sequence[Transfer],
        *,
        flows: Sequence[dict[str, Any]] = (),
        state: Sequence[State] = EVERY_STATE,
        version: str | None = None,
    ) -> Report:
        """Judge one migration.

        Args:
            workload: Whose state moves.
            old_nodes: Where it runs.
            new_nodes: Where it will run.
            transfers: Every pair of nodes that state moves between.
            flows: Flow rules as installed, for transfers without a path.
            state: What moves.
            version: Version of the inventory that the plan was made for; None: not known.

        Returns:
            A report that holds if the migration may start.
        """
        checks = []
        if version is not None and version != self._inventory.version:
            said = f"planned at version {version}; the snapshot is at {self._inventory.version}"
            checks.append(Check(workload, "is current", (version, self._inventory.version), False, said, breach=True))
        if self._intents and workload not in self._inventory.workload:
            said = "it is not in the inventory, so nobody can tell which intents are about it"
            checks.append(Check(workload, "is known", tuple(i.metadata.name for i in self._intents), False, said))
            return Report(tuple(checks))
        migration = _Migration(self._inventory, workload, old_nodes, new_nodes, transfers, flows, frozenset(state))
        about = [
            (intent.metadata.name, spec)
            for intent in self._intents
            for spec in intent.specs
            if spec.subjects.holds(workload, self._inventory.workload[workload].labels)
        ]
        if not about:
            names = tuple(intent.metadata.name for intent in self._intents)
            checks.append(Check(workload, "is free to move", names, True, f"none of {len(names)} intents is about it"))
        for name, spec in about:
            checks += migration.checks(name, spec)
        return Report(tuple(checks))


class _Migration:
    """One migration, seen as a state in which old and new nodes are used at once."""

    def __init__(
        self,
        inventory: Inventory,
        workload: str,
        old_nodes: Sequence[str],
        new_nodes: Sequence[str],
        transfers: Sequence[Transfer],
        flows: Sequence[dict[str, Any]],
        state: frozenset[State],
    ) -> None:
        placement = {each.name: (each.node,) for each in inventory.workloads if each.node is not None}
        ends = [node for each in transfers for node in (each.source, each.target)]
        self._nodes = tuple(dict.fromkeys([*old_nodes, *new_nodes, *ends]))
        self._during = Observed(placement | {workload: self._nodes}, flows, inventory, inventory.version)
        self._inventory = inventory
        self._workload = workload
        self._transfers = [each for each in transfers if each.source != each.target]
        self._state = state

    def checks(self, intent: str, spec: IntentSpec) -> Iterator[Check]:
        """Make the checks of one spec that is about this workload."""
        said = f"{len(self._nodes)} nodes, {len(self._transfers)} transfers"
        yield Check(self._workload, "is on nodes", self._nodes, bool(self._nodes), said, intent)
        for placement in spec.placement:
            subjects = [self._workload]
            if placement.at_least is not None:
                subjects = self._during.subjects(spec.subjects)
            yield from check_placement(self._during, intent, subjects, placement)
        for spread in spec.spread:
            yield from check_spread(self._during, intent, self._during.subjects(spec.subjects), spread)
        for route in spec.routes:
            if route.strength == "required":
                through = route.through if route.peers is None else ()
                limit = PathLimit(self._inventory, route.switches, route.links, route.min_bandwidth_mbps)
                asks = bool(through or route.switches or route.links)
                yield self._crossing(intent, words.route(route), limit, through, asks=asks)
        for isolation in spec.isolation:
            yield self._apart(intent, words.isolation(isolation), isolation.peers)
        for transfer in spec.transfer:
            line = words.transfer(transfer)
            moved = sorted(self._state & set(transfer.state))
            if not moved:
                said = f"what moves is {', '.join(sorted(self._state)) or 'nothing'}"
                yield Check(self._workload, line, tuple(sorted(self._state)), True, said, intent)
            elif transfer.forbidden:
                holds = not self._transfers
                said = "nothing leaves its node" if holds else f"{' and '.join(moved)} would move"
                looked_at = tuple(f"{each.source} -> {each.target}" for each in self._transfers) or self._nodes
                yield Check(self._workload, line, looked_at, holds, said, intent, breach=not holds)
            else:
                if transfer.nodes is not None:
                    yield self._on(intent, line, transfer.nodes)
                if transfer.switches is not None or transfer.links is not None:
                    limit = PathLimit(self._inventory, transfer.switches, transfer.links)
                    yield self._crossing(intent, line, limit, (), asks=True)

    def _on(self, intent: str, line: str, asked: Predicate) -> Check:
        limit = NodeLimit(self._inventory, asked)
        wrong = [reason for node in self._nodes if (reason := limit.why_not(node)) is not None]
        said = wrong[0] if wrong else f"touches {', '.join(self._nodes)}"
        return Check(self._workload, line, self._nodes, not wrong, said, intent, breach=bool(wrong))

    def _apart(self, intent: str, line: str, peers: Predicate) -> Check:
        known = [self._inventory.node[name] for name in self._nodes if name in self._inventory.node]
        wrong = [node.name for node in known if peers.holds(node.name, node.labels)]
        said = f"touches {wrong[0]}" if wrong else "touches none of the peers"
        return Check(self._workload, line, self._nodes, not wrong, said, intent, breach=bool(wrong))

    def _crossing(self, intent: str, line: str, limit: PathLimit, through: Sequence[Predicate], *, asks: bool) -> Check:
        """Check every switch and link that state crosses."""
        looked_at: list[str] = []
        wrong: list[str] = []
        for transfer in self._transfers:
            pair = f"{transfer.source} -> {transfer.target}"
            journeys, problem = self._journeys(transfer)
            looked_at += [f"{pair}: {journey}" for journey in journeys] or [pair]
            if problem is not None and asks:
                wrong.append(f"{pair}: {problem}")
            for journey in journeys:
                reason = limit.why_not(journey.switches, journey.links) or self._not_through(journey, through)
                if reason is not None:
                    wrong.append(f"{pair} goes {journey}, and {reason}")
        said = "; ".join(wrong[:3]) or f"{len(self._transfers)} transfers looked at"
        return Check(self._workload, line, tuple(looked_at) or self._nodes, not wrong, said, intent, breach=bool(wrong))

    def _not_through(self, journey: Journey, through: Sequence[Predicate]) -> str | None:
        for point in through:
            if not any(point.holds(name, self._inventory.switch[name].labels) for name in journey.switches):
                return f"passes no switch where {words.predicate(point)}"
        return None

    def _journeys(self, transfer: Transfer) -> tuple[list[Journey], str | None]:
        """Return the ways of a transfer, and what keeps them from being proven."""
        if unknown := [node for node in (transfer.source, transfer.target) if node not in self._inventory.node]:
            return [], f"node {unknown[0]} is not in the inventory"
        if transfer.path is not None:
            return self._along(transfer, transfer.path)
        end = self._during.node_end(transfer.target)
        source_ip = self._during.network.node_ip[transfer.source]
        walk = self._during.network.from_node(transfer.source, source_ip, end.address)
        if not walk.reached & {transfer.target}:
            return list(walk.journeys), "neither a path is given nor do flow rules surely lead there"
        odd = next((each for each in walk.journeys if each.end in {End.UNKNOWN, End.LOOP}), None)
        return list(walk.journeys), None if odd is None else str(odd)

    def _along(self, transfer: Transfer, path: tuple[str, ...]) -> tuple[list[Journey], str | None]:
        """Return the way along these switches; of parallel links that are up, all count as crossed."""
        first, last = (self._inventory.node[node].switch for node in (transfer.source, transfer.target))
        if not path or (path[0], path[-1]) != (first, last):
            return [], f"the path {' > '.join(path) or '(empty)'} does not lead from one node to the other"
        links: list[int] = []
        for ends in itertools.pairwise(path):
            between = [
                index for index, link in enumerate(self._inventory.links) if link.up and {link.a, link.b} == {*ends}
            ]
            if not between:
                return [], f"no link that is up joins {ends[0]} and {ends[1]}"
            links += between
        return [Journey(path, tuple(links), End.ARRIVED, transfer.target)], None
