"""ONOS flow rules as OpenFlow 1.3 messages, and what switches report as ONOS flow rules.

os-ken writes and reads the wire format. To switches go only the criteria and instructions that the compiler uses; any
other is refused before a byte is sent. From switches everything is taken: what has no name here keeps OpenFlow's, so
that whoever checks the rules sees that there is something that it does not understand.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from os_ken.ofproto import (
    ofproto_parser,
    ofproto_protocol,
    ofproto_v1_3,
    ofproto_v1_3_parser,
)

from intents.errors import EnforcementError

if TYPE_CHECKING:
    from collections.abc import Mapping

OURS = 0x4D494453_00000000  # "MIDS" in the upper half of the cookie
OURS_MASK = 0xFFFFFFFF_00000000
HEADER_BYTES = 8

_PROTOCOL = ofproto_protocol.ProtocolDesc(version=ofproto_v1_3.OFP_VERSION)
_FULL_MASK = "255.255.255.255"
_RESERVED = {
    ofproto_v1_3.OFPP_IN_PORT: "IN_PORT",
    ofproto_v1_3.OFPP_TABLE: "TABLE",
    ofproto_v1_3.OFPP_NORMAL: "NORMAL",
    ofproto_v1_3.OFPP_FLOOD: "FLOOD",
    ofproto_v1_3.OFPP_ALL: "ALL",
    ofproto_v1_3.OFPP_CONTROLLER: "CONTROLLER",
    ofproto_v1_3.OFPP_LOCAL: "LOCAL",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One flow rule as a switch knows it. Two with the same `key` replace each other.

    Attributes:
        key: Priority and match, in a form that can be compared.
        outputs: Ports that it sends packets to; none: it drops them.
    """

    key: tuple[int, tuple[tuple[str, Any], ...]]
    outputs: tuple[int, ...]


def device_of(datapath_id: int) -> str:
    """Return the device id of a datapath, such as `of:0000000000000001`."""
    return f"of:{datapath_id:016x}"


