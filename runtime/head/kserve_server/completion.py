"""Completions as KServe's protocols word them: what a request asks of the head, and what the head's answer says.

Problem: V2 knows tensors, V1 knows instances, and the head knows OpenAI's ``/v1/completions``. Protocol: the prompts of
a request are one batch and go to the head as one request, with the sampling parameters that it gives once for all of
them. What is not given is as the head has it by default (16 tokens at most, as with OpenAI). A tensor of metadata that
is no ``prompt`` is optional and may as well be a parameter of the request.

Caveats: whatever the head would not understand is refused here, with its name; limits of values are the head's to
know. FP32 is taken but is no exact 0.7; FP64, or a parameter, is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

PROMPT = "prompt"

_INTEGERS = frozenset(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64))
_FLOATS = frozenset({"FP16", "FP32", "FP64"})
_ACCEPTED = {"INT64": _INTEGERS, "FP64": _FLOATS | _INTEGERS, "BOOL": {"BOOL"}, "BYTES": {"BYTES"}}
_TYPES: dict[str, tuple[str, type | tuple[type, ...]]] = {
    "INT64": ("a whole number", int),
    "FP64": ("a number", (int, float)),
    "BOOL": ("true or false", bool),
    "BYTES": ("a text", str),
}
_FOR_KSERVE = frozenset({"binary_data_output"})

PARAMETERS = {
    "max_tokens": "INT64",
    "min_tokens": "INT64",
    "temperature": "FP64",
    "top_p": "FP64",
    "top_k": "INT64",
    "min_p": "FP64",
    "seed": "INT64",
    "presence_penalty": "FP64",
    "frequency_penalty": "FP64",
    "repetition_penalty": "FP64",
    "stop": "BYTES",
    "ignore_eos": "BOOL",
}
"""Sampling parameters by name, with the data type that metadata gives for them."""

OUTPUTS = {"text": "BYTES", "finish_reason": "BYTES", "prompt_tokens": "INT64", "completion_tokens": "INT64"}
"""What there is for each prompt, with its data type."""


class InvalidCompletionError(ValueError):
    """The request cannot be put to the head; the message says what is wrong with it."""


class HeadAnswerError(RuntimeError):
    """The head's answer is not one to a completion request."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input of a V2 request, with its elements as JSON would give them, nested or not."""

    name: str
    datatype: str
    shape: Sequence[int]
    data: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one prompt; the fields are `OUTPUTS`."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


def input_types() -> list[dict[str, Any]]:
    """Return the inputs as V2 metadata words them."""
    return [
        {"name": name, "datatype": datatype, "shape": [-1] if name in {PROMPT, "stop"} else [1]}
        for name, datatype in {PROMPT: "BYTES", **PARAMETERS}.items()
    ]


def output_types() -> list[dict[str, Any]]:
    """Return the outputs as V2 metadata words them."""
    return [{"name": name, "datatype": datatype, "shape": [-1]} for name, datatype in OUTPUTS.items()]


