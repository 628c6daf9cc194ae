"""The OpenFlow controller with pretended switches: steps, barriers, cookies, returning switches, ports."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from os_ken.ofproto import ofproto_v1_3_parser as parser

from intents.enforcement import openflow_codec as codec
from intents.enforcement import openflow_switch
from intents.enforcement.openflow import Controller
from intents.errors import EnforcementError
from intents.proof.checker import check
from intents.proof.tables import read_rule
from tests.unit.intents.enforcement.pretended_switch import PretendedSwitch
from tests.unit.intents.proof.networks import DIAMOND, both_ways, observed, rule
from tests.unit.intents.proof.test_checker import AVOID_US, intent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

EU_WAY = both_ways(DIAMOND, ["s1", "s2", "s4"])
US_WAY = both_ways(DIAMOND, ["s1", "s3", "s4"])
DROP = rule(DIAMOND, "s1", "chat", None, priority=5)

Network = tuple[Controller, dict[int, PretendedSwitch], int]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the condition is another task's
            await asyncio.sleep(0.001)


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    controller = Controller()
    server = await controller.listen("127.0.0.1", 0, None)
    port = server.sockets[0].getsockname()[1]
    switches = {number: await PretendedSwitch(number).connect(port) for number in range(1, 5)}
    await until(lambda: len(controller.switches()) == 4)
    yield controller, switches, port
    for switch in switches.values():
        await switch.leave()
    await until(lambda: not controller.switches())
    server.close()
    await server.wait_closed()


async def fails(work: Awaitable[Any], message: str) -> None:
    with pytest.raises(EnforcementError, match=message):
        await work


async def test_what_is_read_back_proves_what_was_applied(network: Network):
    controller, _, _ = network
    await controller.apply([*EU_WAY, DROP])
    report = check([intent(routes=(AVOID_US,))], observed(DIAMOND, await controller.read()))
    assert report.holds, report.failures


async def test_new_rules_are_in_force_before_old_ones_go(network: Network):
    controller, switches, _ = network
    await controller.apply(EU_WAY)
    await controller.apply([*US_WAY, DROP])
    kinds = [kind for kind, _ in switches[1].log]
    # The way to s2, then: the drop; the rule that leads elsewhere. Nothing goes at s1.
    assert kinds == ["add", "add", "barrier", "add", "barrier", "replace", "barrier"]
    assert [kind for kind, _ in switches[2].log] == ["add", "add", "barrier", "remove", "remove", "barrier"]
    assert [kind for kind, _ in switches[3].log] == ["add", "add", "barrier"]


async def test_what_does_not_change_is_not_touched(network: Network):
    controller, switches, _ = network
    await controller.apply(EU_WAY)
    switches[1].log.clear()
    await controller.apply(EU_WAY)
    assert switches[1].log == []


async def test_only_rules_with_our_cookie_are_taken_away(network: Network):
    controller, switches, _ = network
    foreign = codec.entry(US_WAY[0]).key
    switches[3].rules[foreign] = (7, [])
    await controller.apply(EU_WAY)
    await controller.apply([])
    assert switches[1].rules == {}
    await controller.apply(EU_WAY)
    await controller.delete()
    assert [rules for switch in switches.values() if (rules := switch.rules)] == [{foreign: (7, [])}]
    assert [flow["id"] for flow in await controller.read()] == ["7"]


async def test_a_foreign_rule_in_the_place_of_ours_is_replaced(network: Network):
    controller, switches, _ = network
    await controller.apply(EU_WAY)
    key, (_, instructions) = next(iter(switches[1].rules.items()))
    switches[1].rules[key] = (7, instructions)
    await controller.apply(EU_WAY)
    assert switches[1].rules[key][0] & codec.OURS_MASK == codec.OURS


async def test_a_switch_that_comes_back_is_brought_to_the_rules(network: Network):
    controller, switches, port = network
    await controller.apply(EU_WAY)
    await switches[2].leave()
    await until(lambda: len(controller.switches()) == 3)
    await fails(controller.read(), "not connected: of:0000000000000002; what is installed there is not known")
    await fails(controller.apply(EU_WAY), "not connected: of:0000000000000002; nothing was changed")
    switches[2] = await PretendedSwitch(2).connect(port)
    await until(lambda: len(switches[2].rules) == 2)


async def test_a_controller_without_a_set_leaves_switches_as_they_are(network: Network):
    controller, _, port = network
    later = PretendedSwitch(9)
    later.rules[codec.entry(DROP).key] = (codec.OURS | 1, [])
    await later.connect(port)
    await until(lambda: len(controller.switches()) == 5)
    assert len(later.rules) == 1
    await later.leave()


async def test_a_rule_that_a_switch_refuses_is_an_error(network: Network):
    controller, switches, _ = network
    switches[4].refuses = True
    await fails(controller.apply(EU_WAY), "switch of:0000000000000004 refused a flow rule: error type 5 code 1")


async def test_a_switch_that_goes_away_while_it_is_asked_is_an_error(network: Network):
    controller, switches, _ = network
    switches[1].silent = True
    reading = asyncio.create_task(controller.read())
    await asyncio.sleep(0)
    await switches[1].leave()
    await fails(reading, "went away|not connected")


async def test_a_switch_that_does_not_answer_is_given_up(network: Network, monkeypatch: pytest.MonkeyPatch):
    controller, switches, _ = network
    monkeypatch.setattr(openflow_switch, "_ANSWER_S", 0.05)
    switches[1].silent = True
    await fails(controller.read(), "did not answer in 0.05 s")


async def test_ports_that_change_are_told(network: Network):
    controller, switches, _ = network
    await until(lambda: len(controller._events) == 4)
    waiting = asyncio.create_task(controller.events(after=4, wait_s=5))
    switches[1].port_status(2, up=False)
    assert await waiting == [{"number": 5, "device": "of:0000000000000001", "kind": "port_down", "port": 2}]
    assert controller.switches()["of:0000000000000001"] == {1: True, 2: False, 3: True}
    switches[1].port_status(2, up=False)  # nothing new
    switches[1].port_status(2, up=True)
    assert [each["kind"] for each in await controller.events(after=5, wait_s=5)] == ["port_up"]
    assert await controller.events(after=6, wait_s=0) == []


async def test_a_peer_that_speaks_no_openflow_is_closed(network: Network):
    controller, _, port = network
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    while await reader.read(100):
        pass
    writer.close()
    assert len(controller.switches()) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"selector": {"criteria": [{"type": "TCP_DST", "tcpPort": 1}]}}, "criterion TCP_DST is not known"),
        ({"selector": {"criteria": [{"type": "IPV4_SRC"}]}}, "lacks 'ip'"),
        ({"treatment": {"instructions": [{"type": "GROUP"}]}}, "instruction GROUP is not known"),
        ({"treatment": {"instructions": [{"type": "OUTPUT", "port": "CONTROLLER"}]}}, "invalid literal"),
        ({"treatment": {"instructions": [{"type": "OUTPUT", "port": 0}]}}, "out of range"),
        ({"priority": 70000}, "out of range"),
        ({"isPermanent": False}, "only permanent rules"),
    ],
)
async def test_a_rule_that_is_not_understood_changes_nothing(network: Network, change: dict[str, Any], message: str):
    controller, switches, _ = network
    await fails(controller.apply([*EU_WAY, EU_WAY[0] | change]), message)
    assert all(switch.log == [] for switch in switches.values())


async def test_two_rules_that_would_replace_each_other_are_refused(network: Network):
    controller, _, _ = network
    await fails(controller.apply([*EU_WAY, EU_WAY[0]]), "have the same priority and selector")


class TestReported:
    """What a switch reports keeps a name for everything, known here or not."""

    def reported(self, match: dict[str, Any], *instructions: Any) -> dict[str, Any]:
        stats = parser.OFPFlowStats(
            table_id=0, priority=7, cookie=1, idle_timeout=0, hard_timeout=0, packet_count=1, byte_count=2,
            match=parser.OFPMatch(**match), instructions=list(instructions),
        )  # fmt: skip
        return codec.reported("of:0000000000000001", stats)

    def test_other_matches_make_a_rule_that_perhaps_matches(self):
        flow = self.reported({"eth_type": 0x800, "ip_proto": 6, "tcp_dst": 80})
        assert [each["type"] for each in flow["selector"]["criteria"]] == ["ETH_TYPE", "IP_PROTO", "TCP_DST"]
        found = read_rule(0, flow)
        assert found is not None
        assert found.perhaps

    @pytest.mark.parametrize(
        "action", [parser.OFPActionOutput(0xFFFFFFFD), parser.OFPActionSetNwTtl(1), parser.OFPActionGroup(1)]
    )
    def test_other_actions_make_a_rule_that_cannot_be_followed(self, action: Any):
        found = read_rule(0, self.reported({}, parser.OFPInstructionActions(4, [action])))
        assert found is not None
        assert found.opaque is not None

    def test_other_instructions_too(self):
        found = read_rule(0, self.reported({}, parser.OFPInstructionGotoTable(1)))
        assert found is not None
        assert found.opaque == "GOTOTABLE"

    def test_masks_become_prefixes(self):
        flow = self.reported({"eth_type": 0x800, "ipv4_dst": ("10.0.0.0", "255.0.0.0"), "ipv4_src": "10.0.0.1"})
        assert [each.get("ip") for each in flow["selector"]["criteria"][1:]] == ["10.0.0.1/32", "10.0.0.0/8"]
