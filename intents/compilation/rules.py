"""The rules of several intents in one list, each with the workloads that it is about and a name to speak of it by."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Literal

from intents.compilation.judging import Endpoint, workload_endpoint
from intents.model.intent import IsolationRule, PlacementRule, RouteRule, SpreadRule, TransferRule

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intents.compilation.judging import Judge
    from intents.model.intent import Direction, IntentSpec, PrivacyIntent
    from intents.model.predicate import Predicate

AnyRule = PlacementRule | SpreadRule | RouteRule | IsolationRule | TransferRule
RuleKind = Literal["placement", "spread", "routes", "isolation", "transfer"]
KINDS: tuple[RuleKind, ...] = ("placement", "spread", "routes", "isolation", "transfer")
Pair = tuple[Endpoint, Endpoint]


@dataclass(frozen=True, slots=True, order=True)
class RuleId:
    """Where a rule stands: name of the intent, position of the spec, kind, and position among those of the kind."""

    intent: str
    spec: int
    kind: RuleKind
    position: int


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """One rule, the predicate of its subjects, and their names; equal only to itself."""

    id: RuleId
    about: Predicate
    subjects: frozenset[str]
    rule: AnyRule

    @property
    def hard(self) -> bool:
        """Whether it must hold; isolation and transfer rules always must."""
        return getattr(self.rule, "strength", "required") == "required"


def rules_of_spec(spec: IntentSpec) -> Iterator[tuple[RuleKind, int, AnyRule]]:
    """Go through the rules of a spec: kind, position among its kind, rule."""
    for kind in KINDS:
        for position, rule in enumerate(getattr(spec, kind)):
            yield kind, position, rule


def rules_of(intents: Sequence[PrivacyIntent], judge: Judge) -> tuple[Rule, ...]:
    """Return all rules, sorted by the names of their intents, whatever order the intents are given in."""
    return tuple(
        Rule(RuleId(intent.metadata.name, number, kind, position), spec.subjects, judge.workloads(spec.subjects), rule)
        for intent in sorted(intents, key=lambda each: each.metadata.name)
        for number, spec in enumerate(intent.specs)
        for kind, position, rule in rules_of_spec(spec)
    )


def directed(direction: Direction, subject: Endpoint, peer: Endpoint) -> tuple[Pair, ...]:
    """Return the ordered pairs of a subject and a peer that a direction means."""
    return {
        "from_subjects": ((subject, peer),),
        "to_subjects": ((peer, subject),),
        "both": ((subject, peer), (peer, subject)),
    }[direction]


def pairs_with(subjects: frozenset[str], peers: frozenset[Endpoint], direction: Direction) -> Iterator[Pair]:
    """Go through the ordered pairs of subjects and peers, without pairs of one endpoint with itself."""
    for name, peer in product(sorted(subjects), sorted(peers)):
        subject = workload_endpoint(name)
        if subject != peer:
            yield from directed(direction, subject, peer)
