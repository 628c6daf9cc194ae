"""Shortest paths within limits: which switches and links, which way points, how long at most.

Filters are taken out of the graph first. One run of Dijkstra's algorithm from a switch serves every target. A path is
better if it takes less time, then if it has fewer links, then if its names come first, compared from the end that the
search starts at. Latencies are added in whole nanoseconds, so that equal sums are equal.

With way points a path must still pass no switch twice: a flow rule sends the packets of a pair to one port, so a walk
that comes by again would loop. The best *walk* through the way points is found in the product of switches and way
points passed. Where it passes a switch twice, such walks bound a search for the best *path* from below (A*). A switch
lies on some simple path between two others exactly if it is in the same biconnected part as an edge drawn between
them; the rest of the graph is left out. For several way points the problem is NP-hard all the same: the search gives
up (`SearchBound`) after a fixed number of steps, the same on every machine, and never with a wrong answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from intents.model.inventory import Inventory, Link

STEPS = 50_000
"""Most partial paths that a search through way points looks at."""

T = TypeVar("T")
Cost = tuple[int, int]
"""Latency in nanoseconds, number of links."""
Names = tuple[str, ...]


class SearchBound(Exception):
    """The search was ended before it was decided; the message says which."""


def nanoseconds(latency_ms: float) -> int:
    """Return a latency in whole nanoseconds."""
    return round(latency_ms * 1_000_000)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a path must keep to; None: any."""

    switches: frozenset[str] | None = None
    links: frozenset[int] | None = None
    through: frozenset[frozenset[str]] = frozenset()
    latency: int | None = None

    def and_also(self, other: Limits) -> Limits:
        """Return the limits that hold where both do."""
        return Limits(
            switches=_both(self.switches, other.switches),
            links=_both(self.links, other.links),
            through=self.through | other.through,
            latency=min((each for each in (self.latency, other.latency) if each is not None), default=None),
        )


def _both(one: frozenset[T] | None, other: frozenset[T] | None) -> frozenset[T] | None:
    if one is None or other is None:
        return other if one is None else one
    return one & other


@dataclass(frozen=True, slots=True)
class Found:
    """A path and what it costs."""

    cost: Cost
    path: Names


Graph = dict[str, list[tuple[str, int, int]]]
"""By switch: neighbour, latency, and the best of the links to it."""


