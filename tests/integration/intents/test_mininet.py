"""Real packets against C |= I: through Open vSwitch, by rules that were compiled, installed and read back.

For every intent and every ordered pair of workloads a packet is sent before a link fails, while it is down and nobody
has reacted, after the rules were compiled anew, and after the link came back. Each time it must arrive or not, and come
to those switches and no others, as the checker says who walked it through the rules that were read from the switches;
and it must comply with the intent, judged here by names, apart from both checker and compiler.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import pytest

from intents.compilation import Compiled, compile_intents
from intents.model.intent import IntentMetadata, IntentSpec, IsolationRule, PlacementRule, PrivacyIntent, RouteRule
from intents.model.inventory import Inventory
from intents.model.labels import DATA, ENCRYPTED, JURISDICTION
from intents.model.predicate import Predicate, both, named, term
from intents.model.refusal import Refusal
from intents.proof.checker import Observed, Report, check
from intents.proof.walk import End
from tests.integration.intents.topology import INVENTORY
from tests.support.mininet_network import MininetNetwork, Probe, until

HEALTH = term(DATA, "health")
NOT_US = term(JURISDICTION, "US", op="not_in")
NAMES = [each.name for each in INVENTORY.workloads]
CHAT_STORE = [("chat", "store"), ("store", "chat")]
OF_CHAT = [pair for pair in permutations(NAMES, 2) if "chat" in pair]
OF_HEALTH = [pair for pair in permutations(NAMES, 2) if {"chat", "records"} & set(pair)]


@dataclass(frozen=True)
class Case:
    """An intent, and what it means for packets, in names.

    Attributes:
        governs: The pairs that it speaks of.
        never: Switches that none of their packets comes to.
        always: A switch that each of them comes to.
        connected: Those that must arrive while every link is up.
        apart: Those that must not arrive.
        fails: The link that fails, as a position in the inventory.
        recovers: Whether there is another way within the intent.
    """

    spec: IntentSpec
    governs: list[tuple[str, str]]
    fails: int
    never: frozenset[str] = frozenset()
    always: str | None = None
    connected: tuple[tuple[str, str], ...] = ()
    apart: tuple[tuple[str, str], ...] = ()
    recovers: bool = True


def routes(subjects: Predicate, *, stays_on: str | None = None, **limits: Any) -> IntentSpec:
    placement = () if stays_on is None else (PlacementRule(nodes=named(stays_on)),)
    return IntentSpec(subjects=subjects, placement=placement, routes=(RouteRule(**limits),))


CASES = {
    "avoid the US": Case(
        routes(named("chat"), peers=named("store"), switches=NOT_US),
        CHAT_STORE, 1, frozenset({"s3"}), connected=tuple(CHAT_STORE),
    ),
    "avoid the US, whoever it is": Case(
        routes(HEALTH, switches=NOT_US),
        OF_HEALTH, 0, frozenset({"s3"}), connected=(("chat", "records"), ("records", "chat"), ("chat", "gateway")),
        apart=(("chat", "logs"), ("logs", "records")),
    ),
    "only encrypted links": Case(
        routes(named("chat"), peers=named("store"), links=term(ENCRYPTED, "true")),
        CHAT_STORE, 3, connected=tuple(CHAT_STORE),
    ),
    "only encrypted links within the EU": Case(
        routes(named("chat"), peers=named("store"), switches=NOT_US, links=term(ENCRYPTED, "true"), stays_on="n1"),
        CHAT_STORE, 5, frozenset({"s2", "s3"}), always="s5", connected=tuple(CHAT_STORE), recovers=False,
    ),
    "through the firewall": Case(
        routes(named("chat"), peers=named("store"), through=(term("role", "firewall"),)),
        CHAT_STORE, 4, always="s5", connected=tuple(CHAT_STORE), recovers=False,
    ),
    "within Germany, Austria and France": Case(
        routes(HEALTH, peers=named("gateway"), switches=term(JURISDICTION, "DE", "AT", "FR", "NL")),
        [("chat", "gateway"), ("gateway", "chat"), ("records", "gateway"), ("gateway", "records")],
        4, frozenset({"s3"}), connected=(("chat", "gateway"), ("gateway", "records")),
    ),
    "at most 8 ms": Case(
        routes(named("chat"), peers=named("store"), switches=NOT_US, max_latency_ms=8, stays_on="n1"),
        CHAT_STORE, 0, frozenset({"s3", "s5", "s6"}), always="s2", connected=tuple(CHAT_STORE), recovers=False,
    ),
    "one direction": Case(
        routes(named("chat"), peers=named("store"), switches=NOT_US, direction="from_subjects"),
        [("chat", "store")], 0, frozenset({"s3"}), connected=(("chat", "store"),),
    ),
    "a node as the peer": Case(
        routes(named("chat"), peers=named("n2"), switches=NOT_US),
        [("chat", "n2"), ("n2", "chat")], 0, frozenset({"s3"}), connected=(("chat", "n2"), ("n2", "chat")),
    ),
    "not between these": Case(
        IntentSpec(
            subjects=named("chat"),
            isolation=(IsolationRule(peers=named("logs")),),
            routes=(RouteRule(switches=NOT_US),),
        ),
        OF_CHAT, 1, frozenset({"s3"}), connected=(("chat", "store"),), apart=(("chat", "logs"), ("logs", "chat")),
    ),
    "on another node, and by another way": Case(
        IntentSpec(
            subjects=named("chat"),
            placement=(PlacementRule(nodes=term(JURISDICTION, "AT")),),
            routes=(RouteRule(peers=named("records"), switches=both(NOT_US, term(JURISDICTION, "FR", op="not_in"))),),
        ),
        [("chat", "records"), ("records", "chat")], 4, frozenset({"s3", "s4"}), always="s5",
        connected=(("chat", "records"), ("records", "chat")), recovers=False,
    ),
}  # fmt: skip


def intent(case: Case) -> PrivacyIntent:
    return PrivacyIntent(metadata=IntentMetadata(name="case"), specs=(case.spec,))


def with_link(index: int, *, up: bool) -> Inventory:
    links = list(INVENTORY.links)
    links[index] = links[index].model_copy(update={"up": up})
    return Inventory(
        nodes=INVENTORY.nodes, workloads=INVENTORY.workloads, switches=INVENTORY.switches, links=tuple(links)
    )


class Trial:
    """One case on the network."""

    def __init__(self, network: MininetNetwork, case: Case) -> None:
        self.network = network
        self.case = case
        self.placement = {each.name: (str(each.node),) for each in INVENTORY.workloads}

    def enforce(self, inventory: Inventory) -> Compiled | Refusal:
        """Compile for this state of the links, and make it so; a refusal leaves no rule."""
        compiled = compile_intents(inventory, [intent(self.case)])
        if isinstance(compiled, Refusal):
            self.network.store.delete()
            return compiled
        for each in compiled.placements:
            self.placement[each.workload] = (each.node,)
            self.network.move(each.workload, each.node)
        self.network.store.apply(list(compiled.flows))
        return compiled

    def look(self, inventory: Inventory) -> Report:
        """Send a packet for every pair, and compare what becomes of it with what the checker says about it."""
        observed = self.observe(inventory)
        pairs = list(dict.fromkeys([*permutations(NAMES, 2), *self.case.governs]))
        said = {pair: predicted(observed, *pair) for pair in pairs}
        found = self.network.datagrams({pair: arrives for pair, (arrives, _) in said.items()})
        assert {pair: (probe.arrived, probe.path) for pair, probe in found.items()} == said
        for pair, probe in found.items():
            self.complies(*pair, probe.arrived, probe.path)
        return check([intent(self.case)], observed)

    def observe(self, inventory: Inventory) -> Observed:
        """Return what is really installed."""
        return Observed(self.placement, self.network.store.read(), inventory, inventory.version)

    def complies(self, source: str, target: str, arrived: bool, path: tuple[str, ...]) -> None:
        case = self.case
        if (source, target) in case.governs and len(path) > 1:
            assert not case.never & set(path), f"{source} -> {target} came to {path}"
        if (source, target) in case.governs and arrived and path and case.always is not None:
            assert case.always in path, f"{source} -> {target} came only to {path}"
        assert not (arrived and (source, target) in case.apart), f"{source} -> {target} arrived by {path}"


def predicted(observed: Observed, source: str, target: str) -> tuple[bool, tuple[str, ...]]:
    """Return whether a packet arrives, and the switches that it comes to."""
    sender, receiver = (observed.ends(named(name))[0] for name in (source, target))
    if sender.nodes == receiver.nodes:
        return True, ()
    walk = observed.network.from_node(sender.nodes[0], sender.address, receiver.address)
    assert len(walk.journeys) == 1, "one packet, one way"
    journey = walk.journeys[0]
    return journey.end is End.ARRIVED and journey.where in receiver.nodes, journey.switches


@pytest.mark.parametrize("name", CASES)
def test_packets_pass_or_are_dropped_as_the_proof_says(network: MininetNetwork, name: str):
    case = CASES[name]
    trial = Trial(network, case)

    assert isinstance(trial.enforce(INVENTORY), Compiled)
    report = trial.look(INVENTORY)
    assert report.holds, report.failures
    assert all(found.arrived for found in network.datagrams(dict.fromkeys(case.connected, True)).values())

    network.link(case.fails, up=False)
    broken = with_link(case.fails, up=False)
    report = trial.look(broken)
    assert report.safe, report.failures  # what cannot pass is dropped, and takes no other way

    outcome = trial.enforce(broken)
    assert isinstance(outcome, Compiled) == case.recovers, outcome
    report = trial.look(broken)
    assert report.safe, report.failures
    assert report.holds == case.recovers

    network.link(case.fails, up=True)
    assert isinstance(trial.enforce(INVENTORY), Compiled)
    report = trial.look(INVENTORY)
    assert report.holds, report.failures


def test_without_rules_nothing_passes(network: MininetNetwork):
    found = network.datagrams(dict.fromkeys(permutations(NAMES, 2), False))
    assert not any(probe.arrived for probe in found.values())
    assert {len(probe.path) for probe in found.values()} == {1}  # the switch that the sender hangs on


@pytest.mark.parametrize("protocol", ["tcp", "icmp"])
def test_other_protocols_take_the_same_ways(network: MininetNetwork, protocol: str):
    trial = Trial(network, CASES["avoid the US"])
    trial.enforce(INVENTORY)
    assert network.exchange("chat", "store", protocol, wait_s=5.0) == Probe(True, ("s1", "s2", "s4", "s4", "s2", "s1"))
    network.tell("unrule", switch="s2")
    assert not network.exchange("chat", "store", protocol, wait_s=0.3).arrived


def test_counters_of_the_switches_show_the_way(network: MininetNetwork):
    trial = Trial(network, CASES["avoid the US"])
    trial.enforce(INVENTORY)

    def counted() -> dict[str, int]:
        devices = {device: name for name, device in trial_devices().items()}
        total: dict[str, int] = {}
        for flow in network.store.read():
            total[devices[flow["deviceId"]]] = total.get(devices[flow["deviceId"]], 0) + flow["packets"]
        return total

    def trial_devices() -> dict[str, str]:
        return dict(Observed({}, (), INVENTORY, "1").network.addresses.device)

    before = counted()
    for _ in range(5):
        assert network.datagram("chat", "store", expected=True).arrived
    until(lambda: counted()["s4"] - before["s4"] == 5, "the counters to be up to date")
    after = counted()
    assert {name: after[name] - before.get(name, 0) for name in after} == {"s1": 5, "s2": 5, "s4": 5}


def test_a_rule_that_is_deleted_behind_our_back_is_seen_and_put_back(network: MininetNetwork):
    trial = Trial(network, CASES["avoid the US"])
    compiled = trial.enforce(INVENTORY)
    assert isinstance(compiled, Compiled)
    network.tell("unrule", switch="s2")
    report = trial.look(INVENTORY)
    assert not report.holds
    assert report.safe
    network.store.apply(list(compiled.flows))
    assert trial.look(INVENTORY).holds


def test_a_foreign_rule_that_leads_astray_is_seen(network: MininetNetwork):
    trial = Trial(network, CASES["avoid the US"])
    trial.enforce(INVENTORY)
    given = Observed({}, (), INVENTORY, "1").network
    port = given.addresses.towards(INVENTORY, 2, "s1")
    address = given.addresses.workload_ip["chat"]
    network.tell("rule", switch="s1", rule=f"priority=60000,ip,nw_src={address},actions=output:{port}")
    observed = trial.observe(INVENTORY)
    assert network.datagram("chat", "store", expected=False).path == ("s1", "s3")
    report = check([intent(trial.case)], observed)
    assert "s1 > s3" in report.failures[0].reason
    assert not report.safe
    network.tell("unrule", switch="s1")
