"""Carries out the actions of a run at their moments, and leaves a mark for each.

A mark of an action spans from its beginning to its end. Of a change it spans what the server's report says, if target
and generator share a machine and so a clock; else what this side saw, which is never shorter. Its cutover is a mark of
its own, from holding new batches to the new layout's first answer: what a client notices of a change on one node lies
there.
"""

import asyncio
import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never
from urllib.parse import urlsplit

import psutil

from loadgen.control import ServerStatus
from loadgen.errors import ChangeFailedError, MeasurementError
from loadgen.experiments.actions import Action, Command, KillStage, Mark, Reconfigure, Restart, Scale
from loadgen.experiments.axis import Axis
from loadgen.experiments.servers import RunningTarget
from loadgen.experiments.tally import Tally
from loadgen.experiments.target_control import FullReport, TargetControl
from loadgen.results.columns import MarkRow

_POLL_S = 0.02
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
Kill = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Scene:
    """Where actions happen.

    Attributes:
        target: What they are done to.
        axis: The run's time.
        tally: Where marks go, and who knows how many tokens have arrived.
        logs: Folder for the output of commands.
        before_restart: Called before a server is ended: what it knows is lost with it.
        changes: Ids of the changes that were made here, filled as they are.
        kill: Sends a signal to a process.
    """

    target: RunningTarget
    axis: Axis
    tally: Tally
    logs: Path
    before_restart: Callable[[], Any]
    changes: set[str]
    kill: Kill = os.kill


async def carry_out(actions: tuple[Action, ...], scene: Scene, load_ended: asyncio.Event) -> None:
    """Carry out the actions, in their order.

    Raises:
        MeasurementError: the load ended before so many tokens had arrived as an action waits for.
        ChangeRefusedError, ChangeFailedError, ControlError, ServerError: an action did not end as it should.
    """
    for number, action in enumerate(actions):
        where = f"actions[{number}] ({action.kind})"
        await _moment(action, scene, load_ended, where)
        try:
            async with asyncio.timeout(action.within_s):
                await _act(action, scene)
        except TimeoutError:
            raise ChangeFailedError(f"{where} did not end within {action.within_s:g} s") from None


