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
from controller.platform.local.head_status import ChangeReport, HeadStatus
from controller.platform.local.state import Applied, PlatformFolder, Proposed
from controller.platform.local.supervisor import Supervisor, make_temporary
from tests.unit.controller.platform import small_platform
from tests.unit.controller.platform.small_platform import SmallLink, SmallPlan, committed, pipeline, told

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from controller.platform.broker.client import Seen
    from controller.platform.local.processes import ProcessRecord

DEADLINE_S = 30.0
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""
ALL = ["first-1", "first-2", "head", "stage-0", "stage-1"]


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


def proposed(generation: int, layers: str, stages: int, request: str = "r") -> Proposed:
    return Proposed(
        request, f"/s#{request}", layers, Applied(generation, pipeline(auto={"stages": stages}).to_object())
    )


def ended(state: str, to: str = "10,10,10", request: str = "r") -> ChangeReport:
    return ChangeReport("change-1", state, to, f"/s#{request}")


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
        "head",
        ["stage-0", "stage-1"],
    ]
    assert [sorted(ends[:2]), ends[2], sorted(ends[3:])] == [["stage-0", "stage-1"], "head", ["first-1", "first-2"]]
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
        first = stand.child("head")
        os.kill(first.pid, signal.SIGKILL)
        await stand.until(lambda: stand.story.count("starts head") == 2 and "head" in stand.children())
        assert stand.child("head") != first
    assert "head: was ended by SIGKILL; it is started again in 0.01 s" in stand.said


async def test_a_child_that_does_not_start_again_is_tried_until_it_does(stand: Stand):
    async with stand.running():
        stand.plan.broken["head"] = [failing("no luck")] * 3
        os.kill(stand.child("head").pid, signal.SIGKILL)
        await stand.until(lambda: stand.story.count("starts head") == 2)
    failures = [line for line in stand.said if "no luck" in line]
    assert [line.rpartition(" in ")[2] for line in failures] == ["0.02 s", "0.04 s", "0.08 s"]


def failing(words: str, status: int = 3) -> Command:
    return Command((sys.executable, "-c", f"print({words!r}); raise SystemExit({status})"), Says("^ready$"))


async def test_what_a_child_left_in_its_group_is_ended_before_it_starts_again(stand: Stand):
    stand.plan.grandchildren = True
    async with stand.running():
        orphan = int(next(line for line in stand.story if line.endswith("of head")).split()[1])
        os.kill(stand.child("head").pid, signal.SIGKILL)
        await stand.until(lambda: stand.story.count("starts head") == 2)
        assert not psutil.pid_exists(orphan) or psutil.Process(orphan).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            failing("why not"),
            r"head ended with status 3 before it was ready. Last lines of \S+head.log:\n  why not",
        ),
        (failing(""), "head ended with status 3 before it was ready"),
        (Command(("/does/not/exist",), Says("x")), "head: cannot run /does/not/exist: "),
        (
            Command((sys.executable, "-c", "import time; time.sleep(600)"), Says("^ready$"), start_s=0.2),
            "head was not ready within 0.2 s. It wrote nothing to",
        ),
    ],
)
async def test_if_one_does_not_start_the_others_are_ended_and_its_last_words_are_told(
    stand: Stand, command: Command, message: str
):
    stand.plan.broken["head"] = [command]
    with pytest.raises(ChildError, match=message):
        await stand.run()
    assert sorted(line for line in stand.story if line.startswith("ends")) == ["ends first-1", "ends first-2"]
    assert not [line for line in stand.story if "stage" in line]
    assert stand.children() == []
    assert not os.path.exists(stand.temporary)  # noqa: ASYNC240


async def test_a_child_that_does_not_end_is_killed_after_its_time(stand: Stand):
    stand.plan.broken["head"] = [Command((sys.executable, "-c", DEAF), Says("^ready$"), stop_s=0.1)]
    async with stand.running():
        record = stand.child("head")
    assert not record.is_alive()


async def test_told_twice_to_end_it_kills_at_once(stand: Stand):
    stand.plan.broken["stage-1"] = [Command((sys.executable, "-c", DEAF), Says("^ready$"), stop_s=1000)]
    async with stand.running():
        record = stand.child("stage-1")
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert not record.is_alive()


