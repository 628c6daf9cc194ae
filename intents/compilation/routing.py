"""Routes for all pairs that route rules speak of, once every workload has its node.

A path keeps to all hard rules about its pair. Of those paths it breaks the fewest preferred rules; of those it is the
fastest, then the one with the fewest links, then the first by names. Names are compared from the subject's switch
(from the lower of the two names between two subjects), so that the way back of a pair with the same rules is the same
path backwards. A pair without such a path is cut off, and so is a pair that is isolated; a pair that only preferred
rules are about and that has no path at all is neither.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from intents.compilation.compiled import Route
from intents.compilation.judging import workload_endpoint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intents.compilation.paths import Found, Limits
    from intents.compilation.problem import Problem
    from intents.compilation.rules import Pair, Rule


def route(
    problem: Problem, rules: Sequence[Rule], chosen: Mapping[str, str]
) -> tuple[dict[Pair, Route], tuple[Pair, ...]]:
    """Return the routes by pair, and the pairs that are cut off.

    Args:
        problem: The problem that was solved.
        rules: All its rules, hard and preferred.
        chosen: The node of each workload that may move.

    Raises:
        SearchBound: for some pair it was not decided which path is best.
    """
    about = problem.pairs(rules)
    isolated = problem.isolated(rules)
    subjects = {workload_endpoint(name) for rule in rules if rule.id.kind == "routes" for name in rule.subjects}
    router = _Router(problem)
    routes: dict[Pair, Route] = {}
    blocked = dict(isolated)
    for pair, applying in about.items():
        if pair in isolated:
            continue
        source, target = pair
        ends = (problem.node_of(source, chosen), problem.node_of(target, chosen))
        if ends[0] is None or ends[1] is None:
            continue
        backwards = target in subjects and source not in subjects
        found = router.between(applying, ends[0], ends[1], backwards=backwards, either=subjects.issuperset(pair))
        if found is not None:
            path, links = found
            routes[pair] = Route(source.name, target.name, path, links)
        elif any(rule.hard for rule in applying):
            blocked[pair] = None
    return dict(sorted(routes.items())), tuple(sorted(blocked))


class _Router:
    """Best paths, remembered by the rules and the two switches."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._split: dict[tuple[Rule, ...], tuple[Limits, tuple[Rule, ...]]] = {}
        self._best: dict[tuple[tuple[Rule, ...], str, str], tuple[tuple[str, ...], tuple[int, ...]] | None] = {}

    def between(
        self, applying: tuple[Rule, ...], start: str, end: str, *, backwards: bool, either: bool
    ) -> tuple[tuple[str, ...], tuple[int, ...]] | None:
        """Return switches and links of the best path from node to node, or None."""
        limits, soft = self._limits(applying)
        if start == end:
            return None if limits.through else ((), ())
        a, b = self._problem.inventory.node[start].switch, self._problem.inventory.node[end].switch
        if a is None or b is None:
            return None
        if backwards or (either and b < a):
            found = self._from(applying, limits, soft, b, a)
            return found and (found[0][::-1], found[1][::-1])
        return self._from(applying, limits, soft, a, b)

    def _limits(self, applying: tuple[Rule, ...]) -> tuple[Limits, tuple[Rule, ...]]:
        if applying not in self._split:
            hard = tuple(rule for rule in applying if rule.hard)
            soft = tuple(rule for rule in applying if not rule.hard)
            self._split[applying] = (self._problem.limits(hard), soft)
        return self._split[applying]

    def _from(
        self, applying: tuple[Rule, ...], limits: Limits, soft: tuple[Rule, ...], start: str, end: str
    ) -> tuple[tuple[str, ...], tuple[int, ...]] | None:
        key = (applying, start, end)
        if key not in self._best:
            self._best[key] = self._search(limits, soft, start, end)
        return self._best[key]

    def _search(
        self, limits: Limits, soft: tuple[Rule, ...], start: str, end: str
    ) -> tuple[tuple[str, ...], tuple[int, ...]] | None:
        if not self._problem.paths.reachable(limits, start, end):
            return None
        for kept in range(len(soft), -1, -1):
            best: tuple[Found, Limits] | None = None
            for some in combinations(soft, kept):
                all_limits = limits.and_also(self._problem.limits(some))
                found = self._problem.paths.find(all_limits, start, end)
                if found is not None and (best is None or (found.cost, found.path) < (best[0].cost, best[0].path)):
                    best = (found, all_limits)
            if best is not None:
                return best[0].path, self._problem.paths.links(best[1], best[0].path)
        return None
