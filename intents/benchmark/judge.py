"""Whether what came of a sentence is what has to come of it.

Problem: a compiler that judges itself finds no fault with itself. Protocol: the judge takes the JSON object that
`midstream intent plan` prints, the expectation and the inventory, and nothing else. Paths are walked over links that
exist and are up, from the switch of the one end to the switch of the other; every switch and link on them is held
against the expectation. Whether a pair that was cut off could have been served is found by search over the inventory.
Of the typed intent only transfer rules are read, because a plan moves nothing yet.

Two kinds of findings: *too wide* (something is allowed or left open that must not be) and *too strict* (safe, but more
is forbidden than was asked for, or a preference was not followed). One that is too wide outweighs all others.

Caveats: `flows` and `kubernetes` are not read here, that they do what routes and placement say is for the checker to
prove. Parallel links are not told apart, because a path names switches only: a step counts as allowed if one of them
is. Two workloads on one node use no network, so no rule about paths can be broken between them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from intents.benchmark.cases import EVERY_OTHER, Case, Expectation, Pair, RouteExpectation, SpreadExpectation
from intents.benchmark.network import Network
from intents.model import labels
from intents.model.intent import IntentSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from intents.model.inventory import Inventory

TOPOLOGY_LABEL = {
    "zone": labels.ZONE,
    "region": labels.REGION,
    "jurisdiction": labels.JURISDICTION,
    "provider": labels.PROVIDER,
}


class Verdict(enum.StrEnum):
    """What became of a sentence, seen from what had to become of it."""

    SUCCESS = "success"
    REFUSED_RIGHT = "refused_right"
    REFUSED_WRONGLY = "refused_wrongly"  # also: rightly, but for a reason that is not the case
    WRONG_POLICY = "wrong_policy"
    TOO_STRICT = "too_strict"

    @property
    def right(self) -> bool:
        """Whether it is what had to come."""
        return self in (Verdict.SUCCESS, Verdict.REFUSED_RIGHT)


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, and why."""

    verdict: Verdict
    reasons: tuple[str, ...] = ()


def judge(case: Case, inventory: Inventory, result: Mapping[str, Any]) -> Judgement:
    """Judge what planning returned for the sentence of `case`."""
    try:
        plan = _Plan.model_validate(result)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "result"
        return Judgement(Verdict.WRONG_POLICY, (f"not readable: {where}: {first['msg']}",))
    expect = case.expect
    if plan.outcome == "refused":
        return _judge_refusal(expect, plan)
    if expect.outcome == "refused":
        return Judgement(Verdict.WRONG_POLICY, (f"enforced, but has to be refused ({', '.join(expect.kinds)})",))
    found = _Findings()
    _Judge(case, inventory, plan, found).judge()
    if found.too_wide:
        return Judgement(Verdict.WRONG_POLICY, (*found.too_wide, *found.too_strict))
    if found.too_strict:
        return Judgement(Verdict.TOO_STRICT, tuple(found.too_strict))
    return Judgement(Verdict.SUCCESS)


def _judge_refusal(expect: Expectation, plan: _Plan) -> Judgement:
    kind = plan.reason.get("kind") if isinstance(plan.reason, dict) else None
    right = expect.kinds if expect.outcome == "refused" else expect.also_refused
    if kind in right:
        return Judgement(Verdict.REFUSED_RIGHT)
    wanted = f"has to be refused as {' or '.join(right)}" if expect.outcome == "refused" else "has to be enforced"
    return Judgement(Verdict.REFUSED_WRONGLY, (f"refused as {kind}, but {wanted}: {plan.message}",))


def _as_pair(value: Any) -> Any:
    return (value.get("from"), value.get("to")) if isinstance(value, dict) else value


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Placed(_Part):
    allowed_nodes: tuple[str, ...]
    node: str | None = None


