import asyncio
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from pydantic import TypeAdapter

from loadgen.clock import now_ns, unix_offset_ns
from loadgen.control import RecoveryReport, ServerStatus, StageStatus
from loadgen.errors import ChangeFailedError, MeasurementError
from loadgen.experiments.acting import Scene, carry_out, change_marks
from loadgen.experiments.actions import Action
from loadgen.experiments.axis import Axis
from loadgen.experiments.target_control import FullReport
from loadgen.results.columns import MarkRow

if TYPE_CHECKING:
    from loadgen.experiments.servers import RunningTarget

MS = 1_000_000
ACTION: TypeAdapter[Action] = TypeAdapter(Action)


def action(**fields: Any) -> Action:
    return ACTION.validate_python({"at_s": 0} | fields)


class Counted:
    """Stands in for a tally."""

    def __init__(self) -> None:
        self.rows: list[MarkRow] = []
        self.arrived = 0
        self.reached = asyncio.Event()

    def mark(self, row: MarkRow) -> None:
        self.rows.append(row)

    async def until_tokens(self, count: int) -> None:
        await self.reached.wait()


class Control:
    """Stands in for the control API of a server with two stages, the first of which is this very process."""

    def __init__(self, state: str = "committed") -> None:
        self.state = state
        self.asked: list[Any] = []
        self.statuses: list[ServerStatus] = [status("a", "b")]

    async def begin_change(self, layers: str, method: str | None, fallback: str | None) -> FullReport:
        self.asked.append((layers, method, fallback))
        return report(state="running")

    async def final_report(self, change: str, deadline_s: float) -> FullReport:
        if self.state == "running":
            await asyncio.Event().wait()
        return report(state=self.state, method="pre_copy")

    async def change_capacity(self, limits: dict[str, int]) -> None:
        self.asked.append(limits)

    async def status(self) -> ServerStatus:
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]


def status(*stages: str, recoveries: int = 0, phase: str = "serving", pid: int | None = None) -> ServerStatus:
    recovery = RecoveryReport(id="r-1", stages=("a",), total_ms=12.5, replayed_batches=3)
    return ServerStatus(
        model="m",
        layers="15,15",
        phase=phase,
        stages=tuple(StageStatus(name=name, pid=pid or os.getpid()) for name in stages),
        recoveries=recoveries,
        last_recovery=recovery if recoveries else None,
    )


def report(**fields: Any) -> FullReport:
    return FullReport(**({"id": "change-1", "from_layers": "15,15", "to_layers": "8,22"} | fields))


class Process:
    pid = os.getpid()


@pytest.fixture
def control() -> Control:
    return Control()


@pytest.fixture
def scene(control: Control, tmp_path: Path) -> Scene:
    class Target:
        base_url = "http://127.0.0.1:1"
        wanted = None

        def processes(self) -> tuple[Process]:
            return (Process(),)

    target = Target()
    target.control = control  # type: ignore[attr-defined]
    killed: list[tuple[int, int]] = []
    return Scene(
        cast("RunningTarget", target),
        Axis(now_ns()),
        cast("Any", Counted()),
        tmp_path,
        lambda: None,
        set(),
        kill=lambda pid, number: killed.append((pid, number)),
    )


def rows(scene: Scene) -> list[MarkRow]:
    return cast("Any", scene.tally).rows


async def act(scene: Scene, *actions: Action) -> None:
    await asyncio.wait_for(carry_out(actions, scene, asyncio.Event()), 10)


async def test_a_change_is_asked_for_and_marked_with_what_the_server_says(scene: Scene, control: Control):
    await act(scene, action(kind="reconfigure", layers="8,22", method="pre_copy", fallback="recompute"))
    assert control.asked == [("8,22", "pre_copy", "recompute")]
    (row,) = rows(scene)
    assert (row.name, row.kind, row.source) == ("reconfigure", "reconfigure", "experiment")
    assert json.loads(row.detail)["state"] == "committed"
    assert scene.changes == {"change-1"}


async def test_a_change_that_is_undone_ends_the_run_but_is_marked(scene: Scene, control: Control):
    control.state = "aborted"
    with pytest.raises(ChangeFailedError, match="was aborted"):
        await act(scene, action(kind="reconfigure", layers="8,22"))
    assert len(rows(scene)) == 1
    await act(scene, action(kind="reconfigure", layers="8,22", may_abort=True))


async def test_a_change_by_another_method_than_asked_for_is_no_result(scene: Scene):
    with pytest.raises(MeasurementError, match="was to be made by recompute, but the server says pre_copy"):
        await act(scene, action(kind="reconfigure", layers="8,22", method="recompute"))


