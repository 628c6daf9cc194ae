"""What must hold, as a problem to solve: who may move, what pairs of packets need a path, and within which limits.

A problem is made once for an inventory and a list of rules and can then be solved for any part of the hard rules,
which is how conflicts are explained. Which workloads may move (all that some intent is about) does not depend on that
part, so that leaving rules out never makes a problem harder.

* A hard route rule with peers needs a path for each of its pairs; one without peers, for the pairs among its subjects.
  The other pairs of such a rule are cut off where no path exists, but every subject needs a path to or from somebody.
* All rules about a pair apply to it together, and isolation takes packets away without making a path unnecessary:
  so one more rule never makes more possible. A pair whose rule *names* its peers and that is also isolated is a
  contradiction.
* A rule without peers is about all workloads, and about the nodes that other rules name as peers of its subjects.
* Two endpoints on one node exchange packets without a network: every limit is met, except way points, which such
  packets do not pass.
* What runs on a node exchanges packets with it: a workload that is isolated from a node does not run there.
* Subjects of a spread rule run where its label is known, also while nothing runs that they are compared with.
* A workload that runs nowhere and that no intent is about has no packets; a rule that names it as peer cannot be met.
"""

from __future__ import annotations

from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING

from intents.compilation.judging import Endpoint, Judge, workload_endpoint
from intents.compilation.paths import Limits, Paths, nanoseconds
from intents.compilation.rules import pairs_with, rules_of
from intents.model.intent import IsolationRule, PlacementRule, RouteRule, SpreadRule, TransferRule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intents.compilation.paths import Found
    from intents.compilation.rules import Pair, Rule
    from intents.model.intent import PrivacyIntent
    from intents.model.inventory import Inventory

ALL_STATE = frozenset({"prompts", "kv", "weights"})


