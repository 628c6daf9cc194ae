"""How planning grows with the inventory: random inventories of any size, and the time that sentences take on them.

An inventory is drawn from a seed and is the same for the same seed and size. It is consistent: every name is unique and
every reference leads somewhere, each switch lies in one country with the nodes that hang on it, and all switches are
joined by links that are up. So that the sentences below can be met at every size, the switches in the EU are joined
among themselves by encrypted links, and each fourth node is trusted. Beyond that, labels vary, some are missing, and
some links are down.

The number of workloads is given apart, because the work of a route rule grows with the pairs of workloads, not with
the nodes: by default one for each fifty nodes, at least six.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from intents.model import labels
from intents.model.inventory import Inventory, Link, Node, Switch, Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

EU_SITES = ("DE", "FR", "NL", "IE", "SE", "PL")
OTHER_SITES = ("US-VA", "US-CA", "GB", "CH", "JP", "SG")
PROVIDERS = ("acme", "nimbus", "own")
DATA = ("health", "finance", "public", "internal")
SENTENCES = (
    "Health data must stay on trusted nodes in the EU.",
    "Health data must never cross a US switch.",
    "Traffic between workload-0 and workload-1 must use encrypted links only.",
    "Finance data must run in the EU, and workload-1 must not communicate with workload-2.",
)


@dataclass(frozen=True, slots=True)
class Size:
    """How large an inventory is; `limit_ms`: what planning may take there, None: only measured."""

    nodes: int
    switches: int
    workloads: int
    limit_ms: float | None = None


def size(nodes: int, switches: int, limit_ms: float | None = None) -> Size:
    """Return a size with the usual number of workloads."""
    return Size(nodes, switches, max(6, nodes // 50), limit_ms)


SIZES = (
    size(20, 10, limit_ms=100),
    size(50, 15),
    size(100, 20),
    size(250, 40),
    size(500, 60),
    size(1000, 120),
    size(2500, 250),
    size(5000, 500, limit_ms=2000),
)


@dataclass(frozen=True, slots=True)
class Timed:
    """Planning of one sentence at one size: how it came out, and how long it took over the repeats."""

    size: Size
    sentence: str
    outcome: str
    median_ms: float
    worst_ms: float

    @property
    def within_limit(self) -> bool | None:
        """Whether the worst repeat kept the limit; None without a limit."""
        return None if self.size.limit_ms is None else self.worst_ms <= self.size.limit_ms


def random_inventory(wanted: Size, seed: int) -> Inventory:
    """Draw an inventory of this size.

    Raises:
        ValueError: a size that cannot be drawn: less than two switches, or no node or workload.
    """
    if wanted.switches < 2 or wanted.nodes < 1 or wanted.workloads < 1:
        raise ValueError(f"{wanted}: needs at least 2 switches, 1 node and 1 workload")
    rng = random.Random(seed)  # noqa: S311 - a benchmark, not a secret
    countries = [rng.choice(EU_SITES if _is_eu(index) else OTHER_SITES) for index in range(wanted.switches)]
    nodes = tuple(_node(rng, index, countries) for index in range(wanted.nodes))
    switches = tuple(_switch(rng, index, country) for index, country in enumerate(countries))
    return Inventory(
        metadata={"name": f"random-{wanted.nodes}-{wanted.switches}-{wanted.workloads}-{seed}"},
        version=str(seed),
        nodes=nodes,
        workloads=tuple(_workload(rng, index, nodes) for index in range(wanted.workloads)),
        switches=switches,
        links=_links(rng, countries),
    )


def measure(
    plan: Callable[[str, Inventory], Mapping[str, Any]],
    sizes: Sequence[Size] = SIZES,
    sentences: Sequence[str] = SENTENCES,
    *,
    seed: int = 1,
    repeats: int = 3,
) -> list[Timed]:
    """Time the plan function, from the sentence to the JSON object, for each sentence at each size.

    Reading or drawing the inventory is not part of the time; what the plan function prepares is.
    """
    timed = []
    for each in sizes:
        inventory = random_inventory(each, seed)
        for sentence in sentences:
            took, outcome = [], ""
            for _ in range(repeats):
                started = time.perf_counter()
                outcome = str(plan(sentence, inventory).get("outcome"))
                took.append(1000 * (time.perf_counter() - started))
            timed.append(Timed(each, sentence, outcome, statistics.median(took), max(took)))
    return timed


def to_json(timed: Sequence[Timed]) -> list[dict[str, Any]]:
    """Return one JSON object for each size and sentence."""
    return [
        {
            "nodes": each.size.nodes,
            "switches": each.size.switches,
            "workloads": each.size.workloads,
            "sentence": each.sentence,
            "outcome": each.outcome,
            "median_ms": each.median_ms,
            "worst_ms": each.worst_ms,
            "limit_ms": each.size.limit_ms,
            "within_limit": each.within_limit,
        }
        for each in timed
    ]


def table(timed: Sequence[Timed]) -> Table:
    """Return the timings for a terminal."""
    shown = Table(title="Planning over the size of the inventory")
    for heading in ("nodes", "switches", "workloads"):
        shown.add_column(heading, justify="right")
    for heading in ("sentence", "outcome"):
        shown.add_column(heading)
    for heading in ("median ms", "worst ms", "limit ms"):
        shown.add_column(heading, justify="right")
    for each in timed:
        counts = (str(each.size.nodes), str(each.size.switches), str(each.size.workloads))
        limit = "-" if each.size.limit_ms is None else f"{each.size.limit_ms:g}"
        times = (f"{each.median_ms:.1f}", f"{each.worst_ms:.1f}", limit)
        shown.add_row(*counts, each.sentence, each.outcome, *times, style="red" if each.within_limit is False else None)
    return shown


def _is_eu(index: int) -> bool:
    return index % 3 != 2


def _node(rng: random.Random, index: int, countries: Sequence[str]) -> Node:
    switch = index % len(countries)
    country = countries[switch]
    found = {
        labels.JURISDICTION: country,
        labels.REGION: f"region-{country.lower()}",
        labels.ZONE: f"zone-{switch}",
        labels.TIER: rng.choice(("edge", "cloud")),
        labels.TRUST: "trusted" if index % 4 == 0 else rng.choice(("trusted", "untrusted", "certified")),
        labels.PROVIDER: rng.choice(PROVIDERS),
        labels.CONFIDENTIAL: rng.choice(("true", "false")),
        labels.GPU: rng.choice(("true", "false")),
        "disk": rng.choice(("ssd", "hdd")),
    }
    if index % 4 and rng.random() < 0.1:
        del found[rng.choice(sorted(found))]
    return Node(name=f"node-{index}", switch=f"switch-{switch}", labels=found)


def _switch(rng: random.Random, index: int, country: str) -> Switch:
    trust = "trusted" if _is_eu(index) else rng.choice(("trusted", "untrusted"))
    found = {labels.JURISDICTION: country, labels.TRUST: trust, labels.PROVIDER: rng.choice(PROVIDERS)}
    if not _is_eu(index) and rng.random() < 0.1:
        del found[labels.JURISDICTION]
    return Switch(name=f"switch-{index}", labels=found)


def _workload(rng: random.Random, index: int, nodes: Sequence[Node]) -> Workload:
    """The first node hangs on a switch in the EU, and so do workloads that are not public."""
    data = DATA[index % len(DATA)]
    in_eu = [node for node in nodes if node.switch is not None and _is_eu(int(node.switch.removeprefix("switch-")))]
    node = rng.choice(nodes if data == "public" else in_eu)
    found = {labels.DATA: data, "app": rng.choice(("chat", "batch", "web"))}
    return Workload(name=f"workload-{index}", node=node.name, labels=found)


def _links(rng: random.Random, countries: Sequence[str]) -> tuple[Link, ...]:
    """A tree over the EU, everything else tied to it, and as many redundant links again as there are switches."""
    joined: dict[tuple[int, int], Link] = {}
    for index in range(1, len(countries)):
        earlier = [each for each in range(index) if _is_eu(each)]
        other = rng.choice(earlier)
        joined[other, index] = _link(rng, other, index, encrypted="true", up=True)
    for _ in range(len(countries)):
        a, b = sorted(rng.sample(range(len(countries)), 2))
        if (a, b) not in joined:
            encrypted = rng.choice(("true", "false", None))
            joined[a, b] = _link(rng, a, b, encrypted=encrypted, up=rng.random() > 0.1)
    return tuple(joined.values())


def _link(rng: random.Random, a: int, b: int, *, encrypted: str | None, up: bool) -> Link:
    return Link(
        a=f"switch-{a}",
        b=f"switch-{b}",
        labels={} if encrypted is None else {labels.ENCRYPTED: encrypted},
        latency_ms=rng.randint(1, 40),
        bandwidth_mbps=rng.choice((1000, 10000, 40000)),
        up=up,
    )
