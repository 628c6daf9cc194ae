"""The experiment behind `midstream bench reconfigure`: what does changing the pipeline cost its streams?

Two servers are started, Midstream and stock vLLM in one process, with the same flags and environment. They take turns:
while one is measured the other idles (and is watched for idling), so that the noise of the machine hits both. Each
repeat is

1. a quiet pass on either side, the order swapped from repeat to repeat;
2. a disturbed pass on Midstream, with the change in it, every stream compared with the quiet pass of this repeat;
3. the change back, not measured.

At the end the stock server is really stopped and started under load: the downtime that a restart, the usual way to
change a layout, would have cost. Its files are in the page cache by then, so this is a restart at its best.

If stock vLLM cannot be measured the figures that need it are null with the reason. If Midstream cannot be measured
there is no result and an error is raised.
"""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from loadgen.benchmarks.disturbance import Repeat
from loadgen.benchmarks.passes import Pass, Restart, change_back, disturbed_pass, quiet_pass, restart_pass
from loadgen.benchmarks.reconfigure.options import ReconfigureOptions, default_model_folder
from loadgen.benchmarks.reconfigure.result import Measured, summarise
from loadgen.benchmarks.reconfigure.table import render
from loadgen.benchmarks.side import Side, server_logs, side
from loadgen.control import ControlClient
from loadgen.errors import LoadgenError
from loadgen.machine import CpuWatch, machine_facts
from loadgen.server import free_port

__all__ = ["ReconfigureOptions", "render", "run"]

Say = Callable[[str], None]


async def run(options: ReconfigureOptions, *, say: Say = lambda _: None) -> dict[str, Any]:
    """Run the experiment and return its result as one JSON object; see `.result.summarise`.

    Both servers are stopped before this returns or raises, also when it is cancelled or the process gets SIGTERM.

    Args:
        options: What to measure.
        say: Called with a line of progress now and then.

    Raises:
        LoadgenError: Midstream could not be measured; the message says why and where the logs are.
    """
    machine = machine_facts()
    with server_logs(options) as log_dir:
        measured = await _with_servers(options, log_dir, say)
    return {**summarise(measured), "machine": machine, "log_dir": str(log_dir)}


async def _with_servers(options: ReconfigureOptions, log_dir: Path, say: Say) -> Measured:
    async with AsyncExitStack() as stack:
        say(f"starting Midstream with layers {options.layers_from}")
        port = free_port()
        midstream = await stack.enter_async_context(
            side("midstream", options.midstream_argv(port), port, options, log_dir)
        )
        control = await stack.enter_async_context(ControlClient(midstream.server.base_url))
        experiment = _Experiment(options, midstream, control, say)
        if options.compare_stock:
            say("starting stock vLLM")
            try:
                port, model = free_port(), options.model or await default_model_folder(options)
                experiment.stock = await stack.enter_async_context(
                    side("stock", options.stock_argv(port, model), port, options, log_dir)
                )
            except LoadgenError as error:
                experiment.stock_missing = str(error)
        return await experiment.measure()


class _Experiment:
    """The passes in their order; stock vLLM may drop out on the way, and `stock_missing` then says why."""

    def __init__(self, options: ReconfigureOptions, midstream: Side, control: ControlClient, say: Say) -> None:
        self._options = options
        self._midstream = midstream
        self._control = control
        self._say = say
        self.stock: Side | None = None
        self.stock_missing = "the comparison with stock vLLM was switched off"

    async def measure(self) -> Measured:
        repeats = []
        for index in range(self._options.repeat):
            self._say(f"repeat {index + 1} of {self._options.repeat}")
            repeats.append(await self._repeat(swapped=index % 2 == 1))
        version = (await self._control.status()).vllm_version
        stock_missing = None if self.stock is not None else self.stock_missing
        restart, restart_missing = await self._restart()
        return Measured(self._options, version, tuple(repeats), restart, stock_missing, restart_missing)

    async def _repeat(self, *, swapped: bool) -> Repeat:
        stock_quiet = await self._stock_turn() if swapped else None
        reference = await self._turn(self._midstream, self.stock)
        if not swapped:
            stock_quiet = await self._stock_turn()
        self._say(f"  changing {self._options.layers_from} -> {self._options.layers_to} under load")
        await asyncio.sleep(self._options.settle_s)
        disturbed = await disturbed_pass(
            self._midstream.client,
            self._control,
            self._options.requests(),
            layers=self._options.layers_to,
            after_tokens=self._options.change_after_tokens,
            tail_tokens=self._options.quiet_tail_tokens,
            deadline_s=self._options.change_deadline_s,
        )
        if disturbed.report.state == "committed":
            await change_back(self._control, disturbed.report, self._options.change_deadline_s)
        return Repeat(reference, disturbed, stock_quiet)

    async def _turn(self, active: Side, idle: Side | None) -> Pass:
        await asyncio.sleep(self._options.settle_s)
        watch = CpuWatch(active.server, idle=None if idle is None else idle.server)
        quiet = await quiet_pass(active.client, self._options.requests())
        return replace(quiet, cpus=watch.use())

    async def _stock_turn(self) -> Pass | None:
        if self.stock is None:
            return None
        try:
            return await self._turn(self.stock, self._midstream)
        except LoadgenError as error:
            self.stock, self.stock_missing = None, str(error)
            return None

    async def _restart(self) -> tuple[Restart | None, str | None]:
        if self.stock is None:
            return None, self.stock_missing
        self._say("restarting stock vLLM under load")
        try:
            restart = await restart_pass(
                self.stock.server,
                self.stock.client,
                self._options.requests(),
                after_tokens=self._options.change_after_tokens,
                idle=self._midstream.server,
            )
        except LoadgenError as error:
            return None, str(error)
        return restart, None
