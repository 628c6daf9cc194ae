"""Where the layers of a pipeline go that has lost stages or nodes: as little changes as can be, and only where it may.

In this order: the layout as it is, without lost nodes; without forbidden nodes too; shared by all nodes that may serve;
all layers on one of them. The first that is allowed as a whole is taken: two nodes may be allowed, and the way between
them not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.layout import Layout, even_split
from runtime.warm.node import NodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence


class NowhereAllowed(NodeError):
    """There are nodes, but none that may serve."""


def place(
    layout: Layout, lost: Mapping[str, str], there: Sequence[str], refusal: Callable[[Layout], str | None]
) -> Layout:
    """Return where the layers of `layout` go.

    Args:
        layout: what served last.
        lost: reasons by node.
        there: nodes that are known and not lost.
        refusal: returns why a layout is forbidden.

    Raises:
        NodeError: no node is left; the message has the reasons.
        NowhereAllowed: none that is left may serve.

    """
    wanted = _spared(layout, lost, there)
    if wanted is None:
        raise NodeError(f"all nodes are lost: {'; '.join(lost.values())}")
    if refusal(wanted) is None:
        return wanted
    alone = {name: refusal(_shared(layout, [name])) for name in dict.fromkeys([*there, *sorted(wanted.nodes)])}
    good = [name for name, why in alone.items() if why is None]
    if not good:
        raise NowhereAllowed(f"no node is left that may serve: {'; '.join(filter(None, alone.values()))}")
    spared = _spared(layout, {*lost, *(name for name, why in alone.items() if why is not None)}, good)
    for candidate in (spared, _shared(layout, good)):
        if candidate is not None and candidate != wanted and refusal(candidate) is None:
            return candidate
    return _shared(layout, good[:1])


def _spared(layout: Layout, without: Container[str], there: Sequence[str]) -> Layout | None:
    """Return a layout like `layout` without some nodes, if need be on those that are there; None when none is."""
    left = [name for name in layout.nodes if name not in without]
    if len(left) == len(layout.nodes):
        return layout
    if left:
        return layout.without(without)
    return _shared(layout, there) if there else None


def _shared(layout: Layout, nodes: Sequence[str]) -> Layout:
    """Return the most even layout over these nodes."""
    counts = even_split(layout.total_layers, len(nodes)).split(",")
    text = ",".join(map("@".join, zip(counts, nodes, strict=False)))
    return Layout.parse(text, layout.total_layers).in_precision(layout.precision)
