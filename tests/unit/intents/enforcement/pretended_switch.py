"""A switch for tests of the controller: speaks OpenFlow 1.3 over TCP, keeps rules, and pretends what it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import Any, Self

from os_ken.ofproto import ofproto_v1_3 as of
from os_ken.ofproto import ofproto_v1_3_parser as parser

from intents.enforcement import openflow_codec as codec

Key = tuple[int, tuple[tuple[str, Any], ...]]


class PretendedSwitch:
    """One switch; `log` has what was done to its rules, and barriers."""

    def __init__(self, number: int, ports: int = 3) -> None:
        self.number = number
        self.ports = ports
        self.rules: dict[Key, tuple[int, Any]] = {}  # cookie and instructions
        self.log: list[tuple[str, Any]] = []
        self.refuses = False
        self.silent = False

    async def connect(self, port: int) -> Self:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port)
        self.task = asyncio.create_task(self._serve())
        return self

    async def leave(self) -> None:
        self.writer.close()
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await self.task

    def port_status(self, port: int, *, up: bool) -> None:
        body = struct.pack("!B7x", of.OFPPR_MODIFY) + _port(port, up=up)
        self._send(of.OFPT_PORT_STATUS, 0, body)

    async def _serve(self) -> None:
        self._send(of.OFPT_HELLO, 0)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                header = await self.reader.readexactly(codec.HEADER_BYTES)
                data = header + await self.reader.readexactly(codec.length_of(header) - codec.HEADER_BYTES)
                if not self.silent:
                    self._take(data)

    def _take(self, data: bytes) -> None:
        _, kind, _, transaction = struct.unpack("!BBHI", data[:8])
        what = struct.unpack("!H", data[8:10])[0] if kind == of.OFPT_MULTIPART_REQUEST else None
        match kind, what:
            case of.OFPT_FEATURES_REQUEST, _:
                self._send(of.OFPT_FEATURES_REPLY, transaction, struct.pack("!QIBB2xII", self.number, 0, 1, 0, 0, 0))
            case of.OFPT_MULTIPART_REQUEST, of.OFPMP_PORT_DESC:
                first = _multipart(of.OFPMP_PORT_DESC, _port(1, up=True), more=True)
                rest = b"".join(_port(port, up=True) for port in range(2, self.ports + 1))
                self._send(of.OFPT_MULTIPART_REPLY, transaction, first)
                self._send(of.OFPT_MULTIPART_REPLY, transaction, _multipart(of.OFPMP_PORT_DESC, rest))
            case of.OFPT_MULTIPART_REQUEST, of.OFPMP_FLOW:
                rules = b"".join(_stats(key, *rule) for key, rule in self.rules.items())
                self._send(of.OFPT_MULTIPART_REPLY, transaction, _multipart(of.OFPMP_FLOW, rules))
            case of.OFPT_BARRIER_REQUEST, _:
                self.log.append(("barrier", None))
                self._send(of.OFPT_BARRIER_REPLY, transaction)
            case of.OFPT_ECHO_REQUEST, _:
                self._send(of.OFPT_ECHO_REPLY, transaction)
            case of.OFPT_FLOW_MOD, _:
                self._change(codec.decode(data))

    def _change(self, message: Any) -> None:
        if self.refuses:
            self._send(of.OFPT_ERROR, message.xid, struct.pack("!HH", of.OFPET_FLOW_MOD_FAILED, of.OFPFMFC_TABLE_FULL))
            return
        key = codec.key_of(message)
        if message.command == of.OFPFC_ADD:
            self.log.append(("add" if key not in self.rules else "replace", key))
            self.rules[key] = (message.cookie, message.instructions)
            return
        for each, (cookie, _) in list(self.rules.items()):
            strict = message.command == of.OFPFC_DELETE_STRICT
            if cookie & message.cookie_mask == message.cookie & message.cookie_mask and (not strict or each == key):
                self.log.append(("remove", each))
                del self.rules[each]

    def _send(self, kind: int, transaction: int, body: bytes = b"") -> None:
        self.writer.write(struct.pack("!BBHI", of.OFP_VERSION, kind, 8 + len(body), transaction) + body)


def _multipart(kind: int, body: bytes, *, more: bool = False) -> bytes:
    return struct.pack("!HH4x", kind, of.OFPMPF_REPLY_MORE if more else 0) + body


def _port(number: int, *, up: bool) -> bytes:
    state = 0 if up else of.OFPPS_LINK_DOWN
    return struct.pack("!I4x6s2x16sIIIIIIII", number, bytes(6), b"port", 0, state, 0, 0, 0, 0, 0, 0)


def _stats(key: Key, cookie: int, instructions: list[Any]) -> bytes:
    priority, match = key
    body = bytearray()
    parser.OFPMatch(**dict(match)).serialize(body, 0)
    for instruction in instructions:
        instruction.serialize(body, len(body))
    head = struct.pack("!HBxIIHHHH4xQQQ", 48 + len(body), 0, 1, 0, priority, 0, 0, 0, cookie, 5, 500)
    return head + bytes(body)
