"""CloudEvents 1.0 as they come in and go out over HTTP.

An event is read in the binary mode (attributes in ``ce-`` headers, data in the body) or the structured mode (all of
it as JSON in the body); batches are refused. The cloudevents library knows the two bindings; what it lets pass is
checked here: attributes that others must be able to repeat in a header or a log line, one subject, known types, and
data that keeps to its schema. An event that was read can be written again in both modes.

A trace context that is malformed is dropped and the event is taken, as W3C Trace Context asks. An event without a
time gets the time at which it was read. Extensions become text, as they are in the binary mode.
"""

from __future__ import annotations

import base64
import json
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec
from cloudevents.core.bindings.http import HTTPMessage, from_binary, from_structured, to_binary, to_structured
from cloudevents.core.exceptions import CloudEventValidationError
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from runtime.events import catalogue
from runtime.events.attributes import (
    JSON,
    check_content,
    missing,
    read_extensions,
    read_text,
    read_trace,
    read_type,
    short,
)
from runtime.events.errors import EventError, InvalidData, MalformedEvent, UnknownType

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from cloudevents.core.base import BaseCloudEvent, EventFactory

    from runtime.events.catalogue import Type

__all__ = [
    "Event",
    "EventError",
    "InvalidData",
    "MalformedEvent",
    "UnknownType",
    "make",
    "read_cloudevent",
    "read_http",
]

MOST_BYTES = 64 * 1024
MOST_KEY_CHARACTERS = 1024
_STRUCTURED = "application/cloudevents+json"
# Printable ASCII but the two characters that keep a key readable in one way only, and the blank.
_PLAIN_IN_KEY = "".join(character for character in map(chr, range(0x21, 0x7F)) if character not in "#%")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event whose attributes and data were checked."""

    type: Type
    source: str
    id: str
    subject: str
    time: datetime
    data: dict[str, Any]
    traceparent: str | None = None
    tracestate: str | None = None
    extensions: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """``<source>#<id>``, equal for two events only if they are one, and fit for a header.

        Whatever is not printable ASCII, and ``#`` and ``%``, is percent-encoded in both parts.
        """
        return f"{quote(self.source, safe=_PLAIN_IN_KEY)}#{quote(self.id, safe=_PLAIN_IN_KEY)}"

    def to_cloudevent(self) -> CloudEvent:
        """Return the event as the cloudevents library has it."""
        attributes: dict[str, Any] = {
            "specversion": "1.0",
            "id": self.id,
            "source": self.source,
            "type": str(self.type),
            "subject": self.subject,
            "time": self.time,
            "datacontenttype": JSON,
            "dataschema": self.type.dataschema,
            **self.extensions,
        }
        if self.traceparent is not None:
            attributes["traceparent"] = self.traceparent
        if self.tracestate is not None:
            attributes["tracestate"] = self.tracestate
        return CloudEvent(attributes, self.data)

    def to_http_binary(self) -> tuple[dict[str, str], bytes]:
        """Return headers and body: attributes in headers, data in the body."""
        message = to_binary(self.to_cloudevent(), JSONFormat())
        return message.headers, message.body

    def to_http_structured(self) -> tuple[dict[str, str], bytes]:
        """Return headers and body: all of it in the body."""
        message = to_structured(self.to_cloudevent(), JSONFormat())
        return message.headers, message.body


def make(
    type: Type,  # noqa: A002 - the attribute's name
    source: str,
    subject: str,
    data: dict[str, Any],
    *,
    id: str | None = None,  # noqa: A002 - the attribute's name
    traceparent: str | None = None,
    time: datetime | None = None,
) -> Event:
    """Return a new event.

    Args:
        type: what happened.
        source: who tells, such as ``/midstream/pipelines/smollm``.
        subject: the pipeline's name, or the node's.
        data: what the type's schema asks for.
        id: the same for the same event told again; without it, a new one.
        traceparent: the trace that it belongs to.
        time: when it happened (with a time zone); without it, now.

    Raises:
        EventError: that would be no valid event.

    """
    attributes = {
        "id": uuid.uuid4().hex if id is None else id,
        "source": source,
        "type": str(type),
        "subject": subject,
        "time": time or datetime.now(UTC),
        "traceparent": traceparent,
    }
    return _check({name: value for name, value in attributes.items() if value is not None}, data)


def read_http(headers: Mapping[str, str], body: bytes) -> Event:
    """Read an event from an HTTP request or response.

    Raises:
        EventError: it was not taken; nothing is to be done about it but to answer so.

    """
    if len(body) > MOST_BYTES:
        raise _too_large(len(body))
    own = _own_headers(headers)
    content_type = own.get("content-type", "")
    media_type = content_type.split(";")[0].strip().lower()
    if media_type == _STRUCTURED:
        return read_cloudevent(_from_library(from_structured, own, body))
    if media_type.startswith("application/cloudevents-batch"):
        raise MalformedEvent("batches of events are not taken; send each event in a request of its own", "content-type")
    if media_type.startswith("application/cloudevents"):
        raise MalformedEvent(f"events as {media_type!r} are not taken; use {_STRUCTURED}", "content-type")
    if not any(name.startswith("ce-") for name in own):
        raise MalformedEvent(
            "this is no CloudEvent: send ce-id, ce-source, ce-type, ce-subject and ce-specversion as headers and the "
            f"data as JSON, or all of it as {_STRUCTURED}"
        )
    _require({name.removeprefix("ce-") for name in own})
    return read_cloudevent(_from_library(from_binary, own, body))


def read_cloudevent(event: BaseCloudEvent) -> Event:
    """Read an event that the cloudevents library has parsed, such as ``scope["event"]`` of a function.

    Raises:
        EventError: it was not taken; nothing is to be done about it but to answer so.

    """
    return _check(event.get_attributes(), event.get_data())


# -- from HTTP ---------------------------------------------------------------------------------------------------------


class _StrictJson(JSONFormat):
    """The library's JSON format, but what is no JSON is an error instead of text."""

    def read(self, event_factory: EventFactory | None, data: str | bytes) -> BaseCloudEvent:
        document = _decode(data, None)
        if not isinstance(document, dict):
            raise MalformedEvent("the body must be a JSON object with the event's attributes and `data`")
        # A null attribute is one that is not there.
        present = {name: value for name, value in document.items() if value is not None or name == "data"}
        _require(present)
        if not isinstance(present.get("time", ""), str):
            raise _no_time()
        try:
            base64.b64decode(present.get("data_base64", ""), validate=True)
        except (TypeError, ValueError) as error:
            raise MalformedEvent("data_base64 is no base64; send JSON as `data`", "data_base64") from error
        return super().read(event_factory, msgspec.json.encode(present))

    def read_data(self, body: bytes, datacontenttype: str | None) -> Any:  # noqa: ARG002 - as the library calls it
        return body  # `read_cloudevent` decodes it


