"""The KV cache of one pipeline on one node, in memory that outlives the stage processes.

Problem: a KV cache allocated by the process that computes dies with it, and a new stage has to copy or recompute it.
So the pool belongs to the node: one anonymous memory file holds every layer of the model, a stage maps it and views
the layers it owns, and the next owner of a layer maps the same bytes. Pages are taken on first touch, so a node
that owns ten of thirty layers pays for ten.

Beside the bytes the pool keeps, for every layer and block, a *watermark*: how many leading tokens of the block are
valid, and a *generation* that changes when the block starts over with other content. A stage writes both after each
batch; a new owner checks them before it computes (invariant I2), and pre-copy uses them to send only what is stale.

Layout of the memory file (tables are int32 in native order, each page aligned)::

    watermark  [layers, blocks]      tokens valid in the block
    generation [layers, blocks]      times that tokens of the block were written again
    token map  [1 + block bytes]     where in a block each token lies (`TokenMap`); zero until a stage has told
    layer 0 .. layer L-1             each `layer_bytes` long, page aligned; the engine decides what is inside

While a block's generation stays, tokens below its watermark do not change: it is only appended to.

Only one stage writes a layer at a time: the executor never has two epochs write the same block at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

_ALIGNMENT = mmap.PAGESIZE
_MADV_POPULATE_WRITE = 23  # Linux 5.14; not in Python's mmap module


class KVPoolError(RuntimeError):
    """The KV pool cannot be made or mapped, or its content is not what a stage was promised."""


@dataclass(frozen=True, slots=True)
class TokenMap:
    """Where the elements of each token lie in a block: kernels interleave tokens as suits them.

    Args:
        element_bytes: size of one element of the cache.
        offsets: ``[block_tokens, elements of a token]``, in elements from the start of the block.

    """

    element_bytes: int
    offsets: npt.NDArray[np.int32]

    @property
    def token_bytes(self) -> int:
        """Bytes of one token of one layer."""
        return int(self.offsets.shape[1]) * self.element_bytes

    def digest(self) -> bytes:
        """Name this map: two nodes can exchange tokens when theirs have the same name."""
        return hashlib.blake2b(self.offsets.tobytes(), digest_size=16, salt=bytes([self.element_bytes])).digest()


class KVPoolShape(msgspec.Struct, frozen=True):
    """Dimensions of a pool: `layers` layers of `blocks` blocks with `block_tokens` tokens, `layer_bytes` per layer."""

    layers: int
    blocks: int
    block_tokens: int
    layer_bytes: int

    @property
    def block_bytes(self) -> int:
        """Bytes of one block of one layer."""
        return self.layer_bytes // self.blocks

    @property
    def token_bytes(self) -> int:
        """Bytes of one token of one layer (rounded up when a block is padded)."""
        return -(-self.block_bytes // self.block_tokens)

    @property
    def table_bytes(self) -> int:
        """Bytes of one bookkeeping table, page aligned."""
        return _aligned(4 * self.layers * self.blocks)

    @property
    def map_bytes(self) -> int:
        """Bytes reserved for the token map: an offset for every byte of a block at most."""
        return _aligned(4 * (1 + self.block_bytes))

    @property
    def layers_start(self) -> int:
        """Where the first layer begins."""
        return 2 * self.table_bytes + self.map_bytes

    @property
    def layer_stride(self) -> int:
        """Bytes from one layer to the next."""
        return _aligned(self.layer_bytes)

    @property
    def total_bytes(self) -> int:
        """Size of the memory file; pages that nobody touched cost nothing."""
        return self.layers_start + self.layers * self.layer_stride


class KVPool:
    """A mapping of one node's KV pool. Every process that works on it holds its own `KVPool` over the same file."""

    def __init__(self, descriptor: int, shape: KVPoolShape) -> None:
        size = os.fstat(descriptor).st_size
        if size < shape.total_bytes:
            raise KVPoolError(
                f"the KV pool's memory file has {size} bytes, but {shape.layers} layers with {shape.blocks} blocks "
                f"need {shape.total_bytes}; was it reserved for another model?"
            )
        self.shape = shape
        try:
            self._map = mmap.mmap(descriptor, shape.total_bytes)
        except OSError as error:
            raise KVPoolError(f"cannot map the {shape.total_bytes} bytes of the KV pool: {error}") from error
        table = (shape.layers, shape.blocks)
        cells = shape.layers * shape.blocks
        self.watermark = np.frombuffer(self._map, np.int32, cells).reshape(table)
        self.generation = np.frombuffer(self._map, np.int32, cells, offset=shape.table_bytes).reshape(table)
        self._map_table = np.frombuffer(self._map, np.int32, 1 + shape.block_bytes, offset=2 * shape.table_bytes)

    @staticmethod
    def new_descriptor(name: str) -> int:
        """Make an empty memory file (inherited by forked stages); `reserve` gives it its size."""
        return os.memfd_create(f"midstream-kv-{name}", 0)

    @classmethod
    def reserve(cls, descriptor: int, shape: KVPoolShape) -> KVPool:
        """Give the memory file its size and map it.

        Raises:
            KVPoolError: the kernel refuses the size.

        """
        try:
            os.ftruncate(descriptor, shape.total_bytes)
        except OSError as error:
            raise KVPoolError(f"cannot reserve {shape.total_bytes} bytes for the KV pool: {error}") from error
        return cls(descriptor, shape)

    def layer_memory(self, layer: int) -> memoryview:
        """Return the writable bytes of `layer`, `shape.layer_bytes` long."""
        if not 0 <= layer < self.shape.layers:
            raise KVPoolError(f"layer {layer} is not in this pool of {self.shape.layers} layers")
        start = self.shape.layers_start + layer * self.shape.layer_stride
        return memoryview(self._map)[start : start + self.shape.layer_bytes]

    def elements(self, element_bytes: int) -> npt.NDArray[np.generic]:
        """View all layers as ``[layers, elements]``; a block's elements are next to each other."""
        shape = self.shape
        kind = np.dtype(f"u{element_bytes}")
        flat = np.frombuffer(self._map, kind, shape.layers * shape.layer_stride // element_bytes, shape.layers_start)
        return flat.reshape(shape.layers, -1)

    def raw_blocks(self) -> npt.NDArray[np.uint8]:
        """View all layers as ``[layers, blocks, bytes of a block]``."""
        shape = self.shape
        size = shape.block_bytes
        flat = self.elements(1)[:, : shape.blocks * size].view(np.uint8)
        return flat.reshape(shape.layers, shape.blocks, size)

    @property
    def token_map(self) -> TokenMap | None:
        """Where each token lies in a block, once a stage has told."""
        element_bytes = int(self._map_table[0])
        if element_bytes == 0:
            return None
        per_token = self.shape.block_bytes // element_bytes // self.shape.block_tokens
        offsets = self._map_table[1 : 1 + per_token * self.shape.block_tokens]
        return TokenMap(element_bytes, offsets.reshape(self.shape.block_tokens, per_token).copy())

    @token_map.setter
    def token_map(self, known: TokenMap) -> None:
        expected = (self.shape.block_tokens, self.shape.block_bytes // known.element_bytes // self.shape.block_tokens)
        if known.offsets.shape != expected:
            raise KVPoolError(f"a token map of {known.offsets.shape} offsets does not fit this pool's {expected}")
        self._map_table[1 : 1 + known.offsets.size] = known.offsets.reshape(-1)
        self._map_table[0] = known.element_bytes  # last: a reader sees a whole map or none

    def check(self) -> None:
        """Check that the tables are possible: for a pool that a process left which had no time to say goodbye.

        Raises:
            KVPoolError: they are not; the message says which.

        """
        size = self.shape.block_tokens
        if self.watermark.min(initial=0) < 0 or self.watermark.max(initial=0) > size:
            raise KVPoolError(f"the KV pool has watermarks that are not within 0 and {size} tokens")
        element_bytes = int(self._map_table[0])
        if element_bytes == 0:
            return  # nobody could tell
        per_token, rest = divmod(self.shape.block_bytes, max(element_bytes, 1) * size)
        if element_bytes < 0 or per_token == 0 or rest:
            raise KVPoolError(f"the KV pool's map of tokens is for elements of {element_bytes} bytes")
        offsets = np.sort(self._map_table[1 : 1 + per_token * size])
        if not np.array_equal(offsets, np.arange(per_token * size, dtype=np.int32)):
            raise KVPoolError("the KV pool's map of tokens does not map every place of a block once")

    def record_written(self, layers: range, blocks: Sequence[int], first: Sequence[int], stop: Sequence[int]) -> None:
        """Record that tokens ``[first[i], stop[i])`` of ``blocks[i]`` were just written in all `layers`.

        Writing tokens that were there already, or the first one, starts a new generation of the block.
        """
        index = np.asarray(blocks, np.intp)
        rows = slice(layers.start, layers.stop)
        begin = np.asarray(first, np.int32)
        again = (begin == 0) | (self.watermark[rows, index] > begin).any(axis=0)
        if again.any():
            # First of all: whoever reads the new generation must not read the old watermark beside it (`KVSource`).
            self.watermark[rows, index[again]] = begin[again]
            self.generation[rows, index[again]] += 1
        self.watermark[rows, index] = np.asarray(stop, np.int32)

    def stale_blocks(self, layers: range, blocks: Sequence[int], tokens: int) -> list[tuple[int, int, int]]:
        """Compare watermarks with a promise: the `tokens` leading tokens of a request lie in `blocks`.

        Returns:
            (layer, block, valid tokens) wherever a block of `layers` holds fewer valid tokens than promised.

        Raises:
            KVPoolError: `blocks` has no room for so many tokens.

        """
        size = self.shape.block_tokens
        used = -(-tokens // size)
        if used == 0:
            return []
        if used > len(blocks):
            raise KVPoolError(
                f"{tokens} tokens are promised, but {len(blocks)} blocks hold {size * len(blocks)} at most"
            )
        index = np.asarray(blocks[:used], np.intp)
        promised = np.full(used, size, np.int32)
        promised[-1] = tokens - size * (used - 1)
        # Block 0 is vLLM's null block: it stands for tokens that a layer no longer looks at.
        promised[index == 0] = 0
        valid = self.watermark[layers.start : layers.stop, index]
        return [
            (layers.start + int(row), int(index[column]), int(valid[row, column]))
            for row, column in np.argwhere(valid < promised)
        ]

    def populate(self, layers: range) -> None:
        """Map the pages of all blocks of `layers` in use now, instead of one page fault at a time later."""
        shape = self.shape
        for layer in layers:
            used = np.flatnonzero(self.watermark[layer])
            start = shape.layers_start + layer * shape.layer_stride
            for run in np.split(used, np.flatnonzero(np.diff(used) > 1) + 1):
                if run.size:
                    first = (start + int(run[0]) * shape.block_bytes) // _ALIGNMENT * _ALIGNMENT
                    stop = start + (int(run[-1]) + 1) * shape.block_bytes
                    with contextlib.suppress(OSError):  # a kernel without it: pages are mapped on first touch
                        self._map.madvise(_MADV_POPULATE_WRITE, first, _aligned(stop - first))

    def copy_blocks(self, moved: Mapping[int, int]) -> None:
        """Copy blocks, in all layers that have them, to others; by old and new number.

        Raises:
            KVPoolError: there is no such block.

        """
        if not moved:
            return
        unknown = [block for pair in moved.items() for block in pair if not 0 < block < self.shape.blocks]
        if unknown:
            raise KVPoolError(f"this pool has no blocks {unknown}, only 1 to {self.shape.blocks - 1}")
        source, target = np.fromiter(moved, np.intp, len(moved)), np.fromiter(moved.values(), np.intp, len(moved))
        for layer in np.flatnonzero(self.watermark[:, source].any(axis=1)):
            blocks = np.frombuffer(self.layer_memory(int(layer)), np.uint8).reshape(self.shape.blocks, -1)
            blocks[target] = blocks[source]
        self.generation[:, target] += 1
        self.watermark[:, target] = self.watermark[:, source]

    def give_back(self, first: int) -> None:
        """Erase the blocks from `first` on and give their pages back to the kernel."""
        self.generation[:, first:] += 1
        self.watermark[:, first:] = 0
        start, stop = _aligned(first * self.shape.block_bytes), self.shape.layer_stride
        if start < stop:
            for layer in range(self.shape.layers):
                at = self.shape.layers_start + layer * self.shape.layer_stride
                self._map.madvise(mmap.MADV_REMOVE, at + start, stop - start)

    def touched_bytes(self) -> int:
        """Bytes of KV that hold at least one valid token, for reports."""
        return int(np.count_nonzero(self.watermark)) * self.shape.block_bytes

    def scrub(self, layers: range) -> None:
        """Zero the KV and the bookkeeping of `layers` and give their pages back to the kernel."""
        self.watermark[layers.start : layers.stop] = 0
        self.generation[layers.start : layers.stop] = 0
        start = self.shape.layers_start + layers.start * self.shape.layer_stride
        # MADV_REMOVE punches a hole: the pages are gone for every process that maps the file.
        self._map.madvise(mmap.MADV_REMOVE, start, len(layers) * self.shape.layer_stride)


def block_spans(blocks: Sequence[int], block_tokens: int, first: int, stop: int) -> list[tuple[int, int, int]]:
    """Split tokens ``[first, stop)`` of a request by block.

    Returns:
        (block id, first token in the block, stop token in the block) in order.

    """
    spans = []
    for position in range(first // block_tokens, -(-stop // block_tokens)):
        start = position * block_tokens
        spans.append((blocks[position], max(first - start, 0), min(stop - start, block_tokens)))
    return spans


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
