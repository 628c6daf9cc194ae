"""CloudEvents of any type over HTTP, passed on as they came.

A broker does not know what events mean: other than `runtime.events`, it takes every type, and data of every kind, whose
bytes it never changes. It insists on what a receiver behind it could choke on: attributes as CloudEvents 1.0 defines
them, no control characters, and attributes small enough to travel as headers (an event that came in the structured mode
goes out in the binary mode).
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import msgspec
from cloudevents.core.exceptions import CloudEventValidationError
from cloudevents.core.v1.event import CloudEvent

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

STRUCTURED = "application/cloudevents+json"
_JSON = "application/json"  # also of data whose type is not given, says the JSON format
_MOST_ATTRIBUTE_BYTES = 8192
_NAME = re.compile(r"[a-z0-9]+")
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_MEDIA_TYPE = re.compile(r"[\w!#$%&'*+.^`|~-]+/[\w!#$%&'*+.^`|~-]+[ \t]*(;[\x20-\x7e]*)?", re.ASCII)
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
_PLAIN_IN_HEADER = "".join(character for character in map(chr, range(0x21, 0x7F)) if character not in '"%')


class MalformedEvent(ValueError):
    """This is no CloudEvent; the message says why."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event: its attributes as text, as they are in headers, and its data as bytes (empty: none)."""

    attributes: Mapping[str, str]
    data: bytes = b""

    @property
    def subject(self) -> str | None:
        """What the event is about."""
        return self.attributes.get("subject")

    def __str__(self) -> str:
        return f"{self.attributes['type']} {self.attributes['source']}#{self.attributes['id']}"

    def extended(self, **extensions: str) -> Event:
        """Return the event with these extensions added or replaced."""
        return Event({**self.attributes, **extensions}, self.data)

    def without(self, extension: str) -> Event:
        """Return the event without an extension."""
        return Event({name: text for name, text in self.attributes.items() if name != extension}, self.data)

    def to_binary(self) -> tuple[dict[str, str], bytes]:
        """Return headers and body of the binary mode."""
        headers = {f"ce-{name}": quote(text, safe=_PLAIN_IN_HEADER) for name, text in self.attributes.items()}
        media_type = headers.pop("ce-datacontenttype", None)
        if media_type is not None:
            headers["content-type"] = self.attributes["datacontenttype"]
        return headers, self.data

    def to_structured(self) -> tuple[dict[str, str], bytes]:
        """Return headers and body of the structured mode."""
        return {"content-type": f"{STRUCTURED}; charset=utf-8"}, self.to_json()

    def to_json(self) -> bytes:
        """Return the event in CloudEvents' JSON format: data as JSON when it is JSON, else in base64."""
        document: dict[str, Any] = dict(self.attributes)
        if self.data and _is_json(self.attributes.get("datacontenttype", _JSON)) and _decodes(self.data):
            document["data"] = msgspec.Raw(self.data)
        elif self.data:
            document["data_base64"] = base64.b64encode(self.data).decode()
        return msgspec.json.encode(document)


def has_event(headers: Mapping[str, str]) -> bool:
    """Whether a request or response (its lower-case headers) means to carry an event."""
    return "ce-specversion" in headers or headers.get("content-type", "").lower().startswith("application/cloudevents")


def read(headers: Iterable[tuple[str, str]], body: bytes) -> Event:
    """Read an event of either mode; headers as they came, with repeated ones.

    Raises:
        MalformedEvent: this is none.

    """
    own: dict[str, str] = {}
    for header, value in headers:
        name = header.lower()
        if name == "content-type" or name.startswith("ce-"):
            if name in own:
                raise MalformedEvent(f"the header {name} is there twice")
            own[name] = value
    media_type = own.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == STRUCTURED:
        return _read_structured(body)
    if media_type.startswith("application/cloudevents"):
        raise MalformedEvent(
            f"content-type {media_type!r} is not taken; send one event as {STRUCTURED} or with headers"
        )
    if not any(name.startswith("ce-") for name in own):
        raise MalformedEvent(
            "this is no CloudEvent: send ce-specversion, ce-id, ce-source and ce-type as headers, "
            f"or all of it as {STRUCTURED}"
        )
    if "ce-datacontenttype" in own:
        raise MalformedEvent("ce-datacontenttype is no header of an event; content-type says it")
    attributes = {name[3:]: _decode_header(name, value) for name, value in own.items() if name.startswith("ce-")}
    if "content-type" in own:
        attributes["datacontenttype"] = own["content-type"]
    return Event(_checked(attributes), body)


