"""The drift loop on a real network: a link fails, a rule is deleted; packets are back on an allowed way, or stopped.

The sources are the switches: their port changes come through the controller, and what is installed is read from them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from intents.compilation import Compiled, compile_intents
from intents.model.intent import IntentMetadata, IntentSpec, PlacementRule, PrivacyIntent, RouteRule
from intents.model.labels import ENCRYPTED, JURISDICTION
from intents.model.predicate import named, term
from intents.proof.checker import Observed, check
from intents.proof.closing import flows_that_stay
from intents.proof.drift import Changed, ChangeKind, Phase
from intents.proof.drift_loop import Clock, DriftLoop
from tests.integration.intents.topology import INVENTORY
from tests.support.mininet_network import until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intents.model.inventory import Inventory
    from intents.proof.drift import Violated
    from intents.proof.report import Check
    from tests.support.mininet_network import MininetNetwork

STAYS = PlacementRule(nodes=named("n1"))
NOT_US = term(JURISDICTION, "US", op="not_in")


def intent(**limits: object) -> PrivacyIntent:
    spec = IntentSpec(subjects=named("chat"), placement=(STAYS,), routes=(RouteRule(peers=named("store"), **limits),))
    return PrivacyIntent(metadata=IntentMetadata(name="drift"), specs=(spec,))


@dataclass
class RealWorld:
    """The network, its links as its switches report them, and the compiler as the planner."""

    network: MininetNetwork
    intent: PrivacyIntent
    last_event: int = 0
    told: list[Violated] = field(default_factory=list)

    def intents(self) -> Sequence[PrivacyIntent]:
        return [self.intent]

    def inventory(self) -> Inventory:
        ports = self.network.store.switches()
        given = Observed({}, (), INVENTORY, "1").network.addresses
        links = [
            link.model_copy(update={"up": ports[given.device[link.a]][a] and ports[given.device[link.b]][b]})
            for link, (a, b) in zip(INVENTORY.links, given.link_ports, strict=True)
        ]
        version = "".join(str(int(link.up)) for link in links)
        return INVENTORY.model_copy(update={"links": tuple(links), "version": version})

    def observe(self) -> Observed:
        inventory = self.inventory()
        placement = {each.name: (str(each.node),) for each in INVENTORY.workloads}
        return Observed(placement, self.network.store.read(), inventory, inventory.version)

    def replan(self) -> bool:
        inventory = self.inventory()
        compiled = compile_intents(inventory, [self.intent])
        if not isinstance(compiled, Compiled):
            return False
        placement = {each.name: (str(each.node),) for each in INVENTORY.workloads}
        if not check([self.intent], Observed(placement, list(compiled.flows), inventory, inventory.version)).holds:
            return False
        self.network.store.apply(list(compiled.flows))
        return True

    def close(self, checks: Sequence[Check]) -> None:
        given = Observed({}, (), INVENTORY, "1").network.addresses
        addresses = given.ip
        self.network.store.apply(flows_that_stay(checks, addresses, self.network.store.read()))

    def violated(self, violated: Violated) -> None:
        self.told.append(violated)

    def wait(self) -> list[Changed]:
        """Wait for the switches to tell of a port."""
        happened = self.network.store.events(self.last_event, wait_s=10.0)
        self.last_event = happened[-1]["number"] if happened else self.last_event
        kinds = {"port_down": ChangeKind.LINK_FAILED, "port_up": ChangeKind.LINK_RESTORED}
        ports = [each for each in happened if each["kind"] in kinds]
        return [Changed(time.monotonic(), kinds[each["kind"]], f"{each['device']}/{each['port']}") for each in ports]


def started(network: MininetNetwork, asked: PrivacyIntent) -> tuple[RealWorld, DriftLoop]:
    world = RealWorld(network, asked)
    assert world.replan()
    world.last_event = max((each["number"] for each in network.store.events()), default=0)
    loop = DriftLoop(world, Clock(time.monotonic))
    loop.step()
    assert loop.drift.phase is Phase.WATCHING
    return world, loop


def test_after_a_link_failure_packets_take_another_allowed_way(network: MininetNetwork):
    world, loop = started(network, intent(switches=NOT_US))
    assert network.datagram("chat", "store", expected=True).path == ("s1", "s2", "s4")
    network.link(0, up=False)
    loop.step(world.wait())
    assert network.datagram("chat", "store", expected=True).path == ("s1", "s5", "s6", "s4")
    assert loop.settled[0].how == "re-established"
    assert loop.settled[0].detect_s <= loop.settled[0].compliant_s < 5.0
    assert [each.intent for each in world.told] == ["drift"]


def test_without_another_allowed_way_packets_are_stopped_until_there_is_one(network: MininetNetwork):
    world, loop = started(network, intent(switches=NOT_US, links=term(ENCRYPTED, "true")))
    network.link(5, up=False)
    loop.step(world.wait())
    assert loop.drift.phase is Phase.CLOSED
    assert network.datagram("chat", "store", expected=False).path == ("s1",)
    network.link(5, up=True)
    until(lambda: bool(changes := world.wait()) and not loop.step(changes) and loop.drift.phase is Phase.WATCHING, "it")
    assert network.datagram("chat", "store", expected=True).path == ("s1", "s5", "s6", "s4")
    assert [each.how for each in loop.settled] == ["closed", "re-established"]


def test_a_rule_that_somebody_deleted_is_put_back(network: MininetNetwork):
    _, loop = started(network, intent(switches=NOT_US))
    network.tell("unrule", switch="s2")
    assert not network.datagram("chat", "store", expected=False).arrived
    loop.step()
    assert network.datagram("chat", "store", expected=True).arrived
    assert loop.settled[0].how == "re-established"


def test_a_foreign_rule_that_cannot_be_taken_away_is_told_and_stays_told(network: MininetNetwork):
    world, loop = started(network, intent(switches=NOT_US))
    given = Observed({}, (), INVENTORY, "1").network
    astray = f"priority=60000,ip,nw_src={given.addresses.workload_ip['chat']},actions=output:"
    network.tell("rule", switch="s1", rule=astray + str(given.addresses.towards(INVENTORY, 2, "s1")))
    loop.step()
    assert loop.drift.phase is Phase.CLOSED
    assert "s1 > s3" in world.told[0].reason
    network.tell("unrule", switch="s1")
    loop.step()
    assert loop.drift.phase is not Phase.WATCHING  # it is closed, and stays so while the snapshot is the same
