"""`midstream intent watch`: keep the active intents true, and the layers of a running pipeline where they may be."""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager
from pathlib import Path  # noqa: TC003 - typer reads it
from typing import TYPE_CHECKING, Annotated, Any

import typer

from intents.enforcement.event_sink import EventSink
from intents.errors import IntentsError
from intents.live_midstream import TOKEN_VARIABLE, MidstreamSource
from intents.mover import Mover
from intents.proof.drift import Phase
from intents.proof.drift_loop import Clock, DriftLoop
from intents.store import IntentStore, default_folder
from intents.targets import Targets
from intents.watching import Watched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from intents.mover import Told
    from intents.moves import Move
    from intents.proof.drift import Changed, Violated

DEFAULT_PIPELINE = "default"
_FAILED, _REFUSED = 1, 2

RunningHead = Annotated[
    str | None,
    typer.Option(
        "--head",
        help=f"Head of a running pipeline, such as http://127.0.0.1:8000, whose stages count too; token in "
        f"{TOKEN_VARIABLE}.",
    ),
]
RunningName = Annotated[str, typer.Option("--pipeline", help="The pipeline's name in the inventory.")]
Here = Annotated[str | None, typer.Option("--here", help="Node of the inventory that the head's own machine is.")]


def watch(
    inventory: Annotated[
        Path, typer.Option("--inventory", "-i", help="Snapshot of nodes, workloads, switches, links; read again.")
    ],
    onos: Annotated[
        str | None, typer.Option(help="ONOS to enforce with; user and password from ONOS_USER and ONOS_PASSWORD.")
    ] = None,
    openflow: Annotated[
        Path | None, typer.Option("--openflow", help="Unix socket of the OpenFlow controller to enforce with.")
    ] = None,
    kubernetes: Annotated[
        bool, typer.Option("--kubernetes", help="Enforce in the cluster of the current kubeconfig context.")
    ] = False,
    head: RunningHead = None,
    pipeline: RunningName = DEFAULT_PIPELINE,
    here: Here = None,
    broker: Annotated[
        str | None, typer.Option(help="Where requests to move layers are published as events, beside asking the head.")
    ] = None,
    move: Annotated[
        bool, typer.Option("--move/--no-move", help="Move layers off nodes that they must leave, or only tell.")
    ] = True,
    every: Annotated[
        float, typer.Option(min=0.1, help="Seconds between two looks where nothing tells of changes.")
    ] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, do what follows, and end.")] = False,
    state: Annotated[
        Path | None, typer.Option(help="Folder of the active intents; default: in the user's state.")
    ] = None,
) -> None:
    """Keep proving that the active intents hold; make them hold again, or cut off what cannot be proven.

    With --head, layers of that pipeline leave nodes that have become forbidden, while it serves. Prints a line of JSON
    for each violation, for each step of a move, and for each time that all is well again, with the seconds it took.
    """
    try:
        with (
            Targets(onos=onos, openflow=openflow, kubernetes=kubernetes) as targets,
            running_pipeline(head, pipeline, here) as source,
        ):
            watched = Watched(inventory, IntentStore(state or default_folder()), targets, _tell_violation)
            if source is not None:
                watched.ask_head = source.read
                watched.mover = Mover(source, _publisher(broker), _tell_move) if move else None
            phase = _run(watched, every, once=once)
    except IntentsError as error:
        typer.echo(f"midstream: {error}", err=True)
        raise typer.Exit(_FAILED) from error
    except KeyboardInterrupt:
        return
    if phase is not Phase.WATCHING:
        raise typer.Exit(_REFUSED)


@contextmanager
def running_pipeline(head: str | None, pipeline: str, here: str | None) -> Iterator[MidstreamSource | None]:
    """Open what reads the pipeline of a head; None without a head."""
    if head is None:
        yield None
        return
    with MidstreamSource(head, pipeline, here) as source:
        yield source


def _run(watched: Watched, every: float, *, once: bool) -> Phase:
    loop = DriftLoop(watched, Clock(time.monotonic))
    changes: list[Changed] = []
    while True:
        loop.step(changes)
        for settled in loop.settled:
            took = {"detect_s": round(settled.detect_s, 3), "compliant_s": round(settled.compliant_s, 3)}
            _print({"settled": settled.how, **took})
        loop.settled.clear()
        if once:
            return loop.drift.phase
        changes = watched.wait(every)


def _publisher(broker: str | None) -> Callable[[Move], None]:
    if broker is None:
        return lambda _: None
    return EventSink(broker, os.environ.get(TOKEN_VARIABLE)).publish


def _tell_violation(violated: Violated) -> None:
    _print({"violated": violated.intent, "reason": violated.reason})


def _tell_move(told: Told) -> None:
    _print(told.as_dict())
    for violated in told.violations:
        _tell_violation(violated)


def _print(content: dict[str, Any]) -> None:
    typer.echo(json.dumps(content, ensure_ascii=False))