class Paths:
    """Paths in one inventory, every search remembered."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._best_first = sorted(
            (position for position, link in enumerate(inventory.links) if link.up),
            key=lambda position: (*_preference(inventory.links[position]), position),
        )
        self._graphs: dict[tuple[frozenset[str] | None, frozenset[int] | None], Graph] = {}
        self._parts: dict[tuple[frozenset[str] | None, frozenset[int] | None], dict[str, int]] = {}
        self._trees: dict[tuple[Limits, str], dict[str, Found]] = {}
        self._through: dict[tuple[Limits, str, str], Found | None] = {}
        self._bits: dict[Limits, tuple[dict[str, int], int]] = {}
        self._bounds: dict[tuple[Limits, str], list[dict[str, Cost]]] = {}

    def reachable(self, limits: Limits, start: str, end: str) -> bool:
        """Whether there is a path."""
        if limits.through or limits.latency is not None:
            return self.find(limits, start, end) is not None
        part = self._part(limits)
        return start in part and part.get(start) == part.get(end)

    def find(self, limits: Limits, start: str, end: str) -> Found | None:
        """Return the best path.

        Raises:
            SearchBound: it was not decided within `STEPS`.
        """
        found = self._tree(limits, start).get(end)
        if found is None or not _in_time(limits, found.cost[0]):
            return None
        if len(set(found.path)) == len(found.path) and (start != end or len(found.path) == 1):
            return found
        key = (limits, start, end)
        if key not in self._through:
            self._through[key] = self._search(limits, start, end)
        return self._through[key]

    def links(self, limits: Limits, path: Names) -> tuple[int, ...]:
        """Return the links that the path takes: of several between two switches the fastest that is allowed."""
        graph = self._graph(limits)
        return tuple(next(link for to, _, link in graph[a] if to == b) for a, b in pairwise(path))

    def _graph(self, limits: Limits) -> Graph:
        key = (limits.switches, limits.links)
        if key not in self._graphs:
            graph: Graph = {
                name: []
                for name in sorted(self._inventory.switch)
                if limits.switches is None or name in limits.switches
            }
            joined: set[tuple[str, str]] = set()
            for position in self._best_first:
                link = self._inventory.links[position]
                a, b = sorted((link.a, link.b))
                allowed = a in graph and b in graph and (limits.links is None or position in limits.links)
                if allowed and (a, b) not in joined:
                    joined.add((a, b))
                    graph[a].append((b, nanoseconds(link.latency_ms), position))
                    graph[b].append((a, nanoseconds(link.latency_ms), position))
            self._graphs[key] = graph
        return self._graphs[key]

    def _part(self, limits: Limits) -> dict[str, int]:
        key = (limits.switches, limits.links)
        if key not in self._parts:
            graph, part = self._graph(limits), dict[str, int]()
            for number, root in enumerate(graph):
                queue = [root] if root not in part else []
                while queue:
                    switch = queue.pop()
                    if switch not in part:
                        part[switch] = number
                        queue.extend(to for to, _, _ in graph[switch] if to not in part)
            self._parts[key] = part
        return self._parts[key]

    def _tree(self, limits: Limits, start: str) -> dict[str, Found]:
        """The best walk past all way points to every switch that one leads to; without way points it is a path."""
        key = (Limits(limits.switches, limits.links, limits.through), start)
        if key not in self._trees:
            graph = self._graph(limits)
            passed, everything = self._passed(limits)
            found: dict[str, Found] = {}
            done: set[tuple[str, int]] = set()
            best: dict[tuple[str, int], tuple[int, int, Names]] = {}
            queue: list[tuple[int, int, Names, int]] = []
            if start in graph:
                queue.append((0, 0, (start,), passed.get(start, 0)))
            while queue:
                latency, hops, path, seen = heappop(queue)
                switch = path[-1]
                if (switch, seen) in done:
                    continue
                done.add((switch, seen))
                if seen == everything:
                    found[switch] = Found((latency, hops), path)
                for to, more, _ in graph[switch]:
                    state = (to, seen | passed[to]) if passed else (to, 0)
                    if state not in done:
                        longer = (latency + more, hops + 1, (*path, to))
                        if state not in best or longer < best[state]:
                            best[state] = longer
                            heappush(queue, (*longer, state[1]))
            self._trees[key] = found
        return self._trees[key]

    def _passed(self, limits: Limits) -> tuple[dict[str, int], int]:
        """By switch the way points that it is, a bit each (empty without way points), and all their bits."""
        if not limits.through:
            return {}, 0
        if limits in self._bits:
            return self._bits[limits]
        points = sorted(limits.through, key=sorted)
        bits = {
            name: sum(1 << bit for bit, point in enumerate(points) if name in point) for name in self._graph(limits)
        }
        self._bits[limits] = (bits, (1 << len(points)) - 1)
        return self._bits[limits]

    def _search(self, limits: Limits, start: str, end: str) -> Found | None:
        if start == end:
            return None
        graph = self._graph(limits)
        passed, everything = self._passed(limits)
        bound = self._lower_bounds(limits, end, passed, everything)
        inside: set[str] | None = None
        queue: list[tuple[Cost, Names, int, Cost]] = []
        first = bound[passed[start]].get(start)
        if first is not None and _in_time(limits, first[0]):
            queue.append((first, (start,), passed[start], (0, 0)))
        steps = 0
        while queue:
            _, path, seen, (latency, hops) = heappop(queue)
            if path[-1] == end:
                return Found((latency, hops), path)
            if inside is None and steps > len(graph):
                inside = _on_simple_paths(graph, start, end)
                if any(point.isdisjoint(inside) for point in limits.through):
                    return None
            steps += 1
            if steps > STEPS:
                raise SearchBound(
                    f"whether a path from {start} to {end} passes all way points was not decided in {STEPS} steps"
                )
            for to, more, _ in graph[path[-1]]:
                if to in path or (inside is not None and to not in inside):
                    continue
                after = seen | passed[to]
                rest = bound[after].get(to)
                if rest is None or (to == end and after != everything):
                    continue
                total = (latency + more + rest[0], hops + 1 + rest[1])
                if _in_time(limits, total[0]):
                    heappush(queue, (total, (*path, to), after, (latency + more, hops + 1)))
        return None

    def _lower_bounds(
        self, limits: Limits, end: str, passed: Mapping[str, int], everything: int
    ) -> list[dict[str, Cost]]:
        """By way points passed so far (a bit each) and switch: the cheapest walk past the others to `end`."""
        key = (limits, end)
        if key not in self._bounds:
            graph = self._graph(limits)
            bounds: list[dict[str, Cost]] = [{} for _ in range(everything + 1)]
            queue: list[tuple[int, int, str, int]] = [(0, 0, end, everything)]
            while queue:
                latency, hops, switch, seen = heappop(queue)
                if switch in bounds[seen]:
                    continue
                bounds[seen][switch] = (latency, hops)
                for before in _masks_before(seen, passed[switch]):
                    for origin, more, _ in graph[switch]:
                        if before & passed[origin] == passed[origin] and origin not in bounds[before]:
                            heappush(queue, (latency + more, hops + 1, origin, before))
            self._bounds[key] = bounds
        return self._bounds[key]


def _masks_before(seen: int, here: int) -> list[int]:
    """Return what may have been passed before a switch that is itself the way points `here`, if `seen` is after it."""
    if seen & here != here:
        return []
    masks, part = [], here
    while True:
        masks.append(seen & ~here | part)
        if part == 0:
            return masks
        part = (part - 1) & here


def _in_time(limits: Limits, latency: int) -> bool:
    return limits.latency is None or latency <= limits.latency


def _preference(link: Link) -> tuple[object, ...]:
    """Order of the links between two switches that does not depend on where they stand in the inventory."""
    return (
        link.latency_ms,
        -link.bandwidth_mbps,
        link.name,
        sorted(link.labels.items()),
        sorted((str(link.a_port), str(link.b_port))),
    )


def _on_simple_paths(graph: Graph, start: str, end: str) -> set[str]:
    import networkx as nx  # takes long to import, and few plans have way points

    whole = nx.Graph((name, to) for name, others in graph.items() for to, _, _ in others)
    whole.add_edge(start, end)
    return next(part for part in nx.biconnected_components(whole) if start in part and end in part)
