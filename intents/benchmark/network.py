"""The switches and links of an inventory, as the judge walks them: written anew, so that it shares no mistake."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import networkx as nx

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intents.benchmark.cases import RouteExpectation
    from intents.model.inventory import Inventory, Link


class Network:
    """Finds faults with paths, and whether a path without fault exists."""

    def __init__(self, inventory: Inventory) -> None:
        self._switches = tuple(inventory.switch)
        self._between: dict[frozenset[str], list[Link]] = {}
        for link in inventory.links:
            if link.up:
                self._between.setdefault(frozenset((link.a, link.b)), []).append(link)

    def gaps(self, path: Sequence[str]) -> list[str]:
        """Return where a path cannot be walked: unknown switches, links that do not exist or are down, loops."""
        found = [f"there is no switch {switch}" for switch in path if switch not in self._switches]
        found += [f"there is no link {a}-{b} that is up" for a, b in pairwise(path) if not self._links(a, b)]
        if len(set(path)) != len(path):
            found.append(f"the path {' '.join(path)} crosses a switch twice")
        return found

    def faults(self, path: Sequence[str], rule: RouteExpectation) -> list[str]:
        """Return what a rule forbids about a path; the empty path, within one node, has no fault."""
        if not path:
            return []
        found = [f"crosses {switch}" for switch in path if switch in rule.avoid]
        steps = [(a, b, self._allowed_links(a, b, rule)) for a, b in pairwise(path)]
        found += [f"uses the link {a}-{b}" for a, b, links in steps if not links]
        found += [f"passes none of {', '.join(group)}" for group in rule.through if not set(group) & set(path)]
        if rule.max_latency_ms is not None:
            took = sum(min((link.latency_ms for link in links), default=0.0) for _, _, links in steps)
            if took > rule.max_latency_ms:
                found.append(f"takes {took:g} ms, at most {rule.max_latency_ms:g} ms are allowed")
        return found

    def path_exists(self, start: str, end: str, rules: Sequence[RouteExpectation]) -> bool:
        """Whether some path from switch to switch has no fault by any of the rules."""
        graph = nx.Graph()
        graph.add_nodes_from(self._switches)
        graph.add_edges_from(tuple(ends) for ends in self._between)
        graph.remove_nodes_from([switch for rule in rules for switch in rule.avoid])
        graph.remove_edges_from(
            [(a, b) for a, b in graph.edges if any(not self._allowed_links(a, b, rule) for rule in rules)]
        )
        if start not in graph or end not in graph:
            return False
        if not any(rule.through or rule.max_latency_ms is not None for rule in rules):
            return bool(nx.has_path(graph, start, end))
        paths = [[start]] if start == end else nx.all_simple_paths(graph, start, end)
        return any(not any(self.faults(path, rule) for rule in rules) for path in paths)

    def _links(self, a: str, b: str) -> list[Link]:
        return self._between.get(frozenset((a, b)), [])

    def _allowed_links(self, a: str, b: str, rule: RouteExpectation) -> list[Link]:
        enough = rule.min_bandwidth_mbps or 0.0
        return [
            link for link in self._links(a, b) if link.name not in rule.avoid_links and link.bandwidth_mbps >= enough
        ]
