"""Run in a fresh interpreter each: threads and where they may run belong to a process."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

CODE = """
import json, os, sys, threading, torch
from runtime.engine.compute_threads import ComputeThreads

threads, cores, rank = json.loads(sys.argv[1])
torch.set_num_threads(threads)
compute = ComputeThreads()
compute.cores = compute.cores[:cores]
before = [sorted(os.sched_getaffinity(thread)) for thread in compute.ids]
compute.spread(rank)
print(json.dumps({
    "first": compute.ids[0] == threading.get_native_id(),
    "before": before,
    "after": [sorted(os.sched_getaffinity(thread)) for thread in compute.ids],
}))
"""
ALL = sorted(os.sched_getaffinity(0))


def spread(threads: int, cores: int, rank: int) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps([threads, cores, rank])], capture_output=True, text=True, check=True
    )
    placed: dict[str, Any] = json.loads(run.stdout)
    assert placed["first"], "the computing thread is not the first"
    assert placed["before"] == [ALL] * threads, "not every helper was found"
    return placed


@pytest.mark.skipif(len(ALL) < 2, reason="needs two cores")
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_two_threads_get_a_core_each(rank: int):
    assert spread(2, 2, rank)["after"] == [[ALL[0]], [ALL[1]]]


@pytest.mark.skipif(len(ALL) < 4, reason="needs four cores")
def test_neighbouring_stages_get_different_cores_and_larger_teams_leave_the_computing_thread_free():
    assert spread(2, 4, 1)["after"] == [[ALL[2]], [ALL[3]]]
    assert spread(3, 4, 0)["after"] == [ALL, [ALL[1]], [ALL[2]]]


@pytest.mark.parametrize(("threads", "cores"), [(1, 2), (3, 2)])
def test_one_thread_and_more_threads_than_cores_are_left_to_the_kernel(threads: int, cores: int):
    placed = spread(threads, min(cores, len(ALL)), 0)
    assert placed["after"] == placed["before"]
