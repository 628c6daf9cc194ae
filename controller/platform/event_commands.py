"""`midstream event`: send an event by hand, and look at what a broker has seen."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from controller.console import FAILED, REFUSED, err, fail, out
from controller.platform.broker.client import BROKER_VARIABLE, DEFAULT_BROKER, BrokerClient, BrokerError
from runtime.events.catalogue import Type
from runtime.events.envelope import EventError, make
from runtime.events.from_journal import source_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from controller.platform.broker.client import Seen
    from controller.platform.broker.ring import Undelivered
    from runtime.events.envelope import Event

app = typer.Typer(help="Send events to the broker, and watch those that it has.", no_args_is_help=True)

# The events that end the wait for an answer.
_ENDS = {
    Type.RECONFIGURATION_REQUESTED: {Type.RECONFIGURATION_COMMITTED: True, Type.RECONFIGURATION_ABORTED: False},
    Type.STAGE_PREPARE: {Type.STAGE_PREPARED: True},
    Type.STAGE_RELEASE: {Type.STAGE_RELEASED: True},
}
_BEFORE_THE_END = frozenset({Type.RECONFIGURATION_PLANNED})
_OWN_ID = "request-"  # begins the id of what a function answers without the head
_SHOWN_DATA = 400

Broker = Annotated[str, typer.Option(envvar=BROKER_VARIABLE, help="The broker's address.")]
Subject = Annotated[str | None, typer.Option(help="Only events about this pipeline or node.")]
OfType = Annotated[str | None, typer.Option("--type", help="Only events of this type.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]


@app.command("send")
def send(
    type_name: Annotated[str, typer.Argument(metavar="TYPE", help="Such as dev.midstream.workload.changed.")],
    data: Annotated[str, typer.Option(help="The event's data: JSON, @FILE, or - for standard input.")] = "{}",
    subject: Annotated[str | None, typer.Option(help="Default: the pipeline or node that the data names.")] = None,
    source: Annotated[str, typer.Option(help="Who tells.")] = "/midstream/command",
    event_id: Annotated[
        str | None, typer.Option("--id", help="The same id and source: the same event. Default: a new one.")
    ] = None,
    broker: Broker = DEFAULT_BROKER,
    wait: Annotated[
        float | None, typer.Option(min=0, help="Seconds to wait for the events that answer it, which are printed.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Send an event, and with --wait see what comes of it.

    Exit codes: 0 accepted (with --wait: and done), 1 not done (aborted, no answer, no broker), 2 refused.
    """
    event = _event(type_name, _data(data), subject, source, event_id)
    if wait is not None and event.type not in _ENDS:
        fail(f"no event answers {event.type}; leave out --wait", REFUSED)
    with _client(broker) as client:
        number = client.send(*event.to_http_binary())
        err.print(f"accepted: {event.type} {event.id} about {event.subject}", soft_wrap=True)
        if wait is not None:
            _await_answer(client, event, number, wait, json_output=json_output)


@app.command("list")
def list_events(
    subject: Subject = None, of_type: OfType = None, broker: Broker = DEFAULT_BROKER, json_output: Json = False
) -> None:
    """Print the recent events that the broker still has."""
    with _client(broker) as client:
        after = 0
        while (page := client.events(after, subject=subject, type=of_type)).events:
            for seen in page.events:
                _print(seen, json_output=json_output)
            after = page.next


@app.command("watch")
def watch(
    subject: Subject = None,
    of_type: OfType = None,
    broker: Broker = DEFAULT_BROKER,
    json_output: Json = False,
    seconds: Annotated[float | None, typer.Option(min=0, help="How long; default: until Ctrl-C.")] = None,
) -> None:
    """Print events as they come, from now on."""
    with _client(broker) as client:
        for seen in client.watch(client.events("latest").next, seconds, subject=subject, type=of_type):
            _print(seen, json_output=json_output)