def _own_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that are the event's, by lower-case name."""
    own: dict[str, str] = {}
    for name, value in headers.items():
        lower = name.lower()
        if lower != "content-type" and not lower.startswith("ce-"):
            continue
        if lower in own:
            raise MalformedEvent(f"the header {lower} is there twice", lower)
        own[lower] = value
    return own


def _from_library(read: Any, headers: dict[str, str], body: bytes) -> BaseCloudEvent:
    try:
        event: BaseCloudEvent = read(HTTPMessage(headers, body), _StrictJson(), CloudEvent)
    except CloudEventValidationError as error:
        name, problems = next(iter(error.errors.items()))
        raise MalformedEvent(f"{'; '.join(str(problem) for problem in problems)}", name) from error
    except EventError:
        raise
    except (ValueError, OverflowError) as error:  # all else that the library parses was parsed before
        raise _no_time() from error
    return event


def _require(names: Container[str]) -> None:
    """Check that nothing is missing that the library would make up."""
    for name in ("specversion", "id", "source", "type"):
        if name not in names:
            raise missing(name)


def _decode(text: str | bytes, param: str | None) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise MalformedEvent(f"{param or 'the body'} is no JSON in UTF-8: {error}", param) from error
    except RecursionError as error:
        raise MalformedEvent(f"{param or 'the body'} is nested too deeply", param) from error


def _no_time() -> MalformedEvent:
    return MalformedEvent("time must be a date and time with a time zone, such as 2026-01-31T12:00:00Z", "time")


def _too_large(size: int) -> MalformedEvent:
    return MalformedEvent(
        f"the event has {size} bytes, but at most {MOST_BYTES} are taken; refer to large data by a URL"
    )


# -- checks ------------------------------------------------------------------------------------------------------------


def _check(attributes: Mapping[str, Any], data: object) -> Event:
    specversion = attributes.get("specversion", "1.0")
    if specversion != "1.0":
        raise MalformedEvent(f"specversion is {specversion!r}, but only '1.0' is taken", "specversion")
    texts = {name: read_text(attributes, name) for name in ("id", "source", "type")}
    kind = read_type(texts["type"])
    check_content(attributes, kind)
    checked = _data(kind, data)
    time = attributes.get("time") or datetime.now(UTC)
    if not isinstance(time, datetime) or time.tzinfo is None:
        raise _no_time()
    traceparent, tracestate = read_trace(attributes)
    event = Event(
        type=kind,
        source=texts["source"],
        id=texts["id"],
        subject=_subject(attributes, kind, checked),
        time=time,
        data=checked,
        traceparent=traceparent,
        tracestate=tracestate,
        extensions=read_extensions(attributes),
    )
    if len(event.key) > MOST_KEY_CHARACTERS:
        raise MalformedEvent(
            f"source and id have {len(event.key)} characters, percent-encoded, but at most {MOST_KEY_CHARACTERS} are "
            "taken; use a shorter id",
            "id",
        )
    return event


def _data(kind: Type, given: object) -> dict[str, Any]:
    """Return data as JSON has it: what comes parsed may hold what JSON cannot, such as NaN, which is refused."""
    try:
        text = given if isinstance(given, bytes) else json.dumps(given).encode()
    except (TypeError, ValueError) as error:
        raise MalformedEvent(f"data is no JSON: {error}", "data") from error
    except RecursionError as error:
        raise MalformedEvent("data is nested too deeply", "data") from error
    if len(text) > MOST_BYTES:
        raise _too_large(len(text))
    data = _decode(text, "data")
    if not isinstance(data, dict):
        raise InvalidData(f"data must be a JSON object with the fields of {kind}", "data")
    try:
        problem = catalogue.problem(kind, data)
    except RecursionError as error:
        raise MalformedEvent("data is nested too deeply", "data") from error
    if problem is not None:
        raise InvalidData(f"{kind}: {problem.message}", problem.where)
    return data


def _subject(attributes: Mapping[str, Any], kind: Type, data: dict[str, Any]) -> str:
    subject = read_text(attributes, "subject")
    name = kind.subject_field
    if subject != data[name]:
        message = f"subject is {short(subject)}, but data.{name} is {data[name]!r}; the two must be the same"
        raise InvalidData(message, "subject")
    return subject