class TestStages:
    async def test_functions_follow_what_the_head_wants(self, stand: Stand):
        async with stand.running():
            stand.link.says = HeadStatus("boot", wanted="8,12,10")
            stand.link.told.put_nowait(committed("8,12,10"))
            await stand.until(lambda: "starts stage-2" in stand.story and "stage-2" in stand.link.triggers)
            stand.link.says = HeadStatus("boot", wanted="30")
            stand.link.told.put_nowait(committed("30"))
            await stand.until(lambda: {"ends stage-1", "ends stage-2"} <= set(stand.story))
            await stand.until(lambda: sorted(stand.children()) == ["first-1", "first-2", "head", "stage-0"])
            assert "stage-2" not in stand.link.triggers
        assert [line for line in stand.story if line.startswith("prepared")] == [
            "prepared 2",
            "prepared 3",
            "prepared 1",
        ]
        assert "committed: change-1 15,15 -> 8,12,10 in 7 ms" in stand.said

    async def test_an_event_is_only_the_sign_to_look(self, stand: Stand):
        async with stand.running():
            stand.link.told.put_nowait(committed("8,12,10"))  # an old one, or not the head's
            await self.another_look(stand)
            assert sorted(stand.children()) == ALL
        assert "prepared 3" not in stand.story

    async def another_look(self, stand: Stand) -> None:
        for _ in range(2):  # the first one may have begun before
            looks = stand.link.looks
            stand.link.told.put_nowait(None)
            await stand.until(lambda looks=looks: stand.link.looks > looks)

    async def test_a_head_that_does_not_answer_is_asked_again(self, stand: Stand, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(supervisor_module, "_LOOK_AGAIN_S", 0.01)
        async with stand.running():
            stand.link.silences, stand.link.says = 3, HeadStatus("boot", wanted="8,12,10")
            stand.link.told.put_nowait(committed("30"))
            await stand.until(lambda: "starts stage-2" in stand.story)
        assert "prepared 1" not in stand.story

    async def test_nothing_is_adjusted_to_what_may_yet_be_aborted(self, stand: Stand, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(supervisor_module, "_LOOK_AGAIN_S", 0.01)
        async with stand.running():
            stand.link.says = HeadStatus("boot", wanted="8,12,10", change="change-1")
            await self.another_look(stand)
            looks = stand.link.looks
            await stand.until(lambda: stand.link.looks > looks + 3)
            assert "prepared 3" not in stand.story
            stand.link.says = HeadStatus("boot", wanted="8,12,10")  # and no event comes
            await stand.until(lambda: "starts stage-2" in stand.story)

    async def test_it_looks_without_a_reason_too(self, stand: Stand, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(supervisor_module, "_LOOK_S", 0.01)
        async with stand.running():
            stand.link.says = HeadStatus("boot", wanted="8,12,10")
            await stand.until(lambda: "starts stage-2" in stand.story)

    async def test_it_looks_when_an_event_may_have_been_missed(self, stand: Stand):
        async with stand.running():
            stand.link.says = HeadStatus("boot", wanted="8,12,10")
            stand.link.told.put_nowait(None)
            await stand.until(lambda: "starts stage-2" in stand.story)

    async def test_a_function_that_takes_long_to_end_holds_nothing_up(self, stand: Stand):
        stand.plan.broken["stage-1"] = [Command((sys.executable, "-c", DEAF), Says("^ready$"), stop_s=1000)]
        async with stand.running():
            old = stand.child("stage-1")
            stand.link.says = HeadStatus("boot", wanted="30")
            stand.link.told.put_nowait(None)
            await stand.until(lambda: "stage-1" not in stand.link.triggers and "prepared 1" in stand.story)
            stand.folder.write_proposed(proposed(2, "10,10,10", 3))
            stand.link.says = HeadStatus("boot", wanted="10,10,10", last_change=ended("committed"))
            stand.link.told.put_nowait(None)
            await stand.until(lambda: "starts stage-2" in stand.story and generation(stand) == 2)
            assert stand.child("stage-1") == old
            old.end_group()
            await stand.until(lambda: "starts stage-1" in stand.story)  # wanted again

    async def test_a_function_that_does_not_start_is_tried_again(self, stand: Stand):
        stand.plan.broken["stage-2"] = [failing("not yet")]
        async with stand.running():
            stand.link.says = HeadStatus("boot", wanted="8,12,10")
            stand.link.told.put_nowait(None)
            await stand.until(lambda: "starts stage-2" in stand.story)
        assert any("not yet" in line for line in stand.said)


class TestForgedEvents:
    @pytest.mark.parametrize(
        "seen",
        [
            told("dev.midstream.reconfiguration.committed", "text"),
            told("dev.midstream.reconfiguration.committed", ["text"]),
            told("dev.midstream.reconfiguration.committed", {"to": 3, "request": {}}),
            told("dev.midstream.reconfiguration.committed", {"change": "c", "to": "30"}),
            told("dev.midstream.node.lost", None),
            committed("8,12,10", total_ms="long"),
        ],
    )
    async def test_what_is_wrong_is_told_and_skipped(self, stand: Stand, seen: Seen):
        async with stand.running():
            stand.link.told.put_nowait(seen)
            stand.link.told.put_nowait(committed("8,12,10"))
            await stand.until(lambda: "committed: change-1 15,15 -> 8,12,10 in 7 ms" in stand.said)
        assert [line for line in stand.said if line.startswith("broker: has an event that is not the head's")]

    @pytest.mark.parametrize("kind", ["my.own.type", "dev.midstream.reconfiguration.committed"])
    async def test_events_of_others_are_nobodys_business(self, stand: Stand, kind: str):
        async with stand.running():
            stand.link.told.put_nowait(told(kind, "text", source="/somebody"))
            stand.link.told.put_nowait(committed("8,12,10", reason="x\ny"))
            await stand.until(lambda: "committed: change-1 15,15 -> 8,12,10 in 7 ms: x?y" in stand.said)
        assert not [line for line in stand.said if line.startswith("broker: has")]


def generation(stand: Stand) -> int:
    applied = stand.folder.applied()
    assert applied is not None
    return applied.generation


class TestProposals:
    @pytest.mark.parametrize(("state", "after"), [("committed", 2), ("aborted", 1)])
    async def test_one_serves_only_if_its_change_is_committed(self, stand: Stand, state: str, after: int):
        stand.folder.write_proposed(proposed(2, "10,10,10", 3))
        async with stand.running():
            stand.link.told.put_nowait(committed("10,10,10", request="r"))  # whatever an event says
            await stand.until(lambda: "committed: change-1 15,15 -> 10,10,10 in 7 ms" in stand.said)
            await TestStages().another_look(stand)
            assert (generation(stand), len(stand.folder.proposals())) == (1, 1)
            stand.link.says = HeadStatus("boot", wanted="15,15", last_change=ended(state))
            stand.link.told.put_nowait(None)
            await stand.until(lambda: not stand.folder.proposals())
        assert generation(stand) == after

    async def test_the_end_of_a_change_that_is_not_the_last_any_more_is_asked_for(self, stand: Stand):
        stand.folder.write_proposed(proposed(2, "10,10,10", 3))
        stand.link.reports["change-1"] = ended("committed")
        async with stand.running():
            last = ChangeReport("change-2", "committed", "15,15", "/by#hand")
            stand.link.says = HeadStatus("boot", wanted="15,15", generation=2, last_change=last)
            stand.link.told.put_nowait(committed("10,10,10", request="r"))
            await stand.until(lambda: not stand.folder.proposals())
        assert generation(stand) == 2

    async def test_a_head_that_ends_is_started_with_the_object_applied_last(
        self, stand: Stand, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(supervisor_module, "_LOOK_AGAIN_S", 0.01)
        stand.folder.write_proposed(proposed(2, "10,10,10", 3))
        async with stand.running():
            stand.link.says = HeadStatus("boot", wanted="10,10,10", last_change=ended("committed"))
            stand.link.told.put_nowait(None)
            await stand.until(lambda: generation(stand) == 2 and "starts stage-2" in stand.story)
            stand.link.says = HeadStatus("boot", wanted="8,12,9,1", last_change=ended("committed"))
            stand.link.told.put_nowait(None)
            await stand.until(lambda: "starts stage-3" in stand.story)
            looks = stand.link.looks
            stand.link.told.put_nowait(None)
            await stand.until(lambda: stand.link.looks > looks)
            stand.link.silences = 1_000_000
            os.kill(stand.child("head").pid, signal.SIGKILL)
            await stand.until(lambda: [name for name, _ in stand.plan.started].count("head") == 2)
            stand.link.silences, stand.link.says = 0, HeadStatus("another", wanted="10,10,10")
            await stand.until(lambda: "ends stage-3" in stand.story)  # and no event came
        heads = [started.layout_text(30) for name, started in stand.plan.started if name == "head"]
        assert heads == ["15,15", "10,10,10"]
        (gone,) = [line for line in stand.said if line.startswith("head") and "is gone" in line]
        assert gone == (
            "head: was started again with 10,10,10, as the object that was applied last says; 8,12,9,1, which was "
            "asked for otherwise, is gone"
        )


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
