"""The experiment behind `midstream bench soak`: does a pipeline outlive what happens to it, and leave nothing behind?

Two node runtimes serve one pipeline, on one machine (loopback) or on two that a link joins (`loadgen.link`), as in the
migration experiment. All requests are made once with nothing disturbing them: these answers are the reference, and
what the head and the nodes hold then (`.usage`) is the idle point. Then clients ask without a pause, each
time one of the requests at random, while the steps of a schedule (`.schedule`) are made until there were
enough kills. In the end everything is brought back, all requests are made once more, and the idle point is compared.

What is not allowed is in the result's `violations`, and `passed` says whether there is none: an answer that differs, an
error that a client sees (a 503 while no node was left is allowed, and counted), a pipeline that does not serve again, a
change without an end, a process that outlives its node runtime, more held at the idle point than before, a process or
file left in the end.

Every step, every bad answer and the server's journal are written into the folder of the logs as they happen, one JSON
object a line. What the soak starts and makes is gone when it ends, in whichever way, unless it is killed with SIGKILL.
"""

import asyncio
import contextlib
import math
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

from loadgen.benchmarks.migrate.options import HEAD, NODES
from loadgen.benchmarks.passes import quiet_pass
from loadgen.benchmarks.side import Side, server_logs, side
from loadgen.benchmarks.soak.hosts import Hosts, hosts
from loadgen.benchmarks.soak.options import SoakOptions
from loadgen.benchmarks.soak.result import Done, Soak, summarise
from loadgen.benchmarks.soak.schedule import CHANGING, KILLING, LOSING, Kind, Step, layers_by_node, nodes_at, schedule
from loadgen.benchmarks.soak.table import render
from loadgen.benchmarks.soak.usage import living, stage_pids
from loadgen.benchmarks.soak.watch import WATCH_S, GoneWrong, Watch
from loadgen.clock import now_ns
from loadgen.control import ControlClient
from loadgen.errors import ChangeFailedError, ChangeRefusedError, ControlError, MeasurementError
from loadgen.link import Link, joined
from loadgen.machine import machine_facts
from loadgen.node_processes import Machine, enrol
from loadgen.records import StreamRecord
from loadgen.server import free_port

__all__ = ["SoakOptions", "render", "run"]

_AFTER_ERROR_S = 0.5

Say = Callable[[str], None]


async def run(options: SoakOptions, *, say: Say = lambda _: None) -> dict[str, Any]:
    """Run the soak and return its result as one JSON object; see `loadgen.benchmarks.soak.result`.

    Must run on the main thread: it goes into a network namespace and comes back.

    Raises:
        LoadgenError: it could not be started; the message says why and where the logs are.
    """
    machine = machine_facts()
    with server_logs(options) as log_dir:
        log_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="ms-soak-") as folder, joined(options.link) as link:
            temporary = Path(folder) / "tmp"
            temporary.mkdir()
            own = replace(options, env={**options.env, "TMPDIR": str(temporary)})
            async with (
                _pipeline(own, link, Path(folder), log_dir, say) as (served, machines),
                ControlClient(served.server.base_url) as control,
            ):
                experiment = _Soak(own, link, served, machines, control, log_dir, temporary, say)
                soak = await experiment.run()
            left = [f"process {pid}" for pid in living(experiment.watch.seen.values())]
            left += [f"file {path.name}" for path in sorted(temporary.glob("midstream*"))]
        result = summarise(replace(soak, left=left))
    return {**result, "machine": machine, "log_dir": str(log_dir)}


@asynccontextmanager
async def _pipeline(
    options: SoakOptions, link: Link, folder: Path, log_dir: Path, say: Say
) -> AsyncIterator[tuple[Side, Hosts]]:
    """Run the nodes and the head, which know each other by keys made for the occasion."""
    head = Machine(HEAD, f"{link.near}:{free_port()}", controls=True)
    nodes = (
        Machine(NODES[0], f"{link.near}:{free_port()}"),
        Machine(NODES[1], f"{link.far}:{free_port()}", link.far_command),
    )
    await enrol((head, *nodes), folder, options.node_command)
    say(f"starting the nodes {' and '.join(NODES)}")
    async with hosts(nodes, link, folder, options, log_dir) as machines:
        say(f"starting the head with layers {options.layers_from}")
        port = free_port()
        argv = options.head_argv(port, head.address, str(folder / HEAD))
        async with side(HEAD, argv, port, options, log_dir) as served:
            yield served, machines