def from_tensors(tensors: Iterable[Tensor], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body for ``/v1/completions`` of a V2 request.

    Raises:
        InvalidCompletionError: it is no completion request.

    """
    prompts: list[Any] | None = None
    chosen = {name: value for name, value in parameters.items() if name not in _FOR_KSERVE}
    for tensor in tensors:
        elements = _elements(tensor)
        if tensor.name == PROMPT:
            if prompts is not None:
                raise InvalidCompletionError(f"input {PROMPT!r} is given twice; give all prompts in one tensor")
            prompts = elements
        elif tensor.name in chosen:
            raise InvalidCompletionError(f"{tensor.name!r} is given twice; give it as an input or as a parameter")
        elif tensor.name == "stop":
            chosen["stop"] = elements
        elif tensor.name in PARAMETERS and len(elements) != 1:
            raise InvalidCompletionError(
                f"input {tensor.name!r} has {len(elements)} elements; give one, which is for all prompts"
            )
        else:
            chosen[tensor.name] = elements[0] if elements else None
    if prompts is None:
        raise InvalidCompletionError(f"there is no input {PROMPT!r}; give the prompts as a BYTES tensor of that name")
    return _body(prompts, chosen)


def from_instances(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body for ``/v1/completions`` of a V1 request: ``{"instances": [...], "parameters": {...}}``.

    An instance is a prompt, or an object with a ``prompt``.

    Raises:
        InvalidCompletionError: it is no completion request.

    """
    unknown = payload.keys() - {"instances", "parameters"}
    if unknown:
        raise InvalidCompletionError(f"{min(unknown)!r} is unknown; a request has 'instances' and 'parameters'")
    instances, parameters = payload.get("instances"), payload.get("parameters", {})
    if not isinstance(instances, list):
        raise InvalidCompletionError("'instances' is not a list; give the prompts as a list of texts")
    if not isinstance(parameters, dict):
        raise InvalidCompletionError("'parameters' is not an object such as {\"max_tokens\": 16}")
    prompts = [
        instance[PROMPT] if isinstance(instance, dict) and instance.keys() == {PROMPT} else instance
        for instance in instances
    ]
    return _body(prompts, parameters)


def answers(response: Any, prompts: int) -> list[Answer]:
    """Read what ``/v1/completions`` answered, in the order of the prompts.

    Raises:
        HeadAnswerError: it is something else than that many completions.

    """
    try:
        choices = sorted(response["choices"], key=lambda choice: int(choice["index"]))
        found = [
            Answer(
                str(choice["text"]),
                choice["finish_reason"] or "",
                len(choice["prompt_token_ids"]),
                len(choice["token_ids"]),
            )
            for choice in choices
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise HeadAnswerError(f"the head's answer is no completion: {error!r} in it") from error
    if len(found) != prompts:
        raise HeadAnswerError(f"the head's answer has {len(found)} completions for {prompts} prompts")
    return found


def _body(prompts: Sequence[Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    if not prompts:
        raise InvalidCompletionError("there is no prompt; give one at least")
    for position, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise InvalidCompletionError(f"prompt {position} is {type(prompt).__name__}, not a text")
    for name, value in parameters.items():
        _check(name, value)
    # The ids are for counting: OpenAI's usage is one number for all prompts of a request.
    return {"prompt": list(prompts), **parameters, "return_token_ids": True}


def _check(name: str, value: Any) -> None:
    if name == "stream":
        raise InvalidCompletionError("KServe's protocols do not stream; use /openai/v1/completions for streams")
    if name not in PARAMETERS:
        known = ", ".join([PROMPT, *PARAMETERS])
        raise InvalidCompletionError(f"{name!r} is unknown; known are {known}")
    wanted, kind = _TYPES[PARAMETERS[name]]
    values = value if name == "stop" and isinstance(value, list) else [value]
    for one in values:
        if not isinstance(one, kind) or (isinstance(one, bool) and kind is not bool):
            raise InvalidCompletionError(f"{name!r} is {one!r}, not {wanted}")
        if isinstance(one, float) and not math.isfinite(one):
            raise InvalidCompletionError(f"{name!r} is {one!r}; give a finite number")


def _elements(tensor: Tensor) -> list[Any]:
    wanted = {PROMPT: "BYTES", **PARAMETERS}.get(tensor.name)
    if wanted is not None and tensor.datatype not in _ACCEPTED[wanted]:
        raise InvalidCompletionError(f"input {tensor.name!r} is {tensor.datatype}; give it as {wanted}")
    elements = _flat(tensor.data)
    if min(tensor.shape, default=0) < 0 or math.prod(tensor.shape) != len(elements):
        raise InvalidCompletionError(
            f"input {tensor.name!r} has the shape {list(tensor.shape)} and {len(elements)} elements; "
            f"give {len(elements)} prompts the shape [{len(elements)}]"
            if tensor.name == PROMPT
            else f"input {tensor.name!r} has the shape {list(tensor.shape)} and {len(elements)} elements"
        )
    return elements


def _flat(data: Sequence[Any]) -> list[Any]:
    flat: list[Any] = []
    left = list(reversed(data))
    while left:  # not by recursion: the depth is the sender's to choose
        element = left.pop()
        if isinstance(element, list):
            left.extend(reversed(element))
        else:
            flat.append(element)
    return flat
