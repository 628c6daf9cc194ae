"""The OpenFlow 1.3 controller: holds every switch to one set of flow rules, installed before the first packet.

Proactive: switches are told not to send packets, and none is ever looked at. They are expected to fail secure, so that
without a controller they keep their rules and without a rule they drop.

A new set is installed in four steps, with a barrier on every switch after each: rules that drop; rules that are new;
rules that forward differently; then what is gone is taken away. So a packet finds the old way or the new one, and what
must be dropped is dropped first. A switch that comes back is brought to the set before anything else; a controller that
was just started leaves switches as they are until it is given a set.

A barrier speaks of a switch's tables. Open vSwitch also caches ways that it has found, and checks these against its
tables right after a change, but not before it answers: for some milliseconds a packet may still take the old way.

Only rules with this controller's cookie are ever changed. If a step fails, the error says where; the network is then
somewhere between, which is for whoever checks to see, and applying again goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict, deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from intents.enforcement import openflow_codec as codec
from intents.enforcement.openflow_switch import Switch
from intents.errors import EnforcementError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Mapping, Sequence

_log = logging.getLogger(__name__)
_EVENTS_KEPT = 10_000
_Key = tuple[int, tuple[tuple[str, Any], ...]]


@dataclass(frozen=True, slots=True)
class NetworkEvent:
    """Something that changed without being asked for.

    Attributes:
        number: Counts up from 1.
        device: The switch's id.
        kind: `connected`, `disconnected`, `port_up` or `port_down`.
        port: The port, for changes of ports.
    """

    number: int
    device: str
    kind: str
    port: int | None = None


class Controller:
    """All connected switches and the rules that they are held to."""

    def __init__(self) -> None:
        self._switches: dict[str, Switch] = {}
        self._wanted: dict[str, dict[_Key, codec.Entry]] | None = None
        self._changing = asyncio.Lock()
        self._events: deque[NetworkEvent] = deque(maxlen=_EVENTS_KEPT)
        self._happened = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._generation = 0

    async def listen(self, host: str, port: int, context: ssl.SSLContext | None) -> asyncio.Server:
        """Take connections from switches; with a context over TLS."""
        return await asyncio.start_server(self._connected, host, port, ssl=context)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        switch = Switch(reader, writer, self._port_changed)
        try:
            await switch.serve(self._ready)
        except EnforcementError as error:
            _log.warning("closed the connection of switch %s: %s", switch.device or "(not greeted)", error)
        finally:
            if switch.device and self._switches.get(switch.device) is switch:
                del self._switches[switch.device]
                self._tell(switch.device, "disconnected")

    def _ready(self, switch: Switch) -> None:
        self._switches[switch.device] = switch
        self._start(self._bring_up(switch))

    async def _bring_up(self, switch: Switch) -> None:
        """Hold a switch that has just come to the set, then say that it is there."""
        try:
            async with self._changing:
                if self._wanted is not None:
                    await self._change([switch], self._wanted)
        except EnforcementError as error:
            _log.warning("switch %s could not be brought to the rules: %s", switch.device, error)
        self._tell(switch.device, "connected")

    async def apply(self, flows: Sequence[Mapping[str, Any]]) -> None:
        """Hold all switches to these flow rules.

        Raises:
            EnforcementError: one of them is no rule that can be installed or is for a switch that is not connected
                (nothing was changed), or a switch refused a rule or went away.
        """
        wanted: dict[str, dict[_Key, codec.Entry]] = defaultdict(dict)
        for flow in flows:
            each = codec.entry(flow)
            if each.key in wanted[str(flow.get("deviceId"))]:
                raise EnforcementError(f"two flow rules of {flow.get('deviceId')} have the same priority and selector")
            wanted[str(flow.get("deviceId"))][each.key] = each
        async with self._changing:
            absent = sorted(wanted.keys() - self._switches.keys())
            if absent:
                raise EnforcementError(f"not connected: {', '.join(absent)}; nothing was changed")
            self._wanted = wanted
            await self._change(list(self._switches.values()), wanted)

    async def delete(self) -> None:
        """Take every rule of this controller from every switch.

        Raises:
            EnforcementError: a switch went away.
        """
        async with self._changing:
            self._wanted = {}
            await asyncio.gather(*(switch.install([codec.remove_all()]) for switch in self._switches.values()))

    async def read(self) -> list[dict[str, Any]]:
        """Return every rule of every switch, in ONOS' form.

        Raises:
            EnforcementError: a switch that should have rules is not connected, or one did not answer.
        """
        absent = sorted({device for device, rules in (self._wanted or {}).items() if rules} - self._switches.keys())
        if absent:
            raise EnforcementError(f"not connected: {', '.join(absent)}; what is installed there is not known")
        switches = sorted(self._switches.values(), key=lambda switch: switch.device)
        rules = await asyncio.gather(*(switch.rules() for switch in switches))
        return [
            codec.reported(switch.device, stats)
            for switch, installed in zip(switches, rules, strict=True)
            for stats in installed
        ]

    def switches(self) -> dict[str, dict[int, bool]]:
        """Return whether each port is up, by device, of the connected switches."""
        return {device: dict(switch.ports) for device, switch in sorted(self._switches.items())}

    async def events(self, after: int, wait_s: float) -> list[dict[str, Any]]:
        """Return the events with a higher number; if there is none, wait for one that long."""
        async with self._happened:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._happened.wait_for(lambda: bool(self._events) and self._events[-1].number > after)
            return [asdict(event) for event in self._events if event.number > after]

    async def _change(self, switches: Sequence[Switch], wanted: Mapping[str, Mapping[_Key, codec.Entry]]) -> None:
        self._generation = (self._generation + 1) & 0xFFFFFFFF
        reports = await asyncio.gather(*(switch.rules() for switch in switches))
        steps: list[list[list[Any]]] = []
        for switch, report in zip(switches, reports, strict=True):
            mine = {
                codec.key_of(stats): tuple(
                    each["port"]
                    for each in codec.reported(switch.device, stats)["treatment"]["instructions"]
                    if each["type"] == "OUTPUT"
                )
                for stats in report
                if stats.cookie & codec.OURS_MASK == codec.OURS
            }
            steps.append(_steps(mine, wanted.get(switch.device, {}), codec.OURS | self._generation))
        for step in range(4):
            await _all(switch.install(each[step]) for switch, each in zip(switches, steps, strict=True) if each[step])

    def _port_changed(self, device: str, port: int, up: bool) -> None:
        self._tell(device, "port_up" if up else "port_down", port)

    def _tell(self, device: str, kind: str, port: int | None = None) -> None:
        number = self._events[-1].number + 1 if self._events else 1
        self._events.append(NetworkEvent(number, device, kind, port))
        self._start(self._wake())

    async def _wake(self) -> None:
        async with self._happened:
            self._happened.notify_all()

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _steps(
    installed: Mapping[_Key, tuple[int, ...]], wanted: Mapping[_Key, codec.Entry], cookie: int
) -> list[list[Any]]:
    """Return the messages of each step for one switch: drops, new rules, changed rules, removals."""
    different = [each for key, each in wanted.items() if installed.get(key) != each.outputs]
    return [
        [codec.add(each, cookie) for each in different if not each.outputs],
        [codec.add(each, cookie) for each in different if each.outputs and each.key not in installed],
        [codec.add(each, cookie) for each in different if each.outputs and each.key in installed],
        [codec.remove(key) for key in installed if key not in wanted],
    ]


async def _all(work: Iterable[Any]) -> None:
    """Do all of this even if some of it fails, then raise the first failure."""
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
