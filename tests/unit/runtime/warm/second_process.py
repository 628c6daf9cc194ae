"""Run as a process of its own: maps the pool whose descriptor was inherited, reads a byte of a layer, writes, records.

Arguments: descriptor, layers, blocks, tokens of a block, bytes of a layer, layer to read, layer to write.
"""

import sys

from runtime.warm.kv_pool import KVPool, KVPoolShape

if __name__ == "__main__":
    descriptor, layers, blocks, block_tokens, layer_bytes, read, write = map(int, sys.argv[1:])
    pool = KVPool(descriptor, KVPoolShape(layers, blocks, block_tokens, layer_bytes))
    sys.stdout.write(f"{pool.layer_memory(read)[5]} {pool.watermark[read, 3]}\n")
    pool.layer_memory(write)[7] = 42
    pool.record_written(range(write, write + 1), [2], [0], [block_tokens - 1])
