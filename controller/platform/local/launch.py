"""Run a platform in this process, or in one of its own that outlives the terminal.

The detached supervisor reads its `Order` from standard input and writes `Progress`, a line of JSON each, to standard
output until it is ready or has failed; from then on its words go to its log. Who started it reads until then, and ends
it if it is itself interrupted before.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from controller.platform.llm_pipeline import LLMPipeline
from controller.platform.local.link import HttpLink
from controller.platform.local.plan import LocalPlan, check_free
from controller.platform.local.processes import PlatformError
from controller.platform.local.state import Applied, PlatformFolder, PlatformRecord
from controller.platform.local.supervisor import Supervisor, make_temporary

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

    from controller.platform.local.supervisor import Say


class Order(msgspec.Struct, frozen=True):
    """What a supervisor is to run."""

    object: dict[str, Any]
    total_layers: int
    port: int


class Progress(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a supervisor that starts; the last one has `ready` or `failed`."""

    who: str = ""
    what: str = ""
    ready: PlatformRecord | None = None
    failed: str | None = None


def run(order: Order, say: Say, on_ready: Callable[[PlatformRecord], None]) -> None:
    """Run a platform in this process until it is told to stop.

    Raises:
        PlatformError: its name or port is taken, or something did not start; nothing is left then but its logs.

    """
    pipeline = LLMPipeline.parse(order.object)
    folder = PlatformFolder(pipeline.name)
    with folder.own():
        for left in folder.clean_up():
            say(left, "ended: a supervisor that was killed had left it")
        check_free(order.port)
        folder.prepare()
        folder.write_applied(Applied(1, order.object))
        temporary = make_temporary()
        plan = LocalPlan(folder, pipeline, order.total_layers, order.port, temporary)
        ended_well = False
        try:
            link = HttpLink(f"http://{plan.address('broker')}", f"http://{plan.address('head')}")
            supervisor = Supervisor(folder, plan, temporary, order.total_layers, say, link)
            asyncio.run(supervisor.run(on_ready))
            ended_well = True
        finally:
            folder.clean_up(keep_logs=not ended_well)


def start_detached(order: Order, say: Say) -> PlatformRecord:
    """Run a platform in a process of its own; returns when it is ready.

    Raises:
        PlatformError: as `run`.

    """
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "controller.platform.local.launch"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        if supervisor.stdin is None or supervisor.stdout is None:
            raise PlatformError("the supervisor has no pipes")
        with supervisor.stdin as orders:
            orders.write(msgspec.json.encode(order))
        return _wait_until_ready(supervisor.stdout, say)
    except BaseException:
        supervisor.terminate()
        supervisor.wait()
        raise


def _wait_until_ready(progress: IO[bytes], say: Say) -> PlatformRecord:
    for line in progress:
        step = msgspec.json.decode(line, type=Progress)
        if step.ready is not None:
            return step.ready
        if step.failed is not None:
            raise PlatformError(step.failed)
        say(step.who, step.what)
    raise PlatformError("the supervisor has ended without a word")


def time_of_day() -> str:
    """Return the time as the log shows it."""
    return dt.datetime.now(dt.UTC).strftime("%H:%M:%S.%f")[:-3]


def main() -> None:
    """Be the detached supervisor."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    log = PlatformFolder(order.object["metadata"]["name"]).log("supervisor")
    watched = True

    def tell(step: Progress) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(step) + b"\n")
        sys.stdout.buffer.flush()

    def say(who: str, what: str) -> None:
        if log.parent.is_dir():
            with log.open("a", encoding="utf-8") as lines:
                lines.write(f"{time_of_day()}  {who:<14} {what}\n")
        if watched:
            tell(Progress(who, what))

    def on_ready(record: PlatformRecord) -> None:
        nonlocal watched
        watched = False
        tell(Progress(ready=record))
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        os.close(descriptor)

    try:
        run(order, say, on_ready)
    except PlatformError as error:
        if watched:
            tell(Progress(failed=str(error)))
        else:
            say("supervisor", str(error))
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
