"""The supervisor: starts what a pipeline needs on this machine, keeps it running, and ends all of it.

Children are started phase by phase (`controller.platform.local.plan`), each phase when the one before is ready, and
ended the other way round. If one does not start, all others are ended again and the reason is told with its last words.
A child that ends later is started again, after 0.5 s and then ever longer up to 30 s. The head is too; but its clients
have lost their requests, and nobody hides that.

Stages come and go with changes of the pipeline, and the supervisor runs one stage function for each. It asks the head
which stages there shall be, and what became of objects that were proposed: when an event of the broker gives it a
reason to, when it may have missed one, when a child was started again, and every half minute besides. Events can be
forged and can get lost, so none is believed (`controller.platform.local.head_status`).

It holds the lock of its name as long as it lives, so nobody else touches the folder
(`controller.platform.local.state`). If it is killed, the guard ends what it leaves (`controller.platform.local.guard`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
import time
from typing import TYPE_CHECKING, Any

import msgspec

from controller.platform.local.child import Child, ChildError, Guard
from controller.platform.local.guard import Note
from controller.platform.local.head_status import outcome, read_told
from controller.platform.local.processes import TEMPORARY_PREFIX, PlatformError, ProcessRecord, remove_temporary
from controller.platform.local.state import PlatformRecord
from runtime.events.catalogue import Type
from runtime.events.errors import EventError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from controller.platform.broker.client import Seen
    from controller.platform.llm_pipeline import LLMPipeline
    from controller.platform.local.head_status import HeadStatus
    from controller.platform.local.link import Link
    from controller.platform.local.plan import Plan
    from controller.platform.local.state import PlatformFolder

    Say = Callable[[str, str], None]
    """Takes what happened: to whom, and what."""

_FIRST_DELAY_S, _MOST_DELAY_S = 0.5, 30.0
_STEADY_S = 60.0  # who ran that long starts again with the first delay
_MOST_FOLDER_CHARACTERS, _SHORT_FOLDER = 30, "/tmp"  # noqa: S108 - a socket's path has 107 characters at most
_LOOK_S = 30.0  # from one look at the head to the next, when nobody gives a reason
_LOOK_AGAIN_S = 1.0  # while it does not answer, or a change is under way
_MOST_NAMED = 100  # changes that a head remembers
_HEAD = "head"
_TOLD = {
    Type.RECONFIGURATION_COMMITTED: "committed",
    Type.RECONFIGURATION_ABORTED: "aborted",
    Type.NODE_JOINED: "node joined",
    Type.NODE_LOST: "node lost",
}
"""Events that are worth a line, and the word for it."""


def make_temporary() -> str:
    """Make the folder for the temporary files of a platform; its path is short, since sockets are in it."""
    folder = tempfile.gettempdir()
    return tempfile.mkdtemp(
        prefix=TEMPORARY_PREFIX, dir=folder if len(folder) <= _MOST_FOLDER_CHARACTERS else _SHORT_FOLDER
    )


class Supervisor:
    """Runs one platform; the caller owns its name and has made its folder.

    Args:
        folder: of the platform.
        plan: which children, in which order, and how.
        temporary: the folder for temporary files; removed in the end.
        total_layers: of the model.
        say: is told what happens.
        link: to the broker and the head.

    """

    def __init__(
        self, folder: PlatformFolder, plan: Plan, temporary: str, total_layers: int, say: Say, link: Link
    ) -> None:
        self._folder, self._plan, self._say, self._link = folder, plan, say, link
        self._record = PlatformRecord(
            folder.name,
            ProcessRecord.of(os.getpid()),
            temporary,
            total_layers=total_layers,
            nodes=list(self._pipeline.nodes),
        )
        self._guard: Guard | None = None
        self._children: dict[str, Child] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._total_layers = total_layers
        self._stages = _count(self._pipeline.layout_text(total_layers))
        self._functions: list[str] = []  # those that run, or are being started
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._look = asyncio.Event()
        self._named: set[str] = set()  # changes that events were about
        self._boot: str | None = None  # the head's start that answered last
        self._started_with: str | None = None  # the layout of the head's last start
        self._wanted: str | None = None  # the layout asked for last, as far as seen
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self, on_ready: Callable[[PlatformRecord], None]) -> None:
        """Start everything, tell when it is ready, and end everything on SIGTERM or SIGINT; the second one kills.

        Raises:
            PlatformError: something did not start; all else has been ended.

        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self.stop)
        try:
            self._folder.write_record(self._record)
            self._guard = await Guard.start(self._folder.log("guard"), self._folder.path)
            await self._guard.tell(Note(temporary=self._record.temporary))
            work = asyncio.create_task(self._work(on_ready))
            stopping = asyncio.create_task(self._stopping.wait())
            await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
            for task in (work, stopping):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
        finally:
            await self._end_all()

    def stop(self) -> None:
        """End everything; called again, at once."""
        self._hurry.set() if self._stopping.is_set() else self._stopping.set()

    async def _work(self, on_ready: Callable[[PlatformRecord], None]) -> None:
        self._plan.prepare(self._stages)
        for phase in self._plan.phases(self._stages):
            await self._start_together(phase)
        self._update(ready=True)
        on_ready(self._record)
        self._functions = list(self._plan.functions(self._stages))
        following = asyncio.create_task(self._follow())
        following.add_done_callback(self._notice)
        try:
            async for seen in self._link.events():
                self._hear(seen)
        finally:
            following.cancel()
            await asyncio.wait({following})

    async def _start_together(self, names: Sequence[str]) -> None:
        try:
            async with asyncio.TaskGroup() as starting:
                for name in names:
                    starting.create_task(self._start(name))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _start(self, name: str) -> None:
        """Start a child, wait until it is ready, and keep it running from then on."""
        since = time.monotonic()
        await self._try(name)
        self._say(name, f"ready in {time.monotonic() - since:.1f} s")
        keeper = self._keepers[name] = asyncio.create_task(self._keep(name))
        keeper.add_done_callback(self._notice)

    async def _try(self, name: str) -> None:
        pipeline = self._pipeline
        command = self._plan.command(name, pipeline)
        if name == _HEAD:
            self._started_with = pipeline.layout_text(self._total_layers)
        child = self._children[name] = Child(name, command, self._folder.log(name), self._folder.path)
        record = await child.start()
        await self._tell_guard(Note(begin=record))
        self._update(children={**self._record.children, name: record})
        await child.wait_until_ready()

    async def _keep(self, name: str) -> None:
        """Start a child that runs again whenever it ends."""
        delay_s = _FIRST_DELAY_S
        while True:
            since = time.monotonic()
            why = await self._children[name].ended()
            await self._end(name)
            if time.monotonic() - since > _STEADY_S:
                delay_s = _FIRST_DELAY_S
            self._say(name, f"{why}; it is started again in {delay_s:g} s")
            await asyncio.sleep(delay_s)
            delay_s = await self._insist(name, min(2 * delay_s, _MOST_DELAY_S))

    async def _keep_new(self, name: str) -> None:
        await self._insist(name, _FIRST_DELAY_S)
        await self._keep(name)

    async def _insist(self, name: str, delay_s: float) -> float:
        """Start a child as often as it takes; returns after how long to do it the next time."""
        while True:
            since = time.monotonic()
            try:
                await self._try(name)
            except ChildError as error:
                await self._end(name)
                self._say(name, f"{error}\nIt is started again in {delay_s:g} s")
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, _MOST_DELAY_S)
            else:
                self._say(name, f"ready in {time.monotonic() - since:.1f} s")
                self._look.set()
                return delay_s

    def _notice(self, keeper: asyncio.Task[None]) -> None:
        """End the platform when keeping a child failed in a way that nobody thought of."""
        if not keeper.cancelled() and (error := keeper.exception()) is not None:
            self._say("supervisor", f"ends: {error!r}")
            self.stop()

    def _hear(self, seen: Seen | None) -> None:
        """Look at the head when an event gives a reason to, or may have been missed; tell the user of it."""
        if seen is None:
            self._look.set()
            return
        try:
            event = None if seen.undelivered else read_told(seen.event, self._folder.name)
        except EventError as error:
            self._say("broker", f"has an event that is not the head's, though it says so; it is skipped: {error}")
            return
        if event is None:
            return
        self._say(_TOLD[event.type], _in_words(event.data))
        if event.type in {Type.RECONFIGURATION_COMMITTED, Type.RECONFIGURATION_ABORTED}:
            if event.data["change"] is not None and len(self._named) < _MOST_NAMED:
                self._named.add(event.data["change"])
            self._look.set()

    async def _follow(self) -> None:
        """Keep looking at the head, and do what follows from what it says."""
        while True:
            self._look.clear()
            try:
                pause_s = await self._do_what_head_says()
            except PlatformError as error:
                self._say("supervisor", str(error))
                pause_s = _LOOK_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._look.wait()

    async def _do_what_head_says(self) -> float:
        """Settle what was proposed and adjust the functions; returns seconds until the next look."""
        status = await self._link.status()
        if status is None:
            return _LOOK_AGAIN_S
        if status.boot != self._boot:
            self._say_what_is_gone(status)
            self._boot = status.boot
        await self._settle(status)
        if status.change is not None:
            return _LOOK_AGAIN_S  # what is wanted may yet be aborted
        if status.wanted is not None:
            self._wanted = status.wanted
            # A stage that its function released is still wanted: the function comes back, and its layers with it.
            await self._adjust(_count(status.wanted))
        return _LOOK_S

    def _say_what_is_gone(self, status: HeadStatus) -> None:
        """Tell after a new start of the head that a layout which was asked for by hand does not serve any more."""
        if self._wanted not in {None, self._started_with, status.wanted}:
            self._say(
                _HEAD,
                f"was started again with {self._started_with}, as the object that was applied last says; "
                f"{self._wanted}, which was asked for otherwise, is gone",
            )

    async def _settle(self, status: HeadStatus) -> None:
        """Let proposed objects serve whose changes were committed, and forget those that never will."""
        named, self._named = self._named, set()
        proposals = self._folder.proposals()
        if not proposals:
            return
        asked = [await self._link.report(change) for change in sorted(named)]
        reports = [report for report in asked if report is not None]
        for proposed in proposals:
            committed = outcome(proposed, status, reports)
            if committed is not None:
                self._folder.settle(proposed.request, committed=committed)

    async def _adjust(self, stages: int) -> None:
        """Begin to run the functions of so many stages; those that leave take their time meanwhile."""
        wanted = self._plan.functions(stages)
        if stages != self._stages:
            self._stages = stages
            self._plan.prepare(stages)
        for name in reversed([name for name in self._functions if name not in wanted]):
            self._functions.remove(name)
            leaving = self._leaving[name] = asyncio.create_task(self._leave(name))
            leaving.add_done_callback(self._notice)
        for name in wanted:
            if name not in self._functions and name not in self._leaving:
                self._functions.append(name)
                keeper = self._keepers[name] = asyncio.create_task(self._keep_new(name))
                keeper.add_done_callback(self._notice)
                await self._link.put_trigger(self._plan.trigger(name))

    async def _leave(self, name: str) -> None:
        """End a function whose stage is gone; look again then, since the stage may be wanted again."""
        await self._link.delete_trigger(name)
        await self._let_go(name)
        self._say(name, "ended: its stage is gone")
        del self._leaving[name]
        self._look.set()

    async def _let_go(self, name: str, patience_s: float | None = None) -> None:
        keeper = self._keepers.pop(name, None)
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait({keeper})
        if name in self._children:
            await self._end(name, patience_s)
            del self._children[name]

    async def _end(self, name: str, patience_s: float | None = None) -> None:
        child = self._children[name]
        stopping = asyncio.create_task(child.stop(patience_s))
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({stopping, hurry}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not stopping.done():
            await child.stop(0)
        await stopping
        if child.record is not None:
            await self._tell_guard(Note(end=child.record))
            self._update(children={key: value for key, value in self._record.children.items() if key != name})

    async def _end_all(self) -> None:
        self._stopping.set()
        self._update(ready=False)
        if self._leaving:
            for leaving in self._leaving.values():
                leaving.cancel()
            await asyncio.wait(self._leaving.values())
        try:
            for name in reversed(list(self._children)):
                command = self._children[name].command
                await self._let_go(name, command.stop_with_all_s)
                self._say(name, "ended")
        finally:
            # What is left now, the guard ends.
            if self._guard is not None:
                await self._guard.close()
            remove_temporary(self._record.temporary)

    async def _tell_guard(self, note: Note) -> None:
        if self._guard is not None:
            await self._guard.tell(note)

    def _update(self, **changes: Any) -> None:
        self._record = msgspec.structs.replace(self._record, ports=dict(self._plan.ports), **changes)
        self._folder.write_record(self._record)

    @property
    def _pipeline(self) -> LLMPipeline:
        applied = self._folder.applied()
        if applied is None:
            raise PlatformError(f"{self._folder.path} was removed while the platform runs")
        return applied.pipeline


def _in_words(data: Mapping[str, Any]) -> str:
    """Say what an event is about, in a line."""
    if "node" in data:
        words = "  ".join(f"{name}={value}" for name, value in data.items())
    else:
        reason = f": {data['reason']}" if data["reason"] else ""
        words = f"{data['change']} {data['from']} -> {data['to']} in {data['total_ms']:.0f} ms{reason}"
        if data["change"] is None:
            words = f"request {data['request']} for {data['to']}{reason}"
    return "".join(character if character.isprintable() else "?" for character in words)


def _count(layout: str) -> int:
    """Return how many stages a layout has."""
    return len(layout.split(","))