class Problem:
    """An inventory and the rules about it, with everything judged that several solutions need."""

    def __init__(self, inventory: Inventory, intents: Sequence[PrivacyIntent], judge: Judge) -> None:
        self.inventory = inventory
        self.judge = judge
        self.paths = Paths(inventory)
        self.rules = rules_of(intents, judge)
        self.movable = tuple(sorted({name for rule in self.rules for name in rule.subjects}))
        self._limits: dict[tuple[Rule, ...], Limits] = {}
        self.passing: dict[tuple[object, str], frozenset[str]] = {}
        """Nodes between which and a given node a test holds, as far as somebody asked."""

    @cached_property
    def hard(self) -> tuple[Rule, ...]:
        """The rules that must hold."""
        return tuple(rule for rule in self.rules if rule.hard)

    @cached_property
    def place(self) -> Mapping[str, str]:
        """Where the workloads run that may not move, by name; without those that run nowhere."""
        movable = set(self.movable)
        return {
            each.name: each.node
            for each in self.inventory.workloads
            if each.node is not None and each.name not in movable
        }

    @cached_property
    def running(self) -> frozenset[Endpoint]:
        """The workloads that run, or will."""
        return frozenset(workload_endpoint(name) for name in {*self.place, *self.movable})

    def allowed_nodes(self, rules: Sequence[Rule]) -> dict[str, frozenset[str]]:
        """Return by workload that may move the nodes that meet these rules, of each alone.

        Those are placement rules, and isolation rules whose peers are nodes: what runs on a node talks to it.
        """
        everywhere = frozenset(self.inventory.node)
        allowed = dict.fromkeys(self.movable, everywhere)
        for rule in rules:
            if isinstance(rule.rule, PlacementRule) and for_each(rule):
                nodes = self.judge.nodes(rule.rule.nodes)
                for name in rule.subjects:
                    allowed[name] &= nodes
            elif isinstance(rule.rule, IsolationRule):
                for name in rule.subjects:
                    allowed[name] -= self.judge.nodes(rule.rule.peers)
        return allowed

    def stays(self, rules: Sequence[Rule]) -> dict[str, str]:
        """Return by workload the node that it may not leave, as none of its state may be migrated."""
        return {
            name: node
            for rule in rules
            if isinstance(rule.rule, TransferRule) and rule.rule.forbidden and set(rule.rule.state) >= ALL_STATE
            for name in rule.subjects
            if (node := self.inventory.workload[name].node) is not None
        }

    def pairs(self, rules: Sequence[Rule]) -> dict[Pair, tuple[Rule, ...]]:
        """Return the ordered pairs that these route rules are about, each with those that are about it."""
        named = [rule for rule in rules if isinstance(rule.rule, RouteRule) and rule.rule.peers is not None]
        others = dict.fromkeys(pair for rule in named for pair in self._named_pairs(rule) if "node" in _kinds(pair))
        found: dict[Pair, tuple[Rule, ...]] = {}
        added: dict[tuple[tuple[Rule, ...], int], tuple[Rule, ...]] = {}
        for number, rule in enumerate(rules):
            if not isinstance(rule.rule, RouteRule):
                continue
            pairs = self._named_pairs(rule)
            if rule.rule.peers is None:
                pairs = {**pairs, **{pair: None for pair in others if _is_about(rule, pair)}}
            for pair in pairs:
                before = found.get(pair, ())
                key = (before, number)
                if key not in added:
                    added[key] = (*before, rule)
                found[pair] = added[key]
        return found

    def _named_pairs(self, rule: Rule) -> dict[Pair, None]:
        """The pairs of a route rule with its peers; without peers, with all workloads that run."""
        if not isinstance(rule.rule, RouteRule):
            return {}
        peers = self.running if rule.rule.peers is None else self.judge.peers(rule.rule.peers)
        return dict.fromkeys(pairs_with(rule.subjects, peers, rule.rule.direction))

    def needed(self, rules: Sequence[Rule]) -> dict[Pair, None]:
        """Return the ordered pairs that these route rules need a path for."""
        found: dict[Pair, None] = {}
        for rule in rules:
            if isinstance(rule.rule, RouteRule) and rule.hard:
                among = frozenset(map(workload_endpoint, rule.subjects))
                peers = among if rule.rule.peers is None else self.judge.peers(rule.rule.peers)
                found.update(dict.fromkeys(pairs_with(rule.subjects, peers, rule.rule.direction)))
        return found

    def isolated(self, rules: Sequence[Rule]) -> dict[Pair, None]:
        """Return the ordered pairs that exchange no packet by these isolation rules."""
        found: dict[Pair, None] = {}
        for rule in rules:
            if isinstance(rule.rule, IsolationRule):
                peers = self.judge.peers(rule.rule.peers)
                found.update(dict.fromkeys(pairs_with(rule.subjects, peers, rule.rule.direction)))
        return found

    def contradictions(self, rules: Sequence[Rule]) -> list[Pair]:
        """Return the pairs that one rule isolates and another needs by naming the peers."""
        named = [each for each in rules if not isinstance(each.rule, RouteRule) or each.rule.peers is not None]
        return sorted(self.needed(named).keys() & self.isolated(rules).keys())

    def apart_and_together(self, rules: Sequence[Rule]) -> list[tuple[Rule, str, str]]:
        """Return what spread rules compare: rule, a workload that may move, and another that runs or will."""
        found: list[tuple[Rule, str, str]] = []
        for rule in rules:
            if isinstance(rule.rule, SpreadRule):
                others = {
                    name for name in self.judge.workloads(rule.rule.others) if workload_endpoint(name) in self.running
                }
                if rule.rule.relation == "together":
                    group = sorted(others | rule.subjects)
                    found.extend((rule, *pair) for pair in combinations(group, 2) if not rule.subjects.isdisjoint(pair))
                else:
                    compared = {
                        (min(subject, other), max(subject, other))
                        for subject in rule.subjects
                        for other in others
                        if subject != other
                    }
                    found.extend((rule, *pair) for pair in sorted(compared))
        return found

    def limits(self, rules: tuple[Rule, ...]) -> Limits:
        """Return what a path keeps to that all these route rules are about."""
        if rules not in self._limits:
            limits = Limits()
            for rule in rules:
                limits = limits.and_also(self._limits_of(rule))
            self._limits[rules] = limits
        return self._limits[rules]

    def _limits_of(self, rule: Rule) -> Limits:
        what = rule.rule
        if not isinstance(what, RouteRule):
            return Limits()
        links = None if what.links is None else self.judge.links(what.links)
        if what.min_bandwidth_mbps is not None:
            wide = frozenset(
                position
                for position, link in enumerate(self.inventory.links)
                if link.bandwidth_mbps >= what.min_bandwidth_mbps
            )
            links = wide if links is None else links & wide
        return Limits(
            switches=None if what.switches is None else self.judge.switches(what.switches),
            links=links,
            through=frozenset(self.judge.switches(each) for each in what.through),
            latency=None if what.max_latency_ms is None else nanoseconds(what.max_latency_ms),
        )

    def connected(self, limits: Limits, one: str, other: str) -> bool:
        """Whether packets get from one node to another within limits; from a node to itself they need no network."""
        if one == other:
            return not limits.through
        a, b = self.inventory.node[one].switch, self.inventory.node[other].switch
        return a is not None and b is not None and self.paths.reachable(limits, a, b)

    def node_of(self, endpoint: Endpoint, chosen: Mapping[str, str]) -> str | None:
        """Return the node of an endpoint: itself, where the workload was put, or where it runs."""
        if endpoint.kind == "node":
            return endpoint.name
        return chosen.get(endpoint.name) or self.place.get(endpoint.name)

    def find(self, limits: Limits, start: str, end: str) -> Found | None:
        """Return the best path between two switches."""
        return self.paths.find(limits, start, end)


def _kinds(pair: Pair) -> tuple[str, str]:
    return pair[0].kind, pair[1].kind


def _is_about(rule: Rule, pair: Pair) -> bool:
    """Whether a route rule without peers is about a pair that another rule names."""
    if not isinstance(rule.rule, RouteRule):
        return False
    sides = {"from_subjects": pair[:1], "to_subjects": pair[1:]}.get(rule.rule.direction, pair)
    return any(end.kind == "workload" and end.name in rule.subjects for end in sides)


def for_each(rule: Rule) -> bool:
    """Whether a placement rule asks something of each of its subjects, not only of some of them."""
    return isinstance(rule.rule, PlacementRule) and (
        rule.rule.at_least is None or rule.rule.at_least == len(rule.subjects)
    )
