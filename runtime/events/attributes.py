"""The attributes of an event, checked one by one: what the specification asks for, and what others must be able to
repeat in a header or a log line.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from typing import TYPE_CHECKING, Any

import msgspec

from runtime.events.catalogue import Type
from runtime.events.errors import InvalidData, MalformedEvent, UnknownType

if TYPE_CHECKING:
    from collections.abc import Mapping

JSON = "application/json"
_MOST_CHARACTERS = 1024  # of one attribute
_MOST_EXTENSIONS = 32
_MOST_TYPE_CHARACTERS = 100  # compared with the types that there are
_CONTEXT = frozenset(
    {"specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema"}
    | {"traceparent", "tracestate"}
)
_EXTENSION_NAME = re.compile(r"[a-z0-9]{1,64}")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffd-\uffff]")


def missing(name: str) -> MalformedEvent:
    """Return the error of an event without an attribute that it must have."""
    return MalformedEvent(f"{name} is missing; every event needs specversion, id, source, type and subject", name)


def read_text(attributes: Mapping[str, Any], name: str) -> str:
    """Return an attribute that is text; raises MalformedEvent when it is not there or not fit to be repeated."""
    text = attributes.get(name)
    if text is None:
        raise missing(name)
    if not isinstance(text, str) or not 1 <= len(text) <= _MOST_CHARACTERS:
        raise MalformedEvent(f"{name} must be text of 1 to {_MOST_CHARACTERS} characters", name)
    if _UNPRINTABLE.search(text) is not None:
        raise MalformedEvent(f"{name} is {short(text)}, but must have no control characters, and be UTF-8", name)
    if name in {"source", "type"} and any(character.isspace() for character in text):
        raise MalformedEvent(f"{name} is {short(text)}, but must have no blanks", name)
    return text


def read_type(text: str) -> Type:
    """Return the type of that name; raises UnknownType, which names those that are like it."""
    try:
        return Type(text)
    except ValueError:
        near = difflib.get_close_matches(text[:_MOST_TYPE_CHARACTERS], list(Type), 3, cutoff=0.7)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are: {', '.join(Type)}"
        raise UnknownType(f"no event is of the type {short(text)}; {hint}", "type") from None


def check_content(attributes: Mapping[str, Any], kind: Type) -> None:
    """Check what is said of the data; raises MalformedEvent when it is no JSON, InvalidData for another version."""
    content = attributes.get("datacontenttype")
    if content is not None:
        media_type, _, parameters = read_text(attributes, "datacontenttype").lower().partition(";")
        charset = re.fullmatch(r"\s*(charset=\"?utf-?8\"?\s*)?", parameters)
        if media_type.strip() != JSON or charset is None:
            raise MalformedEvent(f"datacontenttype is {short(content)}, but must be {JSON}", "datacontenttype")
    dataschema = attributes.get("dataschema")
    if dataschema is not None and dataschema != kind.dataschema:
        message = f"dataschema is {short(dataschema)}, but of {kind} only {kind.dataschema} is known"
        raise InvalidData(message, "dataschema")


def read_trace(attributes: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the event's traceparent and tracestate as far as they are what W3C Trace Context defines."""
    parent, state = attributes.get("traceparent"), attributes.get("tracestate")
    if not isinstance(parent, str) or _TRACEPARENT.fullmatch(parent) is None:
        return None, None
    return parent, state if isinstance(state, str) and _TRACESTATE.fullmatch(state) else None


def read_extensions(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Return, as text, the attributes that are neither the specification's nor the trace's; raises MalformedEvent."""
    extensions: dict[str, str] = {}
    for name, value in attributes.items():
        if name in _CONTEXT or value is None:
            continue
        if _EXTENSION_NAME.fullmatch(name) is None or name == "data":
            raise MalformedEvent(
                f"the extension {short(name)} must be named by 1 to 64 lower-case letters and digits", None
            )
        if not isinstance(value, (str, bool, int)):
            raise MalformedEvent(f"the extension {name} must be text, a whole number or a truth value", name)
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        extensions[name] = read_text({name: text}, name) if text else ""
    if len(extensions) > _MOST_EXTENSIONS:
        raise MalformedEvent(f"the event has {len(extensions)} extensions, but at most {_MOST_EXTENSIONS} are taken")
    return extensions


def short(value: object) -> str:
    """Return a value as a message shows it, however large it is."""
    return reprlib.repr(value)