class _Soak:
    """One soak under way."""

    def __init__(
        self,
        options: SoakOptions,
        link: Link,
        served: Side,
        machines: Hosts,
        control: ControlClient,
        log_dir: Path,
        temporary: Path,
        say: Say,
    ) -> None:
        self._options, self._link, self._served, self._machines = options, link, served, machines
        self._control, self._say = control, say
        self._far = next((name for name in machines.names if link.far_command and name == NODES[1]), None)
        self.watch = Watch(options, served, machines, control, log_dir, temporary, say)
        self._most: dict[str, int] = {}
        self._records: list[StreamRecord] = []
        self._done: list[Done] = []
        self._changes: dict[str, int] = {}
        self._stop_clients = False

    async def run(self) -> Soak:
        """Make the reference, the disturbances and the comparison in the end."""
        options, began = self._options, now_ns()
        self._say("making the reference answers")
        reference = await quiet_pass(self._served.client, options.requests())
        await self._once_around()
        status = await self._control.status()
        at_most = (await self._control.capacity())["at_most"]
        self._most = {name: int(at_most[name]) for name in ("kv_blocks", "max_requests", "max_batch_tokens")}
        before = await self.watch.idle_usage(None)
        self._expected = {record.name: record.token_ids for record in reference.records}
        watch = asyncio.create_task(self.watch.run())
        clients = [asyncio.create_task(self._ask(client)) for client in range(options.streams)]
        completed = False
        try:
            await self._disturb(clients)
            await self._bring_back()
            completed = True
        except GoneWrong as error:
            self.watch.problem(str(error))
        finally:
            self._stop_clients = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(options.recovered_deadline_s if completed else 0):
                    await asyncio.gather(*clients)
            for task in (*clients, watch):
                task.cancel()
            await asyncio.gather(*clients, watch, return_exceptions=True)
        after = None
        if completed:
            self._say("comparing with the beginning")
            self._records += await self._last_pass()
            after = await self.watch.idle_usage(before)
        return Soak(
            options=options,
            vllm_version=status.vllm_version,
            link=self._link.facts,
            reference=tuple(reference.records),
            records=tuple(self._records),
            done=tuple(self._done),
            recoveries=dict(self.watch.recoveries),
            changes=dict(self._changes),
            none_left=tuple(self._machines.none_left()),
            back_ms=self._machines.back_ms,
            problems=(*self.watch.problems, *self._machines.problems, *self._machines.orphans),
            before=before,
            after=after,
            completed=completed,
            seconds=(now_ns() - began) / 1e9,
        )

    # -- load ----------------------------------------------------------------------------------------------------------

    async def _ask(self, client: int) -> None:
        """Be one client."""
        requests, choices = self._options.requests(), self._options.choices(client)
        while not self._stop_clients:
            record = await self._served.client.stream(choices.choice(requests))
            self._records.append(record)
            if record.broken or record.token_ids != self._expected[record.name]:
                self.watch.note(
                    "answer",
                    client=client,
                    name=record.name,
                    outcome=record.outcome,
                    detail=record.detail,
                    tokens=len(record.tokens),
                    started_s=(now_ns() - record.started_ns) / 1e9,
                )
                await asyncio.sleep(_AFTER_ERROR_S)

    async def _last_pass(self) -> list[StreamRecord]:
        try:
            return list((await quiet_pass(self._served.client, self._options.requests())).records)
        except MeasurementError as error:
            self.watch.problem(f"in the end, with everything back: {error}")
            return []

    # -- what happens --------------------------------------------------------------------------------------------------

    async def _disturb(self, clients: list[asyncio.Task[None]]) -> None:
        kills = 0
        for step in schedule(self._options.seed, self._options.setting(tuple(self._link.cuts))):
            if kills >= self._options.kills:
                return
            if any(client.done() for client in clients):
                raise GoneWrong("a client ended")
            await asyncio.sleep(step.wait_s)
            if step.whole:
                await self.watch.all_there()
            if step.settled:
                await self.watch.until_serving()
            self.watch.step = step.number
            started = now_ns()
            what = await self._make(step)
            if step.settled:
                await self.watch.until_serving()
            self._done.append(Done(step, started, now_ns(), what))
            self.watch.note("step", step=asdict(step), what=what, ms=round((now_ns() - started) / 1e6))
            if what is not None and step.kind in KILLING:
                kills += 1
                self._say(f"  {kills:4d}  {step.kind:<12}  {what}  ({(now_ns() - started) / 1e9:.1f} s)")

    async def _make(self, step: Step) -> str | None:
        """Make one step; returns what was done, or None when there was nothing to do it to."""
        if step.kind in LOSING and not step.together:
            await self.watch.all_there()
            used = layers_by_node(self.watch.layers())
            if set(used) != set(NODES):  # what is to be lost shall have something to lose
                await self._change(self._options.layers_from, step.method)
                await self.watch.until_serving()
        changing: asyncio.Task[str] | None = None
        before = self.watch.layers()
        if step.kind in CHANGING:
            changing = asyncio.create_task(self._change(step.layers, step.method))
        try:
            if changing is not None and step.kind is not Kind.CHANGE:
                await asyncio.sleep(step.into_change_s)
            what = await self._hit(step, before)
            if changing is not None:
                outcome = await changing
                what = f"{what or 'nothing'} while {outcome}" if step.kind is not Kind.CHANGE else outcome
                return what if step.kind is Kind.CHANGE or not what.startswith("nothing") else None
            return what
        finally:
            if changing is not None:
                changing.cancel()
                await asyncio.gather(changing, return_exceptions=True)

    async def _hit(self, step: Step, before: str) -> str | None:
        match step.kind:
            case Kind.STAGE | Kind.STAGES:
                pids = self._serving_pids()
                number = 1 if step.kind is Kind.STAGE else max(2, math.ceil(step.share * len(pids)))
                first = int(step.pick * len(pids))
                return self._kill_stages((pids[first:] + pids[:first])[:number])
            case Kind.CHANGE_STAGE:
                nodes = nodes_at(step.side, before, step.layers)
                pids = [pid for node in nodes for pid in self._stage_pids(node)]
                return self._kill_stages(pids[int(step.pick * len(pids)) :][:1], step.side)
            case Kind.NODE | Kind.CHANGE_NODE:
                nodes = nodes_at(step.side, before, step.layers) if step.kind is Kind.CHANGE_NODE else list(NODES)
                return self._kill_node(nodes[int(step.pick * len(nodes))], step)
            case Kind.NODES:
                killed = [what for node in NODES if (what := self._kill_node(node, step)) is not None]
                return " and ".join(killed) or None
            case Kind.LINK | Kind.CHANGE_LINK:
                if self._far is None or not self._machines.reachable(self._far):
                    return None
                self._machines.cut(step.cut, step.away_s)
                return f"link {step.cut} for {step.away_s:.1f} s"
            case Kind.CAPACITY:
                return await self._change_capacity(step)
            case _:
                return None

    def _serving_pids(self) -> list[int]:
        """Return the stages that serve, as far as is known, in their order."""
        ours = {pid for node in NODES for pid in self._stage_pids(node)}
        known = [stage.pid for stage in self.watch.status.stages] if self.watch.status else []
        return [pid for pid in known if pid in ours]

    def _stage_pids(self, node: str) -> list[int]:
        pid = self._machines.pid(node)
        return [] if pid is None else stage_pids(pid)

    def _kill_stages(self, pids: list[int], of: str = "serving") -> str | None:
        killed = []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed.append(str(pid))
        return f"{of} stage {', '.join(killed)}" if killed else None

    def _kill_node(self, node: str, step: Step) -> str | None:
        pid = self._machines.pid(node)
        if pid is None:
            return None
        self._machines.kill(node, step.away_s)
        return f"{node} ({pid}) for {step.away_s:.1f} s"

    async def _change(self, layers: str, method: str) -> str:
        """Ask for a layout and wait until that has ended, however it ends."""
        began = time.monotonic()
        try:
            begun = await self._control.request_change(layers, method)
            report = await self._control.wait_for_end(begun.id, self._options.recovered_deadline_s)
            state, why = str(report.state), report.reason
        except ChangeRefusedError as error:
            state, why = "refused", str(error)
        except ChangeFailedError as error:
            state, why = "without end", str(error)
            self.watch.problem(f"a change to {layers} by {method} has no end: {error}")
        except ControlError as error:
            state, why = "unknown", str(error)
        self._changes[state] = self._changes.get(state, 0) + 1
        self.watch.note(
            "change", layers=layers, method=method, state=state, why=why, s=round(time.monotonic() - began, 2)
        )
        return f"{layers} by {method}: {state}"

    async def _change_capacity(self, step: Step) -> str:
        """Make it smaller, or as large as it can be."""
        limits = dict(self._most)
        if step.pick < 0.7:
            limits["kv_blocks"] = max(128, round(limits["kv_blocks"] * step.share))
            limits["max_requests"] = max(1, round(2 * self._options.streams * step.share))
            limits["max_batch_tokens"] = max(64, round(1024 * step.share))
        try:
            await self._control.change_capacity({**limits, "preempt": True})
            return f"capacity {limits['kv_blocks']} blocks, {limits['max_requests']} requests"
        except ControlError as error:
            return f"capacity not changed: {error}"

    # -- the idle point ------------------------------------------------------------------------------------------------

    async def _once_around(self) -> None:
        """Change to another layout and back, so that what only a first change makes is there at the idle point."""
        for layers in (self._options.layers_to, self._options.layers_from):
            await self._control.change(layers, self._options.change_deadline_s)

    async def _bring_back(self) -> None:
        """Let everything be as it was in the beginning.

        Raises:
            GoneWrong: that cannot be done.
        """
        self._say("bringing everything back")
        await self._machines.all_back()
        deadline = time.monotonic() + self._options.recovered_deadline_s
        for attempt in count(1):
            await self.watch.until_serving()
            if not self._machines.away():
                self._stop_clients = True
                with contextlib.suppress(ControlError):
                    await self._control.change_capacity({**self._most, "preempt": True})
                    if self.watch.layers() == self._options.layers_from or (
                        await self._change(self._options.layers_from, "pre_copy")
                    ).endswith("committed"):
                        return
            if time.monotonic() > deadline:
                missing = ", ".join(self._machines.away()) or "none"
                raise GoneWrong(f"not as in the beginning after {attempt} attempts (nodes missing: {missing})")
            await asyncio.sleep(WATCH_S)
