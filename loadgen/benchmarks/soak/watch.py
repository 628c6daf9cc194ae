"""Watches the pipeline of a soak: what it says of itself, what it holds, whether it serves; and writes it all down."""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from loadgen.benchmarks.migrate.options import HEAD, NODES
from loadgen.benchmarks.side import Side
from loadgen.benchmarks.soak.hosts import Hosts
from loadgen.benchmarks.soak.options import SoakOptions
from loadgen.benchmarks.soak.usage import Usage, grown, tree, usage
from loadgen.clock import now_ns
from loadgen.control import ControlClient, ServerStatus
from loadgen.errors import ControlError

POLL_S = 0.1
WATCH_S = 0.3
_STORY_S = 3.0


class GoneWrong(Exception):
    """The pipeline does not come back: to go on would only repeat it."""


class Watch:
    """See the module.

    Attributes:
        status: The latest one; None before the first.
        step: Number of the step under way, for what is written down.
        problems: What is not allowed and was noticed at once, in words.
        recoveries: When each recovery of the server was first seen, and what it took in ms.
        seen: All processes that were ever there, by id.
    """

    def __init__(
        self,
        options: SoakOptions,
        served: Side,
        machines: Hosts,
        control: ControlClient,
        log_dir: Path,
        temporary: Path,
        say: Callable[[str], None],
    ) -> None:
        self._options, self._served, self._machines, self._control = options, served, machines, control
        self._log_dir, self._temporary, self._say = log_dir, temporary, say
        self.status: ServerStatus | None = None
        self._status_at = 0.0
        self._told_at = 0.0
        self.step = 0
        self.problems: list[str] = []
        self.recoveries: dict[str, tuple[int, float]] = {}
        self.seen: dict[int, psutil.Process] = {}

    async def run(self) -> None:
        """Keep the status, what recoveries took, and the journal."""
        story_at = 0.0
        while True:
            with contextlib.suppress(ControlError):
                self._take(await self._control.status())
                if time.monotonic() > story_at:
                    self._keep_story(await self._control.story())
                    story_at = time.monotonic() + _STORY_S
            for pid in filter(None, map(self._machines.pid, NODES)):
                self.seen.update((process.pid, process) for process in tree(pid))
            await asyncio.sleep(WATCH_S)

    def _take(self, status: ServerStatus) -> None:
        self.status, self._status_at = status, time.monotonic()
        self._machines.seen(status.spare_stages)
        last = status.last_recovery
        if last is not None:
            self.recoveries.setdefault(last.id, (now_ns(), last.total_ms))

    def _keep_story(self, entries: list[dict[str, Any]]) -> None:
        with (self._log_dir / "journal.jsonl").open("a", encoding="utf-8") as file:
            for entry in entries:
                if entry["at"] > self._told_at:
                    print(json.dumps(entry), file=file)
        self._told_at = max([self._told_at, *(entry["at"] for entry in entries)])

    def layers(self) -> str:
        """Return the layout that serves, as far as is known."""
        return self.status.layers if self.status else self._options.layers_from

    async def until_serving(self) -> None:
        """Wait until the pipeline serves; as long as no node is left, time does not count.

        Raises:
            GoneWrong: it does not within the deadline, or the head has ended.
        """
        asked, left_s, last = time.monotonic(), self._options.recovered_deadline_s, time.monotonic()
        while True:
            status = self.status
            if status is not None and self._status_at > asked and status.phase == "serving":
                return
            if not psutil.pid_exists(self._served.server.pid):
                raise GoneWrong("the head has ended")
            await asyncio.sleep(POLL_S)
            now = time.monotonic()
            left_s -= (now - last) if any(map(self._machines.reachable, NODES)) else 0.0
            last = now
            if left_s <= 0:
                phase = "no answer" if status is None or self._status_at < asked else status.phase
                raise GoneWrong(f"not serving again within {self._options.recovered_deadline_s:g} s ({phase})")

    async def idle_usage(self, before: dict[str, Usage] | None) -> dict[str, Usage]:
        """Return what is held as soon as it is steady and, with `before`, has not grown; or at the deadline."""
        deadline = time.monotonic() + self._options.idle_deadline_s
        last, since = await self._usage(), time.monotonic()
        while time.monotonic() < deadline:
            await asyncio.sleep(POLL_S * 5)
            now = await self._usage()
            if {role: each.processes for role, each in now.items()} != {r: each.processes for r, each in last.items()}:
                since = time.monotonic()
            last = now
            if time.monotonic() - since > self._options.settle_s and (before is None or not grown(before, now)):
                break
        return last

    async def _usage(self) -> dict[str, Usage]:
        spares = (await self._control.status()).spare_stages
        pids = {HEAD: self._served.server.pid} | {node: self._machines.pid(node) or 0 for node in NODES}
        for pid in filter(None, pids.values()):
            self.seen.update((process.pid, process) for process in tree(pid))
        held = {role: replace(usage(pid), spares=spares.get(role, 0)) for role, pid in pids.items()}
        return held | {"together": Usage(folders=len(list(self._temporary.glob("midstream*"))))}

    def problem(self, text: str) -> None:
        """Take note of what is not allowed, and say it at once."""
        self.problems.append(text)
        self.note("problem", text=text)
        self._say(f"  PROBLEM: {text}")

    def note(self, event: str, **details: Any) -> None:
        """Write down what happened."""
        with (self._log_dir / "events.jsonl").open("a", encoding="utf-8") as file:
            print(json.dumps({"at": time.time(), "during": self.step, "event": event, **details}), file=file)

    async def all_there(self) -> None:
        """Wait until the head lists all nodes, or too long for it: then the end will tell."""
        deadline = time.monotonic() + self._options.recovered_deadline_s
        while self._machines.away() and time.monotonic() < deadline:  # noqa: ASYNC110 - a deadline
            await asyncio.sleep(POLL_S)