class _Routed(_Part):
    source: str = Field(validation_alias=AliasChoices("from", "source"))
    target: str = Field(validation_alias=AliasChoices("to", "target"))
    path: tuple[str, ...]


class _Plan(_Part):
    """As much of the plan's JSON as is judged."""

    outcome: Literal["ok", "refused"]
    reason: dict[str, Any] | str | None = None
    intent: dict[str, Any] | None = None
    placement: dict[str, _Placed] = Field(default_factory=dict)
    routes: tuple[_Routed, ...] = ()
    blocked: tuple[Annotated[Pair, BeforeValidator(_as_pair)], ...] = ()

    @property
    def message(self) -> str:
        return str(self.reason.get("message", "") if isinstance(self.reason, dict) else self.reason)


@dataclass
class _Findings:
    too_wide: list[str] = field(default_factory=list)
    too_strict: list[str] = field(default_factory=list)

    def compare(self, what: str, given: set[str], wanted: set[str]) -> None:
        """Note what a set has beyond, and what it lacks of, the one that is wanted."""
        if given - wanted:
            self.too_wide.append(f"{what} may be {', '.join(sorted(given - wanted))}, and must not")
        if wanted - given:
            self.too_strict.append(f"{what} may not be {', '.join(sorted(wanted - given))}, and should")


