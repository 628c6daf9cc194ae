"""Where the layers of stages go that must not stay where they are.

Problem: some nodes of a running pipeline have become forbidden. `relocate` says which layout has none of them: pure,
deterministic, and told everything.

* What is allowed stays: every layer on an allowed node stays there, in a stage of its own as before.
* The layers of neighbouring forbidden stages (a *gap*) go to the stages on both sides of it, to allowed nodes that
  serve nothing yet (*recruits*), or to both. Stages stay contiguous, as layers only ever move within their gap.
* Of all layouts that this leaves, the one whose fullest node has the fewest layers; of these the one with the fewest
  stages. A gap gets no more recruits than it had stages, unless the others have no room.
* Of recruits, those with more room come first, then by name.

Caveats: layers count alike, however large they are. Of orders of recruits that can reach each other the first is
taken, not the best; many gaps with many recruits are not all tried (`_MOST_TRIED`).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

_MOST_TRIED = 10_000


@dataclass(frozen=True, slots=True)
class Placed:
    """A stage: how many consecutive layers, and on which node."""

    layers: int
    node: str


@dataclass(frozen=True, slots=True)
class _Gap:
    """Neighbouring stages that must go: how many layers and stages, and the nodes of the stages beside them."""

    layers: int
    stages: int
    left: str | None
    right: str | None


def relocate(
    stages: Sequence[Placed],
    allowed: Collection[str],
    *,
    room: Mapping[str, int] | None = None,
    joined: Callable[[str, str], bool] = lambda _source, _target: True,
) -> tuple[Placed, ...] | None:
    """Return the layout to move to; `stages` themselves if no node of theirs is forbidden, None if there is no layout.

    Args:
        stages: The layout now, in order.
        allowed: Nodes that may serve; those of `stages` that are not among them are forbidden.
        room: The most layers that a node can have; a node that is not there can have any number. A node that has more
            already keeps them.
        joined: Whether activations may go from one node to another one, which takes them next.
    """
    parts = _parts(stages, allowed)
    gaps = [part for part in parts if isinstance(part, _Gap)]
    if not gaps:
        return tuple(stages)
    room = room or {}
    kept = Counter[str]()
    for part in parts:
        if isinstance(part, Placed):
            kept[part.node] += part.layers
    idle = sorted(set(allowed) - set(kept), key=lambda node: (-room.get(node, math.inf), node))
    for most in (lambda gap: gap.stages, lambda gap: gap.layers):
        found: list[tuple[int, int, tuple[Placed, ...]]] = []
        for recruits in _teams(gaps, idle, most, joined):
            shares = _shared(gaps, recruits, kept, room)
            if shares is None:
                continue
            layout = _filled(parts, recruits, shares)
            if all(a.node == b.node or joined(a.node, b.node) for a, b in itertools.pairwise(layout)):
                found.append((_fullest(layout), len(layout), layout))
        if found:
            return min(found, key=lambda each: each[:2])[2]
    return None


def _parts(stages: Sequence[Placed], allowed: Collection[str]) -> list[Placed | _Gap]:
    """Return the layout with its forbidden stages as gaps."""
    runs = [(stays, list(run)) for stays, run in itertools.groupby(stages, lambda each: each.node in allowed)]
    parts: list[Placed | _Gap] = []
    for position, (stays, run) in enumerate(runs):
        if stays:
            parts += run
            continue
        left = runs[position - 1][1][-1].node if position else None
        right = runs[position + 1][1][0].node if position + 1 < len(runs) else None
        parts.append(_Gap(sum(each.layers for each in run), len(run), left, right))
    return parts


def _teams(
    gaps: Sequence[_Gap], idle: Sequence[str], most: Callable[[_Gap], int], joined: Callable[[str, str], bool]
) -> Iterator[tuple[tuple[str, ...], ...]]:
    """Yield who is recruited for each gap, in order; nobody for two gaps."""
    numbers = (range(min(most(gap), len(idle), gap.layers) + 1) for gap in gaps)
    for wanted in itertools.islice(itertools.product(*numbers), _MOST_TRIED):
        left, teams = list(idle), list[tuple[str, ...]]()
        for gap, number in zip(gaps, wanted, strict=True):
            team = _team(gap, left, number, joined)
            if team is None:
                break
            teams.append(team)
            left = [node for node in left if node not in team]
        else:
            yield tuple(teams)


def _team(gap: _Gap, idle: Sequence[str], number: int, joined: Callable[[str, str], bool]) -> tuple[str, ...] | None:
    """Return the first so many recruits that can reach each other, and the stages beside the gap."""
    for team in itertools.islice(itertools.permutations(idle, number), _MOST_TRIED):
        way = [node for node in (gap.left, *team, gap.right) if node is not None]
        if way and all(a == b or joined(a, b) for a, b in itertools.pairwise(way)):
            return team
    return None


def _shared(
    gaps: Sequence[_Gap], recruits: Sequence[tuple[str, ...]], kept: Mapping[str, int], room: Mapping[str, int]
) -> list[dict[str, int]] | None:
    """Return how many layers of each gap go to which node, as evenly as can be; None: they have no room.

    Layer by layer, each to the node with the fewest; where that node stands at another gap, a chain of nodes passes
    one layer on. So no other division has a fuller node left that could have fewer.
    """
    beside = [
        list(dict.fromkeys(node for node in (gap.left, *team, gap.right) if node is not None))
        for gap, team in zip(gaps, recruits, strict=True)
    ]
    shares = [dict.fromkeys(nodes, 0) for nodes in beside]
    load = Counter(kept)
    for share, team in zip(shares, recruits, strict=True):
        for node in team:
            share[node] = load[node] = 1
    for index, (gap, team) in enumerate(zip(gaps, recruits, strict=True)):
        for _ in range(gap.layers - len(team)):
            if not _add(index, shares, recruits, load, room):
                return None
    return None if any(load[node] > room.get(node, math.inf) for team in recruits for node in team) else shares


def _add(
    gap: int,
    shares: Sequence[dict[str, int]],
    recruits: Sequence[tuple[str, ...]],
    load: Counter[str],
    room: Mapping[str, int],
) -> bool:
    """Give one more layer of a gap away; False: nobody has room."""
    came: dict[str, tuple[int, str | None]] = dict.fromkeys(shares[gap], (gap, None))  # at which gap, from whom
    for node in (order := list(came)):
        for other, share in enumerate(shares):
            if share.get(node, 0) > (node in recruits[other]):  # it can pass one on there
                for following in share:
                    if following not in came:
                        came[following] = other, node
                        order.append(following)
    free = [node for node in order if load[node] < room.get(node, math.inf)]
    if not free:
        return False
    node = min(free, key=lambda each: load[each])
    load[node] += 1
    while True:
        at, giver = came[node]
        shares[at][node] += 1
        if giver is None:
            return True
        shares[at][giver] -= 1
        node = giver


def _filled(
    parts: Sequence[Placed | _Gap], recruits: Sequence[tuple[str, ...]], shares: Sequence[Mapping[str, int]]
) -> tuple[Placed, ...]:
    """Return the layout with each gap's layers where they go."""
    layers: list[int] = []
    nodes: list[str] = []
    given = zip(recruits, shares, strict=True)
    owed = 0  # by the gap before to the stage that comes next
    for part in parts:
        if isinstance(part, Placed):
            layers.append(part.layers + owed)
            nodes.append(part.node)
            owed = 0
            continue
        team, share = next(given)
        if part.left is not None:
            layers[-1] += share[part.left]
        layers += [share[node] for node in team]
        nodes += team
        owed = share[part.right] if part.right is not None and part.right != part.left else 0
    return tuple(Placed(*each) for each in zip(layers, nodes, strict=True))


def _fullest(layout: Sequence[Placed]) -> int:
    load = Counter[str]()
    for each in layout:
        load[each.node] += each.layers
    return max(load.values())
