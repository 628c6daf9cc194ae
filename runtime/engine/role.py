"""What a stage does in a pipeline: which layers it computes, and whether it is at one of the ends."""

from __future__ import annotations

import msgspec

from runtime.layout import LayerRange


class Role(msgspec.Struct, frozen=True):
    """Stage number `rank` of a pipeline whose stages own `layer_counts` layers, in order."""

    rank: int
    layer_counts: tuple[int, ...]

    @classmethod
    def whole(cls, layers: int) -> Role:
        """Be the only stage."""
        return cls(0, (layers,))

    @property
    def layers(self) -> LayerRange:
        """The layers this stage owns."""
        first = sum(self.layer_counts[: self.rank])
        return LayerRange(first, first + self.layer_counts[self.rank])

    @property
    def size(self) -> int:
        """Number of stages in the pipeline."""
        return len(self.layer_counts)

    @property
    def is_first(self) -> bool:
        """Whether this stage takes token ids, not hidden states."""
        return self.rank == 0

    @property
    def is_last(self) -> bool:
        """Whether this stage samples."""
        return self.rank == self.size - 1
