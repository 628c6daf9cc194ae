"""The `LLMPipeline` object: what a user wants to be served, the same on a laptop and on a cluster.

This module is the object itself, as values: which fields there are, which go together, what a change of it means. It
starts nothing and reads no file. The CRD for clusters states the same rules (as a schema and as CEL), so what is
accepted here is accepted there; what only a cluster can do, such as a node selector, is refused by the local platform
and not here.

How the object changes while it serves (`diff`)::

    stages, auto, migration   -> LiveChange   a live reconfiguration; no stream notices
    labels, annotations       -> LiveChange   without anything to do
    everything else           -> Restart      with the paths of the fields

::

    PipelineError
        InvalidPipeline         the object breaks rules: `problems` has all of them
        PipelineFileError       no object can be read from a file (`controller.platform.pipeline_file`)
        UnsupportedHere         the object is valid, but the local platform cannot do what it asks for
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from runtime.layout import LOCAL_NODE, even_split
from runtime.migration.protocol import Fallback, Method

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pydantic_core import ErrorDetails

API_VERSION = "midstream.dev/v1alpha1"
KIND = "LLMPipeline"
MOST_STAGES = 64
DEFAULT_STAGES = 2

_MOST = 2**31 - 1  # what any number of the CRD may be at most
_VALUE_CHARACTERS = 80
_NAME = re.compile(r"(?=.{1,40}$)[a-z]([a-z0-9-]*[a-z0-9])?")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NODE = re.compile(r"(?=.{1,64}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_HUB_ID = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
_GUARD = re.compile(r"(?=.{1,1024}$)https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?")
_QUANTITY = re.compile(r"\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)?")
_META_KEY = re.compile(r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?", re.ASCII)
_META_VALUE = re.compile(r"([A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?)?", re.ASCII)

# What a cluster writes into the metadata of every object: read back, it is no mistake, and nothing to us.
_WRITTEN_BY_A_CLUSTER = frozenset(
    {
        *("uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "managedFields"),
        *("deletionGracePeriodSeconds", "finalizers", "ownerReferences", "selfLink", "generateName"),
    }
)

# Flags of `midstream serve` and of vLLM that the object, the platform or Midstream itself decides, and who does.
_OWN_FLAGS = {
    "--model": "spec.model says it",
    "--revision": "spec.model.revision says it",
    "--dtype": "spec.model.dtype says it",
    "--layers": "spec.stages or spec.auto says it",
    "--spare-stages": "spec.scaling.spareStages says it",
    "--sleep-after": "spec.scaling.sleepAfterSeconds says it",
    "--hold-requests": "spec.scaling.holdRequests says it",
    "--hold-seconds": "spec.scaling.holdSeconds says it",
    "--guard": "spec.privacy.guard says it",
    **dict.fromkeys(
        ("--host", "--port", "--uds", "--node", "--node-grace", "--name", "--listen", "--state", "--headless"),
        "the platform decides it",
    ),
    **dict.fromkeys(
        (
            *("--distributed-executor-backend", "--scheduler-cls", "--additional-config", "--config"),
            *("--async-scheduling", "--no-async-scheduling", "--pipeline-parallel-size", "--tensor-parallel-size"),
            *("--data-parallel-size", "--worker-cls", "--worker-extension-cls", "--trust-remote-code"),
            *("-pp", "-tp", "-dp"),  # vLLM's short forms
        ),
        "Midstream decides it",
    ),
    **dict.fromkeys(("--api-key", "--hf-token"), "command lines can be read by others; set it in the environment"),
}
# Flags of vLLM for which the object has a field; either may be used, not both.
_FLAG_OF_FIELD = {
    "spec.model.maxLength": "--max-model-len",
    "spec.capacity.kvBlocks": "--num-gpu-blocks-override",
    "spec.capacity.maxRequests": "--max-num-seqs",
    "spec.capacity.maxBatchTokens": "--max-num-batched-tokens",
}


class PipelineError(ValueError):
    """An LLMPipeline cannot be used as it is; the message says what is wrong, where, and what to do."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One broken rule: the field's `path` from the top of the object, and in words the value and what to do."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class InvalidPipeline(PipelineError):
    """The object breaks rules; `problems` lists all that were found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class PipelineFileError(PipelineError):
    """A file holds no single LLMPipeline; the message names file and line."""


class UnsupportedHere(PipelineError):
    """The object is valid, but asks for what only a cluster has."""


def _broken(message: str) -> PydanticCustomError:
    return PydanticCustomError("rule", "{message}", {"message": message})


def _name(text: str) -> str:
    # On a cluster, Services are named after it.
    if not _NAME.fullmatch(text):
        raise _broken(
            "is no name: at most 40 lower-case letters, digits and '-', a letter first, such as smollm or my-llm-2"
        )
    return text


def _namespace(text: str) -> str:
    if not _LABEL.fullmatch(text):
        raise _broken("is no namespace: at most 63 lower-case letters, digits and '-', such as default")
    return text


def _node_name(text: str) -> str:
    if text == LOCAL_NODE:
        raise _broken("means the head's own node; leave `node` out for it")
    if not _NODE.fullmatch(text):
        raise _broken("is no node's name: at most 64 lower-case letters, digits, '-' and '.', such as edge-1")
    return text


def _hub_id(text: str) -> str:
    if not _HUB_ID.fullmatch(text):
        raise _broken("is no Hugging Face id, such as HuggingFaceTB/SmolLM2-135M-Instruct; for a folder use `path`")
    return text


def _revision(text: str) -> str:
    # Not a flag: it follows one on a command line.
    if not re.fullmatch(r"[A-Za-z0-9_][\w./-]{0,254}", text, re.ASCII):
        raise _broken("is no branch, tag or commit, such as main")
    return text


def _absolute(text: str) -> str:
    if not text.startswith("/") or "\0" in text:
        raise _broken("is no absolute path, such as /models/smollm2; the head may run in another folder than you")
    return text


def _guard(text: str) -> str:
    if not _GUARD.fullmatch(text):
        raise _broken("is no address such as http://guard:7180")
    return text


def _number_as_text(value: object) -> object:
    # As Kubernetes does: `cpu: 2` means '2'.
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _quantity(text: str) -> str:
    if not _QUANTITY.fullmatch(text):
        raise _broken("is no quantity, such as '2', 500m or 4Gi")
    return text


def _meta_key(text: str) -> str:
    if not _META_KEY.fullmatch(text):
        raise _broken("is no key such as midstream.dev/tier")
    return text


def _meta_value(text: str) -> str:
    if not _META_VALUE.fullmatch(text):
        raise _broken("is no label value: at most 63 letters, digits, '-', '_' and '.', such as edge")
    return text


Count = Annotated[StrictInt, Field(ge=1, le=_MOST)]
Labels = dict[Annotated[str, AfterValidator(_meta_key)], Annotated[str, AfterValidator(_meta_value)]]
Quantities = dict[
    Annotated[str, AfterValidator(_meta_key)],
    Annotated[str, BeforeValidator(_number_as_text), AfterValidator(_quantity)],
]


class _Part(BaseModel):
    """A part of the object: immutable, fields in camel case as in YAML, nothing unknown."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, validate_by_name=True, validate_by_alias=True
    )


