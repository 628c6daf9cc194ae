"""Why an event is not taken.

::

    EventError
    ├── MalformedEvent   400: no CloudEvent, or one that breaks the specification
    ├── UnknownType      422: an event of which nothing is known here
    └── InvalidData      422: its data, or what the attributes say of it, is wrong
"""

from __future__ import annotations

from typing import Any


class EventError(ValueError):
    """An event was not taken.

    Attributes:
        code: the HTTP status that says so.
        kind: a word for programs.
        param: the attribute or field that is wrong, such as ``ce-id`` or ``data.layers``; None for all of it.

    """

    code = 400
    kind = "invalid_event"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    def as_error_body(self) -> dict[str, Any]:
        """Return the answer's body, in the style of OpenAI's API."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


class MalformedEvent(EventError):
    """This is no CloudEvent, or it breaks the specification."""

    kind = "malformed_event"


class UnknownType(EventError):
    """Nothing is known of such events."""

    code = 422
    kind = "unknown_type"


class InvalidData(EventError):
    """The data does not keep to the schema of the event's type, or the attributes contradict it."""

    code = 422
    kind = "invalid_data"
