"""Copying the KV of layers that change their node, while decoding goes on.

Every round compares what the source pool holds with what was sent before, block by block: a block is stale when it was
started over (its generation changed) or has more valid tokens than were sent. Only stale blocks travel. What a stage
writes during a round is found by the next one, because a stage records a block's watermark after it has written the
block, and a round reads the watermarks before it reads the blocks: what is marked as sent was complete.

Blocks that no request uses at the moment but that hold cached prefixes have watermarks too, so the prefix cache moves
along. The target's tables are written after its bytes, so at no time does the target claim more than it holds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from runtime.migration.stop_rule import CopyRound

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from runtime.warm.kv_pool import KVPool


@dataclass(frozen=True, slots=True)
class LayerMove:
    """One layer's way from one pool to another."""

    layer: int
    source: KVPool
    target: KVPool


@dataclass(slots=True)
class PreCopy:
    """The copying of one change.

    Args:
        moves: the layers that move, with their pools.

    """

    moves: tuple[LayerMove, ...]
    sent_bytes: int = 0
    _sent: dict[int, tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for move in self.moves:
            blocks = move.source.shape.blocks
            self._sent[move.layer] = np.zeros(blocks, np.int32), np.zeros(blocks, np.int32)
            # Whatever an earlier owner left in the target's place is not ours.
            move.target.watermark[move.layer] = 0

    def round(self) -> CopyRound:
        """Copy everything that is stale now, once; say how much was sent and how much is stale again."""
        started = time.perf_counter()
        sent = sum(self._copy(move) for move in self.moves)
        self.sent_bytes += sent
        return CopyRound(sent, time.perf_counter() - started, self.stale_bytes())

    def stale_bytes(self) -> int:
        """Bytes that a round would send now."""
        return sum(self._stale(move)[0].size * move.source.shape.block_bytes for move in self.moves)

    def mismatches(self) -> Mapping[int, int]:
        """Compare both sides' tables (I2): {layer: blocks that differ}, empty when the target holds everything.

        A block that was started over may have as many tokens as before: its generation tells.
        """
        differing = {}
        for move in self.moves:
            valid, held = move.source.watermark[move.layer], move.target.watermark[move.layer]
            restarted = move.source.generation[move.layer] != move.target.generation[move.layer]
            differing[move.layer] = int(np.count_nonzero((valid != held) | ((valid > 0) & restarted)))
        return {layer: count for layer, count in differing.items() if count}

    def scrub_source(self) -> None:
        """Erase the moved layers where they were."""
        for move in self.moves:
            move.source.scrub(range(move.layer, move.layer + 1))

    def scrub_target(self) -> None:
        """Erase what was copied, when the change is not made."""
        for move in self.moves:
            move.target.scrub(range(move.layer, move.layer + 1))

    def _stale(self, move: LayerMove) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return the stale blocks of a layer, with the generations and watermarks that this was judged by."""
        generation = move.source.generation[move.layer].copy()
        watermark = move.source.watermark[move.layer].copy()
        sent_generation, sent_watermark = self._sent[move.layer]
        stale = (watermark > 0) & ((generation != sent_generation) | (watermark != sent_watermark))
        return np.flatnonzero(stale), generation, watermark

    def _copy(self, move: LayerMove) -> int:
        blocks, generation, watermark = self._stale(move)
        shape = move.source.shape
        source = np.frombuffer(move.source.layer_memory(move.layer), np.uint8).reshape(shape.blocks, -1)
        target = np.frombuffer(move.target.layer_memory(move.layer), np.uint8).reshape(shape.blocks, -1)
        target[blocks] = source[blocks]
        move.target.generation[move.layer, blocks] = generation[blocks]
        move.target.watermark[move.layer, blocks] = watermark[blocks]
        sent_generation, sent_watermark = self._sent[move.layer]
        sent_generation[blocks], sent_watermark[blocks] = generation[blocks], watermark[blocks]
        return int(blocks.size) * shape.block_bytes
