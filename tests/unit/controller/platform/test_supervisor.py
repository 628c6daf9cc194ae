"""The supervisor with small real processes: order, restarts, failures, and an end that leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from controller.platform.local import supervisor as supervisor_module
from controller.platform.local.child import ChildError, Command, Says
from controller.platform.local.state import Applied, PlatformFolder
from controller.platform.local.supervisor import Supervisor, make_temporary
from tests.unit.controller.platform import small_platform
from tests.unit.controller.platform.small_platform import SmallLink, SmallPlan, pipeline

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from controller.platform.local.processes import ProcessRecord

DEADLINE_S = 30.0
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""
ALL = ["first-1", "first-2", "second", "stage-0", "stage-1"]


class Stand:
    """A supervisor under test and what is around it."""

    def __init__(self, root: Path) -> None:
        self.folder = PlatformFolder("small", root / "state")
        self.folder.prepare()
        self.folder.write_applied(Applied(1, pipeline().to_object()))
        self.temporary = make_temporary()
        self.plan = SmallPlan(root / "story", self.temporary)
        self.link = SmallLink()
        self.said: list[str] = []
        self.ready = asyncio.Event()
        self.supervisor = Supervisor(
            self.folder, self.plan, self.temporary, 30, lambda who, what: self.said.append(f"{who}: {what}"), self.link
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.timeout(DEADLINE_S):
            run = asyncio.create_task(self.run())
            await asyncio.wait({run, asyncio.create_task(self.ready.wait())}, return_when=asyncio.FIRST_COMPLETED)
            try:
                yield
            finally:
                self.supervisor.stop()
                await run

    async def run(self) -> None:
        await self.supervisor.run(lambda _: self.ready.set())

    async def until(self, condition: Callable[[], Any]) -> None:
        while not condition():  # noqa: ASYNC110 - of other processes
            await asyncio.sleep(0.01)

    @property
    def story(self) -> list[str]:
        return self.plan.story.read_text().splitlines()

    def child(self, name: str) -> ProcessRecord:
        record = self.folder.record()
        assert record is not None
        return record.children[name]

    def children(self) -> list[str]:
        record = self.folder.record()
        return list(record.children) if record else []


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    monkeypatch.setattr(supervisor_module, "_FIRST_DELAY_S", 0.01)
    return Stand(tmp_path)


def committed(to: str, **data: Any) -> dict[str, Any]:
    report = {"change": "change-1", "from": "15,15", "to": to, "total_ms": 7.0, "request": None, **data}
    return {"type": supervisor_module.COMMITTED, "id": "1", "data": report}


async def test_children_start_phase_by_phase_and_end_the_other_way_round(stand: Stand):
    async with stand.running():
        assert sorted(stand.children()) == ALL
        assert stand.folder.record().ready  # type: ignore[union-attr]
        pids = [stand.child(name).pid for name in ALL]
    starts = [line.split()[1] for line in stand.story if line.startswith("starts")]
    ends = [line.split()[1] for line in stand.story if line.startswith("ends")]
    assert stand.story[0] == "prepared 2"
    assert [sorted(starts[:2]), starts[2], sorted(starts[3:])] == [
        ["first-1", "first-2"],
        "second",
        ["stage-0", "stage-1"],
    ]
    assert [sorted(ends[:2]), ends[2], sorted(ends[3:])] == [["stage-0", "stage-1"], "second", ["first-1", "first-2"]]
    assert not any(map(psutil.pid_exists, pids))
    assert not os.path.exists(stand.temporary)  # noqa: ASYNC240
    assert stand.children() == []


def test_the_folder_for_temporary_files_has_a_short_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    long = tmp_path / ("x" * 40)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = Path(make_temporary())
    folder.rmdir()
    assert len(str(folder)) < 60


async def test_a_child_that_ends_is_started_again_and_so_it_is_said(stand: Stand):
    async with stand.running():
        first = stand.child("second")
        os.kill(first.pid, signal.SIGKILL)
        await stand.until(lambda: stand.story.count("starts second") == 2 and "second" in stand.children())
        assert stand.child("second") != first
    assert "second: was ended by SIGKILL; it is started again in 0.01 s" in stand.said


async def test_a_child_that_does_not_start_again_is_tried_until_it_does(stand: Stand):
    async with stand.running():
        stand.plan.broken["second"] = [failing("no luck")] * 3
        os.kill(stand.child("second").pid, signal.SIGKILL)
        await stand.until(lambda: stand.story.count("starts second") == 2)
    failures = [line for line in stand.said if "no luck" in line]
    assert [line.rpartition(" in ")[2] for line in failures] == ["0.02 s", "0.04 s", "0.08 s"]


def failing(words: str, status: int = 3) -> Command:
    return Command((sys.executable, "-c", f"print({words!r}); raise SystemExit({status})"), Says("^ready$"))


async def test_what_a_child_left_in_its_group_is_ended_before_it_starts_again(stand: Stand):
    stand.plan.grandchildren = True
    async with stand.running():
        orphan = int(next(line for line in stand.story if line.endswith("of second")).split()[1])
        os.kill(stand.child("second").pid, signal.SIGKILL)
        await stand.until(lambda: stand.story.count("starts second") == 2)
        assert not psutil.pid_exists(orphan) or psutil.Process(orphan).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            failing("why not"),
            r"second ended with status 3 before it was ready. Last lines of \S+second.log:\n  why not",
        ),
        (failing(""), "second ended with status 3 before it was ready"),
        (Command(("/does/not/exist",), Says("x")), "second: cannot run /does/not/exist: "),
        (
            Command((sys.executable, "-c", "import time; time.sleep(600)"), Says("^ready$"), start_s=0.2),
            "second was not ready within 0.2 s. It wrote nothing to",
        ),
    ],
)
async def test_if_one_does_not_start_the_others_are_ended_and_its_last_words_are_told(
    stand: Stand, command: Command, message: str
):
    stand.plan.broken["second"] = [command]
    with pytest.raises(ChildError, match=message):
        await stand.run()
    assert sorted(line for line in stand.story if line.startswith("ends")) == ["ends first-1", "ends first-2"]
    assert not [line for line in stand.story if "stage" in line]
    assert stand.children() == []
    assert not os.path.exists(stand.temporary)  # noqa: ASYNC240


async def test_a_child_that_does_not_end_is_killed_after_its_time(stand: Stand):
    stand.plan.broken["second"] = [Command((sys.executable, "-c", DEAF), Says("^ready$"), stop_s=0.1)]
    async with stand.running():
        record = stand.child("second")
    assert not record.is_alive()


async def test_told_twice_to_end_it_kills_at_once(stand: Stand):
    stand.plan.broken["stage-1"] = [Command((sys.executable, "-c", DEAF), Says("^ready$"), stop_s=1000)]
    async with stand.running():
        record = stand.child("stage-1")
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert not record.is_alive()


class TestStages:
    async def test_functions_follow_a_committed_change(self, stand: Stand):
        async with stand.running():
            stand.link.told.put_nowait(committed("8,12,10", request="r"))
            await stand.until(lambda: "starts stage-2" in stand.story and "stage-2" in stand.link.triggers)
            stand.link.told.put_nowait(committed("30", request="s"))
            await stand.until(lambda: {"ends stage-1", "ends stage-2"} <= set(stand.story))
            await stand.until(lambda: sorted(stand.children()) == ["first-1", "first-2", "second", "stage-0"])
            assert "stage-2" not in stand.link.triggers
        assert [line for line in stand.story if line.startswith("prepared")] == [
            "prepared 2",
            "prepared 3",
            "prepared 1",
        ]
        assert "committed: change-1 15,15 -> 8,12,10 in 7 ms" in stand.said

    @pytest.mark.parametrize("wanted", ["15,15", None])
    async def test_a_stage_that_is_only_away_keeps_its_function(self, stand: Stand, wanted: str | None):
        stand.link.wanted = wanted
        async with stand.running():
            stand.link.told.put_nowait(committed("30"))
            stand.link.told.put_nowait({"type": supervisor_module.ABORTED, "data": {"reason": "over"}})
            await stand.until(lambda: "aborted: reason=over" in stand.said)
            assert "stage-1" in stand.children()
        assert "prepared 1" not in stand.story

    async def test_a_function_that_does_not_start_is_tried_again(self, stand: Stand):
        stand.plan.broken["stage-2"] = [failing("not yet")]
        async with stand.running():
            stand.link.told.put_nowait(committed("8,12,10", request="r"))
            await stand.until(lambda: "starts stage-2" in stand.story)
        assert any("not yet" in line for line in stand.said)


@pytest.mark.parametrize(("kind", "generation"), [(supervisor_module.COMMITTED, 2), (supervisor_module.ABORTED, 1)])
async def test_a_proposed_object_serves_only_if_its_change_is_committed(stand: Stand, kind: str, generation: int):
    stand.folder.write_proposed("r", Applied(2, pipeline(auto={"stages": 3}).to_object()))
    async with stand.running():
        stand.link.told.put_nowait({**committed("10,10,10", request="other"), "type": kind})
        stand.link.told.put_nowait({**committed("10,10,10", request="r"), "type": kind})
        await stand.until(lambda: not (stand.folder.path / "proposed.json").exists())
    assert stand.folder.applied().generation == generation  # type: ignore[union-attr]


def test_a_supervisor_that_is_killed_leaves_nothing_that_runs(tmp_path: Path):
    story = tmp_path / "story"
    process = subprocess.Popen([sys.executable, small_platform.__file__, str(tmp_path / "state"), str(story)])
    try:
        wait_until(lambda: story.exists() and "all ready" in story.read_text())
        folder = PlatformFolder("small", tmp_path / "state")
        assert folder.is_owned()
        record = folder.record()
        assert record is not None
        orphans = [int(pid) for pid in re.findall(r"grandchild (\d+)", story.read_text())]
        assert len(orphans) == len(ALL)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not any(child.group() for child in record.children.values()))
    wait_until(lambda: not any(map(alive, orphans)))
    wait_until(lambda: not Path(record.temporary).exists())
    assert not folder.is_owned()
    with folder.own():
        assert folder.clean_up() == []
    assert not folder.path.exists()


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
