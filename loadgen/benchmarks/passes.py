"""The passes an experiment is made of, each of which yields facts and no judgement.

- a quiet pass: every client runs its request once;
- a disturbed pass: clients go on until a change, posted after part of the tokens, has ended and a quiet tail has
  been seen; the window of the change is what the client saw of it, from posting it to learning that it ended, which
  is never shorter than the change itself;
- a restart: the server is really stopped under load and started again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from loadgen.benchmarks.client import CompletionClient, StreamRequest
from loadgen.benchmarks.closed_loop import ClosedLoop
from loadgen.clock import now_ns, unix_offset_ns, unix_to_axis_ns
from loadgen.control import ChangeReport, ControlClient
from loadgen.errors import ChangeFailedError, MeasurementError
from loadgen.gaps import Window
from loadgen.machine import CpuUse, CpuWatch
from loadgen.records import StreamRecord
from loadgen.server import ServerProcess

_RESTART_GRACE_S = 1.0

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Pass:
    """A quiet pass.

    Attributes:
        records: One finished stream per client, in the order in which they ended.
        cpus: Who used the machine meanwhile; None if nobody watched.
    """

    records: tuple[StreamRecord, ...]
    cpus: CpuUse | None = None


@dataclass(frozen=True, slots=True)
class DisturbedPass:
    """Records of a pass with a change in it.

    Attributes:
        records: Streams in the order in which they ended.
        change: What the client saw of the change, from posting it to learning that it ended.
        cutover_ns: The server's `cutover_at` on the axis of `loadgen.clock`; None if it gave none.
        report: The server's final report.
        cpus: Who used the machine during the pass; None if nobody watched.
    """

    records: tuple[StreamRecord, ...]
    change: Window
    cutover_ns: int | None
    report: ChangeReport
    cpus: CpuUse | None = None


@dataclass(frozen=True, slots=True)
class Restart:
    """What a restart of the server cost.

    Attributes:
        downtime_ms: From the last token of the old process to the first token of the new one.
        stop_ms: Of that, how long the old process took to go.
        start_ms: Of that, how long the new one took to become healthy.
        broken_streams: Streams that the restart broke.
        cpus: Who used the machine while the new process started.
    """

    downtime_ms: float
    stop_ms: float
    start_ms: float
    broken_streams: int
    cpus: CpuUse


async def quiet_pass(client: CompletionClient, requests: Sequence[StreamRequest]) -> Pass:
    """Run every request once, all at the same time.

    Raises:
        MeasurementError: a stream broke although nothing disturbed it.
    """
    records = await ClosedLoop(client, requests).run()
    for record in records:
        if record.broken:
            raise MeasurementError(f"{record.name} broke with nothing disturbing it: {record.outcome}: {record.detail}")
    return Pass(tuple(records))


async def disturbed_pass(
    client: CompletionClient,
    control: ControlClient,
    requests: Sequence[StreamRequest],
    *,
    layers: str,
    after_tokens: int,
    tail_tokens: int,
    deadline_s: float,
    method: str | None = None,
) -> DisturbedPass:
    """Run the requests in a closed loop and change the layout to `layers` under them.

    Args:
        client, requests: The load.
        control: Where the change is posted.
        layers: The new layout.
        after_tokens: Tokens that arrive before the change is posted.
        tail_tokens: Tokens that arrive after it has ended, before clients stop asking again.
        deadline_s: Seconds for the change.
        method: How KV gets to layers that change their node; None for the server's default.

    Raises:
        MeasurementError: every stream ended before the change could be posted.
        ChangeRefusedError, ChangeFailedError, ControlError: as for `ControlClient`. An aborted change is a result.
    """

    async def change() -> tuple[Window, int, ChangeReport]:
        offset, posted = unix_offset_ns(), now_ns()
        begun = await control.request_change(layers, method)
        report = await control.wait_for_end(begun.id, deadline_s)
        return Window(posted, now_ns()), offset, report

    (window, offset, report), records = await under_load(
        client, requests, change, "the change could be posted", after_tokens=after_tokens, tail_tokens=tail_tokens
    )
    cutover = None if report.cutover_at is None else unix_to_axis_ns(report.cutover_at, offset)
    return DisturbedPass(records, window, cutover, report)


async def change_back(control: ControlClient, committed: ChangeReport, deadline_s: float) -> None:
    """Undo a committed change, without load.

    Raises:
        ChangeFailedError: the server runs another layout than it should, before or after, or the change was aborted.
        ChangeRefusedError, ControlError: as for `ControlClient`.
    """
    await _expect_layers(control, committed.to_layers)
    await control.change(committed.from_layers, deadline_s)
    await _expect_layers(control, committed.from_layers)


async def _expect_layers(control: ControlClient, layers: str) -> None:
    found = (await control.status()).layers
    if found != layers:
        raise ChangeFailedError(f"the server runs {found!r} after a committed change to {layers!r}")


async def under_load(
    client: CompletionClient,
    requests: Sequence[StreamRequest],
    disturb: Callable[[], Awaitable[_T]],
    aim: str,
    *,
    after_tokens: int,
    tail_tokens: int,
) -> tuple[_T, tuple[StreamRecord, ...]]:
    """Run the requests in a closed loop, `disturb` them once, and return what that returned and the streams.

    Args:
        client, requests: The load.
        disturb: Called when `after_tokens` tokens have arrived.
        aim: What `disturb` is for, in words, for the error.
        after_tokens: Tokens that arrive before.
        tail_tokens: Tokens that arrive after `disturb` has returned, before clients stop asking again.

    Raises:
        MeasurementError: every stream ended before.
    """
    loop = ClosedLoop(client, requests)
    enough_at: int | None = None
    load = asyncio.create_task(loop.run(lambda: enough_at is not None and loop.tokens_arrived >= enough_at))
    trigger = asyncio.create_task(loop.until_tokens(after_tokens))
    try:
        await asyncio.wait({load, trigger}, return_when=asyncio.FIRST_COMPLETED)
        if not trigger.done():
            ends = ", ".join(sorted({f"{r.outcome}: {r.detail}" for r in load.result()}))
            raise MeasurementError(f"all streams ended before {aim} ({ends})")
        outcome = await disturb()
        enough_at = loop.tokens_arrived + tail_tokens
        records = await load
    finally:
        for task in (load, trigger):
            task.cancel()
        await asyncio.gather(load, trigger, return_exceptions=True)
    return outcome, tuple(records)


async def restart_pass(
    server: ServerProcess,
    client: CompletionClient,
    requests: Sequence[StreamRequest],
    *,
    after_tokens: int,
    idle: ServerProcess,
) -> Restart:
    """Stop and start `server` while streams run, and let the clients ask again as soon as it is healthy.

    The server gets no more than a second to stop. vLLM ends its engine at once and then waits, without a token, for
    its clients to hang up; to count that wait would flatter whatever a restart is compared with.

    Raises:
        MeasurementError: no token arrived before or after.
        ServerError: the server did not come back.
    """
    loop = ClosedLoop(client, requests)
    load = asyncio.create_task(loop.run(lambda: False))
    trigger = asyncio.create_task(loop.until_tokens(after_tokens))
    try:
        await asyncio.wait({load, trigger}, return_when=asyncio.FIRST_COMPLETED)
        stopping = now_ns()
        await server.stop(_RESTART_GRACE_S)
        stopped = now_ns()
        before = await load
    finally:
        for task in (load, trigger):
            task.cancel()
        await asyncio.gather(load, trigger, return_exceptions=True)
    watch = CpuWatch(server, idle=idle)
    await server.start()
    started, cpus = now_ns(), watch.use()
    after = await ClosedLoop(client, requests).run()
    last = max((t.arrived_ns for r in before for t in r.tokens), default=None)
    first = min((t.arrived_ns for r in after for t in r.tokens), default=None)
    if last is None or first is None:
        side = "before" if last is None else "after"
        raise MeasurementError(f"no token arrived {side} the restart: {(after or before)[0].detail}")
    return Restart(
        downtime_ms=(first - last) / 1e6,
        stop_ms=(stopped - stopping) / 1e6,
        start_ms=(started - stopped) / 1e6,
        broken_streams=sum(r.broken for r in before),
        cpus=cpus,
    )