class Metadata(_Part):
    """Which object it is."""

    name: Annotated[str, AfterValidator(_name)]
    namespace: Annotated[str, AfterValidator(_namespace)] | None = None
    labels: Labels | None = None
    annotations: dict[Annotated[str, AfterValidator(_meta_key)], str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _forget_what_a_cluster_wrote(cls, raw: Any) -> Any:
        if isinstance(raw, dict):
            return {key: value for key, value in raw.items() if key not in _WRITTEN_BY_A_CLUSTER}
        return raw


class Model(_Part):
    """Which model; with neither `id` nor `path` the built-in one. `layers` is checked against the stages."""

    id: Annotated[str, AfterValidator(_hub_id)] | None = None
    path: Annotated[str, AfterValidator(_absolute)] | None = None
    revision: Annotated[str, AfterValidator(_revision)] | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    max_length: Count | None = None
    layers: Count | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Model:
        if self.id and self.path:
            raise _broken("has both `id` and `path`; keep one of them")
        if self.revision and not self.id:
            raise _broken("has a `revision`, which only a model with an `id` has; remove it")
        return self


class Resources(_Part):
    """What a stage's container asks for, on a cluster; as in a pod."""

    requests: Quantities | None = None
    limits: Quantities | None = None


class Stage(_Part):
    """One stage: how many layers, and where. With neither `node` nor `nodeSelector` it runs beside the head."""

    layers: Count
    node: Annotated[str, AfterValidator(_node_name)] | None = None
    node_selector: Annotated[Labels, Field(min_length=1)] | None = None
    resources: Resources | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Stage:
        if self.node and self.node_selector:
            raise _broken("has both `node` and `nodeSelector`; keep one of them")
        return self


class Auto(_Part):
    """The most even split into a number of stages."""

    stages: Annotated[StrictInt, Field(ge=1, le=MOST_STAGES)]


class Migration(_Part):
    """How KV gets to layers that change their node, and what to do when pre-copy does not converge."""

    method: Method = Method.PRE_COPY
    fallback: Fallback = Fallback.ABORT


class Capacity(_Part):
    """Limits that the pipeline starts with, and that it can be given back up to."""

    kv_blocks: Annotated[StrictInt, Field(ge=2, le=_MOST)] | None = None
    max_requests: Count | None = None
    max_batch_tokens: Count | None = None


class Scaling(_Part):
    """When stages end and how requests wait for them; seconds may have fractions."""

    sleep_after_seconds: Annotated[StrictFloat, Field(ge=0.1, le=_MOST, allow_inf_nan=False)] | None = None
    hold_requests: Count | None = None
    hold_seconds: Annotated[StrictFloat, Field(ge=1, le=_MOST, allow_inf_nan=False)] | None = None
    spare_stages: Annotated[StrictInt, Field(ge=0, le=MOST_STAGES)] | None = None


class Privacy(_Part):
    """Who says where the pipeline may be: the guard of the privacy intents. Its token is in the environment."""

    guard: Annotated[str, AfterValidator(_guard)] | None = None


class Spec(_Part):
    """What is wanted."""

    model: Model = Model()
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=MOST_STAGES)] | None = None
    auto: Auto | None = None
    migration: Migration = Migration()
    capacity: Capacity = Capacity()
    scaling: Scaling = Scaling()
    privacy: Privacy = Privacy()
    engine_args: Annotated[tuple[str, ...], Field(max_length=256)] = ()