async def _moment(action: Action, scene: Scene, load_ended: asyncio.Event, where: str) -> None:
    if action.at_s is not None:
        await asyncio.sleep(max(0.0, action.at_s - scene.axis.now() / 1e9))
        return
    wanted = action.after_tokens or 0
    reached = asyncio.create_task(scene.tally.until_tokens(wanted))
    ended = asyncio.create_task(load_ended.wait())
    try:
        await asyncio.wait({reached, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not reached.done():
            raise MeasurementError(
                f"{where} waits for {wanted} tokens, but the load ended after {scene.tally.arrived}: make it longer"
            )
    finally:
        for task in (reached, ended):
            task.cancel()


async def _act(action: Action, scene: Scene) -> None:
    match action:
        case Mark():
            _mark(scene, action, scene.axis.now(), scene.axis.now(), {})
        case Reconfigure():
            await _reconfigure(action, scene)
        case KillStage():
            await _kill_stages(action, scene)
        case Restart():
            await _restart(action, scene)
        case Scale():
            await _scale(action, scene)
        case Command():
            await _command(action, scene)
        case _:
            assert_never(action)


def _mark(scene: Scene, action: Action, start_ns: int, end_ns: int, detail: Mapping[str, Any]) -> None:
    text = json.dumps(dict(detail))
    scene.tally.mark(MarkRow(action.name or action.kind, action.kind, start_ns, end_ns, "experiment", text))


def _control(scene: Scene) -> TargetControl:
    if scene.target.control is None:
        raise MeasurementError("this target has no control API")
    return scene.target.control


async def _reconfigure(action: Reconfigure, scene: Scene) -> None:
    control, asked = _control(scene), scene.axis.now()
    begun = await control.begin_change(action.layers, action.method, action.fallback)
    scene.changes.add(begun.id)
    report = await control.final_report(begun.id, action.within_s)
    name = action.name or action.kind
    for row in change_marks(report, name, scene.axis, asked, shares_clock=is_local(scene.target.base_url)):
        scene.tally.mark(row)
    if report.state == "aborted" and not action.may_abort:
        raise ChangeFailedError(f"{report.id} to {action.layers} was aborted: {report.reason}")
    if action.method is not None and report.method not in {None, action.method}:
        raise MeasurementError(f"{report.id} was to be made by {action.method}, but the server says {report.method}")


def is_local(base_url: str) -> bool:
    """Whether an address is this machine's own, so that its processes share this one's clocks."""
    return urlsplit(base_url).hostname in _LOOPBACK


def change_marks(report: FullReport, name: str, axis: Axis, asked_ns: int, *, shares_clock: bool) -> list[MarkRow]:
    """Return the marks of a change that has just ended: all of it, and its cutover if that can be placed.

    Args:
        report: The server's final report.
        name: Of the mark; the cutover gets `.cutover` behind it.
        axis: The run's time.
        asked_ns: When the change was asked for.
        shares_clock: Whether the server's times are of this machine's clock.
    """
    start, end = asked_ns, axis.now()
    cutover: int | None = None
    if shares_clock:
        start = start if report.started_at is None else axis.from_unix(report.started_at)
        end = end if report.ended_at is None else max(start, axis.from_unix(report.ended_at))
        cutover = None if report.cutover_at is None else axis.from_unix(report.cutover_at)
    detail = {
        "change": report.id,
        "state": report.state,
        "from": report.from_layers,
        "to": report.to_layers,
        "method": report.method,
        "reason": report.reason,
        "stop_reason": report.stop_reason,
        "total_ms": report.total_ms,
        "steps_ms": report.steps_ms,
        "pause_ms": report.pause_ms,
        "bytes_moved": report.bytes_moved,
        "rounds": report.rounds,
        "peak_extra_bytes": report.peak_extra_bytes,
        "requests_carried": report.requests_carried,
        "asked_ns": asked_ns,
        "cutover_ns": cutover,
    }
    rows = [MarkRow(name, "reconfigure", start, end, "experiment", json.dumps(detail))]
    if cutover is not None:
        length = round(1e6 * report.steps_ms.get("cutover", 0.0))
        rows.append(MarkRow(f"{name}.cutover", "cutover", cutover, cutover + length, "experiment"))
    return rows


async def _kill_stages(action: KillStage, scene: Scene) -> None:
    control = _control(scene)
    before = await control.status()
    if max(action.stages) >= len(before.stages):
        raise MeasurementError(f"there is no stage {max(action.stages)}: the layers are {before.layers}")
    victims = [before.stages[number] for number in action.stages]
    ours = {pid for process in scene.target.processes() for pid in _descendants(process.pid)}
    strange = [victim.pid for victim in victims if victim.pid not in ours]
    if strange:
        raise MeasurementError(f"processes {strange} were not started here, and are not killed")
    start = scene.axis.now()
    for victim in victims:
        scene.kill(victim.pid, signal.SIGKILL)
    after = await _recovered(control, {victim.name for victim in victims}, before.recoveries)
    recovery = after.last_recovery
    detail = {
        "stages": list(action.stages),
        "recovery_ms": None if recovery is None else recovery.total_ms,
        "replayed_batches": None if recovery is None else recovery.replayed_batches,
    }
    _mark(scene, action, start, scene.axis.now(), detail)


def _descendants(pid: int) -> set[int]:
    return {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}


async def _recovered(control: TargetControl, lost: set[str], recoveries: int) -> ServerStatus:
    while True:
        status = await control.status()
        replaced = not lost.intersection(stage.name for stage in status.stages)
        if replaced and status.phase == "serving" and status.recoveries > recoveries:
            return status
        await asyncio.sleep(_POLL_S)


async def _restart(action: Restart, scene: Scene) -> None:
    await scene.before_restart()
    target = scene.target
    before, start = getattr(target.wanted, "layers", None), scene.axis.now()
    stopped = await target.restart(layers=action.layers, args=action.args, grace_s=action.grace_s)
    end = scene.axis.now()
    stop_ms = (stopped - scene.axis.zero_ns - start) / 1e6
    detail = {
        "from": before,
        "to": getattr(target.wanted, "layers", None),
        "stop_ms": round(stop_ms, 3),
        "start_ms": round((end - start) / 1e6 - stop_ms, 3),
    }
    _mark(scene, action, start, end, detail)


async def _scale(action: Scale, scene: Scene) -> None:
    control, start = _control(scene), scene.axis.now()
    if action.limits:
        await control.change_capacity(action.limits)
    if action.until is not None:
        await _phase(control, action.until)
    _mark(scene, action, start, scene.axis.now(), {**action.limits, "until": action.until})


async def _phase(control: TargetControl, wanted: str) -> None:
    while True:
        if (await control.status()).phase == wanted:
            return
        await asyncio.sleep(_POLL_S)


async def _command(action: Command, scene: Scene) -> None:
    start = scene.axis.now()
    log_path = scene.logs / f"command-{action.name or 'output'}.log"
    with log_path.open("ab") as log:
        try:
            process = await asyncio.create_subprocess_exec(
                *action.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, "MIDSTREAM_ENDPOINT": scene.target.base_url},
            )
        except OSError as error:
            raise MeasurementError(f"cannot run {action.argv[0]}: {error}") from error
    try:
        status = await process.wait()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    _mark(scene, action, start, scene.axis.now(), {"argv": list(action.argv), "status": status})
    if status and not action.may_fail:
        raise MeasurementError(f"{' '.join(action.argv)} ended with status {status}; its output is in {log_path}")