async def test_an_action_that_takes_too_long_ends_the_run(scene: Scene, control: Control):
    control.state = "running"
    with pytest.raises(ChangeFailedError, match=r"actions\[0\] \(reconfigure\) did not end within 0.05 s"):
        await act(scene, action(kind="reconfigure", layers="8,22", within_s=0.05))


def test_a_change_spans_what_the_server_says_where_they_share_a_clock():
    axis = Axis(now_ns() - 10_000 * MS)
    at = (axis.zero_ns + unix_offset_ns()) / 1e9
    told = report(
        state="committed", started_at=at + 2, ended_at=at + 2.5, cutover_at=at + 2.2, steps_ms={"cutover": 30.0}
    )
    whole, cutover = change_marks(told, "split", axis, asked_ns=1_900 * MS, shares_clock=True)
    assert (whole.start_ns, whole.end_ns) == (
        pytest.approx(2_000 * MS, abs=5 * MS),
        pytest.approx(2_500 * MS, abs=5 * MS),
    )
    assert (cutover.name, cutover.kind) == ("split.cutover", "cutover")
    assert cutover.start_ns == pytest.approx(2_200 * MS, abs=5 * MS)
    assert cutover.end_ns - cutover.start_ns == 30 * MS
    (seen,) = change_marks(told, "split", axis, asked_ns=1_900 * MS, shares_clock=False)
    assert seen.start_ns == 1_900 * MS
    assert seen.end_ns >= 10_000 * MS


async def test_a_killed_stage_is_marked_until_the_pipeline_serves_again(scene: Scene, control: Control):
    control.statuses = [
        status("a", "b"),
        status("a", "b", phase="recovering"),
        status("c", "b", phase="recovering", recoveries=1),
        status("c", "b", recoveries=1),
    ]
    await act(scene, action(kind="kill_stage", stage=0))
    (row,) = rows(scene)
    assert json.loads(row.detail) == {"stages": [0], "recovery_ms": 12.5, "replayed_batches": 3}
    assert len(control.statuses) == 1


async def test_only_processes_that_were_started_here_are_killed(scene: Scene, control: Control):
    control.statuses = [status("a", "b", pid=1)]
    with pytest.raises(MeasurementError, match=r"processes \[1\] were not started here"):
        await act(scene, action(kind="kill_stage", stage=0))


async def test_a_stage_that_is_not_there_is_named(scene: Scene):
    with pytest.raises(MeasurementError, match="there is no stage 5"):
        await act(scene, action(kind="kill_stage", stage=[0, 5]))


async def test_limits_are_changed_and_a_phase_is_waited_for(scene: Scene, control: Control):
    control.statuses = [status("a"), status("a"), status(phase="asleep")]
    await act(scene, action(kind="scale", max_requests=2, until="asleep", name="down"))
    assert control.asked == [{"max_requests": 2}]
    assert [row.name for row in rows(scene)] == ["down"]


async def test_a_command_is_told_where_the_server_is_and_its_output_is_kept(scene: Scene, tmp_path: Path):
    code = "import os; print(os.environ['MIDSTREAM_ENDPOINT'])"
    await act(scene, action(kind="command", name="hello", argv=[sys.executable, "-c", code]))
    assert (tmp_path / "command-hello.log").read_text() == "http://127.0.0.1:1\n"
    assert json.loads(rows(scene)[0].detail)["status"] == 0


async def test_a_command_that_fails_ends_the_run_unless_it_may(scene: Scene):
    failing = {"kind": "command", "argv": [sys.executable, "-c", "raise SystemExit(3)"]}
    with pytest.raises(MeasurementError, match="ended with status 3"):
        await act(scene, action(**failing))
    await act(scene, action(**failing, may_fail=True))
    with pytest.raises(MeasurementError, match="cannot run /no/such/program"):
        await act(scene, action(kind="command", argv=["/no/such/program"]))


async def test_an_action_waits_for_its_tokens(scene: Scene):
    tally = cast("Any", scene.tally)
    acting = asyncio.create_task(
        carry_out((action(at_s=None, after_tokens=5, kind="mark", name="m"),), scene, asyncio.Event())
    )
    await asyncio.sleep(0)
    assert not tally.rows
    tally.reached.set()
    await asyncio.wait_for(acting, 5)
    assert [row.name for row in tally.rows] == ["m"]


async def test_a_load_that_ends_before_an_action_has_its_tokens_is_an_error(scene: Scene):
    ended = asyncio.Event()
    ended.set()
    with pytest.raises(MeasurementError, match="waits for 5 tokens, but the load ended after 0: make it longer"):
        await carry_out((action(at_s=None, after_tokens=5, kind="mark", name="m"),), scene, ended)