def _read_structured(body: bytes) -> Event:
    try:
        body.decode()
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        data, encoded = fields.pop("data", None), fields.pop("data_base64", None)
        values = {name: msgspec.json.decode(raw) for name, raw in fields.items()}
        value = None if data is None else msgspec.json.decode(data)
        in_base64 = None if encoded is None else msgspec.json.decode(encoded)
    except (msgspec.MsgspecError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise MalformedEvent(f"the body is no JSON object of an event: {error}") from error
    except RecursionError as error:
        raise MalformedEvent("the body is nested too deeply") from error
    attributes = {name: _text(name, value) for name, value in values.items() if value is not None}
    if value is not None and in_base64 is not None:
        raise MalformedEvent("give either data or data_base64, not both")
    if value is not None and data is not None:
        attributes.setdefault("datacontenttype", _JSON)
        as_it_is = _is_json(attributes["datacontenttype"]) or not isinstance(value, str)
        return Event(_checked(attributes), bytes(data) if as_it_is else value.encode())
    decoded = b"" if in_base64 is None else _from_base64(in_base64)
    return Event(_checked(attributes), decoded)


def _from_base64(text: object) -> bytes:
    try:
        if not isinstance(text, str):
            raise MalformedEvent("data_base64 must be text")
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise MalformedEvent(f"data_base64 is no base64: {error}") from error


def _text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int):
        return str(value)
    raise MalformedEvent(f"attribute {name!r} must be text, a whole number, true or false")


def _decode_header(name: str, value: str) -> str:
    try:
        if not value.isascii():
            raise MalformedEvent(f"the header {name} must be ASCII, with everything else percent-encoded")
        return unquote(value, errors="strict")
    except UnicodeDecodeError as error:
        raise MalformedEvent(f"the header {name} is percent-encoded, but not UTF-8: {error}") from error


def _checked(attributes: dict[str, str]) -> dict[str, str]:
    for name, text in attributes.items():
        if _NAME.fullmatch(name) is None or name == "data":
            raise MalformedEvent(f"{name[:80]!r} is no name of an attribute; use lower-case letters and digits")
        if _FORBIDDEN.search(text):
            raise MalformedEvent(f"attribute {name!r} has a control character")
    if sum(len(name) + len(text.encode()) for name, text in attributes.items()) > _MOST_ATTRIBUTE_BYTES:
        raise MalformedEvent(
            f"the attributes have more than {_MOST_ATTRIBUTE_BYTES} bytes; large things belong in data"
        )
    media_type = attributes.get("datacontenttype")
    if media_type is not None and _MEDIA_TYPE.fullmatch(media_type) is None:
        raise MalformedEvent(f"{media_type[:80]!r} is no content type such as application/json")
    # What the library would make up when it is not there is filled in here, so that nothing is made up.
    present: dict[str, Any] = {"id": "", "specversion": "", **attributes}
    present["time"] = _time(attributes["time"]) if "time" in attributes else datetime.now(UTC)
    try:
        CloudEvent(present)
    except CloudEventValidationError as error:
        wrong = "; ".join(str(problem) for problems in error.errors.values() for problem in problems[:1])
        raise MalformedEvent(wrong) from error
    return attributes


def _time(text: str) -> datetime:
    try:
        if _TIME.fullmatch(text):
            return datetime.fromisoformat(text.upper())
    except ValueError:
        pass  # such as the 31st of February
    raise MalformedEvent(f"time {text[:80]!r} is none such as 2026-01-31T12:00:00Z")


def _is_json(media_type: str) -> bool:
    subtype = media_type.partition(";")[0].strip().lower().rpartition("/")[2]
    return subtype == "json" or subtype.endswith("+json")


def _decodes(text: bytes) -> bool:
    try:
        text.decode()
        msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return True
