"""Choose a node for every workload that some intent is about, so that all hard rules hold together.

The choice is the first in this order: workload by workload, by name, the node that meets most preferred rules, then the
one where the workload runs already, then the lowest name, as long as the rest can still be placed. Choosing so without
looking back nearly always succeeds. Where it does not, a search decides: fewest nodes first, every choice checked
forward, workloads that must all be apart checked by matching. Nodes that no constraint tells apart are looked at as
one. The search is exact, and gives up with `SearchBound` after a fixed number of choices instead of guessing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intents.compilation.constraints import Compared, compatible, components, constraints_of, holds, narrowed
from intents.compilation.paths import Limits, SearchBound
from intents.compilation.problem import for_each
from intents.model.intent import PlacementRule, SpreadRule

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from intents.compilation.constraints import AtLeast, Constraints, Reach, Test
    from intents.compilation.problem import Problem
    from intents.compilation.rules import Rule
    from intents.model.intent import Topology

STEPS = 20_000
"""Most choices that a search tries."""

PIGEONS = 400
"""Most workloads that are matched to values; of more, the search alone decides."""

Domain = tuple[str, ...]


def place(problem: Problem, hard: Sequence[Rule], soft: Sequence[Rule] = ()) -> dict[str, str] | None:
    """Return the node of each workload that may move, or None if no choice meets the hard rules.

    Raises:
        SearchBound: it was not decided within the bounds.
    """
    constraints = constraints_of(problem, hard)
    if not constraints.possible:
        return None
    wishes = _Wishes(problem, soft)
    chosen: dict[str, str] = {}
    for names in components(constraints):
        search = _Search(problem, constraints, names, wishes)
        found = search.without_looking_back(chosen) or search.exact(chosen)
        if found is None:
            return None
        chosen.update(found)
    return chosen


class _Wishes:
    """The preferred rules: which nodes meet most of them, given what has been chosen."""

    def __init__(self, problem: Problem, soft: Sequence[Rule]) -> None:
        self._problem = problem
        self._each = [rule for rule in soft if for_each(rule)]
        self._some = [rule for rule in soft if isinstance(rule.rule, PlacementRule) and not for_each(rule)]
        self._spread: dict[str, list[tuple[Compared, str]]] = {}
        for rule, one, other in problem.apart_and_together(soft):
            if isinstance(rule.rule, SpreadRule):
                compared = Compared(rule.rule.relation, rule.rule.topology)
                self._spread.setdefault(one, []).append((compared, other))
                self._spread.setdefault(other, []).append((compared, one))

    def ordered(self, name: str, domain: Domain, chosen: Mapping[str, str]) -> list[str]:
        """Return the nodes, the best first."""
        now = self._problem.inventory.workload[name].node
        wanted = [self._nodes(rule) for rule in self._each if name in rule.subjects]
        for rule in self._some:
            if isinstance(rule.rule, PlacementRule) and rule.rule.at_least is not None and name in rule.subjects:
                nodes = self._nodes(rule)
                if sum(chosen.get(other) in nodes for other in rule.subjects - {name}) < rule.rule.at_least:
                    wanted.append(nodes)
        known = [
            (compared, node)
            for compared, other in self._spread.get(name, ())
            if (node := chosen.get(other) or self._problem.place.get(other)) is not None
        ]

        def unmet(node: str) -> int:
            return sum(node not in nodes for nodes in wanted) + sum(
                not holds(self._problem, compared, node, other) for compared, other in known
            )

        if not wanted and not known:
            return sorted(domain, key=lambda node: (node != now, node))
        return sorted(domain, key=lambda node: (unmet(node), node != now, node))

    def tell_apart(self, name: str) -> tuple[list[frozenset[str]], set[Topology]]:
        """Return the sets of nodes and the topologies that the wishes about a workload look at."""
        sets = [self._nodes(rule) for rule in (*self._each, *self._some) if name in rule.subjects]
        return sets, {compared.topology for compared, _ in self._spread.get(name, ())}

    def _nodes(self, rule: Rule) -> frozenset[str]:
        return self._problem.judge.nodes(rule.rule.nodes) if isinstance(rule.rule, PlacementRule) else frozenset()


class _Search:
    """The search among workloads that depend on each other."""

    def __init__(self, problem: Problem, constraints: Constraints, names: Sequence[str], wishes: _Wishes) -> None:
        self._problem = problem
        self._constraints = constraints
        self._names = tuple(names)
        own = set(names)
        self._between = {name: constraints.between[name] for name in names}
        self._at_least: list[AtLeast] = [rule for rule in constraints.at_least if not own.isdisjoint(rule.subjects)]
        self._reach: list[Reach] = [reach for reach in constraints.reach if reach.subject in own]
        self._cliques = [clique for clique in constraints.cliques if own.issuperset(clique[1])]
        self._wishes = wishes
        self._filtered: dict[tuple[Domain, tuple[Test, ...], str], Domain] = {}
        self._steps = 0

    def without_looking_back(self, elsewhere: Mapping[str, str]) -> dict[str, str] | None:
        """Choose for one workload after the other; None where one finds nothing left, or the whole does not hold."""
        chosen: dict[str, str] = {}
        for name in self._names:
            known = [*self._constraints.fixed[name]]
            known += [(test, chosen[to]) for to, tests in self._between[name].items() if to in chosen for test in tests]
            for node in self._wishes.ordered(name, tuple(self._constraints.domains[name]), {**elsewhere, **chosen}):
                if all(holds(self._problem, test, node, other) for test, other in known):
                    chosen[name] = node
                    break
            else:
                return None
        alone = {name: (node,) for name, node in chosen.items()}
        return chosen if self._several_hold(alone) is not None else None

    def exact(self, elsewhere: Mapping[str, str]) -> dict[str, str] | None:
        """Search; then improve workload by workload as long as the bound allows."""
        domains = {
            name: self._different(name, narrowed(self._problem, self._constraints, name)) for name in self._names
        }
        best = self._solve(domains) if all(domains.values()) else None
        if best is None:
            return None
        try:
            for name in self._names:
                for node in self._wishes.ordered(name, domains[name], {**elsewhere, **self._fixed(domains)}):
                    if node == best[name]:
                        break
                    better = self._solve({**domains, name: (node,)})
                    if better is not None:
                        best = better
                        break
                domains[name] = (best[name],)
        except SearchBound:
            return best
        return best

    @staticmethod
    def _fixed(domains: Mapping[str, Domain]) -> dict[str, str]:
        return {name: domain[0] for name, domain in domains.items() if len(domain) == 1}

    def _solve(self, domains: Mapping[str, Domain]) -> dict[str, str] | None:
        start = self._narrowed(dict(domains), [name for name in self._names if len(domains[name]) == 1])
        if start is None or not self._pigeonholes_suffice(start):
            return None
        levels: list[tuple[dict[str, Domain], str, Iterator[str]]] = []
        now, failed = start, False
        while True:
            open_names = [name for name in self._names if len(now[name]) > 1]
            if not open_names:
                return {name: domain[0] for name, domain in now.items()}
            name = min(open_names, key=lambda each: (len(now[each]), each))
            levels.append((now, name, iter(self._wishes.ordered(name, now[name], self._fixed(now)))))
            deeper = None
            while deeper is None and levels:
                before, name, nodes = levels[-1]
                node = next(nodes, None)
                if node is None:
                    levels.pop()
                    failed = True
                    continue
                self._steps += 1
                if self._steps > STEPS:
                    raise SearchBound(f"a placement of {len(self._names)} workloads was not decided in {STEPS} steps")
                deeper = self._narrowed({**before, name: (node,)}, [name])
                if deeper is not None and failed and not self._pigeonholes_suffice(deeper):
                    deeper = None
            if deeper is None:
                return None
            now = deeper

    def _narrowed(self, domains: dict[str, Domain], decided: list[str]) -> dict[str, Domain] | None:
        """Take away what the decided nodes rule out, and what that decides in turn; None if somebody has none left."""
        while True:
            while decided:
                name = decided.pop()
                node = domains[name][0]
                for other, tests in self._between[name].items():
                    left = self._filter(domains[other], tests, node)
                    if not left:
                        return None
                    if len(left) == 1 and len(domains[other]) > 1:
                        decided.append(other)
                    domains[other] = left
            narrowed = self._several_hold(domains)
            if narrowed is None:
                return None
            decided = [name for name in self._names if len(narrowed[name]) == 1 < len(domains[name])]
            domains = narrowed
            if not decided:
                return domains

    def _several_hold(self, given: Mapping[str, Domain]) -> dict[str, Domain] | None:
        domains = dict(given)
        for rule in self._at_least:
            able = [name for name in sorted(rule.subjects) if not rule.nodes.isdisjoint(domains[name])]
            if len(able) < rule.count:
                return None
            if len(able) == rule.count:
                for name in able:
                    domains[name] = tuple(node for node in domains[name] if node in rule.nodes)
        for reach in self._reach:
            left = tuple(node for node in domains[reach.subject] if self._reaches(reach, node, domains))
            if not left:
                return None
            domains[reach.subject] = left
        return domains

    def _reaches(self, reach: Reach, node: str, domains: Mapping[str, Domain]) -> bool:
        for peer, limits in reach.ways:
            if peer.kind == "workload" and peer.name in domains:
                if self._filter(domains[peer.name], (limits,), node):
                    return True
            else:
                fixed = self._problem.node_of(peer, {})
                if fixed is not None and self._problem.connected(limits, node, fixed):
                    return True
        return False

    def _filter(self, domain: Domain, tests: tuple[Test, ...], node: str) -> Domain:
        key = (domain, tests, node)
        if key not in self._filtered:
            self._filtered[key] = tuple(compatible(self._problem, tests, node, domain))
        return self._filtered[key]

    def _pigeonholes_suffice(self, domains: Mapping[str, Domain]) -> bool:
        """Whether workloads that must all be apart can be matched to values of the topology, one each."""
        for topology, members in self._cliques:
            if len(members) > PIGEONS:
                continue
            holder: dict[str, str] = {}
            values = {
                name: sorted(
                    {value for node in domains[name] if (value := self._problem.judge.topology(topology, node))}
                )
                for name in members
            }
            if not all(_matched(name, values, holder, set()) for name in members):
                return False
        return True

    def _different(self, name: str, domain: frozenset[str]) -> Domain:
        """Return one node, the best, of each kind that the constraints and wishes about a workload tell apart."""
        sets, topologies = self._wishes.tell_apart(name)
        sets = [*sets, *(rule.nodes for rule in self._at_least if name in rule.subjects)]
        tests = {test for each in self._between[name].values() for test in each}
        tests |= {limits for reach in self._reach for peer, limits in reach.ways if name in {reach.subject, peer.name}}
        topologies |= {test.topology for test in tests if isinstance(test, Compared)}
        paths = [test for test in tests if isinstance(test, Limits)]
        if "node" in topologies or any(limits.through for limits in paths):
            return tuple(sorted(domain))
        network: dict[str | None, bool] = {None: False}
        seen: dict[object, str] = {}
        for node in self._wishes.ordered(name, tuple(domain), {}):
            switch = self._problem.inventory.node[node].switch
            if switch not in network:
                network[switch] = all(
                    self._problem.paths.reachable(limits, str(switch), str(switch)) for limits in paths
                )
            kind = (
                (switch if network[switch] else ("alone", node)) if paths else None,
                *(self._problem.judge.topology(topology, node) for topology in sorted(topologies)),
                *(node in each for each in sets),
            )
            seen.setdefault(kind, node)
        return tuple(sorted(seen.values()))


def _matched(name: str, values: Mapping[str, Sequence[str]], holder: dict[str, str], tried: set[str]) -> bool:
    for value in values[name]:
        if value not in tried:
            tried.add(value)
            if value not in holder or _matched(holder[value], values, holder, tried):
                holder[value] = name
                return True
    return False
