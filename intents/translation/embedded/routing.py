"""Rules about packets: which switches and links they cross, way points, bounds, encryption, and being cut off."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from intents.model import labels
from intents.model.intent import (
    IsolationRule,
    PlacementRule,
    RouteRule,
    SpreadRule,
    Strength,
    TransferRule,
)
from intents.model.predicate import Predicate, term
from intents.model.refusal import RefusalKind
from intents.translation.embedded.limits import Limits, is_single, way_points
from intents.translation.embedded.lists import WORKLOADS
from intents.translation.embedded.refusals import refused
from intents.translation.embedded.subjects import Flow, Subjects, Who, apart
from intents.translation.embedded.tree import Clause, Complement, Everything, Group, Minus, Verb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intents.translation.embedded.grounding import Grounder
    from intents.translation.embedded.vocabulary import Kind

Rule: TypeAlias = PlacementRule | SpreadRule | RouteRule | IsolationRule | TransferRule
Made: TypeAlias = list[tuple[Predicate, Rule]]

NETWORK: tuple[Kind, ...] = ("switch", "link")
_LIMITING = frozenset({"in", "out", "via", "object", "to", "by", "with", "without", "of"})
_ENCRYPTED = term(labels.ENCRYPTED, "true")


class Routing:
    """Makes the rules of clauses about packets."""

    def __init__(self, grounder: Grounder, limits: Limits, subjects: Subjects) -> None:
        self._grounder = grounder
        self._limits = limits
        self._subjects = subjects

    @staticmethod
    def _stays(complements: Sequence[Complement]) -> None:
        if any(each.negated or isinstance(group.selector, Minus) for each in complements for group in each.groups):
            raise refused(
                RefusalKind.AMBIGUOUS,
                "it is not clear what the exception is taken from",
                "say where it must stay",
                final=True,
            )

    def _limiting(self, complements: Sequence[Complement]) -> list[Complement]:
        """Return the complements that limit; one that has no such role is refused."""
        found = []
        for each in complements:
            if each.role not in _LIMITING:
                raise refused(RefusalKind.NOT_UNDERSTOOD, f"it is not clear what `{each.role}` belongs to")
            if each.role == "without":
                found.append(Complement("out", each.groups, each.only, each.negated, each.soft, each.linked))
            else:
                found.append(each)
        return found

    # routes

    def _flows(self, who: Who, complements: list[Complement]) -> tuple[list[Flow], list[Complement]]:
        """Return the packets that a clause is about, and the complements that are left."""
        rest = []
        peers: list[tuple[str, tuple[Group, ...]]] = []
        for each in complements:
            peerish = bool(each.groups) and all((group.kind or "") in WORKLOADS | {"pronoun"} for group in each.groups)
            if each.role in {"to", "from", "with", "between", "for"} and peerish and not each.negated and not each.only:
                peers.append((each.role, each.groups))
            elif each.role == "each":
                peers.append(("with", who.groups))
            else:
                rest.append(each)
        if who.kind == "flows" and not peers:
            return [flow for group in who.groups for flow in self._subjects.flows(group)], rest
        if not peers:
            subjects = self._subjects.workloads(who.groups)
            return [Flow(subjects, None, "both")], rest
        if any(group.ends is not None and group.ends.target for group in who.groups) or len(peers) > 2:
            raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear between whom the packets pass")
        by_role = dict(peers)
        if set(by_role) == {"from", "to"} and who.kind == "flows":
            return [
                Flow(
                    self._subjects.workloads(self._subjects.resolve(by_role["from"])),
                    self._subjects.peers(by_role["to"]),
                    "from_subjects",
                )
            ], rest
        if len(peers) != 1:
            raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear between whom the packets pass")
        role, groups = peers[0]
        ends = who.groups[0].ends if len(who.groups) == 1 else None
        if who.kind == "flows" and role == "to" and ends is not None and ends.source and not ends.owner:
            subjects = self._subjects.workloads(ends.source)  # "packets from A must reach B within ..."
            return [Flow(subjects, self._subjects.peers(groups), "from_subjects")], rest
        direction = {"to": "from_subjects", "from": "to_subjects"}.get(role, "both")
        owners = tuple(owner for group in who.groups for owner in (group.ends.owner if group.ends else (group,)))
        bare = all(
            group.kind in {"traffic", "network", "link", "measure"}
            and group.ends is None
            and isinstance(group.selector, Everything)
            for group in who.groups
        )
        if role == "between" or bare:
            if role == "between" and (bare or who.kind != "flows"):
                if who.kind != "flows" and all(group.kind == "pronoun" for group in groups):
                    groups = self._them(groups, who)
                if len(groups) == 1 and len(apart(groups)) == 2:
                    groups = apart(groups)
                left, right = groups[:1], groups[1:] or groups[:1]
                left, right = self._subjects.resolve(left), self._subjects.resolve(right)
                return [Flow(self._subjects.workloads(left), self._subjects.peers(right), "both")], rest
            groups = self._subjects.resolve(groups)
            if bare:
                return [
                    Flow(self._subjects.workloads(groups), None, "to_subjects" if role == "to" else "from_subjects")
                ], rest
            raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear between whom the packets pass")
        subjects = self._subjects.workloads(owners)
        return [Flow(subjects, self._subjects.peers(groups), direction)], rest  # type: ignore[arg-type]

    def _them(self, pronouns: tuple[Group, ...], who: Who) -> tuple[Group, ...]:
        """Return who is meant by "between them": the subjects of the clause, or one of it and those before."""
        members = apart(who.groups)
        if len(members) == 1 and members[0].singular:
            before = apart(self._subjects.resolve(pronouns))
            members = (*(each for each in before if each.selector != members[0].selector), *members)
            if len(members) == 1:
                raise refused(RefusalKind.AMBIGUOUS, "it is not said between whom", "name both")
        return members

    def _routes(self, clause: Clause, verb: Verb, who: Who, complements: list[Complement], strength: Strength) -> Made:
        """Rules about packets: `traffic between A and B must stay in the EU`."""
        negated = clause.negated
        if negated and verb.kind in {"confine", "need", "prefer"}:
            raise refused(
                RefusalKind.OUT_OF_SCOPE, "to lift or deny a limit is no limit: intents only limit", final=True
            )
        if verb.kind == "leave":
            if not negated:
                raise refused(RefusalKind.AMBIGUOUS, "it is not said where to, when it must leave")
            self._stays(complements)
            flows, rest = self._flows(who, complements)
            return self._restrict(flows, self._limiting(rest), negated=False, strength=strength)
        vias = any(each.role == "via" for each in complements)
        if verb.kind in {"stay", "run", "confine", "nominal", "be"} and not (vias and verb.kind == "run"):
            flows, rest = self._flows(who, complements)
            if negated and not rest and verb.kind in {"run", "be"}:
                return self._isolated(flows, strength)
            kinds = {group.kind for group in who.groups}
            if kinds == {"link"} or kinds == {"switch"}:  # every link on the path must be ...
                rest = [
                    replace(each, groups=tuple(replace(g, kind=g.kind or kinds.copy().pop()) for g in each.groups))
                    for each in rest
                ]
            return self._restrict(flows, self._limiting(rest), negated=negated, strength=strength)
        return self._crossing(clause, verb, who, complements, strength)

    def _crossing(
        self, clause: Clause, verb: Verb, who: Who, complements: list[Complement], strength: Strength
    ) -> Made:
        """Rules of `cross`, `pass`, `route via`, `use`, `avoid`, said of packets."""
        flows, rest = self._flows(who, complements)
        negated = clause.negated
        if verb.kind in {"avoid", "excluded"}:
            if negated:
                raise refused(RefusalKind.OUT_OF_SCOPE, "not to avoid something is no limit")
            negated = True
        if not rest:
            if negated:
                return self._isolated(flows, strength)
            raise refused(RefusalKind.OUT_OF_SCOPE, "it asks that packets pass, which is no limit")
        limiting = self._limiting(rest)
        only = clause.only or verb.kind == "confine"
        restricting: list[Complement] = []
        through: list[Predicate] = []
        for each in limiting:
            positive = not negated and not each.negated and each.role in {"via", "object", "to", "in", "by"}
            single = all(is_single(group) for group in each.groups)
            node_like = all(group.kind in {"switch", None} for group in each.groups)
            named_link = any(group.kind == "link" and is_single(group) for group in each.groups)
            limited_only = only or each.only
            if (
                positive
                and each.role != "in"
                and single
                and node_like
                and (not limited_only or len(way_points(each)) == 1)
            ):
                through += [self._grounder.ground(group.selector, "switch").yes for group in way_points(each)]
            elif positive and named_link and not limited_only:
                raise refused(
                    RefusalKind.OUT_OF_SCOPE,
                    "a way point must be a switch, not a link",
                    "name a switch at the end of the link",
                )
            else:
                restricting.append(each)
        made: Made = []
        if restricting:
            made += self._restrict(flows, restricting, negated=negated, strength=strength)
        if through:
            for flow in flows:
                made.append(
                    (
                        flow.subjects,
                        RouteRule(
                            peers=flow.peers, direction=flow.direction, through=tuple(through), strength=strength
                        ),
                    )
                )
        return made

    def _restrict(
        self, flows: Sequence[Flow], limiting: Sequence[Complement], *, negated: bool, strength: Strength
    ) -> Made:
        if not limiting:
            raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not said where")
        if any(group.kind == "node" for each in limiting for group in each.groups):
            raise refused(RefusalKind.NOT_UNDERSTOOD, "packets cross switches and links, not nodes")
        found = self._limits.of(limiting, NETWORK, negated=negated, merge=not negated)
        return [
            (
                flow.subjects,
                RouteRule(
                    peers=flow.peers,
                    direction=flow.direction,
                    switches=found.get("switch"),
                    links=found.get("link"),
                    strength=strength,
                ),
            )
            for flow in flows
        ]

    def _isolated(self, flows: Sequence[Flow], strength: Strength) -> Made:
        if strength != "required":
            raise refused(RefusalKind.NOT_UNDERSTOOD, "isolation is either required or not: it cannot be preferred")
        made: Made = []
        for flow in flows:
            if flow.peers is None:
                raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not said from whom it is to be cut off")
            made.append((flow.subjects, IsolationRule(peers=flow.peers, direction=flow.direction)))
        return made

    def _without(
        self,
        clause: Clause,
        verb: Verb,
        who: Who,
        complements: list[Complement],
        withouts: list[Complement],
        strength: Strength,
    ) -> Made:
        """Read `must reach B without crossing the US`."""
        if clause.negated:
            raise refused(RefusalKind.AMBIGUOUS, "`not` and `without` in one clause can be read in two ways")
        talks = verb.kind in {"talk", "send"}
        rest = [
            replace(each, role="to") if talks and each.role == "object" else each
            for each in complements
            if each not in withouts
        ]
        made: Made = []
        for each in withouts:
            lemma = each.role.removeprefix("without ")
            if lemma in {"leave", "exit"}:
                inner = Complement("in", each.groups)
                flows, left = self._flows(who, rest)
                made += self._restrict(flows, [inner], negated=False, strength=strength)
            else:
                inner = Complement(each.verb_role if each.verb_role != "to" else "via", each.groups)
                flows, left = self._flows(who, rest)
                made += self._restrict(flows, [inner], negated=True, strength=strength)
            if left:
                raise refused(RefusalKind.NOT_UNDERSTOOD, "too much in one clause; say it in two")
        if verb.kind not in {"talk", "send", "cross", "exchange", "receive", "run", "stay"}:
            raise refused(RefusalKind.NOT_UNDERSTOOD, f"`without` is not understood with {verb.lemma!r}")
        return made

    def _measure(self, clause: Clause, verb: Verb, who: Who, complements: list[Complement], strength: Strength) -> Made:
        flows, rest = self._flows(who, [each for each in complements if each.role not in {"latency", "bandwidth"}])
        rest = [
            each
            for each in rest
            if not (each.role in {"object", "with"} and all(g.kind == "measure" for g in each.groups))
        ]
        measures = [each for each in complements if each.role in {"latency", "bandwidth"}]
        rest = [each for each in rest if not (each.role == "object" and all(_says_nothing(g) for g in each.groups))]
        bound = {each.verb_role for each in measures}
        if clause.negated:  # must not exceed 20 ms, must not take longer than 20 ms, must not fall below 1 Gbps
            clear = bound <= {"over", "under"} or (
                verb.lemma == "exceed" and bound == {"bare"} and all(each.role == "latency" for each in measures)
            )
        else:
            clear = bound <= {"max", "min", ""} and verb.lemma != "exceed"
            clear = clear or (bound == {"to"} and verb.kind == "confine")  # limit the latency to 20 ms
            wide = all(each.role == "bandwidth" for each in measures)
            clear = clear or (bound == {"bare"} and wide and verb.kind == "need")  # needs 1 Gbps
        only = any(each.only and each.role != "bandwidth" for each in measures)
        if rest or not clear or only or any(each.negated for each in measures):
            raise refused(RefusalKind.NOT_UNDERSTOOD, "the bound is not clear")
        latency = [each.number for each in complements if each.role == "latency"]
        bandwidth = [each.number for each in complements if each.role == "bandwidth"]
        if who.kind != "flows" and all(flow.peers is None for flow in flows):
            raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not said between whom the bound holds")
        return [
            (
                flow.subjects,
                RouteRule(
                    peers=flow.peers,
                    direction=flow.direction,
                    max_latency_ms=min(latency) if latency else None,
                    min_bandwidth_mbps=max(bandwidth) if bandwidth else None,
                    strength=strength,
                ),
            )
            for flow in flows
        ]

    def _encrypted(
        self, clause: Clause, verb: Verb, who: Who, complements: list[Complement], strength: Strength
    ) -> Made:
        if clause.negated or not (verb.passive or clause.imperative):
            raise refused(RefusalKind.NOT_UNDERSTOOD, "not to encrypt is no limit")
        transit = any(each.role == "transit" for each in clause.complements)
        if who.kind != "flows" and not transit:
            raise refused(
                RefusalKind.AMBIGUOUS,
                "it is not said whether it is encrypted on disks (which is out of scope) or in transit",
                "say that its traffic must be encrypted",
            )
        flows, rest = self._flows(who, complements)
        if any(each.role not in {"in", "via", "with"} for each in rest) or rest:
            raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear what is encrypted where")
        return [
            (
                flow.subjects,
                RouteRule(peers=flow.peers, direction=flow.direction, links=_ENCRYPTED, strength=strength),
            )
            for flow in flows
        ]

    # isolation


def _says_nothing(group: Group) -> bool:
    """Whether it is "links", "the path" or "packets" beside a bound."""
    kinds = {"link", "network", "traffic"}
    return (
        group.kind in kinds and isinstance(group.selector, Everything) and group.ends is None and not group.quantifier
    )


def negated_of(clause: Clause) -> Clause:
    """Return the clause with the opposite polarity."""
    return replace(clause, negated=not clause.negated)
