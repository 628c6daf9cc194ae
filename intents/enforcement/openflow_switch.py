"""One connected OpenFlow switch: greeting, requests with their answers, barriers, and what it tells unasked.

os-ken's own connection handling is not used: with its native threads a switch that went away is never noticed (its
sending thread waits for ever, and is waited for). Its reading and writing of messages is.

A request waits for the answer with its transaction number; a barrier's answer means that everything before it was done.
An error that a switch reports for a message of ours fails the next barrier. A switch that does not answer an echo in
time is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING, Any

from os_ken.ofproto import ofproto_v1_3_parser as parser

from intents.enforcement import openflow_codec as codec
from intents.errors import EnforcementError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_ANSWER_S = 10.0
_ECHO_EVERY_S = 5.0
_MULTIPART_MORE = 1


class Switch:
    """A connection that was greeted; made by `greet`.

    Args:
        reader: What the switch sends.
        writer: What is sent to it.
        on_port: Called with device, port and whether it is up, for every change of a port.

    Attributes:
        device: Its id.
        ports: Whether each port is up.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_port: Callable[[str, int, bool], None],
    ) -> None:
        self.device = ""
        self.ports: dict[int, bool] = {}
        self._reader = reader
        self._writer = writer
        self._on_port = on_port
        self._transactions = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[list[Any]]] = {}
        self._parts: dict[int, list[Any]] = {}
        self._errors: list[str] = []

    async def serve(self, on_ready: Callable[[Switch], None]) -> None:
        """Greet the switch, call `on_ready`, and stay until it goes away or does not answer.

        Raises:
            EnforcementError: it speaks no OpenFlow 1.3, or what it sent cannot be read.
        """
        self._send(codec.hello())
        listener = asyncio.create_task(self._listen())
        keeper = asyncio.create_task(self._greet(on_ready))
        try:
            done, _ = await asyncio.wait({listener, keeper}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (listener, keeper):
                task.cancel()
            await asyncio.gather(listener, keeper, return_exceptions=True)
            for waiting in self._waiting.values():
                waiting.cancel()
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    async def _greet(self, on_ready: Callable[[Switch], None]) -> None:
        features = await self._ask(codec.features_request())
        self.device = codec.device_of(features[0].datapath_id)
        self._send(codec.no_packet_in())
        for part in await self._ask(codec.ports_request()):
            self.ports |= {port.port_no: codec.is_up(port) for port in part.body if codec.is_real(port)}
        on_ready(self)
        while True:
            await asyncio.sleep(_ECHO_EVERY_S)
            await self._ask(codec.echo_request())

    async def install(self, messages: Iterable[Any]) -> None:
        """Send messages that change rules, and wait until they took effect.

        Raises:
            EnforcementError: the switch refused one, or did not answer.
        """
        self._errors.clear()
        for message in messages:
            self._send(message)
            await self._writer.drain()
        await self._ask(codec.barrier())
        if self._errors:
            raise EnforcementError(f"switch {self.device} refused a flow rule: {'; '.join(self._errors[:3])}")

    async def rules(self) -> list[Any]:
        """Return the rules that are installed, as os-ken's flow stats.

        Raises:
            EnforcementError: the switch did not answer.
        """
        return [stats for part in await self._ask(codec.flows_request()) for stats in part.body]

    async def _ask(self, message: Any) -> list[Any]:
        """Return all parts of the answer."""
        transaction = self._send(message)
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._waiting[transaction] = answer
        try:
            return await asyncio.wait_for(answer, _ANSWER_S)
        except TimeoutError:
            raise EnforcementError(f"switch {self.device or '(new)'} did not answer in {_ANSWER_S:g} s") from None
        except asyncio.CancelledError:
            if answer.cancelled() and not _being_cancelled():
                raise EnforcementError(f"switch {self.device} went away before it answered") from None
            raise
        finally:
            self._waiting.pop(transaction, None)
            self._parts.pop(transaction, None)

    def _send(self, message: Any) -> int:
        transaction = next(self._transactions) & 0xFFFFFFFF
        self._writer.write(codec.encode(message, transaction))
        return transaction

    async def _listen(self) -> None:
        while True:
            try:
                header = await self._reader.readexactly(codec.HEADER_BYTES)
                data = header + await self._reader.readexactly(codec.length_of(header) - codec.HEADER_BYTES)
            except (asyncio.IncompleteReadError, OSError):
                return
            message = codec.decode(data)
            if message is not None:
                self._take(message)

    def _take(self, message: Any) -> None:
        if isinstance(message, parser.OFPEchoRequest):
            self._send(codec.echo_reply(message))
        elif isinstance(message, parser.OFPErrorMsg):
            self._errors.append(f"error type {message.type} code {message.code}")
        elif isinstance(message, parser.OFPPortStatus):
            self._take_port(message)
        elif (waiting := self._waiting.get(message.xid)) is not None:
            parts = self._parts.setdefault(message.xid, [])
            parts.append(message)
            if not (isinstance(message, parser.OFPMultipartReply) and message.flags & _MULTIPART_MORE):
                waiting.set_result(parts)

    def _take_port(self, message: Any) -> None:
        if not codec.is_real(message.desc):
            return
        port = message.desc.port_no
        deleted = message.reason == message.datapath.ofproto.OFPPR_DELETE
        up = not deleted and codec.is_up(message.desc)
        changed = self.ports.get(port) != up
        self.ports[port] = up
        if changed and self.device:
            self._on_port(self.device, port, up)


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
