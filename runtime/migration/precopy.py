"""Copying the KV of layers that change their node, while decoding goes on.

::

    KVSource.deltas() --KVDelta--> (memory, or a link to another machine) --KVDelta--> KVTarget.apply()

Every round compares what the source pool holds with what was sent before, block by block. A block that was started
over (its generation changed) is sent from its first token; otherwise only the tokens it has gained since travel, so a
cutover waits for what the last batches wrote, not for the blocks they wrote it into. What a stage writes during a round
is found by the next one: a stage records a block's watermark after it has written the tokens, and a round reads the
watermarks before it reads the tokens, so what is marked as sent was complete.

Where a token lies in its block is the kernels' business; a stage tells the pool (`TokenMap`). Both sides must lay
tokens out alike, or nothing is copied. Picking single tokens out of a block costs several times the processor time of
copying its bytes as they are, so a block of which most is stale travels whole; what lies behind its watermark then
means nothing yet. Without a map all blocks do.

Blocks that no request uses at the moment but that hold cached prefixes have watermarks too, so the prefix cache moves
along. The target's tables are written after its bytes, so at no time does the target claim more than it holds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from runtime.migration.stop_rule import CopyRound
from runtime.warm.kv_pool import KVPoolError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from runtime.warm.kv_pool import KVPool, TokenMap

DELTA_BYTES = 1 << 18
"""About how many bytes one delta carries: enough to be efficient, little enough to be interrupted."""

WHOLE = -1
"""The first token of an entry whose block travels whole."""

_COLUMNS = 5


@dataclass(frozen=True, slots=True)
class KVDelta:
    """Tokens of some blocks, on their way.

    Args:
        entries: int32 ``[n, 5]``: layer, block, generation, first token (or `WHOLE`), stop token (the block's
            watermark).
        payload: bytes: the whole blocks, in order, then the tokens of the other entries, one after the other.

    """

    entries: npt.NDArray[np.int32]
    payload: npt.NDArray[np.uint8]


class KVSource:
    """The sending side of one change: what is stale, and the deltas that bring it up to date."""

    def __init__(self, pool: KVPool, layers: Sequence[int]) -> None:
        self._pool = pool
        self._layers = np.asarray(layers, np.intp)
        self._map = pool.token_map
        self._blocks = pool.raw_blocks()
        table = (len(layers), pool.shape.blocks)
        self._generation, self._watermark = np.zeros(table, np.int32), np.zeros(table, np.int32)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that move."""
        return tuple(int(layer) for layer in self._layers)

    @property
    def layout_digest(self) -> bytes:
        """Name how tokens lie in a block here; empty when whole blocks travel."""
        return self._map.digest() if self._map else b""

    def stale_bytes(self) -> int:
        """Bytes that a round would send now."""
        return int(self._sizes(self._stale()).sum())

    def deltas(self) -> Iterator[KVDelta]:
        """Yield what is stale now; what was yielded counts as sent."""
        entries = self._stale()
        part = (np.cumsum(self._sizes(entries)) - 1) // DELTA_BYTES
        for chosen in np.split(entries, np.flatnonzero(np.diff(part)) + 1):
            if len(chosen):
                yield self._delta(chosen)

    def tables(self) -> npt.NDArray[np.int32]:
        """Return the tables of the moving layers: int32 ``[2, layers, blocks]``, watermarks and generations."""
        return np.stack([self._pool.watermark[self._layers], self._pool.generation[self._layers]])

    def _sizes(self, entries: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Return how many bytes each entry takes."""
        return _sizes(entries, self._pool.shape.block_bytes, self._map)

    def _stale(self) -> npt.NDArray[np.int32]:
        """Return the stale blocks as entries of a delta, with the row of each layer in place of its number."""
        generation = self._pool.generation[self._layers]
        watermark = self._pool.watermark[self._layers]
        grown = (generation == self._generation) & (watermark > self._watermark)
        stale = (watermark > 0) & ((generation != self._generation) | (watermark != self._watermark))
        rows, blocks = np.nonzero(stale)
        first = np.where(grown[rows, blocks], self._watermark[rows, blocks], 0)
        stop = watermark[rows, blocks]
        if self._map is None:
            first = np.full_like(first, WHOLE)
        else:
            first = np.where(2 * (stop - first) > self._pool.shape.block_tokens, WHOLE, first)
        return np.stack([rows.astype(np.int32), blocks.astype(np.int32), generation[rows, blocks], first, stop], axis=1)

    def _delta(self, entries: npt.NDArray[np.int32]) -> KVDelta:
        rows, blocks, generation, _, watermark = entries.T
        named = entries.copy()
        named[:, 0] = self._layers[rows]
        payload = np.empty(int(self._sizes(entries).sum()), np.uint8)
        whole, single, whole_bytes = _parts(named, self._pool.shape.block_bytes)
        size = self._pool.shape.block_bytes
        for at, (layer, block) in enumerate(whole):
            payload[at * size : (at + 1) * size] = self._blocks[layer, block]
        if len(single) and self._map is not None:
            elements = self._pool.elements(self._map.element_bytes)
            payload[whole_bytes:] = elements[token_index(single, self._map)].reshape(-1).view(np.uint8)
        self._generation[rows, blocks], self._watermark[rows, blocks] = generation, watermark
        return KVDelta(named, payload)


class KVTarget:
    """The receiving side of one change: its pool's place for the moving layers."""

    def __init__(self, pool: KVPool, layers: Sequence[int], layout_digest: bytes) -> None:
        """Make room.

        Raises:
            KVPoolError: tokens lie differently in the blocks of the two nodes.

        """
        known = pool.token_map
        if known is not None and layout_digest and known.digest() != layout_digest:
            raise KVPoolError(
                "the kernels of the two nodes lay tokens out differently in a KV block, so KV cannot be copied between "
                "them; use the same processor features and the same vLLM on both"
            )
        self._pool = pool
        self._layers = np.asarray(layers, np.intp)
        self._allowed = frozenset(layers)
        if layout_digest and known is None:
            raise KVPoolError("this node does not know yet how tokens lie in a KV block: no stage has bound its pool")
        self._map = known if layout_digest else None
        self._blocks = pool.raw_blocks()
        # Whatever an earlier owner left in this place is not ours.
        pool.watermark[self._layers] = 0

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that move."""
        return tuple(int(layer) for layer in self._layers)

    def apply(self, delta: KVDelta) -> int:
        """Write a delta's tokens, then the tables; returns the payload's bytes.

        Raises:
            KVPoolError: the delta names layers, blocks or tokens that it may not, or has another size than it says.

        """
        entries = delta.entries
        shape = self._pool.shape
        if entries.ndim != 2 or entries.shape[1] != _COLUMNS or not len(entries):
            raise KVPoolError(f"the entries of a KV delta are {_COLUMNS} numbers each, not {entries.shape}")
        layers, blocks, generation, first, stop = entries.T
        if not self._allowed.issuperset(np.unique(layers).tolist()):
            raise KVPoolError(f"a KV delta is for layers {np.unique(layers).tolist()}, expected are {self.layers}")
        if blocks.min() < 0 or blocks.max() >= shape.blocks:
            raise KVPoolError(f"a KV delta is for block {int(blocks.max())}, but the pool has {shape.blocks}")
        whole, single, whole_bytes = _parts(entries, shape.block_bytes)
        if first.min() < WHOLE or (stop <= np.maximum(first, 0)).any() or stop.max() > shape.block_tokens:
            raise KVPoolError(f"a KV delta is for tokens that a block of {shape.block_tokens} does not have")
        held = self._pool.watermark[layers, blocks]
        if ((first > 0) & ((held < first) | (self._pool.generation[layers, blocks] != generation))).any():
            raise KVPoolError("a KV delta continues a block of which the tokens before never came")
        if len(single) and self._map is None:
            raise KVPoolError("a KV delta has single tokens, but its sender did not tell how they lie in a block")
        expected = int(_sizes(entries, shape.block_bytes, self._map).sum())
        if delta.payload.nbytes != expected:
            raise KVPoolError(f"a KV delta of {len(entries)} blocks has {delta.payload.nbytes} bytes, not {expected}")
        for at, (layer, block) in enumerate(whole):
            self._blocks[layer, block] = delta.payload[at * shape.block_bytes : (at + 1) * shape.block_bytes]
        if len(single) and self._map is not None:
            index = token_index(single, self._map)
            elements = self._pool.elements(self._map.element_bytes)
            elements[index] = delta.payload[whole_bytes:].view(elements.dtype).reshape(index[1].shape)
        self._pool.generation[layers, blocks] = generation
        self._pool.watermark[layers, blocks] = stop
        return expected

    def mismatches(self, tables: npt.NDArray[np.int32]) -> dict[int, int]:
        """Compare with the source's tables (I2): {layer: blocks that differ}, empty when the target holds everything.

        A block that was started over may have as many tokens as before: its generation tells.
        """
        expected = (2, len(self._layers), self._pool.shape.blocks)
        if tables.shape != expected:
            raise KVPoolError(f"the tables of the moving layers have the shape {tables.shape}, not {expected}")
        valid, generation = tables
        restarted = generation != self._pool.generation[self._layers]
        differing = ((valid != self._pool.watermark[self._layers]) | ((valid > 0) & restarted)).sum(axis=1)
        return {int(layer): int(count) for layer, count in zip(self._layers, differing, strict=True) if count}


@dataclass(slots=True)
class PreCopy:
    """Copying between two pools of this process.

    Args:
        source, target: the pools.
        layers: the layers that move.

    """

    source: KVPool
    target: KVPool
    layers: tuple[int, ...]
    _from: KVSource = field(init=False)
    _to: KVTarget = field(init=False)

    def __post_init__(self) -> None:
        self._from = KVSource(self.source, self.layers)
        self._to = KVTarget(self.target, self.layers, self._from.layout_digest)

    def round(self) -> CopyRound:
        """Copy everything that is stale now, once; say how much was sent and how much is stale again."""
        started = time.perf_counter()
        sent = sum(self._to.apply(delta) for delta in self._from.deltas())
        return CopyRound(sent, time.perf_counter() - started, self.stale_bytes())

    def stale_bytes(self) -> int:
        """Bytes that a round would send now."""
        return self._from.stale_bytes()

    def finish(self) -> tuple[int, dict[int, int]]:
        """Copy what is stale, now that nothing writes any more; returns the bytes, and what differs then (I2)."""
        return self.round().sent_bytes, self.mismatches()

    def mismatches(self) -> dict[int, int]:
        """Compare both sides' tables (I2): {layer: blocks that differ}, empty when the target holds everything."""
        return self._to.mismatches(self._from.tables())

    def pace(self, bytes_per_second: float | None) -> None:
        """Copying within one process takes no more than a moment at any pace."""

    def stop(self) -> None:
        """A round within one process is over before it could be stopped."""

    def end(self) -> None:
        """Nothing is left to do between two pools of one process."""


def _parts(
    entries: npt.NDArray[np.int32], block_bytes: int
) -> tuple[list[tuple[int, int]], npt.NDArray[np.int32], int]:
    """Return (layer, block) of the whole blocks, the other entries, and how many bytes the whole blocks take."""
    is_whole = entries[:, 3] == WHOLE
    whole = [(int(layer), int(block)) for layer, block in entries[is_whole, :2]]
    return whole, entries[~is_whole], len(whole) * block_bytes


def _sizes(entries: npt.NDArray[np.int32], block_bytes: int, layout: TokenMap | None) -> npt.NDArray[np.int64]:
    """Return how many bytes of payload each entry has."""
    first, stop = entries[:, 3].astype(np.int64), entries[:, 4]
    return np.where(first == WHOLE, block_bytes, (stop - first) * (layout.token_bytes if layout else 0))


def token_index(entries: npt.NDArray[np.int32], layout: TokenMap) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the index into `KVPool.elements` of the tokens of `entries`, none of them whole, token by token."""
    layers, blocks, _, first, stop = entries.T
    counts = (stop - first).astype(np.intp)
    entry = np.repeat(np.arange(len(counts)), counts)
    token = np.arange(len(entry)) - np.repeat(np.cumsum(counts) - counts, counts) + first[entry]
    start = blocks[entry].astype(np.intp) * layout.offsets.size
    return layers[entry].astype(np.intp)[:, None], start[:, None] + layout.offsets[token]