class LLMPipeline(_Part):
    """The object. Make one from plain data with `parse`, which reports all mistakes in words."""

    api_version: Literal["midstream.dev/v1alpha1"]
    kind: Literal["LLMPipeline"]
    metadata: Metadata
    spec: Spec = Spec()

    @classmethod
    def parse(cls, raw: object) -> LLMPipeline:
        """Return the object that plain data (as from YAML) describes.

        A `status`, and metadata that a cluster adds, are left out: they are not part of what is wanted.

        Raises:
            InvalidPipeline: it breaks rules; all of them are named.

        """
        if isinstance(raw, dict):
            raw = {key: value for key, value in raw.items() if key != "status"}
        try:
            pipeline = cls.model_validate(raw)
        except ValidationError as error:
            raise InvalidPipeline(_problems(error)) from error
        if problems := list(_broken_rules(pipeline.spec)):
            raise InvalidPipeline(problems)
        return pipeline

    @property
    def name(self) -> str:
        """The pipeline's name."""
        return self.metadata.name

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that stages name, in order, each once."""
        return tuple(dict.fromkeys(stage.node for stage in self.spec.stages or () if stage.node))

    @property
    def known_layers(self) -> int | None:
        """How many layers the model has, as far as the object says it."""
        if self.spec.stages:
            return sum(stage.layers for stage in self.spec.stages)
        return self.spec.model.layers

    def layout_text(self, total_layers: int) -> str:
        """Return the layout as the runtime reads it, such as ``15@edge-1,15``, for a model of `total_layers` layers.

        Raises:
            InvalidPipeline: the stages do not fit a model of so many layers.

        """
        declared = self.spec.model.layers
        if declared is not None and declared != total_layers:
            raise InvalidPipeline(
                [Problem("spec.model.layers", f"{declared}, but the model has {total_layers}; correct or remove it")]
            )
        stages = self.spec.stages
        if stages is None:
            wanted = self.spec.auto.stages if self.spec.auto else min(DEFAULT_STAGES, total_layers)
            if wanted > total_layers:
                raise InvalidPipeline([_too_many(wanted, total_layers)])
            return even_split(total_layers, wanted)
        if (total := sum(stage.layers for stage in stages)) != total_layers:
            raise InvalidPipeline([_wrong_sum(stages, total, f"the model has {total_layers}", total_layers)])
        return ",".join(f"{stage.layers}@{stage.node}" if stage.node else str(stage.layers) for stage in stages)

    def to_object(self) -> dict[str, Any]:
        """Return it as plain data, as in YAML; `parse` makes the same object of it."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)