def _await_answer(client: BrokerClient, event: Event, number: int, wait_s: float, *, json_output: bool) -> None:
    """Print the answers to an event until one says that it is over."""
    printed = set()
    for seen in client.watch(number, wait_s, subject=event.subject):
        told, itself = seen.event, (seen.event["source"], seen.event["id"])
        if itself == (event.source, event.id) and seen.undelivered is not None:
            lost = seen.undelivered
            refused = 400 <= lost.code < 500
            fail(
                f"trigger {lost.trigger} could not hand the event to {lost.destination}: {lost.code} {_said(lost)}",
                REFUSED if refused else FAILED,
            )
        if not _answers(told, event) or itself in printed:
            continue
        printed.add(itself)  # the head and the function both tell
        _print(seen, json_output=json_output)
        done = _ENDS[event.type].get(told["type"])
        if done is not None:
            raise typer.Exit(0 if done else FAILED)
    fail(f"no answer to {event.type} {event.id} within {wait_s:g} s; `midstream status` tells what serves")


def _answers(told: dict[str, Any], event: Event) -> bool:
    """Whether an event that came by answers one that was sent.

    An answer names the request, but for a stage that moved: of that, only the stage is told. Ids of answers about
    which the head says nothing itself follow from the request (`functions`).
    """
    data, kind = told.get("data"), told["type"]
    if not isinstance(data, dict) or told["source"] != source_of(event.data["pipeline"]):
        return False
    if kind not in _ENDS[event.type]:
        return event.type is Type.RECONFIGURATION_REQUESTED and kind in _BEFORE_THE_END and _is_for(data, event)
    if told["id"].startswith(_OWN_ID):
        return bool(told["id"].rpartition(".")[0] == _OWN_ID + hashlib.sha256(event.key.encode()).hexdigest()[:32])
    if event.type is Type.RECONFIGURATION_REQUESTED or data.get("request") is not None:
        return _is_for(data, event)
    return bool(data.get("stage") == event.data["stage"])


def _is_for(data: dict[str, Any], event: Event) -> bool:
    return data.get("request") == event.id


def _said(lost: Undelivered) -> str:
    """Return what the subscriber said; of an error in JSON, its message."""
    try:
        return str(json.loads(lost.message)["error"]["message"])
    except (ValueError, RecursionError, KeyError, TypeError):
        return lost.message


def _event(type_name: str, data: object, subject: str | None, source: str, event_id: str | None) -> Event:
    try:
        kind = Type(type_name)
    except ValueError:
        fail(f"nothing is known of events of the type {type_name!r}; known are: {', '.join(Type)}", REFUSED)
    if not isinstance(data, dict):
        fail('--data must be a JSON object, such as \'{"pipeline": "smollm"}\'', REFUSED)
    try:
        return make(kind, source, subject or str(data.get(kind.subject_field, "")), data, id=event_id)
    except EventError as error:
        fail(str(error), REFUSED)


def _data(text: str) -> object:
    try:
        if text == "-":
            text = sys.stdin.read()
        elif text.startswith("@"):
            text = Path(text[1:]).read_text("utf-8")
        return json.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        fail(f"--data: {error}")
    except (ValueError, RecursionError) as error:
        fail(f"--data is no JSON: {error}", REFUSED)


def _print(seen: Seen, *, json_output: bool) -> None:
    if json_output:
        lost = seen.undelivered
        told = {name: getattr(lost, name) for name in lost.__struct_fields__} if lost else None
        line = {"sequence": seen.sequence, "at": seen.at, "event": seen.event, "undelivered": told}
        print(json.dumps(line), flush=True)  # noqa: T201 - to be read by a program
        return
    at = dt.datetime.fromtimestamp(seen.at, dt.UTC).strftime("%H:%M:%S.%f")[:-3]
    event = seen.event
    details = json.dumps(event.get("data"))
    if len(details) > _SHOWN_DATA:
        details = f"{details[:_SHOWN_DATA]}..."
    out.print(f"{at}  {event.get('subject', '-')}  {event['type']}  {details}", soft_wrap=True, markup=False)
    if seen.undelivered is not None:
        lost = seen.undelivered
        out.print(
            f"  not taken by {lost.destination} (trigger {lost.trigger}): {lost.code} {_said(lost)}",
            soft_wrap=True,
            markup=False,
        )


@contextmanager
def _client(address: str) -> Iterator[BrokerClient]:
    """Open a client whose errors end the command with one line and the right exit code."""
    try:
        with BrokerClient(address) as client:
            yield client
    except BrokerError as error:
        fail(str(error), REFUSED if error.refused else FAILED)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
