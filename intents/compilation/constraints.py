"""The hard rules as constraints on nodes: of one workload, of two, or of several.

One workload alone decides about placement rules, routes to what does not move and distance from what does not move.
Beside these there are constraints on two workloads (a path between them, apart, together),
`at_least` rules, and single subjects that need a path to anybody.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from intents.compilation.judging import workload_endpoint
from intents.compilation.paths import Limits
from intents.compilation.problem import for_each
from intents.model.intent import PlacementRule, RouteRule, SpreadRule

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from intents.compilation.judging import Endpoint
    from intents.compilation.problem import Problem
    from intents.compilation.rules import Rule
    from intents.model.intent import Topology


@dataclass(frozen=True, slots=True)
class Compared:
    """Two nodes share no value of a topology (`apart`), or one (`together`)."""

    relation: Literal["apart", "together"]
    topology: Topology


Test = Limits | Compared
"""What holds between two nodes: packets get from one to the other, or the nodes are apart or together."""


@dataclass(frozen=True, slots=True)
class Reach:
    """A subject and the packets it may have: with whom, and within which limits. One of them must be possible."""

    subject: str
    ways: tuple[tuple[Endpoint, Limits], ...]


@dataclass(frozen=True, slots=True)
class AtLeast:
    """At least `count` of the subjects run on one of the nodes."""

    subjects: frozenset[str]
    nodes: frozenset[str]
    count: int


@dataclass(slots=True)
class Constraints:
    """Constraints of one set of hard rules.

    Attributes:
        domains: Nodes left to each workload that may move.
        between: By workload and other workload (both ways): what holds between their nodes.
        fixed: By workload: what holds between its node and that of something that does not move.
        at_least: Rules about some of several workloads.
        reach: Single subjects that need a path to or from anybody.
        cliques: Workloads of which no two share a topology.
        possible: False if the rules cannot be met whatever is chosen.
    """

    domains: dict[str, frozenset[str]]
    between: dict[str, dict[str, tuple[Test, ...]]]
    fixed: dict[str, dict[tuple[Test, str], None]]
    at_least: list[AtLeast] = field(default_factory=list)
    reach: list[Reach] = field(default_factory=list)
    cliques: list[tuple[Topology, tuple[str, ...]]] = field(default_factory=list)
    possible: bool = True


def constraints_of(problem: Problem, rules: Sequence[Rule]) -> Constraints:
    """Return the constraints that these hard rules make."""
    domains = problem.allowed_nodes(rules)
    for name, node in problem.stays(rules).items():
        domains[name] &= {node}
    found = Constraints(domains, {name: {} for name in problem.movable}, {name: {} for name in problem.movable})
    found.possible = not problem.contradictions(rules)
    _add_spread(problem, rules, found)
    _add_routes(problem, rules, found)
    for rule in rules:
        if isinstance(rule.rule, PlacementRule) and rule.rule.at_least is not None and not for_each(rule):
            found.at_least.append(AtLeast(rule.subjects, problem.judge.nodes(rule.rule.nodes), rule.rule.at_least))
    found.possible = found.possible and all(found.domains.values())
    return found


def _add_spread(problem: Problem, rules: Sequence[Rule], found: Constraints) -> None:
    for rule, one, other in problem.apart_and_together(rules):
        if isinstance(rule.rule, SpreadRule):
            compared = Compared(rule.rule.relation, rule.rule.topology)
            _between(problem, found, (workload_endpoint(one), workload_endpoint(other)), compared)
    for rule in rules:
        if isinstance(rule.rule, SpreadRule):
            labelled = problem.judge.labelled(rule.rule.topology)
            for name in rule.subjects:
                found.domains[name] &= labelled
        if isinstance(rule.rule, SpreadRule) and rule.rule.relation == "apart":
            members = tuple(sorted(rule.subjects & problem.judge.workloads(rule.rule.others)))
            if len(members) > 2:
                found.cliques.append((rule.rule.topology, members))


def _add_routes(problem: Problem, rules: Sequence[Rule], found: Constraints) -> None:
    pairs = problem.pairs(rules)
    for pair in problem.needed(rules):
        if pair not in pairs:
            found.possible = False
        else:
            _between(problem, found, pair, problem.limits(pairs[pair]))
    for rule in rules:
        if isinstance(rule.rule, RouteRule) and rule.rule.peers is None and len(rule.subjects) == 1:
            (subject,) = rule.subjects
            own = workload_endpoint(subject)
            ways = {
                (receiver if sender == own else sender, problem.limits(about))
                for (sender, receiver), about in pairs.items()
                if rule in about and sender.kind == receiver.kind == "workload"
            }
            if ways:
                found.reach.append(Reach(subject, tuple(sorted(ways, key=lambda way: way[0]))))


def _between(problem: Problem, found: Constraints, pair: tuple[Endpoint, Endpoint], test: Test) -> None:
    one, other = pair
    if one.name not in found.domains or one.kind == "node":
        one, other = other, one
    if one.kind == "node" or one.name not in found.domains:
        nodes = [problem.node_of(each, {}) for each in (one, other)]
        found.possible = found.possible and None not in nodes and holds(problem, test, str(nodes[0]), str(nodes[1]))
        return
    if other.kind == "workload" and other.name in found.domains:
        for a, b in ((one.name, other.name), (other.name, one.name)):
            tests = found.between[a].get(b, ())
            if test not in tests:
                found.between[a][b] = (*tests, test)
        return
    node = problem.node_of(other, {})
    if node is None:
        found.possible = False
    else:
        found.fixed[one.name][test, node] = None


def narrowed(problem: Problem, found: Constraints, name: str) -> frozenset[str]:
    """Return the nodes left to a workload by all that it alone decides."""
    domain = found.domains[name]
    for test, node in found.fixed[name]:
        if (test, node) not in problem.passing:
            problem.passing[test, node] = frozenset(compatible(problem, (test,), node, problem.inventory.node))
        domain &= problem.passing[test, node]
    return domain


def compatible(problem: Problem, tests: tuple[Test, ...], node: str, domain: Iterable[str]) -> list[str]:
    """Return those of `domain` that pass the tests with `node`; nodes of one switch are tested once for paths."""
    judged: dict[tuple[str | None, bool], bool] = {}
    limits = [test for test in tests if isinstance(test, Limits)]
    spread = [test for test in tests if not isinstance(test, Limits)]
    kept = []
    for each in domain:
        where = (problem.inventory.node[each].switch, each == node)
        if where not in judged:
            judged[where] = all(problem.connected(test, node, each) for test in limits)
        if judged[where] and all(holds(problem, test, node, each) for test in spread):
            kept.append(each)
    return kept


def holds(problem: Problem, test: Test, one: str, other: str) -> bool:
    """Whether a test holds between two nodes."""
    if isinstance(test, Limits):
        return problem.connected(test, one, other)
    judged = problem.judge.apart if test.relation == "apart" else problem.judge.together
    return judged(test.topology, one, other)


def components(found: Constraints) -> list[tuple[str, ...]]:
    """Return the workloads that may move in groups that do not depend on each other."""
    group = {name: {name} for name in found.domains}
    tied = [(name, other) for name, others in found.between.items() for other in others]
    tied.extend((name, other) for rule in found.at_least for name in rule.subjects for other in rule.subjects)
    tied.extend(
        (reach.subject, peer.name)
        for reach in found.reach
        for peer, _ in reach.ways
        if peer.kind == "workload" and peer.name in group
    )
    for one, other in tied:
        if group[one] is not group[other]:
            small, large = sorted((group[one], group[other]), key=len)
            large |= small
            for name in small:
                group[name] = large
    return sorted({tuple(sorted(each)) for each in {id(names): names for names in group.values()}.values()})