class _Judge:
    """Holds a plan that was not refused against an expectation that it is to be enforced."""

    def __init__(self, case: Case, inventory: Inventory, plan: _Plan, found: _Findings) -> None:
        self._expect = case.expect
        self._active = case.active
        self._inventory = inventory
        self._plan = plan
        self._found = found
        self._network = Network(inventory)

    def judge(self) -> None:
        self._judge_placement()
        self._judge_counts()
        for spread in self._expect.apart:
            self._judge_spread(spread, together=False)
        for spread in self._expect.together:
            self._judge_spread(spread, together=True)
        self._judge_pairs()
        self._judge_transfer()

    def _node_of(self, name: str) -> str | None:
        """Where a workload runs by this plan; a node is where it is."""
        if name in self._plan.placement:
            return self._plan.placement[name].node
        workload = self._inventory.workload.get(name)
        return workload.node if workload is not None else name if name in self._inventory.node else None

    # Placement

    def _judge_placement(self) -> None:
        for workload, wanted in self._expect.placement.items():
            placed = self._plan.placement.get(workload)
            if placed is None:
                self._found.too_wide.append(f"{workload} is not restricted at all")
                continue
            self._found.compare(f"the node of {workload}", set(placed.allowed_nodes), set(wanted))
            if placed.node is None:
                self._found.too_strict.append(f"{workload} is placed nowhere")
            elif placed.node not in wanted:
                self._found.too_wide.append(f"{workload} is placed on {placed.node}")
        counted = {workload for count in self._expect.at_least for workload in count.workloads}
        for workload, placed in self._plan.placement.items():
            if workload in self._expect.placement or workload in self._expect.unjudged or workload in counted:
                continue
            lacks = set(self._inventory.node) - set(placed.allowed_nodes)
            if lacks and not self._active:
                self._found.too_strict.append(f"{workload} may not run on {', '.join(sorted(lacks))}, unasked")
        for workload, wanted in self._expect.prefers.items():
            if self._node_of(workload) not in wanted:
                self._found.too_strict.append(f"{workload} is on {self._node_of(workload)}, not the preferred node")

    def _judge_counts(self) -> None:
        for count in self._expect.at_least:
            there = [workload for workload in count.workloads if self._node_of(workload) in count.nodes]
            if len(there) < count.count:
                self._found.too_wide.append(f"only {len(there)} of at least {count.count} are on {count.nodes}")

    def _judge_spread(self, spread: SpreadExpectation, *, together: bool) -> None:
        for workload in spread.workloads:
            for other in spread.others:
                if workload == other:
                    continue
                mine, theirs = (self._topology_value(name, spread.topology) for name in (workload, other))
                if mine is None or theirs is None or (mine == theirs) is not together:
                    word = "together" if together else "apart"
                    self._found.too_wide.append(
                        f"{workload} and {other} are not {word} by {spread.topology}: {mine}, {theirs}"
                    )

    def _topology_value(self, workload: str, topology: str) -> str | None:
        node = self._node_of(workload)
        if node is None or topology == "node":
            return node
        value = (
            self._inventory.node[node].labels.get(TOPOLOGY_LABEL[topology]) if node in self._inventory.node else None
        )
        return labels.jurisdiction(value) if value is not None and topology == "jurisdiction" else value

    # Pairs: routed or cut off

    def _judge_pairs(self) -> None:
        routes = {(route.source, route.target): route.path for route in self._plan.routes}
        cut_off = set(self._plan.blocked)
        for pair, path in routes.items():
            self._judge_walk(pair, path)
        for pair in self._expect.blocked:
            if pair in routes:
                self._found.too_wide.append(f"{pair[0]} to {pair[1]} has a route, and must be cut off")
            if pair not in cut_off:
                self._found.too_wide.append(f"{pair[0]} to {pair[1]} is not cut off")
        open_to_both = {*self._expect.blocked, *self._expect.may_block}
        wanted = self._wanted_routes()
        for pair, rules in wanted.items():
            if pair not in open_to_both:
                self._judge_route(pair, rules, routes.get(pair), cut_off=pair in cut_off)
        if self._active or self._expect.unjudged_routes:
            return
        for pair in sorted(cut_off - open_to_both - wanted.keys()):
            if self._can_be_served(pair, ()):
                self._found.too_strict.append(f"{pair[0]} to {pair[1]} is cut off, unasked")

    def _wanted_routes(self) -> dict[Pair, list[tuple[RouteExpectation, bool, bool]]]:
        """Return by pair what is wanted: the rule, whether the pair is the way back, whether a path has to exist."""
        wanted: dict[Pair, list[tuple[RouteExpectation, bool, bool]]] = {}
        for rule in self._expect.routes:
            everyone = rule.target == (EVERY_OTHER,)
            for pair, back in self._pairs_of(rule):
                wanted.setdefault(pair, []).append((rule, back, not everyone))
        return wanted

    def _pairs_of(self, rule: RouteExpectation) -> Iterator[tuple[Pair, bool]]:
        targets = tuple(self._inventory.workload) if rule.target == (EVERY_OTHER,) else rule.target
        for source in rule.source:
            for target in targets:
                if source != target:
                    yield (source, target), False
                    if rule.both:
                        yield (target, source), True

    def _judge_route(
        self,
        pair: Pair,
        rules: list[tuple[RouteExpectation, bool, bool]],
        path: tuple[str, ...] | None,
        *,
        cut_off: bool,
    ) -> None:
        name = f"{pair[0]} to {pair[1]}"
        has_to_exist = any(explicit for _, _, explicit in rules)
        nodes = self._node_of(pair[0]), self._node_of(pair[1])
        if None in nodes:
            if has_to_exist:
                self._found.too_strict.append(f"{name}: one of them is placed nowhere")
            return
        if cut_off and path is not None:
            self._found.too_wide.append(f"{name} has a route and is cut off")
        if path is not None:
            for rule, back, _ in rules:
                self._found.too_wide += [f"{name}: {fault}" for fault in self._network.faults(path, rule)]
                self._judge_one_path(name, path, rule, back=back)
            return
        if cut_off and (has_to_exist or self._can_be_served(pair, tuple(rule for rule, _, _ in rules))):
            self._found.too_strict.append(f"{name} is cut off")
        elif not cut_off and nodes[0] != nodes[1]:
            self._found.too_wide.append(f"{name} has no route and is not cut off: nothing limits its packets")

    def _judge_one_path(self, name: str, path: tuple[str, ...], rule: RouteExpectation, *, back: bool) -> None:
        for only, found in ((rule.path, self._found.too_wide), (rule.prefer_path, self._found.too_strict)):
            wanted = only[::-1] if only is not None and back else only
            if wanted is not None and path and path != wanted:
                found.append(f"{name} takes {' '.join(path)}, not {' '.join(wanted)}")

    def _judge_walk(self, pair: Pair, path: tuple[str, ...]) -> None:
        """A route leads from one end to the other over links that exist and are up."""
        name = f"{pair[0]} to {pair[1]}"
        nodes = self._node_of(pair[0]), self._node_of(pair[1])
        if nodes[0] is not None and nodes[0] == nodes[1]:
            if path:
                self._found.too_wide.append(f"{name}: both are on {nodes[0]}, and yet there is a path")
            return
        ends = self._switch_of(pair[0]), self._switch_of(pair[1])
        if None in ends or not path or (path[0], path[-1]) != ends:
            self._found.too_wide.append(f"{name}: the path {' '.join(path)} does not lead from {ends[0]} to {ends[1]}")
            return
        self._found.too_wide += [f"{name}: {fault}" for fault in self._network.gaps(path)]

    def _can_be_served(self, pair: Pair, rules: tuple[RouteExpectation, ...]) -> bool:
        """Whether both ends run somewhere, and on one node or with a path between them that has no fault."""
        nodes = self._node_of(pair[0]), self._node_of(pair[1])
        if nodes[0] is not None and nodes[0] == nodes[1]:
            return True
        start, end = self._switch_of(pair[0]), self._switch_of(pair[1])
        return start is not None and end is not None and self._network.path_exists(start, end, rules)

    def _switch_of(self, name: str) -> str | None:
        node = self._inventory.node.get(self._node_of(name) or "")
        return node.switch if node is not None else None

    # Transfer

    def _judge_transfer(self) -> None:
        if not self._expect.transfer:
            return
        try:
            own = _SPECS.validate_python((self._plan.intent or {}).get("specs", ()))
        except ValidationError as error:
            self._found.too_wide.append(f"the intent is not readable: {error.errors()[0]['msg']}")
            return
        specs = (*own, *(spec for intent in self._active for spec in intent.specs))
        for name, wanted in self._expect.transfer.items():
            workload = self._inventory.workload[name]
            mine = [spec for spec in specs if spec.subjects.holds(name, workload.labels)]
            for state in wanted.state:
                rules = [rule for spec in mine for rule in spec.transfer if state in rule.state]
                what = f"{state} of {name}"
                if any(rule.forbidden for rule in rules) is not wanted.forbidden:
                    (self._found.too_wide if wanted.forbidden else self._found.too_strict).append(
                        f"moving {what} is {'not ' if wanted.forbidden else ''}forbidden"
                    )
                if wanted.nodes is not None:
                    placed = self._plan.placement.get(name)
                    everywhere = placed.allowed_nodes if placed is not None else tuple(self._inventory.node)
                    allowed = {
                        node
                        for node in everywhere
                        if node in self._inventory.node
                        and all(
                            rule.nodes is None or rule.nodes.holds(node, self._inventory.node[node].labels)
                            for rule in rules
                        )
                    }
                    self._found.compare(f"the node that receives {what}", allowed, set(wanted.nodes))
                if wanted.switches is not None:
                    limits = [rule.switches for rule in rules]
                    limits += [
                        rule.switches
                        for spec in mine
                        for rule in spec.routes
                        if rule.peers is None and rule.strength == "required"
                    ]
                    crossed = {
                        switch.name
                        for switch in self._inventory.switches
                        if all(limit is None or limit.holds(switch.name, switch.labels) for limit in limits)
                    }
                    self._found.compare(f"a switch that carries {what}", crossed, set(wanted.switches))


_SPECS = TypeAdapter(tuple[IntentSpec, ...])
