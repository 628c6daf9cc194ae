"""In which precision a model can compute, and how an engine's configuration is turned into that of another one.

The weights are read from the model's files again and rounded; the KV cache keeps its type, so what was computed in one
precision is used in the other. What is refused, and why:

* int8: vLLM's online quantization to int8 reaches only the experts of a mixture, and no kernel for processors is there;
* models whose files are quantized: there is nothing more precise to read;
* a KV cache of a type of its own (``--kv-cache-dtype``), or of a compressed form (MLA): the conversion of
  `runtime.engine.kept_kv` is for plain keys and values;
* GPUs and nodes on other hosts: they load the head's precision once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from vllm.config.model import _FLOAT16_NOT_SUPPORTED_MODELS as _NOT_IN_FLOAT16
from vllm.platforms import current_platform

from runtime.migration.errors import ChangeRefused

if TYPE_CHECKING:
    from collections.abc import Collection

    from vllm.config import VllmConfig

_LOADING = 1.7  # times the weights themselves; measured at most: 1.6, from float16 to float32


def precision_of(config: VllmConfig) -> str:
    """Return the precision an engine was started with, such as ``float32``."""
    return _name(config.model_config.dtype)


def choices() -> list[str]:
    """Return the precisions that this platform has kernels for."""
    return sorted((_name(dtype) for dtype in current_platform.supported_dtypes), key=lambda name: (-_bytes(name), name))


def check_precision(config: VllmConfig, precision: str, other_hosts: Collection[str]) -> None:
    """Check that a pipeline that was started with `config` can change to a precision.

    Raises:
        ChangeRefused: it cannot; the message says why, and what would do.

    """
    if precision not in choices():
        raise ChangeRefused(f"precision {precision!r} is none of this platform's; it can be {', '.join(choices())}")
    refused = _reason_against(config, precision, other_hosts)
    if refused is not None:
        raise ChangeRefused(f"precision {precision!r}: {refused}")


def _reason_against(config: VllmConfig, precision: str, other_hosts: Collection[str]) -> str | None:
    model, cache = config.model_config, config.cache_config
    if other_hosts:
        return (
            f"it can only be changed on one machine yet, and this pipeline has nodes on others "
            f"({', '.join(sorted(other_hosts))}); start it with --dtype {precision} instead"
        )
    if not current_platform.is_cpu():
        return f"it can only be changed on processors yet; start the server with --dtype {precision} instead"
    if model.quantization is not None:
        return f"the model's files are quantized ({model.quantization}), so its weights have no other precision"
    if cache.cache_dtype != "auto":
        return (
            f"the KV cache has a type of its own ({cache.cache_dtype}), which cannot be kept; "
            "start the server without --kv-cache-dtype"
        )
    if model.use_mla:
        return "the model keeps its KV in a compressed form (MLA), which cannot be kept"
    if precision == "float16" and model.hf_text_config.model_type in _NOT_IN_FLOAT16:
        return f"{model.hf_text_config.model_type} is numerically unstable in it; bfloat16 would do"
    return None


def set_precision(config: VllmConfig, precision: str) -> None:
    """Let models that are built in this process compute in `precision`, over a KV cache as `config` has it so far."""
    if precision == precision_of(config):
        return
    from runtime.engine.kept_kv import keep_kv

    keep_kv(config.model_config.dtype)
    config.model_config.dtype = getattr(torch, precision)


def bytes_to_load(size: int, before: str, after: str) -> int:
    """Estimate the most memory that loading takes in one precision from the `size` of the weights in another.

    Kernels pack each precision in a way of its own, and a part of the weights is there twice for a moment.
    """
    return math.ceil(_LOADING * size * _bytes(after) / _bytes(before))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _bytes(precision: str) -> int:
    itemsize: int = getattr(torch, precision).itemsize
    return itemsize
