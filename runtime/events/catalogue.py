"""The events that there are, and what they carry.

A type's name never changes its meaning. What its data may hold is a JSON Schema in ``schemas/``, one file per type,
whose ``$id`` is the event's ``dataschema`` and names the version; a change that breaks readers is a new version.
The schemas say what an event may hold for whoever reads or makes one; the classes here are for what a head tells.
"""

from __future__ import annotations

import difflib
import enum
import functools
import json
import re
import reprlib
from importlib import resources
from typing import TYPE_CHECKING, Any

import msgspec
from jsonschema import Draft202012Validator, ValidationError, validators
from jsonschema.exceptions import best_match

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxother = 80  # characters


class Type(enum.StrEnum):
    """The type of an event."""

    WORKLOAD_CHANGED = "dev.midstream.workload.changed"
    RECONFIGURATION_REQUESTED = "dev.midstream.reconfiguration.requested"
    RECONFIGURATION_PLANNED = "dev.midstream.reconfiguration.planned"
    RECONFIGURATION_COMMITTED = "dev.midstream.reconfiguration.committed"
    RECONFIGURATION_ABORTED = "dev.midstream.reconfiguration.aborted"
    STAGE_PREPARE = "dev.midstream.stage.prepare"
    STAGE_PREPARED = "dev.midstream.stage.prepared"
    STAGE_RELEASE = "dev.midstream.stage.release"
    STAGE_RELEASED = "dev.midstream.stage.released"
    INTENT_SUBMITTED = "dev.midstream.intent.submitted"
    INTENT_DECIDED = "dev.midstream.intent.decided"
    INTENT_VIOLATED = "dev.midstream.intent.violated"
    NODE_JOINED = "dev.midstream.node.joined"
    NODE_LOST = "dev.midstream.node.lost"

    @property
    def dataschema(self) -> str:
        """URL that names the type and the version of its data."""
        return f"https://midstream.dev/schemas/{self}/v1.json"

    @property
    def subject_field(self) -> str:
        """The field of the data that the event's subject repeats."""
        return "node" if self in {Type.NODE_JOINED, Type.NODE_LOST} else "pipeline"


class ReconfigurationReport(msgspec.Struct, frozen=True, kw_only=True):
    """Data of ``reconfiguration.planned``, ``.committed`` and ``.aborted``; times in ms, sizes in bytes."""

    pipeline: str
    change: str | None
    from_: str | None = msgspec.field(name="from")
    to: str
    state: str
    reason: str | None
    total_ms: float
    steps_ms: dict[str, float]
    bytes_moved: int
    rounds: int
    requests_carried: int
    epoch: int
    request: str | None
    unchanged: bool
    pause_ms: float | None


class StageReport(msgspec.Struct, frozen=True, kw_only=True):
    """Data of ``stage.prepared`` and ``stage.released``."""

    pipeline: str
    stage: int
    node: str
    change: str | None
    ms: float


class IntentDecided(msgspec.Struct, frozen=True, kw_only=True):
    """Data of ``intent.decided``."""

    pipeline: str
    intent: str
    outcome: str
    kind: str | None
    reason: str | None
    nearest: str | None
    readback: list[str]
    placement: dict[str, str]


class NodeJoined(msgspec.Struct, frozen=True, kw_only=True):
    """Data of ``node.joined``."""

    node: str
    pipeline: str
    weights_were_warm: bool


class NodeLost(msgspec.Struct, frozen=True, kw_only=True):
    """Data of ``node.lost``."""

    node: str
    pipeline: str
    reason: str


class Problem(msgspec.Struct, frozen=True):
    """What is wrong with an event's data: at `where`, such as ``data.layers``."""

    where: str
    message: str


@functools.cache
def schema(kind: Type) -> dict[str, Any]:
    """Return the JSON Schema of a type's data."""
    text = (resources.files(__package__) / "schemas" / f"{kind}.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def problem(kind: Type, data: object) -> Problem | None:
    """Check data against the schema of its type; None when nothing is wrong."""
    errors = list(_validator(kind).iter_errors(data))
    if not errors:
        return None
    # A field that is misspelt explains the one that is missing.
    strange = (error for error in errors if error.validator == "additionalProperties")
    return _explain(next(strange, None) or best_match(errors))


def _fully_matches(_: Any, pattern: str, instance: object, __: Any) -> Iterator[ValidationError]:
    """Check ``pattern`` as JSON Schema means it: Python's ``$`` would let a line feed at the end pass."""
    if isinstance(instance, str) and re.fullmatch(pattern, instance) is None:
        yield ValidationError("has the wrong form")


_Validator = validators.extend(Draft202012Validator, {"pattern": _fully_matches})


@functools.cache
def _validator(kind: Type) -> Any:
    return _Validator(schema(kind))


def _explain(error: ValidationError) -> Problem:
    where = "data" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path)
    described = isinstance(error.schema, dict) and error.schema.get("description")
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        strange = next(name for name in error.instance if name not in known)
        near = difflib.get_close_matches(strange, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}"
        return Problem(where, f"{where} has no field {_short(strange)}; {hint}")
    if error.validator == "required":
        missing = next(name for name in error.validator_value if name not in error.instance)
        about = error.schema["properties"][missing]["description"]
        return Problem(f"{where}.{missing}", f"{where}.{missing} is missing. {about}")
    about = f". {described}" if described else ""
    return Problem(where, f"{where} is {_short(error.instance)}, but {_wanted(error)}{about}")


def _wanted(error: ValidationError) -> str:
    asked = error.validator_value
    match error.validator:
        case "type":
            return f"must be of the type {asked if isinstance(asked, str) else ' or '.join(asked)}"
        case "pattern":
            return "has the wrong form"
        case "enum":
            return f"must be one of {', '.join(asked)}"
        case "const":
            return f"must be {asked!r}"
        case "minimum" | "maximum" | "exclusiveMinimum":
            bound = {"minimum": "at least", "maximum": "at most", "exclusiveMinimum": "more than"}[error.validator]
            return f"must be {bound} {asked}"
    return f"does not keep to {error.validator} {asked}"


def _short(value: object) -> str:
    return _SHORT.repr(value)