def entry(flow: Mapping[str, Any]) -> Entry:
    """Read a flow rule that is to be installed.

    Raises:
        EnforcementError: it asks for something that is not installed from here.
    """
    try:
        match: dict[str, Any] = {}
        for criterion in (flow.get("selector") or {}).get("criteria") or ():
            match.update(_field(criterion))
        outputs = tuple(
            int(_output(instruction)["port"])
            for instruction in (flow.get("treatment") or {}).get("instructions") or ()
            if instruction["type"] != "NOACTION"
        )
        priority = int(flow["priority"])
        if not 0 <= priority <= 0xFFFF or any(not 0 < port <= ofproto_v1_3.OFPP_MAX for port in outputs):
            raise ValueError(f"priority {priority} or a port of {outputs} is out of range")
        if not flow.get("isPermanent", True):
            raise ValueError("only permanent rules are installed")
        return Entry((priority, tuple(sorted(match.items()))), outputs)
    except (KeyError, TypeError, ValueError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else error
        raise EnforcementError(f"flow rule {dict(flow)!r:.200} cannot be installed over OpenFlow: {what}") from error


def _field(criterion: Mapping[str, Any]) -> dict[str, Any]:
    match criterion["type"]:
        case "ETH_TYPE":
            return {"eth_type": int(str(criterion["ethType"]), 0)}
        case "IN_PORT":
            return {"in_port": int(criterion["port"])}
        case "IP_PROTO":
            return {"ip_proto": int(criterion["protocol"])}
        case "IPV4_SRC" | "IPV4_DST" as kind:
            network = ipaddress.IPv4Network(criterion["ip"])
            return {kind.lower(): (str(network.network_address), str(network.netmask))} if network.prefixlen else {}
        case other:
            raise ValueError(f"criterion {other} is not known")


def _output(instruction: Mapping[str, Any]) -> Mapping[str, Any]:
    if instruction["type"] != "OUTPUT":
        raise ValueError(f"instruction {instruction['type']} is not known")
    return instruction


def add(flow: Entry, cookie: int) -> Any:
    """Return the message that adds a rule, or replaces the one with the same match and priority."""
    priority, match = flow.key
    actions = [ofproto_v1_3_parser.OFPActionOutput(port) for port in flow.outputs]
    return ofproto_v1_3_parser.OFPFlowMod(
        _PROTOCOL,
        cookie=cookie,
        command=ofproto_v1_3.OFPFC_ADD,
        priority=priority,
        match=ofproto_v1_3_parser.OFPMatch(**dict(match)),
        instructions=[ofproto_v1_3_parser.OFPInstructionActions(ofproto_v1_3.OFPIT_APPLY_ACTIONS, actions)],
    )


def remove(key: tuple[int, tuple[tuple[str, Any], ...]]) -> Any:
    """Return the message that removes the one rule of ours with this priority and match."""
    priority, match = key
    return ofproto_v1_3_parser.OFPFlowMod(
        _PROTOCOL,
        cookie=OURS,
        cookie_mask=OURS_MASK,
        command=ofproto_v1_3.OFPFC_DELETE_STRICT,
        priority=priority,
        out_port=ofproto_v1_3.OFPP_ANY,
        out_group=ofproto_v1_3.OFPG_ANY,
        match=ofproto_v1_3_parser.OFPMatch(**dict(match)),
    )


def remove_all() -> Any:
    """Return the message that removes every rule of ours, by its cookie."""
    return ofproto_v1_3_parser.OFPFlowMod(
        _PROTOCOL,
        cookie=OURS,
        cookie_mask=OURS_MASK,
        table_id=ofproto_v1_3.OFPTT_ALL,
        command=ofproto_v1_3.OFPFC_DELETE,
        out_port=ofproto_v1_3.OFPP_ANY,
        out_group=ofproto_v1_3.OFPG_ANY,
    )


def hello() -> Any:
    """Return the greeting, which offers OpenFlow 1.3 alone."""
    version = ofproto_v1_3_parser.OFPHelloElemVersionBitmap([ofproto_v1_3.OFP_VERSION])
    return ofproto_v1_3_parser.OFPHello(_PROTOCOL, [version])


def features_request() -> Any:
    """Return the question for the datapath id."""
    return ofproto_v1_3_parser.OFPFeaturesRequest(_PROTOCOL)


def no_packet_in() -> Any:
    """Return the message after which a switch sends port changes and errors, and no packets."""
    ports = 1 << ofproto_v1_3.OFPPR_ADD | 1 << ofproto_v1_3.OFPPR_DELETE | 1 << ofproto_v1_3.OFPPR_MODIFY
    return ofproto_v1_3_parser.OFPSetAsync(_PROTOCOL, [0, 0], [ports, ports], [0, 0])


def ports_request() -> Any:
    """Return the question for all ports."""
    return ofproto_v1_3_parser.OFPPortDescStatsRequest(_PROTOCOL)


def flows_request() -> Any:
    """Return the question for all rules of all tables."""
    return ofproto_v1_3_parser.OFPFlowStatsRequest(_PROTOCOL)


def barrier() -> Any:
    """Return the request that is answered when everything before it was done."""
    return ofproto_v1_3_parser.OFPBarrierRequest(_PROTOCOL)


def echo_request() -> Any:
    """Return the question whether the switch is there."""
    return ofproto_v1_3_parser.OFPEchoRequest(_PROTOCOL)


def echo_reply(request: Any) -> Any:
    """Return the answer to the same question."""
    reply = ofproto_v1_3_parser.OFPEchoReply(_PROTOCOL)
    reply.data = request.data
    return reply


def encode(message: Any, transaction: int) -> bytes:
    """Return a message's bytes."""
    message.set_xid(transaction)
    message.serialize()
    return bytes(message.buf)


def length_of(header: bytes) -> int:
    """Return how many bytes a message has in all.

    Raises:
        EnforcementError: it is no OpenFlow 1.3 message (a greeting may be of any version).
    """
    version, kind, length, _ = ofproto_parser.header(header)
    if length < HEADER_BYTES or (version != ofproto_v1_3.OFP_VERSION and kind != ofproto_v1_3.OFPT_HELLO):
        raise EnforcementError(f"a switch sent a message of OpenFlow version {version} and {length} bytes")
    return int(length)


def decode(data: bytes) -> Any:
    """Return the message in these bytes; None if it is one that nothing here needs.

    Raises:
        EnforcementError: it cannot be read.
    """
    version, kind, length, transaction = ofproto_parser.header(data)
    if version != ofproto_v1_3.OFP_VERSION:
        return None
    message = ofproto_parser.msg(_PROTOCOL, version, kind, length, transaction, data)
    if message is None:
        raise EnforcementError(f"a switch sent a message of type {kind} that cannot be read")
    return message


def is_real(port: Any) -> bool:
    """Whether something can be plugged into a port: not so with the switch's own (LOCAL)."""
    return bool(port.port_no <= ofproto_v1_3.OFPP_MAX)


def is_up(port: Any) -> bool:
    """Whether a port works, as a switch describes it."""
    return not (port.state & ofproto_v1_3.OFPPS_LINK_DOWN or port.config & ofproto_v1_3.OFPPC_PORT_DOWN)


def key_of(stats: Any) -> tuple[int, tuple[tuple[str, Any], ...]]:
    """Return the key of a reported rule, as `entry` makes it."""
    match = {name: _masked(name, value) for name, value in stats.match.items()}
    return stats.priority, tuple(sorted(match.items()))


def _masked(name: str, value: Any) -> Any:
    return (value, _FULL_MASK) if name in {"ipv4_src", "ipv4_dst"} and isinstance(value, str) else value


def reported(device: str, stats: Any) -> dict[str, Any]:
    """Return a reported rule in ONOS' form."""
    instructions = [each for instruction in stats.instructions for each in _reported_instruction(instruction)]
    return {
        "id": f"{stats.cookie}",
        "deviceId": device,
        "tableId": stats.table_id,
        "priority": stats.priority,
        "isPermanent": not (stats.idle_timeout or stats.hard_timeout),
        "timeout": stats.idle_timeout or stats.hard_timeout,
        "state": "ADDED",
        "packets": stats.packet_count,
        "bytes": stats.byte_count,
        "selector": {"criteria": [_reported_field(name, value) for name, value in stats.match.items()]},
        "treatment": {"instructions": instructions or [{"type": "NOACTION"}]},
    }


def _reported_field(name: str, value: Any) -> dict[str, Any]:
    match name:
        case "eth_type":
            return {"type": "ETH_TYPE", "ethType": hex(value)}
        case "in_port":
            return {"type": "IN_PORT", "port": value}
        case "ip_proto":
            return {"type": "IP_PROTO", "protocol": value}
        case "ipv4_src" | "ipv4_dst":
            address, mask = _masked(name, value)
            return {"type": name.upper(), "ip": str(ipaddress.IPv4Network(f"{address}/{mask}"))}
    return {"type": name.upper(), "value": str(value)}


def _reported_instruction(instruction: Any) -> list[dict[str, Any]]:
    if not isinstance(instruction, ofproto_v1_3_parser.OFPInstructionActions):
        return [{"type": type(instruction).__name__.removeprefix("OFPInstruction").upper()}]
    if instruction.type == ofproto_v1_3.OFPIT_CLEAR_ACTIONS:
        return []
    return [_reported_action(action) for action in instruction.actions]


def _reported_action(action: Any) -> dict[str, Any]:
    if isinstance(action, ofproto_v1_3_parser.OFPActionOutput):
        return {"type": "OUTPUT", "port": _RESERVED.get(action.port, action.port)}
    return {"type": type(action).__name__.removeprefix("OFPAction").upper()}
