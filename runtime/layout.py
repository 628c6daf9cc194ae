"""How the layers of a model are divided into pipeline stages.

A `Layout` is what a user writes as ``8,12,10`` or, with stages on named nodes, ``8@edge-1,22@cloud-1``:
the number of consecutive layers each stage owns. It is a value: parsing and validation never touch a process. Beside
the stages it tells in which precision they compute, which has no part in the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Container

LOCAL_NODE = "local"
_STAGE = re.compile(r"\s*(?P<layers>[0-9]{1,9})\s*(?:@\s*(?P<node>[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?))?\s*")


class LayoutError(ValueError):
    """A layout cannot be parsed or does not fit the model; the message says what would."""


@dataclass(frozen=True, slots=True, order=True)
class LayerRange:
    """The half-open range of layers ``[first, stop)`` that one stage owns."""

    first: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.first

    def __contains__(self, layer: int) -> bool:
        return self.first <= layer < self.stop

    def __str__(self) -> str:
        return f"{self.first}-{self.stop - 1}"

    def as_range(self) -> range:
        """Return the layers' numbers."""
        return range(self.first, self.stop)


@dataclass(frozen=True, slots=True)
class StagePlacement:
    """One stage of a layout: its layers and the node whose memory holds their KV cache."""

    layers: LayerRange
    node: str = LOCAL_NODE


@dataclass(frozen=True, slots=True)
class Layout:
    """An ordered division of all layers of a model into stages.

    `precision`: of the weights of all of them, such as ``bfloat16``; empty where nothing is said about it.
    """

    stages: tuple[StagePlacement, ...]
    precision: str = ""

    @classmethod
    def parse(cls, text: str, total_layers: int) -> Layout:
        """Read ``8,12,10`` or ``8@a,22@b`` for a model of `total_layers` layers.

        Raises:
            LayoutError: malformed text, an empty stage, more stages than layers, or a wrong sum of layers.

        """
        counts: list[int] = []
        nodes: list[str] = []
        for position, part in enumerate(text.split(",")):
            match = _STAGE.fullmatch(part)
            if match is None:
                raise LayoutError(
                    f"layers {text!r}: stage {position} is {part.strip()!r}, but a stage is a number of layers, "
                    f"optionally with a node, such as 15 or 15@edge-1; for example {even_split(total_layers, 2)}"
                )
            counts.append(int(match["layers"]))
            nodes.append(match["node"] or LOCAL_NODE)
        _check_counts(text, counts, total_layers)
        stages, first = [], 0
        for count, node in zip(counts, nodes, strict=True):
            stages.append(StagePlacement(LayerRange(first, first + count), node))
            first += count
        return cls(tuple(stages))

    @property
    def counts(self) -> tuple[int, ...]:
        """Layers per stage, in pipeline order."""
        return tuple(len(stage.layers) for stage in self.stages)

    @property
    def nodes(self) -> frozenset[str]:
        """The nodes that hold at least one stage."""
        return frozenset(stage.node for stage in self.stages)

    @property
    def total_layers(self) -> int:
        """Layers of the whole model."""
        return self.stages[-1].layers.stop

    def node_of(self, layer: int) -> str:
        """Return the node whose memory holds `layer`."""
        return next(stage.node for stage in self.stages if layer in stage.layers)

    def moved_layers(self, target: Layout) -> tuple[int, ...]:
        """Return the layers whose KV cache lives on another node in `target`, ascending."""
        return tuple(layer for layer in range(self.total_layers) if self.node_of(layer) != target.node_of(layer))

    def without(self, nodes: Container[str]) -> Layout:
        """Return this layout without the stages on `nodes`, whose layers are shared by the stages beside them.

        Raises:
            LayoutError: no stage is left.

        """
        return self._only(lambda index: self.stages[index].node not in nodes)

    def without_stages(self, indices: Container[int]) -> Layout:
        """Return this layout without some stages, whose layers are shared by the stages beside them.

        Raises:
            LayoutError: no stage is left.

        """
        return self._only(lambda index: index not in indices)

    def moved_to(self, index: int, node: str) -> Layout:
        """Return this layout with one stage on another node."""
        stages = list(self.stages)
        stages[index] = StagePlacement(stages[index].layers, node)
        return replace(self, stages=tuple(stages))

    def in_precision(self, precision: str) -> Layout:
        """Return this layout with weights of a precision."""
        return replace(self, precision=precision)

    def _only(self, keeps: Callable[[int], bool]) -> Layout:
        kept = [stage for index, stage in enumerate(self.stages) if keeps(index)]
        if not kept:
            raise LayoutError(f"layout {self}: no stage is left")
        stages: list[StagePlacement] = []
        for position, stage in enumerate(kept):
            first = stages[-1].layers.stop if stages else 0
            following = kept[position + 1] if position + 1 < len(kept) else None
            stop = self.total_layers if following is None else (stage.layers.stop + following.layers.first) // 2
            stages.append(StagePlacement(LayerRange(first, stop), stage.node))
        return replace(self, stages=tuple(stages))

    def __len__(self) -> int:
        return len(self.stages)

    def __str__(self) -> str:
        return ",".join(
            str(len(stage.layers)) + ("" if stage.node == LOCAL_NODE else f"@{stage.node}") for stage in self.stages
        )


def even_split(total_layers: int, stages: int) -> str:
    """Return the most even layout text with `stages` stages (capped at one layer per stage)."""
    stages = max(1, min(stages, total_layers))
    base, extra = divmod(total_layers, stages)
    return ",".join(str(base + (position < extra)) for position in range(stages))


def _check_counts(text: str, counts: list[int], total_layers: int) -> None:
    if len(counts) > total_layers:
        raise LayoutError(
            f"layers {text!r} asks for {len(counts)} stages, but the model has only {total_layers} layers and every "
            f"stage needs at least one; at most {even_split(total_layers, total_layers)!r} would work"
        )
    if 0 in counts:
        raise LayoutError(
            f"layers {text!r}: stage {counts.index(0)} is empty, but every stage needs at least one layer; "
            f"{even_split(total_layers, len(counts))!r} would work"
        )
    if sum(counts) != total_layers:
        raise LayoutError(
            f"layers {text!r} add up to {sum(counts)}, but the model has {total_layers} layers; "
            f"{even_split(total_layers, len(counts))!r} would work"
        )
