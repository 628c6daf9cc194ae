"""Runs a preparation in a process of its own that dies, or waits, where a test wants it to."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from runtime.model.builtin import Preparation, WheelModel
from runtime.model.cache import ModelCache
from runtime.model.progress import Advance
from tests.unit.runtime.model.reports import MemoryReport
from tests.unit.runtime.model.tiny_wheel import FakeFetch

PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__, "runtime.model.convert", "filelock"])
DEADLINE_S = 60


def die_at_operation(model: WheelModel, wheel: Path, root: Path, countdown: int) -> None:
    """Prepare the model, but kill -9 this process just before the `countdown`-th file system call on the cache."""

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal countdown
        on_cache = any(isinstance(arg, str | os.PathLike) and str(arg).startswith(str(root)) for arg in args)
        if on_cache and event in {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}:
            countdown -= 1
            if countdown == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    Preparation(model, ModelCache(root), MemoryReport(), FakeFetch(wheel)).run()


@dataclass
class GatedFetch:
    """Downloads once `gate` is set; sets `started` first."""

    wheel: Path
    started: Event
    gate: Event

    def __call__(self, requirement: str, into: Path, advance: Advance, *, bypass_cache: bool) -> Path:
        self.started.set()
        if not self.gate.wait(DEADLINE_S):
            raise TimeoutError("the test never opened the gate")
        return FakeFetch(self.wheel)(requirement, into, advance, bypass_cache=bypass_cache)


@dataclass
class SharedReport:
    """Adds every step as a line to `log`; sets `waiting` once the preparation waits for another process."""

    log: Path
    waiting: Event

    @contextmanager
    def step(self, what: str, total_bytes: int | None = None) -> Iterator[Advance]:
        with self.log.open("a") as log:
            log.write(f"{what}\n")
        if what.startswith("Waiting"):
            self.waiting.set()
        yield lambda _done: None


def prepare(model: WheelModel, root: Path, report: SharedReport, fetch: GatedFetch) -> None:
    """Prepare the model with a download that the test controls."""
    Preparation(model, ModelCache(root), report, fetch).run()
