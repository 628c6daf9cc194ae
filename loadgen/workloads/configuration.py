"""The base of everything a user writes down about a workload, and how a mistake in it is told.

Unknown fields are refused: a misspelt field that is silently ignored costs a whole experiment. `explain` turns
pydantic's errors into one line per mistake, with the path of the field as it stands in the user's file.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError


class Strict(BaseModel):
    """A frozen part of a description that refuses unknown fields, infinities and NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def explain(error: ValidationError, document: object, at: str) -> str:
    """Return the mistakes in `document`, one per line; `at` is the path of the document itself, for example `workload`.

    Pydantic puts the chosen kind of a union into its paths ("workload.open.arrivals.poisson.rate"); the user's file
    has no such level, so it is left out.
    """
    details = error.errors(include_url=False, include_context=False)
    # Pydantic also calls a list too short when its items are wrong.
    wrong_inside = {detail["loc"][:depth] for detail in details for depth in range(len(detail["loc"]))}
    told = [detail for detail in details if detail["type"] != "too_short" or detail["loc"] not in wrong_inside]
    return "\n".join(_line(detail, document, at) for detail in told)


def _line(detail: Mapping[str, Any], document: object, at: str) -> str:
    path, here = at, document
    missing = detail["type"] == "missing"
    for position, step in enumerate(detail["loc"]):
        last = position == len(detail["loc"]) - 1
        if isinstance(step, int):
            path += f"[{step}]"
            here = here[step] if isinstance(here, list | tuple) and step < len(here) else None
        elif isinstance(here, Mapping) and step in here:
            path += f".{step}" if path else step
            here = here[step]
        elif missing and last:
            path += f".{step}" if path else step
    message = detail["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    value = detail["input"]
    shown = f" (got {value!r})" if isinstance(value, str | int | float | bool) or value is None else ""
    return f"{path}: {message}{'' if missing else shown}"
