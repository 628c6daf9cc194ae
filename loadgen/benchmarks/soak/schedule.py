"""What happens to the pipeline during a soak, and when: a pure function of the seed.

Disturbances come from a deck of cards that is shuffled anew whenever it is used up: every kind takes part in its share
even of a short run, and the order is still random. What a step hits is written down as a fraction (`pick`), because
which stages there are is only known when its time has come. Two runs with one seed therefore make the same steps; what
these meet depends on the machine's timing.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count, pairwise

_MOST_STAGES = 4
_BETWEEN_S = (0.1, 1.5)
_INTO_CHANGE_S = (0.0, 1.2)
_NODE_AWAY_S = (0.5, 6.0)
_SHORT_CUT_S, _LONG_CUT_S = (0.2, 3.0), (5.0, 15.0)  # one that a connection outlives, one that it does not
_SETTLED_FIRST = 0.7  # of all steps; the others come upon a pipeline that may still be recovering
_WHOLE_FIRST = 0.6  # of all steps; the others come while a node may be away
_TOGETHER = 0.15  # of the steps that take a node away while the other one is away


class Kind(StrEnum):
    """What is done to the pipeline."""

    CHANGE = "change"  # of the layout
    CAPACITY = "capacity"  # a change of what it holds at once
    STAGE = "stage"  # SIGKILL of a stage that serves
    STAGES = "stages"  # of several at once
    NODE = "node"  # of a node runtime, which is started again
    NODES = "nodes"  # of all node runtimes at once: none is left until they are back
    LINK = "link"  # cut, and healed
    CHANGE_STAGE = "change_stage"  # a change, and SIGKILL of a stage of its source or target meanwhile
    CHANGE_NODE = "change_node"  # the same with a node runtime
    CHANGE_LINK = "change_link"  # the same with the link


CHANGING = frozenset({Kind.CHANGE, Kind.CHANGE_STAGE, Kind.CHANGE_NODE, Kind.CHANGE_LINK})
KILLING = frozenset(Kind) - {Kind.CHANGE, Kind.CAPACITY}
CUTTING = frozenset({Kind.LINK, Kind.CHANGE_LINK})
LOSING = frozenset({Kind.NODE, Kind.CHANGE_NODE}) | CUTTING  # a node, at least for a while
DECK: Mapping[Kind, int] = {
    Kind.STAGE: 6,
    Kind.CHANGE_STAGE: 6,
    Kind.STAGES: 2,
    Kind.NODE: 2,
    Kind.NODES: 1,
    Kind.CHANGE_NODE: 2,
    Kind.LINK: 1,
    Kind.CHANGE_LINK: 1,
    Kind.CHANGE: 6,
    Kind.CAPACITY: 2,
}


@dataclass(frozen=True, slots=True)
class Step:
    """One disturbance; a part that its kind has no use for means nothing.

    Attributes:
        number: Of the step, from 1.
        kind: What is done.
        wait_s: Seconds from the step before.
        settled: Whether the pipeline serves again before it begins.
        whole: Whether all nodes are there before it begins.
        pick: Which of the stages or nodes, as a fraction of their number.
        share: How many of the stages, as a fraction; also how much of the capacity is left.
        side: Which side of a change is hit: "source" or "target".
        together: Whether a node may be taken away although no other is there.
        layers, method: The change.
        into_change_s: Seconds from asking for the change to the kill.
        away_s: Seconds until a killed node is started again, or the link is healed.
        cut: How the link is cut.
    """

    number: int
    kind: Kind
    wait_s: float
    settled: bool
    whole: bool
    pick: float
    share: float
    side: str
    together: bool
    layers: str
    method: str
    into_change_s: float
    away_s: float
    cut: str


@dataclass(frozen=True, slots=True)
class Setting:
    """What a schedule has to know of the pipeline: its nodes, its layers, how it may be changed and its link cut."""

    nodes: tuple[str, ...]
    layers: int
    methods: tuple[str, ...]
    cuts: tuple[str, ...] = ()
    deck: Mapping[Kind, int] = field(default_factory=lambda: DECK)


def schedule(seed: int, setting: Setting) -> Iterator[Step]:
    """Return the steps of a soak, without end; none cuts the link if there is no way to."""
    choice = random.Random(f"soak {seed}")  # noqa: S311 - reproducible, not secret
    deck = [kind for kind, cards in setting.deck.items() for _ in range(cards) if setting.cuts or kind not in CUTTING]
    numbers = count(1)
    while True:
        choice.shuffle(deck)
        for kind in deck:
            yield _step(next(numbers), kind, setting, choice)


def _step(number: int, kind: Kind, setting: Setting, choice: random.Random) -> Step:
    # Every part is drawn for every kind, so that a change to one kind's use of a part moves nothing else.
    cut_s = choice.uniform(*(_SHORT_CUT_S if choice.random() < 0.5 else _LONG_CUT_S))
    node_s = choice.uniform(*_NODE_AWAY_S)
    return Step(
        number=number,
        kind=kind,
        wait_s=round(choice.uniform(*_BETWEEN_S), 3),
        settled=choice.random() < _SETTLED_FIRST,
        whole=choice.random() < _WHOLE_FIRST,
        pick=choice.random(),
        share=choice.random(),
        side=choice.choice(("source", "target")),
        together=choice.random() < _TOGETHER,
        layers=random_layers(setting.layers, setting.nodes, choice),
        method=choice.choice(setting.methods),
        into_change_s=round(choice.uniform(*_INTO_CHANGE_S), 3),
        away_s=round(cut_s if kind in CUTTING else node_s, 3),
        cut=choice.choice(setting.cuts or ("",)),
    )


def random_layers(total: int, nodes: tuple[str, ...], choice: random.Random) -> str:
    """Return a random layout of `total` layers in one to four stages, each on a random node."""
    stages = min(total, choice.randint(1, _MOST_STAGES))
    ends = [0, *sorted(choice.sample(range(1, total), stages - 1)), total]
    return ",".join(f"{stop - start}@{choice.choice(nodes)}" for start, stop in pairwise(ends))


def layers_by_node(layers: str) -> dict[str, set[int]]:
    """Return which layers each node has in a layout such as "15@edge-1,15@edge-2"."""
    held: dict[str, set[int]] = {}
    first = 0
    for part in layers.split(","):
        number, _, node = part.partition("@")
        held.setdefault(node, set()).update(range(first, first + int(number)))
        first += int(number)
    return held


def nodes_at(side: str, before: str, after: str) -> list[str]:
    """Return the nodes from or to which a change moves layers; all it uses if it moves none.

    Args:
        side: "source" or "target".
        before, after: The layouts.
    """
    old, new = layers_by_node(before), layers_by_node(after)
    has, lacks = (old, new) if side == "source" else (new, old)
    return sorted(node for node in has if has[node] - lacks.get(node, set())) or sorted(old.keys() | new.keys())
