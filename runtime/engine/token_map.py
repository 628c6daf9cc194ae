"""Find out where in a KV block the kernels put each token.

No interface of vLLM tells, and kernels differ: some transpose keys, some pack them in tiles for the processor's wide
instructions. So one token after the other is stored by the very kernel that stores all of them, into a blank block of
its own, and whatever is no longer blank is where that token lies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.v1.kv_cache_interface import KVCacheTensor, create_kv_cache_views

from runtime.warm.kv_pool import TokenMap

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import AttentionSpec


def find_token_map(
    name: str, layer: torch.nn.Module, spec: AttentionSpec, layout: Any, kernel_block_size: int | None
) -> TokenMap | None:
    """Return where tokens lie in a block of `layer`, or None when they cannot be told apart.

    That is so when two tokens share an element, or when tokens take different numbers of elements.
    """
    update = getattr(layer.impl, "do_kv_cache_update", None)
    if update is None:
        return None
    raw = torch.zeros(spec.page_size_bytes, dtype=torch.int8)
    place = KVCacheTensor(len(raw), [name], layer_stride=len(raw), block_stride=len(raw))
    (view,) = create_kv_cache_views(raw, spec, 1, layout, place, kernel_block_size)
    key = torch.ones(1, spec.num_kv_heads, spec.head_size, dtype=layer.dtype)
    size = spec.dtype.itemsize
    elements = raw.numpy().view(f"u{size}")
    found = []
    for token in range(spec.block_size):
        elements[:] = 0
        update(layer, key, key, view, torch.tensor([token], dtype=torch.int64))
        found.append(np.flatnonzero(elements).astype(np.int32))
    if len({len(places) for places in found}) != 1:
        return None
    offsets = np.stack(found)
    if len(np.unique(offsets)) != offsets.size or offsets.size * size != spec.page_size_bytes:
        return None
    return TokenMap(size, offsets)
