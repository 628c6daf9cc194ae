"""Checks of where packets go: route and isolation rules, judged from walks through the flow tables.

A route rule speaks of pairs. With peers, each pair must be connected and every journey must comply. Without, that is
asked of pairs among the subjects that no isolation rule keeps apart; other packets need not arrive, but none may go
where the rule forbids: one packet of every kind that some rule on some switch treats in its own way is walked, those
from addresses that nobody has included, from every switch that would forward them. A subject that no isolation rule
keeps apart from anybody must be left with somebody to talk to.

A switch that a packet enters counts even if the packet ends there, but for the first: a packet that does not leave the
switch that its sender hangs on has gone nowhere.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from intents.proof import network_policy, words
from intents.proof.limits import PathLimit
from intents.proof.observed import Endpoint
from intents.proof.report import Check
from intents.proof.walk import End, Walk

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from intents.model.intent import Direction, IsolationRule, PrivacyIntent, RouteRule
    from intents.proof.observed import Observed
    from intents.proof.walk import Journey

_NOWHERE = "{} runs nowhere, so there is nothing to prove it by"


class _Finding:
    """What the walks of one check brought to light."""

    def __init__(self) -> None:
        self.looked_at: dict[str, None] = {}
        self.breaches: dict[str, None] = {}
        self.lacks: dict[str, None] = {}

    def check(self, subject: str, line: str, intent: str, good: str, *, preferred: bool = False) -> Check:
        wrong = [*self.breaches, *self.lacks]
        said = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "") if wrong else good
        if preferred:
            said = f"preferred, and not met: {said}" if wrong else said
            return Check(subject, line, tuple(self.looked_at), True, said, intent)
        return Check(subject, line, tuple(self.looked_at), not wrong, said, intent, bool(self.breaches))


class Cuts:
    """Who is kept apart from whom by the isolation rules of all intents, by names of workloads."""

    def __init__(self, observed: Observed, intents: Sequence[PrivacyIntent]) -> None:
        self._rules = [
            (frozenset(observed.subjects(spec.subjects)), frozenset(observed.subjects(rule.peers)), rule.direction)
            for intent in intents
            for spec in intent.specs
            for rule in spec.isolation
        ]

    def of(self, workload: str, direction: Direction) -> frozenset[str]:
        """Return the workloads that it exchanges no packet with in any of these directions."""
        out: frozenset[str] = frozenset()
        back: frozenset[str] = frozenset()
        for subjects, peers, limited in self._rules:
            if workload in subjects:
                out |= peers if limited != "to_subjects" else frozenset()
                back |= peers if limited != "from_subjects" else frozenset()
            if workload in peers:
                out |= subjects if limited != "from_subjects" else frozenset()
                back |= subjects if limited != "to_subjects" else frozenset()
        return {"both": out & back, "from_subjects": out, "to_subjects": back}[direction]


class RouteChecks:
    """All checks of one route rule."""

    def __init__(self, observed: Observed, intent: str, subjects: Sequence[str], rule: RouteRule, cuts: Cuts) -> None:
        self._cuts = cuts
        self._observed = observed
        self._network = observed.network
        self._intent = intent
        self._subjects = [observed.workload_end(name) for name in subjects if observed.expected_to_run(name)]
        self._rule = rule
        self._line = words.route(rule)
        self._limit = PathLimit(observed.inventory, rule.switches, rule.links, rule.min_bandwidth_mbps)
        self._through: dict[str, frozenset[int]] = {}

    def run(self) -> Iterator[Check]:
        """Make the checks."""
        if self._rule.peers is not None:
            yield from self._with_peers()
            return
        for subject in self._subjects:
            apart = self._cuts.of(subject.name, "from_subjects")
            for other in self._subjects:
                if other is not subject and other.name not in apart:
                    yield self._pair(subject, other)
        for subject in self._subjects:
            if self._rule.direction != "to_subjects":
                yield self._all_from(subject)
            if self._rule.direction != "from_subjects":
                yield self._all_to(subject)
            if (lonely := self._lonely(subject)) is not None:
                yield lonely

    def _with_peers(self) -> Iterator[Check]:
        assert self._rule.peers is not None  # noqa: S101 - for the type checker
        peers = self._observed.ends(self._rule.peers)
        pairs = dict.fromkeys(
            pair
            for subject in self._subjects
            for peer in peers
            if peer != subject
            for pair in _directed(subject, peer, self._rule.direction)
        )
        if not pairs:
            reason = "no workload and no node matches the peers: the rule says nothing"
            yield Check(", ".join(each.name for each in self._subjects), self._line, (), False, reason, self._intent)
        for source, target in pairs:
            yield self._pair(source, target)

    def _pair(self, source: Endpoint, target: Endpoint) -> Check:
        """Check a pair that must be connected."""
        finding = _Finding()
        if not source.nodes or not target.nodes:
            nowhere = source if not source.nodes else target
            finding.lacks[_NOWHERE.format(nowhere.name)] = None
        for node in source.nodes:
            if not target.nodes:
                continue
            walk = self._walk(finding, source, node, target)
            reached = walk.reached | ({node} & set(target.nodes))
            if not reached & set(target.nodes):
                finding.lacks[f"{target.name} cannot be reached from {node}: {_ends(walk)}"] = None
            elif not walk.journeys:
                finding.looked_at[f"both on {node}"] = None
            if node in target.nodes and self._rule.through:
                finding.breaches[f"both on {node}, so their packets pass no switch"] = None
        good = "every packet goes " + (", ".join(key for key in finding.looked_at if ">" in key) or "no further")
        preferred = self._rule.strength == "preferred"
        return finding.check(f"{source.name} -> {target.name}", self._line, self._intent, good, preferred=preferred)

    def _walk(self, finding: _Finding, source: Endpoint, node: str, target: Endpoint) -> Walk:
        """Walk the packets of a known pair from one node, unless they stay on it, and judge them."""
        if set(target.nodes) == {node}:
            return Walk((), frozenset())
        walk = self._network.from_node(node, source.address, target.address)
        for journey in walk.journeys:
            self._judge(finding, journey, set(target.nodes), target.name)
        return walk

    def _judge(self, finding: _Finding, journey: Journey, expected: Collection[str] | None, target: str) -> None:
        """Take down what one journey does; `expected`: nodes that may receive it, None: any."""
        finding.looked_at[str(journey)] = None
        stays = len(journey.switches) == 1 and journey.end in {End.DROPPED, End.LOST}
        reason = None if stays else self._limit.why_not(journey.switches, journey.links)
        if reason is not None:
            finding.breaches[f"a packet to {target} goes {journey}, and {reason}"] = None
        if journey.end is End.UNKNOWN:
            finding.breaches[f"a packet to {target} goes {journey}"] = None
        elif journey.end is End.LOOP:
            finding.lacks[f"a packet to {target} goes {journey}"] = None
        elif journey.end is End.ARRIVED:
            if expected is not None and journey.where not in expected:
                finding.breaches[f"a packet to {target} is handed to {journey.where}, where it does not run"] = None
            elif (reason := self._why_not_arrived(journey)) is not None:
                finding.breaches[f"a packet to {target} goes {journey}, and {reason}"] = None

    def _why_not_arrived(self, journey: Journey) -> str | None:
        """Judge what only the whole way can be judged by: way points and latency."""
        inventory = self._observed.inventory
        for point in self._rule.through:
            if not any(point.holds(name, inventory.switch[name].labels) for name in journey.switches):
                return f"passes no switch where {words.predicate(point)}"
        if self._rule.max_latency_ms is not None:
            latency_ms = sum(inventory.links[index].latency_ms for index in journey.links)
            if latency_ms > self._rule.max_latency_ms + 1e-9:
                return f"takes {latency_ms:g} ms"
        return None

    def _all_from(self, subject: Endpoint) -> Check:
        """Check whatever else a subject may send."""
        finding = _Finding()
        if not subject.nodes:
            finding.lacks[_NOWHERE.format(subject.name)] = None
        for address in self._network.tables.targets_of(subject.address):
            target = self._endpoint(address)
            for node in subject.nodes:
                if target.nodes:
                    self._walk(finding, subject, node, target)
                    continue
                for journey in self._network.from_node(node, subject.address, address).journeys:
                    self._judge(finding, journey, None, target.name)
        finding.looked_at[f"{len(subject.nodes)} nodes that {subject.name} runs on"] = None
        return finding.check(
            f"{subject.name} -> any", self._line, self._intent, "no packet goes elsewhere", preferred=self._preferred
        )

    def _all_to(self, subject: Endpoint) -> Check:
        """Check whatever else may be sent to a subject, by those we know and by anybody else."""
        finding = _Finding()
        if not subject.nodes:
            finding.lacks[_NOWHERE.format(subject.name)] = None
        addresses = self._network.tables.sources_to(subject.address)
        finding.looked_at[f"{len(addresses)} kinds of source address"] = None
        for address in addresses:
            source = self._endpoint(address)
            for node in source.nodes:
                self._walk(finding, source, node, subject)
            if source.nodes:
                continue
            for device in sorted(self._network.tables.forwarding(address, subject.address)):
                switch = self._network.switch_of_device.get(device)
                if switch is not None:
                    for journey in self._network.from_switch(switch, None, address, subject.address).journeys:
                        self._judge(finding, journey, None, subject.name)
        return finding.check(
            f"any -> {subject.name}", self._line, self._intent, "no packet comes another way", preferred=self._preferred
        )

    @property
    def _preferred(self) -> bool:
        return self._rule.strength == "preferred"

    def _endpoint(self, address: int) -> Endpoint:
        found = self._observed.who.get(address)
        return found or Endpoint(str(ipaddress.IPv4Address(address)), address, (), is_node=False)

    def _lonely(self, subject: Endpoint) -> Check | None:
        """Check that a subject that has others to talk to, and is kept apart from none, can talk to one of them."""
        others = sum(1 for name, nodes in self._observed.placement.items() if nodes and name != subject.name)
        if not others or not subject.nodes or self._cuts.of(subject.name, self._rule.direction):
            return None
        beside = [each for node in subject.nodes for each in self._observed.residents.get(node, ()) if each != subject]
        tables = self._network.tables
        addresses = dict.fromkeys([*tables.targets_of(subject.address), *tables.sources_to(subject.address)])
        known = (self._endpoint(address) for address in addresses)
        met = beside or [each for each in known if not each.is_node and each.nodes and self._meet(subject, each)]
        looked_at = (f"{others} other workloads", f"{len(addresses)} kinds of address")
        reason = f"reaches {met[0].name}" if met else f"none of the {others} other workloads can be reached"
        return Check(subject.name, self._line, looked_at, bool(met) or self._preferred, reason, self._intent)

    def _meet(self, subject: Endpoint, other: Endpoint) -> bool:
        return other != subject and any(
            self._network.from_node(node, source.address, target.address).reached & set(target.nodes)
            for source, target in _directed(subject, other, self._rule.direction)
            for node in source.nodes
        )


def check_isolation(observed: Observed, intent: str, subjects: Sequence[str], rule: IsolationRule) -> Iterator[Check]:
    """Check that no packet passes between subjects and peers."""
    line = words.isolation(rule)
    peers = observed.ends(rule.peers)
    if not any(peer.is_node or peer.name != name for peer in peers for name in subjects):
        reason = "no peer matches: the rule says nothing"
        yield Check(", ".join(subjects), line, (), False, reason, intent)
    for name in subjects:
        subject = observed.workload_end(name)
        for outwards in (True, False):
            if rule.direction == ("to_subjects" if outwards else "from_subjects"):
                continue
            finding = _Finding()
            others = [peer for peer in peers if peer != subject]
            if not others:
                continue
            short = sum(_apart(finding, observed, *((subject, it) if outwards else (it, subject))) for it in others)
            if short:
                finding.looked_at[f"{short} ways that no rule of the first switch opens"] = None
            pair = f"{name} -> peers" if outwards else f"peers -> {name}"
            yield finding.check(pair, line, intent, f"no packet passes; {len(others)} peers looked at")


def _apart(finding: _Finding, observed: Observed, source: Endpoint, target: Endpoint) -> int:
    """Judge a pair; return how many of its ways end where they begin."""
    network, pair, short = observed.network, f"{source.name} -> {target.name}", 0
    for node in source.nodes:
        if node in target.nodes:
            _apart_on_node(finding, observed, node, source, target)
        if set(target.nodes) <= {node}:
            continue
        if not network.forwards(node, source.address, target.address):
            short += 1
            continue
        for journey in network.from_node(node, source.address, target.address).journeys:
            finding.looked_at[f"{pair}: {journey}"] = None
            if journey.end is End.UNKNOWN or (journey.end is End.ARRIVED and journey.where in target.nodes):
                finding.breaches[f"a packet {pair} goes {journey}"] = None
    return short


def _apart_on_node(finding: _Finding, observed: Observed, node: str, source: Endpoint, target: Endpoint) -> None:
    """Judge two ends on one node, where no switch sees the packets."""
    finding.looked_at[f"{source.name} -> {target.name}: both on {node}, NetworkPolicies"] = None
    if source.is_node or target.is_node:
        finding.breaches[f"{source.name} -> {target.name}: one of them runs on the other"] = None
    elif network_policy.allows(observed.kubernetes, observed.pod(source.name), observed.pod(target.name)):
        finding.breaches[f"{source.name} -> {target.name}: both on {node}, and no NetworkPolicy keeps them apart"] = (
            None
        )


def _directed(subject: Endpoint, peer: Endpoint, direction: Direction) -> list[tuple[Endpoint, Endpoint]]:
    there, back = (subject, peer), (peer, subject)
    return {"both": [there, back], "from_subjects": [there], "to_subjects": [back]}[direction]


def _ends(walk: Walk) -> str:
    if not walk.journeys:
        return "it hangs on no switch"
    return "; ".join(str(journey) for journey in walk.journeys[:3])
