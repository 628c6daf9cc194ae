"""vLLM's KV cache specs as plain data, so that a stage can tell the head about its layers without pickle.

A spec is a dataclass of vLLM's `kv_cache_interface`; only classes of that module are rebuilt.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import torch
from vllm.v1 import kv_cache_interface

from runtime.engine.errors import UnsupportedFeature


def encode_specs(specs: dict[str, Any]) -> dict[str, Any]:
    """Return {layer name: plain data} for a stage's specs.

    Raises:
        UnsupportedFeature: a layer keeps state that this pipeline cannot carry over, such as a recurrent state.

    """
    for name, spec in specs.items():
        if not isinstance(spec, kv_cache_interface.AttentionSpec):
            raise UnsupportedFeature(
                f"layer {name} keeps its state as {type(spec).__name__}; only attention KV caches can be carried over"
            )
    return {name: _encode(spec) for name, spec in specs.items()}


def decode_specs(data: dict[str, Any]) -> dict[str, Any]:
    """Rebuild what `encode_specs` made."""
    return {name: _decode(spec) for name, spec in data.items()}


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _encode(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"class": type(value).__name__, "fields": fields}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, enum.Enum):
        return {"enum": type(value).__name__, "value": value.value}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UnsupportedFeature(f"a KV cache spec holds {value!r}, which this version cannot pass on")


def _decode(data: Any) -> Any:
    if not isinstance(data, dict):
        return data
    if "dtype" in data:
        return getattr(torch, data["dtype"])
    if "enum" in data:
        return getattr(kv_cache_interface, data["enum"])(data["value"])
    cls = getattr(kv_cache_interface, data["class"])
    return cls(**{name: _decode(value) for name, value in data["fields"].items()})
