"""The experiment behind `midstream bench migrate`: what does it cost to move layers to another machine under load?

Two node runtimes serve one pipeline, on one machine (loopback) or on two that a link of a given rate joins
(`loadgen.link`). Client, head and the first node are at its near end, the second node is at its far end. Each repeat is

1. a quiet pass, which is the reference;
2. for each method of moving KV, in an order that rotates: a pass with the change in it, every stream compared with the
   quiet pass of this repeat; then, when no stream runs, the change back, not measured.

A pool's KV moves as a whole: what earlier passes left in it (cached prefixes, and the ends of answers that nobody uses
any more) is moved too, so bytes grow from pass to pass until the pool is full. The methods take turns in being first,
and `bytes_moved` is to be read beside every figure.

With `check_wire` one more pass goes first, during which all that crosses the link is recorded and searched for
plaintext (`loadgen.benchmarks.wire`); it is not measured either.

What the experiment starts and makes (processes, namespaces, keys) is gone when it ends, in whichever way, unless it is
killed with SIGKILL. The logs stay.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from loadgen.benchmarks.disturbance import Repeat
from loadgen.benchmarks.migrate.options import HEAD, NODES, MigrateOptions
from loadgen.benchmarks.migrate.result import Migrations, summarise
from loadgen.benchmarks.migrate.table import render
from loadgen.benchmarks.passes import DisturbedPass, Pass, change_back, disturbed_pass, quiet_pass
from loadgen.benchmarks.side import Side, server_logs, side
from loadgen.benchmarks.wire import Recording, judge, plaintext
from loadgen.control import ControlClient
from loadgen.errors import MeasurementError
from loadgen.link import Link, joined
from loadgen.machine import CpuWatch, machine_facts
from loadgen.node_processes import Machine, enrol, node_runtimes
from loadgen.process import WatchedProcess
from loadgen.server import free_port

__all__ = ["MigrateOptions", "render", "run"]

Say = Callable[[str], None]


async def run(options: MigrateOptions, *, say: Say = lambda _: None) -> dict[str, Any]:
    """Run the experiment and return its result as one JSON object; see `loadgen.benchmarks.migrate.result`.

    Must run on the main thread: it goes into a network namespace and comes back.

    Raises:
        LoadgenError: it could not be measured; the message says why and where the logs are.
    """
    machine = machine_facts()
    with server_logs(options) as log_dir, joined(options.link) as link:
        if "measured_mbit_per_s" in link.facts:
            say(f"a link of {options.link} is up, which carries {link.facts['measured_mbit_per_s']} Mbit/s")
        async with (
            _pipeline(options, link, log_dir, say) as (served, processes),
            ControlClient(served.server.base_url) as control,
        ):
            experiment = _Experiment(options, link, served, processes, control, say)
            result = summarise(await experiment.measure())
    return {**result, "machine": machine, "log_dir": str(log_dir)}


@asynccontextmanager
async def _pipeline(
    options: MigrateOptions, link: Link, log_dir: Path, say: Say
) -> AsyncIterator[tuple[Side, tuple[WatchedProcess, ...]]]:
    """Run the nodes and the head, which know each other by keys made for the occasion; yield the head and all three."""
    head = Machine(HEAD, f"{link.near}:{free_port()}", controls=True)
    limit = ("--rate-limit", options.rate_limit) if options.rate_limit else ()
    nodes = (
        Machine(NODES[0], f"{link.near}:{free_port()}", options=limit),
        Machine(NODES[1], f"{link.far}:{free_port()}", link.far_command, options=limit),
    )
    with tempfile.TemporaryDirectory(prefix="midstream-bench-keys-") as folder:
        state = Path(folder)
        await enrol((head, *nodes), state, options.node_command)
        say(f"starting the nodes {' and '.join(NODES)}")
        async with node_runtimes(
            nodes,
            state,
            options.node_command,
            env=options.env,
            log_dir=log_dir,
            start_deadline_s=options.start_deadline_s,
        ) as processes:
            say(f"starting the head with layers {options.layers_from}")
            port = free_port()
            argv = options.head_argv(port, head.address, str(state / HEAD))
            async with side(HEAD, argv, port, options, log_dir) as served:
                yield served, (served.server, *processes)


class _Experiment:
    """The passes in their order."""

    def __init__(
        self,
        options: MigrateOptions,
        link: Link,
        served: Side,
        processes: tuple[WatchedProcess, ...],
        control: ControlClient,
        say: Say,
    ) -> None:
        self._options = options
        self._link = link
        self._served = served
        self._processes = processes
        self._control = control
        self._say = say

    async def measure(self) -> Migrations:
        options = self._options
        wire = await self._checked_wire(self._link.device) if options.check_wire and self._link.device else None
        references: list[Pass] = []
        repeats: dict[str, list[Repeat]] = {method: [] for method in options.methods}
        for index in range(options.repeat):
            self._say(f"repeat {index + 1} of {options.repeat}")
            await asyncio.sleep(options.settle_s)
            watch = CpuWatch(*self._processes)
            reference = replace(await quiet_pass(self._served.client, options.requests()), cpus=watch.use())
            references.append(reference)
            for method in options.methods_in(index):
                repeats[method].append(Repeat(reference, await self._migration(method), None))
        version = (await self._control.status()).vllm_version
        return Migrations(options, version, self._link.facts, references, repeats, wire)

    async def _migration(self, method: str) -> DisturbedPass:
        """Change the layout under load, and back when the load is over."""
        options = self._options
        self._say(f"  {options.layers_from} -> {options.layers_to} by {method} under load")
        await asyncio.sleep(options.settle_s)
        watch = CpuWatch(*self._processes)
        disturbed = await disturbed_pass(
            self._served.client,
            self._control,
            options.requests(),
            layers=options.layers_to,
            after_tokens=options.change_after_tokens,
            tail_tokens=options.quiet_tail_tokens,
            deadline_s=options.change_deadline_s,
            method=method,
        )
        report, cpus = disturbed.report, watch.use()
        if report.method != method:
            raise MeasurementError(f"{report.id} was to be made by {method}, but the server says {report.method}")
        self._say(f"    {report.state} in {disturbed.change.ms:.0f} ms{f': {report.reason}' if report.reason else ''}")
        if report.state == "committed":
            await change_back(self._control, report, options.change_deadline_s)
        return replace(disturbed, cpus=cpus)

    async def _checked_wire(self, device: str) -> dict[str, Any]:
        self._say("watching the wire")
        with Recording(device) as link, Recording("lo") as plain:
            disturbed = await self._migration(self._options.methods[0])
        return judge(link, plain, plaintext(disturbed.records, self._options.prompts()))
