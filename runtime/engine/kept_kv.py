"""Attention over a KV cache whose elements have another type than the model computes in.

When the precision of the weights changes, the KV cache stays as it is. vLLM's attention on processors wants queries,
keys, values and cache of one type; here they are converted to the cache's type on the way in, and the result to the
model's type on the way out. In a process whose model has another type than its cache, this backend takes the place of
vLLM's own one by vLLM's registry of backends; nowhere else.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.attention import attention
from vllm.v1.attention import selector
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
    _get_attn_isa,
)
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.worker import gpu_model_runner


class KeptKVMetadataBuilder(CPUAttentionMetadataBuilder):
    """Plans the work of kernels that compute in the cache's type."""

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.dtype = kv_cache_spec.dtype
        self.isa = _get_attn_isa(self.dtype, self.block_size, self.head_dim, self.kv_cache_dtype)
        self._set_isa_to_layers(layer_names)


class KeptKVImpl(CPUAttentionBackendImpl):
    """vLLM's attention, between two conversions."""

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend with a converted query; keys and values are in the cache already."""
        if attn_metadata is None:  # nothing is computed
            return output
        stored = kv_cache.dtype
        result = torch.empty_like(output, dtype=stored)
        query = query.to(stored)
        super().forward(layer, query, key, value, kv_cache, attn_metadata, result, output_scale, output_block_scale)
        return output.copy_(result)

    def do_kv_cache_update(
        self,
        layer: torch.nn.Module,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        """Store converted keys and values."""
        super().do_kv_cache_update(layer, key.to(kv_cache.dtype), value.to(kv_cache.dtype), kv_cache, slot_mapping)


class KeptKVBackend(CPUAttentionBackend):
    """vLLM's attention on processors, for a cache in another type than the model's."""

    @staticmethod
    def get_impl_cls() -> type[KeptKVImpl]:
        """Return what computes."""
        return KeptKVImpl

    @staticmethod
    def get_builder_cls() -> type[KeptKVMetadataBuilder]:
        """Return what plans."""
        return KeptKVMetadataBuilder


def keep_kv(stored: torch.dtype) -> None:
    """Let models that are built from now on in this process attend so, to a cache with elements of type `stored`."""
    register_backend(AttentionBackendEnum.CPU_ATTN, f"{__name__}.{KeptKVBackend.__name__}")
    selector._cached_get_attn_backend.cache_clear()
    # A layer takes its cache's type from the model, or from `--kv-cache-dtype`, which knows no float32.
    for module in (attention, gpu_model_runner):
        module.kv_cache_dtype_str_to_dtype = lambda *_: stored
