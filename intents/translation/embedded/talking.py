"""Rules of `talk to`, `reach`, `send`, `isolate`, `block`: who exchanges packets with whom, if at all."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from intents.model.intent import IsolationRule, RouteRule
from intents.model.refusal import RefusalKind
from intents.translation.embedded.limits import is_single, way_points
from intents.translation.embedded.lists import WORKLOADS
from intents.translation.embedded.refusals import refused
from intents.translation.embedded.routing import Made, Routing, negated_of
from intents.translation.embedded.subjects import Flow, Who, apart
from intents.translation.embedded.tree import Clause, Complement, Everything, Join, Minus, Verb

if TYPE_CHECKING:
    from intents.model.intent import Strength

_ONE_WAY = frozenset({"reach", "access", "open", "initiate", "establish", "make"})


class Talking(Routing):
    """Makes the rules of clauses about who talks to whom."""

    def _talk(self, clause: Clause, verb: Verb, who: Who, complements: list[Complement], strength: Strength) -> Made:
        """Rules of `talk to`, `reach`, `exchange packets with`, `send to`, `isolate from`, `block`."""
        rest: list[Complement] = []
        peers: list[tuple[str, Complement]] = []
        for each in complements:
            flows_only = bool(each.groups) and all(
                group.kind in {"traffic", "data", "pronoun:traffic"}
                and group.ends is None
                and isinstance(group.selector, Everything)
                for group in each.groups
            )
            if (
                each.role == "object"
                and flows_only
                and verb.kind in {"exchange", "send", "receive", "have", "talk", "block"}
            ):
                if each.negated:
                    raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear what the negation belongs to")
                if any(group.quantifier == "none" for group in each.groups) and not clause.negated:
                    clause = negated_of(clause)
                continue
            peerish = all((group.kind or "") in WORKLOADS | {"pronoun", "node"} for group in each.groups) and bool(
                each.groups
            )
            if each.role == "each":
                peers.append(("each", each))
            elif peerish and each.role in {"to", "with", "from", "object", "by", "between", "in"}:
                peers.append((each.role, each))
            else:
                rest.append(each)
        positive_verbs = {"isolate", "block"}
        nobody = [each for _, each in peers if any(group.quantifier == "none" for group in each.groups)]
        if nobody:  # may talk to nobody except claims
            if (
                len(peers) > 1
                or len(nobody[0].groups) > 1
                or clause.negated
                or clause.only
                or verb.kind in positive_verbs
            ):
                raise refused(RefusalKind.NOT_UNDERSTOOD, "two negations in one clause")
            clause = negated_of(clause)
            told = replace(nobody[0], groups=tuple(replace(group, quantifier="") for group in nobody[0].groups))
            peers = [(peers[0][0], told)]
        alike = clause.negated and len(peers) > 1 and len({role for role, _ in peers}) == 1
        if alike and all(each.linked in {"nor", "or"} and not each.only for _, each in peers[1:]):  # nor with B
            groups = tuple(group for _, each in peers for group in each.groups)
            peers = [(peers[0][0], replace(peers[0][1], groups=groups))]
        negated = clause.negated != (verb.kind in positive_verbs)
        if peers and not clause.negated and all(each.negated for _, each in peers):  # talk to neither A nor B
            negated = not negated
            if verb.kind in positive_verbs:
                raise refused(RefusalKind.OUT_OF_SCOPE, "not to isolate is no limit: intents only limit", final=True)
        elif any(each.negated and each.linked != "nor" for _, each in peers):
            raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear whom it may talk to")
        if clause.negated and verb.kind in positive_verbs:
            raise refused(RefusalKind.OUT_OF_SCOPE, "not to isolate is no limit: intents only limit", final=True)
        if verb.kind in positive_verbs and who.kind == "flows":
            if peers or rest:
                raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear between whom packets are blocked")
            return self._isolated([flow for group in who.groups for flow in self._subjects.flows(group)], strength)
        if negated and who.kind == "flows" and verb.kind == "talk" and len(peers) == 1 and not rest:
            return self._reached(who, peers[0][1], strength)
        if who.kind == "flows" and not (verb.kind in {"send", "receive"} or (verb.kind == "talk" and peers)):
            return self._crossing(clause, verb, who, complements, strength)
        if rest or (who.kind == "flows"):
            return self._talk_over(clause, verb, who, peers, rest, strength, negated=negated)
        pairs = self._pairs(verb, who, peers)
        if negated:
            return self._isolated(pairs, strength)
        only = clause.only or any(each.only for _, each in peers)
        if not only or any(each.negated for _, each in peers):
            raise refused(
                RefusalKind.OUT_OF_SCOPE,
                "it asks that they can talk, which is no limit: what no intent forbids is allowed already",
                "say whom it may only talk to",
                final=True,
            )
        made: Made = []
        if len(peers) != 1:
            raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear whom it may talk to")
        complement = peers[0][1]
        groups = self._subjects.resolve(complement.groups)
        selectors = [group.selector for group in groups]
        allowed = selectors[0] if len(selectors) == 1 else Join("or", tuple(selectors))
        if any(group.kind == "node" for group in groups):
            raise refused(RefusalKind.NOT_UNDERSTOOD, "name the workloads that it may only talk to")
        others = self._grounder.ground(Minus(Everything(), allowed), "workload", subject="any").yes
        for pair in pairs:
            made.append((pair.subjects, IsolationRule(peers=others, direction=pair.direction)))
        return made

    def _reached(self, who: Who, complement: Complement, strength: Strength) -> Made:
        """Read `no packet from A may reach B`."""
        ends = who.groups[0].ends
        owners = (ends.source or ends.owner) if ends is not None else ()
        if len(who.groups) != 1 or ends is None or ends.target or not owners or complement.only:
            raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear which packets must not reach whom")
        subjects = self._subjects.workloads(owners)
        return self._isolated([Flow(subjects, self._subjects.peers(complement.groups), "from_subjects")], strength)

    def _talk_over(
        self,
        clause: Clause,
        verb: Verb,
        who: Who,
        peers: list[tuple[str, Complement]],
        rest: list[Complement],
        strength: Strength,
        *,
        negated: bool,
    ) -> Made:
        """Read `must reach B only via s3`, `exchange packets over encrypted links only`."""
        if verb.kind == "isolate":
            raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear from what it is isolated")
        sent = verb.kind in {"talk", "send"} and not negated and not clause.only
        if sent and any(each.role in {"to", "object", "with"} and not each.only for each in rest):
            raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear whom it may talk to")
        if not rest:
            if verb.kind in {"send", "receive"} and who.kind == "flows" and peers:
                flows, left = self._flows(who, [each for _, each in peers])
                if negated and not left:
                    return self._isolated(flows, strength)
            raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear over what")
        if (
            clause.only
            and peers
            and not any(each.only for each in rest)
            and not all(each.role in {"via", "without"} for each in rest)
        ):
            raise refused(RefusalKind.AMBIGUOUS, "it is not clear what `only` belongs to")
        if who.kind == "flows" and not peers:
            return self._crossing(clause, Verb("cross", "cross"), who, rest, strength)
        if not peers and (len(apart(who.groups)) == 1 or verb.kind in {"send", "receive"}):
            subjects = self._subjects.workloads(who.groups)
            direction = {"send": "from_subjects", "receive": "to_subjects"}.get(verb.kind, "both")
            pairs = [Flow(subjects, None, direction)]  # type: ignore[arg-type]
        else:
            pairs, left = (
                self._flows(who, [each for _, each in peers])
                if who.kind == "flows"
                else (self._pairs(verb, who, peers), [])
            )
            if left:
                raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear between whom the packets pass")
        made: Made = []
        for pair in pairs:
            made += self._crossing_of(pair, rest, strength, negated=negated)
        return made

    def _crossing_of(self, flow: Flow, rest: list[Complement], strength: Strength, *, negated: bool) -> Made:
        limiting = self._limiting(rest)
        through = [
            self._grounder.ground(group.selector, "switch").yes
            for each in limiting
            if not negated
            and not each.negated
            and each.role == "via"
            and all(is_single(g) and g.kind in {"switch", None} for g in each.groups)
            for group in way_points(each)
        ]
        others = [
            each
            for each in limiting
            if negated
            or each.negated
            or each.role != "via"
            or not all(is_single(g) and g.kind in {"switch", None} for g in each.groups)
        ]
        made: Made = self._restrict([flow], others, negated=negated, strength=strength) if others else []
        if through:
            made.append(
                (
                    flow.subjects,
                    RouteRule(peers=flow.peers, direction=flow.direction, through=tuple(through), strength=strength),
                )
            )
        return made

    def _pairs(self, verb: Verb, who: Who, peers: list[tuple[str, Complement]]) -> list[Flow]:
        """Return who exchanges packets with whom, pair by pair where subjects talk among themselves."""
        if peers and peers[0][0] != "each":
            if len(peers) > 1:
                raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear with whom")
            role, complement = peers[0]
            direction = "both"
            if verb.kind == "send" and role == "to":
                direction = "from_subjects"
            elif verb.kind == "receive" and role == "from":
                direction = "to_subjects"
            elif verb.lemma.partition(" ")[0] in _ONE_WAY:
                direction = "to_subjects" if verb.passive else "from_subjects"
            subjects = self._subjects.workloads(who.groups)
            return [Flow(subjects, self._subjects.peers(complement.groups), direction)]  # type: ignore[arg-type]
        members = apart(who.groups)
        if len(members) == 1:
            if not peers:
                raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not said with whom")
            if members[0].singular:
                raise refused(RefusalKind.AMBIGUOUS, "it is not said with whom", "name both")
            subjects = self._subjects.workloads(who.groups)
            return [Flow(subjects, subjects, "both")]
        return [
            Flow(self._subjects.workloads((left,)), self._subjects.workloads((right,)), "both")
            for index, left in enumerate(members)
            for right in members[index + 1 :]
        ]
