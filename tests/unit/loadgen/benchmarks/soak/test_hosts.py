"""Node runtimes that are taken away and come back, with make-believe runtimes on loopback."""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil

from loadgen.benchmarks.soak.hosts import Hosts, hosts
from loadgen.benchmarks.soak.options import SoakOptions
from loadgen.clock import now_ns
from loadgen.link import Cut, Link
from loadgen.node_processes import Machine
from tests.unit.loadgen.streams import eventually
from tests.unit.loadgen.test_node_processes import COMMAND

# What would run a command at the far end, and here runs a runtime of its own and never looks at the command.
AT_FAR_END = (
    *(sys.executable, "-c"),
    "import time; print('1:00  ready    node=edge-2', flush=True); time.sleep(600)",
)
MACHINES = (Machine("edge-1", "127.0.0.1:1"), Machine("edge-2", "127.0.0.1:2", AT_FAR_END))


@asynccontextmanager
async def running(tmp_path: Path, cuts: dict[str, Cut] | None = None, **changed: Any) -> AsyncIterator[Hosts]:
    link = Link("127.0.0.1", "127.0.0.1", (), None, {}, cuts or {})
    options = SoakOptions(node_command=COMMAND, start_deadline_s=30.0, **changed)
    async with hosts(MACHINES, link, tmp_path, options, tmp_path) as made:
        yield made


async def test_a_killed_runtime_is_started_again_with_a_log_of_its_own(tmp_path):
    async with running(tmp_path) as made:
        before = made.pid("edge-1")
        made.kill("edge-1", 0.0)
        assert (made.pid("edge-1"), made.reachable("edge-1"), made.away()) == (None, False, ["edge-1"])
        await made.all_back()
        assert made.reachable("edge-1")
        assert made.pid("edge-1") not in (None, before)
        assert sorted(path.name for path in tmp_path.glob("edge-1*.log")) == ["edge-1-1.log", "edge-1-2.log"]
        assert len(made.back_ms["node"]) == 1
        assert (made.problems, made.orphans) == ([], [])


async def test_a_node_is_away_until_the_head_lists_it_and_it_can_be_reached(tmp_path):
    async with running(tmp_path) as made:
        made.kill("edge-1", 0.0)
        made.seen(["edge-1", "edge-2"])  # what the head believes, who has not noticed
        assert made.away() == ["edge-1"]
        await made.all_back()
        assert made.away() == ["edge-1"]
        made.seen(["edge-1", "edge-2", "another"])
        assert made.away() == []


async def test_no_node_is_left_while_both_are_away(tmp_path):
    async with running(tmp_path) as made:
        started = now_ns()
        made.kill("edge-1", 0.0)
        assert made.none_left() == []
        made.kill("edge-2", 0.0)
        (window,) = made.none_left()
        assert started < window.start_ns <= window.end_ns
        await made.all_back()
        made.seen(["edge-2"])
        (window,) = made.none_left()
        assert made.none_left() == [window]  # it has an end now
        made.seen(["edge-1"])
        made.kill("edge-1", 0.0)
        assert made.none_left() == [window]


async def test_a_cut_link_takes_the_far_node_away_until_it_is_healed(tmp_path):
    trace = tmp_path / "trace"

    def note(word: str) -> tuple[tuple[str, ...], ...]:
        return ((sys.executable, "-c", f"open({str(trace)!r}, 'a').write({word!r})"),)

    async with running(tmp_path, {"silent": Cut(note("cut "), note("healed "))}) as made:
        made.cut("silent", 0.0)
        assert trace.read_text() == "cut "
        assert [made.reachable(name) for name in made.names] == [True, False]
        assert made.away() == ["edge-2"]
        assert made.pid("edge-2") is not None
        await made.all_back()
        assert trace.read_text() == "cut healed "
        assert made.reachable("edge-2")
        assert len(made.back_ms["link"]) == 1


async def test_a_link_that_cannot_be_healed_is_a_problem(tmp_path):
    fails = ((sys.executable, "-c", "raise SystemExit('no such link')"),)
    async with running(tmp_path, {"silent": Cut((), fails)}) as made:
        made.cut("silent", 0.0)
        await made.all_back()
        assert not made.reachable("edge-2")
        assert len(made.problems) == 1
        assert "the link could not be healed" in made.problems[0]
        assert "no such link" in made.problems[0]


async def test_nothing_is_left_when_it_ends_while_a_runtime_is_away(tmp_path):
    before = psutil.Process(os.getpid()).children(recursive=True)
    async with running(tmp_path) as made:
        pids = [made.pid("edge-1"), made.pid("edge-2")]
        made.kill("edge-1", 600.0)
    await eventually(lambda: not any(pid and psutil.pid_exists(pid) for pid in pids))
    mine = psutil.Process(os.getpid()).children(recursive=True)
    assert [child for child in mine if child not in before and child.status() != psutil.STATUS_ZOMBIE] == []
