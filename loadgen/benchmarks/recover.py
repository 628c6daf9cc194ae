"""The experiment behind `midstream bench recover`: what does the loss of stages cost the streams they serve?

A Midstream server is started with the layout under test. Each repeat is a quiet pass, which is the reference, and then
one pass for each role (the first stage, one in the middle, the last, all at once) in which the processes of that role
are killed with SIGKILL while all clients stream. A stall is measured like a pause: the largest gap of a stream that
overlaps the loss, from the kill until the server says that it has recovered, minus the median gap of the same stream
before it.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from loadgen.benchmarks.alignment import compare
from loadgen.benchmarks.client import CompletionClient, StreamRequest
from loadgen.benchmarks.passes import Pass, quiet_pass, under_load
from loadgen.benchmarks.reconfigure.options import ReconfigureOptions
from loadgen.benchmarks.side import Side, server_logs, side
from loadgen.clock import now_ns
from loadgen.control import ControlClient, RecoveryReport, ServerStatus
from loadgen.errors import MeasurementError
from loadgen.gaps import Window, inter_token_latencies_ms, pause, percentile
from loadgen.machine import machine_facts
from loadgen.records import StreamRecord
from loadgen.server import free_port

_POLL_S = 0.02

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverOptions(ReconfigureOptions):
    """Options of the recovery experiment: the same server and load, `layers_from` throughout, no stock vLLM."""

    layers_from: str = "8,12,10"
    layers_to: str = "15,15"
    compare_stock: bool = False


@dataclass(frozen=True, slots=True)
class Loss:
    """A pass in which stages were killed.

    Attributes:
        role: Which stages.
        killed: Their names.
        window: From the first kill until the server had recovered, as the client saw it.
        recovery: The server's report.
        records: Streams in the order in which they ended.
    """

    role: str
    killed: tuple[str, ...]
    window: Window
    recovery: RecoveryReport
    records: tuple[StreamRecord, ...]


def roles(stages: int) -> dict[str, tuple[int, ...]]:
    """Return which stages to kill at once, by the name of their role, in a layout of so many stages."""
    named: dict[str, tuple[int, ...]] = {"first": (0,)}
    if stages > 2:
        named["middle"] = (stages // 2,)
    if stages > 1:
        named |= {"last": (stages - 1,), "all": tuple(range(stages))}
    return named


async def run(options: RecoverOptions, *, say: Say = lambda _: None) -> dict[str, Any]:
    """Run the experiment and return its result as one JSON object; see `summarise`.

    Raises:
        LoadgenError: the server could not be measured, or did not recover; the message says where the logs are.
    """
    machine = machine_facts()
    with server_logs(options) as log_dir:
        port = free_port()
        say(f"starting Midstream with layers {options.layers_from}")
        async with (
            side("midstream", options.midstream_argv(port), port, options, log_dir) as served,
            ControlClient(served.server.base_url) as control,
        ):
            status = await control.status()
            measured = [await _repeat(options, served, control, say) for _ in range(options.repeat)]
    return {**summarise(options, status, measured), "machine": machine, "log_dir": str(log_dir)}


async def _repeat(
    options: RecoverOptions, served: Side, control: ControlClient, say: Say
) -> tuple[Pass, tuple[Loss, ...]]:
    await asyncio.sleep(options.settle_s)
    reference = await quiet_pass(served.client, options.requests())
    losses = []
    for role, ranks in roles(len((await control.status()).stages)).items():
        say(f"killing {role} under load")
        await asyncio.sleep(options.settle_s)
        losses.append(
            await loss_pass(
                served.client,
                control,
                options.requests(),
                role=role,
                ranks=ranks,
                after_tokens=options.change_after_tokens,
                tail_tokens=options.quiet_tail_tokens,
                deadline_s=options.change_deadline_s,
            )
        )
    return reference, tuple(losses)


async def loss_pass(
    client: CompletionClient,
    control: ControlClient,
    requests: Sequence[StreamRequest],
    *,
    role: str,
    ranks: Sequence[int],
    after_tokens: int,
    tail_tokens: int,
    deadline_s: float,
    kill: Callable[[int, int], None] = os.kill,
) -> Loss:
    """Run the requests in a closed loop and kill the stages at `ranks` under them.

    Raises:
        MeasurementError: every stream ended before, or the server did not recover within `deadline_s` seconds.
        ControlError: as for `ControlClient`.
    """

    async def lose() -> tuple[tuple[str, ...], Window, RecoveryReport]:
        before = await control.status()
        victims = [before.stages[rank] for rank in ranks]
        started = now_ns()
        for victim in victims:
            kill(victim.pid, signal.SIGKILL)
        names = tuple(victim.name for victim in victims)
        recovery = await _recovered(control, set(names), before.recoveries, deadline_s)
        return names, Window(started, now_ns()), recovery

    (killed, window, recovery), records = await under_load(
        client, requests, lose, "a stage could be killed", after_tokens=after_tokens, tail_tokens=tail_tokens
    )
    return Loss(role, killed, window, recovery, records)


async def _recovered(control: ControlClient, lost: set[str], recoveries: int, deadline_s: float) -> RecoveryReport:
    try:
        async with asyncio.timeout(deadline_s):
            while True:
                status = await control.status()
                replaced = not lost.intersection(stage.name for stage in status.stages)
                if replaced and status.phase == "serving" and status.recoveries > recoveries and status.last_recovery:
                    return status.last_recovery
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise MeasurementError(f"{', '.join(sorted(lost))}: not recovered within {deadline_s:g} s") from None


def summarise(
    options: RecoverOptions, status: ServerStatus, measured: Sequence[tuple[Pass, Sequence[Loss]]]
) -> dict[str, Any]:
    """Return the result: times in ms, worst of all streams unless the name says otherwise.

    `kills` has one entry for each pass; a stream without a stall (it ended before, or broke) is not in its figures,
    and a broken one is an error.
    """
    kills = [_kill(loss, reference) for reference, losses in measured for loss in losses]
    quiet = [ms for reference, _ in measured for r in reference.records for ms in inter_token_latencies_ms(r)]
    stalls = [kill["stall_ms"] for kill in kills if kill["stall_ms"] is not None]
    return {
        "vllm_version": status.vllm_version,
        "layers": options.layers_from,
        "streams": options.streams,
        "tokens": options.tokens,
        "repeat": options.repeat,
        "stall_ms": max(stalls, default=None),
        "stall_ms_p50": round(percentile(stalls, 50), 3) if stalls else None,
        "itl_ms_p50": round(percentile(quiet, 50), 3) if quiet else None,
        "errors": sum(kill["errors"] for kill in kills),
        "tokens_lost": sum(kill["tokens_lost"] for kill in kills),
        "tokens_repeated": sum(kill["tokens_repeated"] for kill in kills),
        "outputs_identical": all(kill["outputs_identical"] for kill in kills),
        "kills": kills,
    }


def _kill(loss: Loss, reference: Pass) -> dict[str, Any]:
    expected = {record.name: record.token_ids for record in reference.records}
    differences = [compare(expected[record.name], record.token_ids) for record in loss.records if not record.broken]
    measured = [pause(record, loss.window) for record in loss.records]
    stalls = [found.ms for found in measured if found.ms is not None]
    broken = sum(record.broken for record in loss.records)
    return {
        "role": loss.role,
        "stages": list(loss.killed),
        "stall_ms": round(max(stalls), 3) if stalls else None,
        "stall_ms_each": [round(stall, 3) for stall in stalls],
        "recovery_ms": loss.recovery.total_ms,
        "replayed_batches": loss.recovery.replayed_batches,
        "errors": broken,
        "tokens_lost": sum(difference.lost for difference in differences),
        "tokens_repeated": sum(difference.repeated for difference in differences),
        "outputs_identical": not broken and all(difference.identical for difference in differences),
    }


def render(result: Mapping[str, Any]) -> Table:
    """Return a table of the figures that `run` returned."""
    machine = result["machine"]
    table = Table(
        title=f"kill -9 under {result['streams']} streams, layers {result['layers']}",
        caption=(
            f"between tokens {result['itl_ms_p50']} ms (p50); vLLM {result['vllm_version']}; {machine['cpus']} CPUs, "
            f"Python {machine['python']}; server log in {result['log_dir']}"
        ),
    )
    for name in ("killed", "worst stall", "recovery", "batches replayed", "errors", "lost / repeated", "identical"):
        table.add_column(name, justify="left" if name == "killed" else "right")
    for kill in result["kills"]:
        table.add_row(
            kill["role"],
            "-" if kill["stall_ms"] is None else f"{kill['stall_ms']:.0f} ms",
            f"{kill['recovery_ms']:.0f} ms",
            str(kill["replayed_batches"]),
            str(kill["errors"]),
            f"{kill['tokens_lost']} / {kill['tokens_repeated']}",
            "yes" if kill["outputs_identical"] else "no",
        )
    return table
