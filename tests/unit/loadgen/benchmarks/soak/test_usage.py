"""What a process and its children hold, seen on real processes; and what counts as grown."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import psutil

from loadgen.benchmarks.soak.usage import Usage, grown, living, stage_pids, tree, usage
from tests.unit.loadgen.streams import eventually

HELD = Usage(processes=5, threads=50, descriptors=100, shared_files=2, shared_bytes=1 << 20, private_bytes=1 << 20)
# A runtime whose child has a child, which has two; the last three share a file in memory of 1 MiB.
FAMILY = """
import os, sys, time
def child(work):
    if os.fork() == 0:
        work()
        time.sleep(600)
def weights():
    file = os.memfd_create("kv")
    os.write(file, bytes(1 << 20))
    child(lambda: None)
    child(lambda: print("ready", flush=True))
child(lambda: child(weights))
time.sleep(600)
"""


@asynccontextmanager
async def family() -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", FAMILY, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 30) == b"ready\n"
    members = tree(process.pid)
    try:
        yield process
    finally:
        for member in members:
            if member.is_running():
                member.kill()
        await process.wait()
        # Pipes of the child watcher and the subprocess are closed before the loop is.
        await asyncio.wait_for(process.stdout.read(), 30)


async def test_shared_memory_counts_once_and_everything_else_for_each_process():
    async with family() as process:
        held = usage(process.pid)
    assert (held.processes, held.threads) == (5, 5)
    assert (held.shared_files, held.shared_bytes) == (1, 1 << 20)
    assert held.descriptors >= 5 * 3
    assert held.private_bytes > 0


async def test_stages_are_found_below_the_zygote_with_the_weights():
    async with family() as process:
        stages = stage_pids(process.pid)
        assert len(stages) == 2
        parents = {psutil.Process(pid).ppid() for pid in stages}
        assert len(parents) == 1
        assert psutil.Process(parents.pop()).ppid() in [child.pid for child in psutil.Process(process.pid).children()]


async def test_a_process_that_is_gone_holds_nothing_and_does_not_live():
    async with family() as process:
        members = tree(process.pid)
        assert len(living(members)) == len(members) == 5
        for member in members:
            member.kill()
        await process.wait()
        await eventually(lambda: not living(members))
    assert usage(process.pid) == Usage()
    assert stage_pids(process.pid) == []


def test_this_process_holds_something():
    assert usage(os.getpid()).processes >= 1


def test_what_stays_within_its_limit_has_not_grown():
    more = replace(HELD, threads=60, descriptors=110, private_bytes=100 << 20)
    assert grown({"head": HELD}, {"head": more}) == []
    assert grown({"head": HELD}, {"head": Usage()}) == []


def test_spare_stages_that_the_head_keeps_are_no_leak_but_a_process_beside_them_is():
    before = replace(HELD, spares=1)
    more = replace(HELD, spares=3, processes=7, descriptors=180)
    assert grown({"a": before}, {"a": more}) == []
    assert grown({"a": before}, {"a": replace(more, processes=8)}) == ["a: processes 5 -> 8"]
    assert grown({"a": replace(before, spares=9)}, {"a": replace(HELD, processes=6)}) == ["a: processes 5 -> 6"]


def test_one_process_or_file_more_has_grown():
    more = replace(HELD, processes=6, shared_files=3)
    assert grown({"a": HELD, "b": HELD}, {"a": HELD, "b": more}) == [
        "b: processes 5 -> 6",
        "b: shared_files 2 -> 3",
    ]
