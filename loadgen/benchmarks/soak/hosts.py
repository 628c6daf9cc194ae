"""The machines of a soak and the link between them: what is taken away comes back by itself after a while.

A node is *away* from the moment at which its runtime was killed, or the link to it was cut, until the head lists it
again. While all are away, a pipeline has nothing to compute on, and may say so to clients.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from loadgen.benchmarks.soak.options import SoakOptions
from loadgen.benchmarks.soak.usage import living, tree
from loadgen.clock import now_ns
from loadgen.errors import LoadgenError
from loadgen.gaps import Window
from loadgen.link import Link, carry_out
from loadgen.node_processes import Machine, NodeProcess, node_process

_POLL_S = 0.05
_ENDED_S = 15.0  # for the processes of a killed runtime to notice


@dataclass(slots=True)
class _Host:
    """One node runtime and when it was away."""

    machine: Machine
    process: NodeProcess
    starts: int = 1
    up: bool = False
    away: list[tuple[int, int | None]] = field(default_factory=list)

    def leave(self, at: int) -> None:
        if not self.away or self.away[-1][1] is not None:
            self.away.append((at, None))

    def come_back(self, at: int) -> None:
        if self.away and self.away[-1][1] is None:
            self.away[-1] = (self.away[-1][0], at)


class Hosts:
    """See the module; made by `hosts`.

    Attributes:
        orphans: Processes that outlived their node runtime, in words.
        problems: What could not be brought back, in words.
        back_ms: How long each node and the link was away, by "node" and "link".
    """

    def __init__(self, machines: Sequence[Machine], link: Link, make: Callable[[Machine, int], NodeProcess]) -> None:
        self._make, self._link = make, link
        self._hosts = {machine.name: _Host(machine, make(machine, 1)) for machine in machines}
        self._far = {machine.name for machine in machines if machine.command}
        self._cut = False
        self._returns: set[asyncio.Task[None]] = set()
        self.orphans: list[str] = []
        self.problems: list[str] = []
        self.back_ms: dict[str, list[float]] = {"node": [], "link": []}

    @property
    def names(self) -> list[str]:
        """Names of the nodes."""
        return list(self._hosts)

    def pid(self, name: str) -> int | None:
        """Return the process id of a node runtime; None while it is down."""
        host = self._hosts[name]
        return host.process.pid if host.up else None

    def reachable(self, name: str) -> bool:
        """Whether a node's runtime runs and the link to it, if it is at the far end, is whole."""
        return self._hosts[name].up and not (self._cut and name in self._far)

    def away(self) -> list[str]:
        """Return the nodes that were taken away and are not known to be back."""
        return [name for name, host in self._hosts.items() if host.away and host.away[-1][1] is None]

    def seen(self, names: Iterable[str]) -> None:
        """Take note that the head lists these nodes."""
        for name in names:
            if name in self._hosts and self.reachable(name):
                self._hosts[name].come_back(now_ns())

    def none_left(self) -> list[Window]:
        """Return when no node was left; what has not ended ends now."""
        now = now_ns()
        common = [Window(0, now)]
        for host in self._hosts.values():
            windows = [Window(start, now if end is None else end) for start, end in host.away]
            common = [
                Window(max(a.start_ns, b.start_ns), min(a.end_ns, b.end_ns))
                for a in common
                for b in windows
                if a.overlaps(b)
            ]
        return common

    def kill(self, name: str, away_s: float) -> None:
        """SIGKILL a node runtime that is up, and start it again after `away_s` seconds."""
        host = self._hosts[name]
        family = tree(host.process.pid)
        host.leave(now_ns())
        host.up = False
        os.kill(host.process.pid, signal.SIGKILL)
        self._later(self._start_again(host, family, away_s))

    def cut(self, way: str, away_s: float) -> None:
        """Cut the link in one of its ways, and heal it after `away_s` seconds."""
        for name in self._far:
            self._hosts[name].leave(now_ns())
        self._cut = True
        carry_out(self._link.cuts[way].cut)
        self._later(self._heal(way, away_s))

    async def all_back(self) -> None:
        """Wait until whatever was taken away is there again, as far as can be told from here."""
        while self._returns:
            await asyncio.wait(set(self._returns))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._returns.add(task)
        task.add_done_callback(self._returns.discard)

    async def _start_again(self, host: _Host, family: list[psutil.Process], away_s: float) -> None:
        began, until, name = now_ns(), time.monotonic() + away_s, host.machine.name
        while (left := living(family)) and now_ns() - began < _ENDED_S * 1e9:  # noqa: ASYNC110 - others' processes
            await asyncio.sleep(_POLL_S)
        self.orphans += [f"process {pid} outlived its node runtime {name} by {_ENDED_S:g} s" for pid in left]
        try:
            await host.process.stop(0.0)  # what is left of it
            await asyncio.sleep(max(0.0, until - time.monotonic()))
            host.starts += 1
            host.process = self._make(host.machine, host.starts)
            await host.process.start()
        except LoadgenError as error:
            self.problems.append(f"{name} could not be started again: {error}")
            return
        host.up = True
        self.back_ms["node"].append((now_ns() - began) / 1e6)

    async def _heal(self, way: str, away_s: float) -> None:
        began = now_ns()
        await asyncio.sleep(away_s)
        try:
            carry_out(self._link.cuts[way].heal)
        except LoadgenError as error:
            self.problems.append(f"the link could not be healed: {error}")
            return
        self._cut = False
        self.back_ms["link"].append((now_ns() - began) / 1e6)

    async def start(self) -> None:
        """Start all node runtimes; raises ServerError when one does not become ready."""
        await asyncio.gather(*(host.process.start() for host in self._hosts.values()))
        for host in self._hosts.values():
            host.up = True

    async def stop(self) -> None:
        """Stop all node runtimes, also those that are just coming back."""
        for task in set(self._returns):
            task.cancel()
        await asyncio.gather(*self._returns, return_exceptions=True)
        await asyncio.gather(*(host.process.stop() for host in self._hosts.values()))


@asynccontextmanager
async def hosts(
    machines: Sequence[Machine], link: Link, folder: Path, options: SoakOptions, log_dir: Path
) -> AsyncIterator[Hosts]:
    """Run enrolled node runtimes, and stop them in the end; each start has a log of its own."""

    def make(machine: Machine, start: int) -> NodeProcess:
        log_path = log_dir / f"{machine.name}-{start}.log"
        return node_process(
            machine,
            folder,
            options.node_command,
            env=options.env,
            log_path=log_path,
            start_deadline_s=options.start_deadline_s,
        )

    made = Hosts(machines, link, make)
    try:
        await made.start()
        yield made
    finally:
        await made.stop()
