"""Token maps for tests that have no kernels to ask."""

import numpy as np

from runtime.warm.kv_pool import KVPoolShape, TokenMap


def tokens_in_a_row(shape: KVPoolShape) -> TokenMap:
    """One token after the other."""
    size = next(size for size in (8, 4, 2, 1) if shape.block_bytes % (size * shape.block_tokens) == 0)
    return TokenMap(size, np.arange(shape.block_bytes // size, dtype=np.int32).reshape(shape.block_tokens, -1))