@dataclass(frozen=True, slots=True)
class LiveChange:
    """The pipeline can become the new object while it serves: `layers` is the new layout, None if it stays."""

    layers: str | None
    method: Method
    fallback: Fallback


@dataclass(frozen=True, slots=True)
class Restart:
    """Fields differ that only a restart changes; their paths."""

    fields: tuple[str, ...]


def diff(old: LLMPipeline, new: LLMPipeline, total_layers: int | None = None) -> LiveChange | Restart:
    """Say what it takes to get from one object to another.

    Args:
        old: what serves.
        new: what is wanted.
        total_layers: of the model; may be None when one of the objects says it.

    Raises:
        InvalidPipeline: the new stages do not fit the model, or nobody says how many layers it has.

    """
    if fields := tuple(_restart_fields(old, new)):
        return Restart(fields)
    migration = new.spec.migration
    total = total_layers or old.known_layers or new.known_layers
    if total is None:
        if old.spec.auto == new.spec.auto:
            return LiveChange(None, migration.method, migration.fallback)
        raise InvalidPipeline(
            [Problem("spec.model.layers", "is missing, and nothing else says how many layers the model has; add it")]
        )
    wanted = new.layout_text(total)
    return LiveChange(None if wanted == old.layout_text(total) else wanted, migration.method, migration.fallback)


def _restart_fields(old: LLMPipeline, new: LLMPipeline) -> Iterable[str]:
    for field in ("name", "namespace"):
        if getattr(old.metadata, field) != getattr(new.metadata, field):
            yield f"metadata.{field}"
    for part in ("model", "capacity", "scaling", "privacy"):
        before, after = getattr(old.spec, part), getattr(new.spec, part)
        for field, info in type(before).model_fields.items():
            # How many layers the user thinks the model has is checked, but changes nothing.
            if (part, field) != ("model", "layers") and getattr(before, field) != getattr(after, field):
                yield f"spec.{part}.{info.alias}"
    if old.spec.engine_args != new.spec.engine_args:
        yield "spec.engineArgs"


def _broken_rules(spec: Spec) -> Iterable[Problem]:
    """Yield what is wrong between fields, each of which is right by itself."""
    declared = spec.model.layers
    if spec.stages and spec.auto:
        yield Problem("spec", "has both `stages` and `auto`; keep one of them")
    elif spec.stages and declared is not None and (total := sum(stage.layers for stage in spec.stages)) != declared:
        yield _wrong_sum(spec.stages, total, f"spec.model.layers is {declared}", declared)
    elif spec.auto and declared is not None and spec.auto.stages > declared:
        yield _too_many(spec.auto.stages, declared)
    yield from _refused_flags(spec)


def _refused_flags(spec: Spec) -> Iterable[Problem]:
    given = {
        "spec.model.maxLength": spec.model.max_length,
        "spec.capacity.kvBlocks": spec.capacity.kv_blocks,
        "spec.capacity.maxRequests": spec.capacity.max_requests,
        "spec.capacity.maxBatchTokens": spec.capacity.max_batch_tokens,
    }
    refused = dict(_OWN_FLAGS)
    refused.update({_FLAG_OF_FIELD[field]: f"{field} says it" for field, value in given.items() if value is not None})
    previous_is_flag = False
    for position, argument in enumerate(spec.engine_args):
        path = f"spec.engineArgs[{position}]"
        is_flag = argument.startswith("-") and argument != "--" and "\0" not in argument
        if not is_flag and not (previous_is_flag and argument != "--" and "\0" not in argument):
            yield Problem(path, f"{_shown(argument)} is no flag of vLLM; write, for example, --max-num-seqs=8")
        elif is_flag:
            flag = argument.split("=")[0].replace("_", "-")
            # vLLM takes a flag's beginning for the flag.
            who = next((f"{who} ({own})" for own, who in refused.items() if own.startswith(flag)), None)
            if who:
                yield Problem(path, f"{_shown(flag)} cannot be given here: {who}; remove it")
        previous_is_flag = is_flag and "=" not in argument


