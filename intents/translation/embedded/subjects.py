"""Who a clause is about: workloads, traffic between them, their state, or the elements that would carry them.

Also what pronouns refer to: the subjects of the clause before. Which workloads are meant is grounded here, with names
before labels for "the billing service" and labels before names for "billing data".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from intents.model.intent import Direction, State  # noqa: TC001 - used in annotations of dataclasses
from intents.model.labels import NAME
from intents.model.predicate import Predicate, both, either, term
from intents.model.refusal import RefusalKind
from intents.translation.embedded.lists import WORKLOADS
from intents.translation.embedded.refusals import refused
from intents.translation.embedded.senses import Named
from intents.translation.embedded.tree import Ends, Everything, Group, Join, Minus, Said

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intents.translation.embedded.grounding import Grounder

ALL_STATE: tuple[State, ...] = ("prompts", "kv", "weights")


@dataclass(frozen=True, slots=True)
class Flow:
    """Packets: of whom, with whom (None: with anybody), in which direction."""

    subjects: Predicate
    peers: Predicate | None
    direction: Direction


@dataclass(frozen=True, slots=True)
class Who:
    """The subject of a clause: `kind` is workloads, data, flows, state or migration."""

    kind: str
    groups: tuple[Group, ...]
    state: tuple[State, ...] = ALL_STATE


class Subjects:
    """Resolves the subjects of the clauses of one text, in their order."""

    def __init__(self, grounder: Grounder) -> None:
        self._grounder = grounder
        self._before: tuple[Group, ...] = ()
        self._all: tuple[Group, ...] = ()
        self._others: tuple[Group, ...] = ()

    def accompany(self, groups: Sequence[Group]) -> None:
        """Remember with whom a subject was spoken of: "they" behind "A shares a node with B" are both."""
        self._others += tuple(each for each in groups if _is_one(each) and each not in self._others)

    def remember(self, groups: tuple[Group, ...]) -> None:
        """Let pronouns refer to these groups from now on."""
        if groups:
            self._before = groups
            known = {each.selector for each in self._all}
            self._all += tuple(each for each in groups if each.selector not in known)

    def others(self, groups: tuple[Group, ...]) -> tuple[Group, ...]:
        """Take from "every other workload" those that were spoken of before."""
        if len(groups) != 1 or groups[0].quantifier != "other" or not self._all:
            return groups
        if any((each.kind or "") not in WORKLOADS or each.ends is not None for each in self._all):
            raise refused(RefusalKind.AMBIGUOUS, "it is not clear which others are meant", "name them")
        known = Join("or", tuple(each.selector for each in self._all))
        return (replace(groups[0], selector=Minus(groups[0].selector, known), quantifier="all"),)

    def _meant(self, pronoun: Group) -> tuple[Group, ...]:
        """Return what a pronoun stands for: "it" the subject before, "they" all subjects so far, "the two" two."""
        if not self._before:
            raise refused(
                RefusalKind.AMBIGUOUS, "it is not said what the pronoun stands for", "name the workloads that are meant"
            )
        workloads = all((each.kind or "") in WORKLOADS and each.ends is None for each in self._all)
        meant = self._all if pronoun.plural and workloads else self._before
        if pronoun.number == 2 and len(apart(self._before)) == 2:
            return self._before
        if pronoun.plural and len(meant) == 1 and _is_one(meant[0]):
            meant += tuple(each for each in self._others if each.selector != meant[0].selector)
            if len(meant) == 1:
                raise refused(RefusalKind.AMBIGUOUS, "it is not clear who else is meant", "name the workloads")
        if pronoun.number == 2 and len(meant) != 2:
            raise refused(RefusalKind.AMBIGUOUS, "it is not clear which two are meant", "name the workloads")
        return meant

    def resolve(self, groups: Sequence[Group]) -> tuple[Group, ...]:
        """Replace pronouns by what they refer to."""
        found: list[Group] = []
        for group in groups:
            if group.kind in {"pronoun", "pronoun:traffic"}:
                meant = self._meant(group)
                none = group.quantifier == "none"
                found += [
                    replace(each, quantifier="none" if none else "" if each.quantifier == "none" else each.quantifier)
                    for each in meant
                ]
            elif group.ends is not None:
                found.append(replace(group, ends=self._ends(group.ends)))
            elif (
                (group.kind in {"traffic", "data"} or (group.kind == "network" and not group.plural))
                and isinstance(group.selector, Everything)
                and not group.quantifier
                and not group.direction
                and self._before
            ):  # "..., and the packets must ..."
                before = self._before[0]
                if len(self._before) > 1 or before.ends is None or not (before.ends.source and before.ends.target):
                    raise refused(
                        RefusalKind.AMBIGUOUS,
                        "it is not said whose traffic or data is meant",
                        "say `its traffic` or `all traffic`",
                    )
                found.append(replace(before, kind="traffic", quantifier=""))
            elif group.kind == "measure" and isinstance(group.selector, Everything) and len(self._before) == 1:
                found.append(replace(group, ends=self._before[0].ends))  # "..., and the latency must ..."
            else:
                found.append(group)
        return tuple(found)

    def _ends(self, ends: Ends) -> Ends:
        owner = self.resolve(ends.owner)
        if ends.mutual and ends.source == ends.target:  # "between them", "their mutual traffic" behind such traffic
            told = self.resolve(ends.source)
            if len(told) == 1 and told[0].ends is not None:
                return told[0].ends
        inherited = [each for each in owner if each.ends is not None]
        if inherited:  # "its latency" of the traffic between A and B; "their packets" after the same
            mine = inherited[0].ends
            if len(owner) > 1 or mine is None or ends.source or ends.target:
                raise refused(RefusalKind.AMBIGUOUS, "it is not clear whose traffic is meant")
            return mine
        return replace(ends, owner=owner, source=self.resolve(ends.source), target=self.resolve(ends.target))

    def who(self, groups: tuple[Group, ...]) -> Who:
        """Return what kind of subject these groups are.

        Raises:
            Refused: they are of different kinds, or of none that a rule could be about.
        """
        kinds = {_sort(group) for group in groups}
        if kinds == {"workloads", "data"}:
            kinds = {"workloads"}
        if len(kinds) != 1:
            raise refused(RefusalKind.NOT_UNDERSTOOD, "the subject mixes different sorts of things")
        kind = kinds.pop()
        if kind == "state":
            names = {(group.kind or "").partition(":")[2] for group in groups}
            state: tuple[State, ...] = ALL_STATE if "" in names else tuple(each for each in ALL_STATE if each in names)
            return Who("state", groups, state)
        return Who(kind, groups)

    def workloads(self, groups: Sequence[Group]) -> Predicate:
        """Ground workloads; several groups together are their union."""
        if not groups:
            raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not said which workloads are meant")
        predicates = []
        for group in groups:
            if group.quantifier in {"bad", "none", "other", "no other", "nobody"}:
                raise refused(
                    RefusalKind.NOT_UNDERSTOOD,
                    "such a quantifier is no limit that holds for all or for at least so many",
                )
            if group.quantifier == "one of" and group.plural:
                raise refused(
                    RefusalKind.AMBIGUOUS,
                    "`one of` can be any of them or one at least",
                    "say `at least one of`",
                    final=True,
                )
            if group.ends is not None:
                if group.quantifier == "counted" or not group.ends.owner or group.ends.source or group.ends.target:
                    raise refused(RefusalKind.NOT_UNDERSTOOD, "workloads are needed here, not traffic between them")
                owners = self.workloads(group.ends.owner)
                if not isinstance(group.selector, Everything):  # "the patient data of claims"
                    owners = both(owners, self._grounder.ground(group.selector, "workload", subject="label").yes)
                predicates.append(owners)
                continue
            if group.kind not in WORKLOADS | {"traffic"} and group.kind is not None:
                raise refused(RefusalKind.NOT_UNDERSTOOD, f"workloads are needed here, not a {group.kind}")
            if group.kind is None and isinstance(group.selector, Everything):
                raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not said which workloads are meant")
            prefer = "label" if group.kind in {"data", "traffic"} else "any"
            if group.kind in {"workload", "generic", None}:
                prefer = "name" if group.singular else "label" if group.plural else "any"
            predicates.append(self._grounder.ground(group.selector, "workload", subject=prefer).yes)
            self._count(group, predicates[-1])
        return either(*predicates)

    def _count(self, group: Group, meant: Predicate) -> None:
        if group.quantifier == "counted" and self._grounder.how_many(meant) != group.number:
            raise refused(
                RefusalKind.AMBIGUOUS,
                f"it speaks of {group.number} workloads, but there are {self._grounder.how_many(meant)} such ones",
                "say `all`",
                final=True,
            )

    def peers(self, groups: Sequence[Group]) -> Predicate:
        """Ground peers: workloads, or nodes by name."""
        predicates = []
        for group in self.resolve(groups):
            if group.quantifier == "counted":
                raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear whether any or all of them are meant")
            if group.kind == "node":
                predicates.append(self._grounder.ground(group.selector, "node").yes)
            else:
                predicates.append(self._without_nodes(self.workloads((group,))))
        return either(*predicates)

    def _without_nodes(self, peers: Predicate) -> Predicate:
        """Take out the nodes that carry the same label: it was said of workloads."""
        nodes = self._grounder.nodes_that_hold(peers)
        return both(peers, term(NAME, *nodes, op="not_in")) if nodes else peers

    def flows(self, group: Group) -> list[Flow]:
        """Return the packets that a phrase such as `traffic from A to B` speaks of."""
        ends = group.ends
        if ends is None:
            return [Flow(self.workloads((group,)), None, self._direction(group, "both"))]
        if not isinstance(group.selector, Everything):
            raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear which part of this traffic is meant")
        if not ends.mutual and not (ends.owner or ends.source or ends.target):
            raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not said whose traffic is meant")
        if ends.mutual:
            if ends.source == ends.target:
                parts = apart(ends.source)
                if len(parts) == 1 and parts[0].singular:
                    raise refused(RefusalKind.AMBIGUOUS, "it is not said between whom", "name both")
                if len(parts) == 2:
                    return [Flow(self.workloads(parts[:1]), self.peers(parts[1:]), "both")]
            return [Flow(self.workloads(ends.source), self.peers(ends.target), "both")]
        source, target = ends.source, ends.target
        if ends.owner and target:
            return [Flow(self.workloads(ends.owner), self.peers(target), "from_subjects")]
        if ends.owner and source:
            return [Flow(self.workloads(ends.owner), self.peers(source), "to_subjects")]
        if source and target:
            if any(each.kind == "node" for each in self.resolve(source)):
                return [Flow(self.workloads(target), self.peers(source), "to_subjects")]
            return [Flow(self.workloads(source), self.peers(target), "from_subjects")]
        if source:
            return [Flow(self.workloads(source), None, "from_subjects")]
        if target:
            return [Flow(self.workloads(target), None, "to_subjects")]
        parts = ends.owner
        return [Flow(self.workloads(parts), None, self._direction(group, "both"))]

    @staticmethod
    def _direction(group: Group, default: Direction) -> Direction:
        if group.direction == "from_subjects":
            return "from_subjects"
        return "to_subjects" if group.direction == "to_subjects" else default


def _is_one(group: Group) -> bool:
    """Whether it is one workload by its name."""
    named = isinstance(group.selector, Said) and any(isinstance(e, Named) for e in group.selector.mention.senses)
    return named and not group.plural and group.ends is None and (group.kind or "") in WORKLOADS


def _sort(group: Group) -> str:
    kind = group.kind or ""
    if kind.startswith("state"):
        return "state"
    if kind == "migration":
        return "migration"
    if kind in {"traffic", "measure"} or (kind in {"network", "link", "switch"} and group.ends is not None):
        return "flows"
    if kind == "data":
        return "data" if group.ends is None else "flows" if group.ends.source or group.ends.target else "data"
    if kind in {"workload", "generic"}:
        return "workloads"
    return kind or "place"


def apart(groups: tuple[Group, ...]) -> tuple[Group, ...]:
    """Return the members of a list one by one: `A and B` gives A and B."""
    found: list[Group] = []
    for group in groups:
        if isinstance(group.selector, Join) and group.selector.how in {"and", "or"} and group.ends is None:
            found += [replace(group, selector=part) for part in group.selector.parts]
        else:
            found.append(group)
    return tuple(found)
