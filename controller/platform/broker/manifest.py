"""The shape of a Knative Trigger object, as far as it can work on one machine.

Stricter than the cluster's API server, which keeps unknown fields of a Trigger: a field that is misspelt (``filers:``)
would match every event. Durations are ISO 8601, as in Knative.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

_DIALECTS = ("exact", "prefix", "suffix", "all", "any", "not_", "cesql")
_DURATION = re.compile(r"P(\d+D)?(T(\d+H)?(\d+M)?(\d+(\.\d+)?S)?)?")


def _duration_text(value: object) -> object:
    if isinstance(value, str) and _DURATION.fullmatch(value) and value[-1] not in "PT":
        return value
    raise ValueError("is no ISO 8601 duration; write, for example, PT0.2S or PT2M")


Duration = Annotated[timedelta, BeforeValidator(_duration_text)]
AttributeName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*$")]
Compared = Annotated[dict[AttributeName, Annotated[str, Field(min_length=1)]], Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel)


class RefManifest(_Strict):
    """A Service by its name."""

    api_version: Literal["serving.knative.dev/v1", "v1"] | None = None
    kind: Literal["Service"]
    name: str = Field(min_length=1)
    namespace: str | None = None


class DestinationManifest(_Strict):
    """Where events go: an address, a Service, or a path at a Service."""

    ref: RefManifest | None = None
    uri: str | None = Field(None, min_length=1)


class AttributesManifest(_Strict):
    """The older filter."""

    attributes: dict[AttributeName, str] | None = None


class FilterManifest(_Strict):
    """One filter of the Subscriptions API; exactly one field is given."""

    exact: Compared | None = None
    prefix: Compared | None = None
    suffix: Compared | None = None
    all: Annotated[list[FilterManifest], Field(min_length=1)] | None = None
    any: Annotated[list[FilterManifest], Field(min_length=1)] | None = None
    not_: FilterManifest | None = Field(None, alias="not")
    cesql: Any = None

    @model_validator(mode="after")
    def _one_dialect(self) -> Self:
        if self.cesql is not None:
            raise ValueError("cesql is not supported here; say it with exact, prefix, suffix, all, any and not")
        if sum(getattr(self, name) is not None for name in _DIALECTS) != 1:
            raise ValueError("a filter has exactly one of exact, prefix, suffix, all, any, not")
        return self


class DeliveryManifest(_Strict):
    """What happens to an event that is not taken."""

    dead_letter_sink: DestinationManifest | None = None
    retry: Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)] | None = None
    backoff_policy: Literal["linear", "exponential"] | None = None
    backoff_delay: Duration | None = None
    timeout: Duration | None = None
    retry_after_max: Duration | None = None
    format: Literal["json", "binary"] | None = None

    @model_validator(mode="after")
    def _some_time(self) -> Self:
        if self.timeout is not None and not self.timeout:
            raise ValueError("timeout must be longer than nothing; write, for example, PT30S")
        return self


class SpecManifest(_Strict):
    """A trigger's spec."""

    broker: str | None = None
    broker_ref: dict[str, Any] | None = None
    subscriber: DestinationManifest
    filter: AttributesManifest | None = None
    filters: list[FilterManifest] | None = None
    delivery: DeliveryManifest | None = None


class MetadataManifest(BaseModel):
    """A trigger's metadata; only the name matters here."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(max_length=253, pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")


class TriggerManifest(_Strict):
    """A Trigger."""

    api_version: Literal["eventing.knative.dev/v1"]
    kind: Literal["Trigger"]
    metadata: MetadataManifest
    spec: SpecManifest
    status: Any = None
