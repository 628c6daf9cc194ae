"""Copying the KV of layers that change their node, while decoding goes on.

::

    KVSource.deltas() --KVDelta--> (memory, or a link to another machine) --KVDelta--> KVTarget.apply()

Every round compares what the source pool holds with what was sent before, block by block. A block that was started
over (its generation changed) is sent from its first token; otherwise only the tokens it has gained since travel, so a
cutover waits for what the last batches wrote, not for the blocks they wrote it into. What a stage writes during a round
is found by the next one: a stage records a block's watermark after it has written the tokens, and a round reads the
watermarks before it reads the tokens, so what is marked as sent was complete.

Where a token lies in its block is the kernels' business; a stage tells the pool (`TokenMap`). Both sides must lay
tokens out alike, or nothing is copied. Without a map, blocks travel whole.

Blocks that no request uses at the moment but that hold cached prefixes have watermarks too, so the prefix cache moves
along. The target's tables are written after its bytes, so at no time does the target claim more than it holds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from runtime.migration.stop_rule import CopyRound
from runtime.warm.kv_pool import KVPoolError, TokenMap

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from runtime.warm.kv_pool import KVPool

DELTA_BYTES = 1 << 17
"""About how many bytes of tokens one delta carries: enough to be efficient, little enough to be interrupted."""

_COLUMNS = 5


@dataclass(frozen=True, slots=True)
class KVDelta:
    """Tokens of some blocks, on their way.

    Args:
        entries: int32 ``[n, 5]``: layer, block, generation, first token, stop token (the block's watermark).
        payload: the tokens' elements, ``[tokens of all entries, elements of a token]``.

    """

    entries: npt.NDArray[np.int32]
    payload: npt.NDArray[np.generic]


class KVSource:
    """The sending side of one change: what is stale, and the deltas that bring it up to date."""

    def __init__(self, pool: KVPool, layers: Sequence[int]) -> None:
        self._pool = pool
        self._layers = np.asarray(layers, np.intp)
        self._map = pool.token_map
        self._layout = self._map or TokenMap.whole_blocks(pool.shape)
        self._elements = pool.elements(self._layout.element_bytes)
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
        entries = self._stale()
        return int((entries[:, 4] - entries[:, 3]).sum()) * self._token_bytes

    def deltas(self) -> Iterator[KVDelta]:
        """Yield what is stale now; what was yielded counts as sent."""
        entries = self._stale()
        per_delta = max(1, DELTA_BYTES // self._token_bytes)
        sizes = entries[:, 4] - entries[:, 3]
        part = (np.cumsum(sizes) - 1) // per_delta
        for chosen in np.split(entries, np.flatnonzero(np.diff(part)) + 1):
            if len(chosen):
                yield self._delta(chosen)

    def tables(self) -> npt.NDArray[np.int32]:
        """Return the tables of the moving layers: int32 ``[2, layers, blocks]``, watermarks and generations."""
        return np.stack([self._pool.watermark[self._layers], self._pool.generation[self._layers]])

    @property
    def _token_bytes(self) -> int:
        return int(self._layout.offsets.shape[1]) * self._layout.element_bytes

    def _stale(self) -> npt.NDArray[np.int32]:
        """Return the stale blocks as entries of a delta."""
        generation = self._pool.generation[self._layers]
        watermark = self._pool.watermark[self._layers]
        grown = (generation == self._generation) & (watermark > self._watermark)
        stale = (watermark > 0) & ((generation != self._generation) | (watermark != self._watermark))
        rows, blocks = np.nonzero(stale)
        first = np.where(grown[rows, blocks], self._watermark[rows, blocks], 0)
        stop = watermark[rows, blocks]
        if self._map is None:
            first, size = np.zeros_like(first), self._pool.shape.block_tokens
            stop = np.full_like(stop, size)
        return np.stack([rows.astype(np.int32), blocks.astype(np.int32), generation[rows, blocks], first, stop], axis=1)

    def _delta(self, entries: npt.NDArray[np.int32]) -> KVDelta:
        rows, blocks, generation = entries[:, 0], entries[:, 1], entries[:, 2]
        named = entries.copy()
        named[:, 0] = self._layers[rows]
        watermark = entries[:, 4]
        if self._map is None:
            # A whole block travels; it is valid as far as it was before its bytes are read.
            watermark = self._pool.watermark[named[:, 0], blocks]
            named[:, 4] = watermark
        payload = self._elements[token_index(named[:, 0], blocks, entries[:, 3], entries[:, 4], self._layout)]
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
        self._exact = bool(layout_digest)
        self._layout = (known if self._exact else None) or TokenMap.whole_blocks(pool.shape)
        if self._exact and known is None:
            raise KVPoolError("this node does not know yet how tokens lie in a KV block: no stage has bound its pool")
        self._elements = pool.elements(self._layout.element_bytes)
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
        if first.min() < 0 or (stop <= first).any() or stop.max() > shape.block_tokens:
            raise KVPoolError(f"a KV delta is for tokens that a block of {shape.block_tokens} does not have")
        held = self._pool.watermark[layers, blocks]
        if ((first > 0) & ((held < first) | (self._pool.generation[layers, blocks] != generation))).any():
            raise KVPoolError("a KV delta continues a block of which the tokens before never came")
        last = stop if self._exact else np.full_like(stop, shape.block_tokens)
        tokens = int((last - first).sum())
        kind = self._elements.dtype
        expected = tokens * int(self._layout.offsets.shape[1]) * kind.itemsize
        if delta.payload.nbytes != expected:
            raise KVPoolError(f"a KV delta of {tokens} tokens has {delta.payload.nbytes} bytes, not {expected}")
        payload = delta.payload.view(kind).reshape(tokens, -1)
        self._elements[token_index(layers, blocks, first, last, self._layout)] = payload
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

    def stop(self) -> None:
        """A round within one process is over before it could be stopped."""

    def end(self) -> None:
        """Nothing is left to do between two pools of one process."""


def token_index(
    layers: npt.NDArray[np.int32],
    blocks: npt.NDArray[np.int32],
    first: npt.NDArray[np.int32],
    stop: npt.NDArray[np.int32],
    layout: TokenMap,
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the index into `KVPool.elements` of tokens ``[first[i], stop[i])`` of ``blocks[i]``, token by token."""
    counts = (stop - first).astype(np.intp)
    entry = np.repeat(np.arange(len(counts)), counts)
    token = np.arange(len(entry)) - np.repeat(np.cumsum(counts) - counts, counts) + first[entry]
    start = blocks[entry].astype(np.intp) * layout.offsets.size
    return layers[entry].astype(np.intp)[:, None], start[:, None] + layout.offsets[token]