def _wrong_sum(stages: Sequence[Stage], total: int, but: str, wanted: int) -> Problem:
    numbers = ",".join(str(stage.layers) for stage in stages)
    hint = f"; {even_split(wanted, len(stages))} would work" if len(stages) <= wanted else ""
    return Problem("spec.stages", f"the layers {numbers} add up to {total}, but {but}{hint}")


def _too_many(stages: int, layers: int) -> Problem:
    return Problem(
        "spec.auto.stages",
        f"{stages} stages of a model with {layers} layers: every stage needs one; write {layers} at most",
    )


def _problems(error: ValidationError) -> list[Problem]:
    """Put pydantic's findings into words, each once."""
    details = error.errors(include_url=False)
    # A list whose only entry is wrong is not empty, as pydantic finds besides.
    return [
        _problem(detail)
        for detail in details
        if detail["type"] != "too_short"
        or all(detail["loc"] != other["loc"][: len(detail["loc"])] or detail is other for other in details)
    ]


def _problem(detail: ErrorDetails) -> Problem:
    """Put one of pydantic's findings into words."""
    location = tuple(part for part in detail["loc"] if part != "[key]")
    path = _path(location)
    kind, value, context = detail["type"], _shown(detail["input"]), detail.get("ctx", {})
    if kind == "missing":
        return Problem(path, f"is missing; add it{_example(path)}")
    if kind == "extra_forbidden":
        return Problem(path, f"is no field of {_path(location[:-1]) or KIND}{_did_you_mean(location)}")
    if kind == "rule":
        is_object = isinstance(detail["input"], dict | BaseModel)
        return Problem(path, context["message"] if is_object else f"{value} {context['message']}")
    bounds = {
        "greater_than_equal": "is too small; {ge} at least",
        "less_than_equal": "is too large; {le} at most",
        "too_short": "is empty; give at least one, or leave it out",
        "too_long": "has {actual_length} entries; {max_length} at most",
    }
    if kind in bounds:
        shown = "" if kind.startswith("too") else f"{value} "
        return Problem(path, f"{shown}{bounds[kind].format(**context)}")
    if kind in {"literal_error", "enum"}:
        return Problem(path, f"{value} is not known here; write {context['expected']}")
    wanted = {
        "int_type": "a whole number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "string_type": "text; put it in quotes if it looks like a number",
        "tuple_type": "a list",
        "dict_type": "a mapping",
        "model_type": "a mapping of fields",
        "model_attributes_type": "a mapping of fields",
    }.get(kind)
    return Problem(path, f"{value} is not {wanted}" if wanted else f"{value}: {detail['msg']}")


def _did_you_mean(location: Sequence[str | int]) -> str:
    part: type[BaseModel] | None = LLMPipeline
    for step in location[:-1]:
        if isinstance(step, str):
            part = _PART_AT.get(step, part)
    names = [info.alias or name for name, info in part.model_fields.items()] if part else []
    close = difflib.get_close_matches(str(location[-1]), names, 1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(names)}"


_PART_AT: Mapping[str, type[BaseModel]] = {
    "metadata": Metadata,
    "spec": Spec,
    "model": Model,
    "stages": Stage,
    "resources": Resources,
    "auto": Auto,
    "migration": Migration,
    "capacity": Capacity,
    "scaling": Scaling,
    "privacy": Privacy,
}


def _example(path: str) -> str:
    return {
        "apiVersion": f": {API_VERSION}",
        "kind": f": {KIND}",
        "metadata": ": {name: smollm}",
        "metadata.name": ", such as smollm",
    }.get(path, "")


def _path(location: Sequence[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _VALUE_CHARACTERS else f"{text[:_VALUE_CHARACTERS]}…"
