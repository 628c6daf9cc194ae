"""A platform of small real processes, and a supervisor of it that can be run as a process of its own.

Every child writes a line when it starts and one when it is told to end, so that a test can see the order.
"""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from controller.platform.broker.client import Seen
from controller.platform.llm_pipeline import API_VERSION, KIND, LLMPipeline
from controller.platform.local.child import Command, Says
from controller.platform.local.head_status import ChangeReport, HeadStatus
from controller.platform.local.state import Applied, PlatformFolder
from controller.platform.local.supervisor import Supervisor, make_temporary
from runtime.events.catalogue import ReconfigurationReport, Type
from runtime.events.from_journal import source_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

CHILD = """
import os, signal, subprocess, sys, tempfile, time
name, story, grandchild = sys.argv[1:]
def tell(word):
    with open(story, "a") as lines:
        lines.write(f"{word} {name}\\n")
def end(*_):
    tell("ends")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
if grandchild:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    tell(f"grandchild {child.pid} of")
tempfile.mkdtemp()
tell("starts")
print("ready", flush=True)
time.sleep(600)
"""


def pipeline(**spec: Any) -> LLMPipeline:
    return LLMPipeline.parse({"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "small"}, "spec": spec})


@dataclass
class SmallPlan:
    """Two first children, a head, and one for each stage. `broken` have other commands, one for each start."""

    story: Path
    temporary: str
    grandchildren: bool = False
    started: list[tuple[str, LLMPipeline]] = field(default_factory=list)
    broken: dict[str, list[Command]] = field(default_factory=lambda: defaultdict(list))
    ports: dict[str, int] = field(default_factory=lambda: {"head": 1, "broker": 2})

    def prepare(self, stages: int) -> None:
        self.tell(f"prepared {stages}")

    def phases(self, stages: int) -> Sequence[Sequence[str]]:
        return [["first-1", "first-2"], ["head"], self.functions(stages)]

    def functions(self, stages: int) -> Sequence[str]:
        return [f"stage-{index}" for index in range(stages)]

    def trigger(self, child: str) -> Mapping[str, Any]:
        return {"metadata": {"name": child}}

    def command(self, child: str, pipeline: LLMPipeline) -> Command:
        self.started.append((child, pipeline))
        if self.broken[child]:
            return self.broken[child].pop(0)
        arguments = (child, str(self.story), "1" if self.grandchildren else "")
        return Command((sys.executable, "-c", CHILD, *arguments), Says("^ready$"), {"TMPDIR": self.temporary})

    def tell(self, line: str) -> None:
        with self.story.open("a") as lines:
            lines.write(f"{line}\n")


@dataclass
class SmallLink:
    """What the broker and the head would say. `silences` is how often the head does not answer before it does."""

    says: HeadStatus = field(default_factory=lambda: HeadStatus("boot", wanted="15,15"))
    silences: int = 0
    reports: dict[str, ChangeReport] = field(default_factory=dict)
    told: asyncio.Queue[Seen | None] = field(default_factory=asyncio.Queue)
    triggers: set[str] = field(default_factory=set)
    looks: int = 0

    async def events(self) -> AsyncIterator[Seen | None]:
        while True:
            yield await self.told.get()

    async def status(self) -> HeadStatus | None:
        self.looks += 1
        if self.silences:
            self.silences -= 1
            return None
        return self.says

    async def report(self, change: str) -> ChangeReport | None:
        return self.reports.get(change)

    async def put_trigger(self, manifest: Mapping[str, Any]) -> None:
        self.triggers.add(manifest["metadata"]["name"])

    async def delete_trigger(self, name: str) -> None:
        self.triggers.discard(name)


def committed(to: str, *, name: str = "small", **data: Any) -> Seen:
    """What a head tells of a change, or somebody who can make events as well."""
    report = ReconfigurationReport(
        pipeline=name,
        change="change-1",
        from_="15,15",
        to=to,
        state="committed",
        reason=None,
        total_ms=7.0,
        steps_ms={},
        bytes_moved=0,
        rounds=0,
        requests_carried=2,
        epoch=2,
        request=None,
        unchanged=False,
        pause_ms=None,
    )
    return told(Type.RECONFIGURATION_COMMITTED, {**msgspec.to_builtins(report), **data}, name)


def told(kind: str, data: object, name: str = "small", source: str | None = None) -> Seen:
    source = source or source_of(name)
    event = {"specversion": "1.0", "id": "1", "source": source, "type": kind, "subject": name, "data": data}
    return Seen(1, 0.0, event)


def main(root: str, story: str) -> None:
    """Supervise until the end; `kill -9` of this process is what the test is about."""
    folder = PlatformFolder("small", Path(root))
    with folder.own():
        folder.prepare()
        folder.write_applied(Applied(1, pipeline().to_object()))
        temporary = make_temporary()
        plan = SmallPlan(Path(story), temporary, grandchildren=True)
        supervisor = Supervisor(folder, plan, temporary, 30, lambda *_: None, SmallLink())
        asyncio.run(supervisor.run(lambda _: plan.tell(f"all ready in {temporary}")))
        folder.clean_up()


if __name__ == "__main__":
    main(*sys.argv[1:])
