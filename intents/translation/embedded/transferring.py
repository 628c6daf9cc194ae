"""Rules of `migrate`, of state and weights, and of `when it is migrated`: what a migration may touch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from intents.model.intent import PlacementRule, Strength, TransferRule
from intents.model.refusal import RefusalKind
from intents.translation.embedded.placing import NODE, Placing
from intents.translation.embedded.refusals import Refused, refused
from intents.translation.embedded.routing import NETWORK, Made
from intents.translation.embedded.tree import Clause, Complement, Verb

if TYPE_CHECKING:
    from intents.model.predicate import Predicate
    from intents.translation.embedded.subjects import Who
    from intents.translation.embedded.vocabulary import Kind


_ONTO = frozenset({"on", "onto", "upon", "on top of"})


class Transferring(Placing):
    """Makes the rules of clauses about migrations."""

    def _settled(self, clause: Clause, who: Who, complements: list[Complement], strength: Strength) -> Made | None:
        """Read `must be moved to a trusted node`: where it must run from then on; None: a rule about migrations."""
        ways = [each for each in complements if each.role == "via"]
        goals = [each for each in complements if each.role != "via"]
        outwards = bool(goals) and all(each.role == "out" for each in goals)
        if clause.imperative and not (clause.negated or clause.only) and any(_outwards(each) for each in goals):
            if not outwards:
                raise _order()
        elif clause.imperative:
            return None
        limits_moves = clause.negated or clause.only or clause.modal == "may" or any(each.only for each in complements)
        if limits_moves or not goals or any(each.role not in {"to", "in", "out"} for each in goals):
            return None
        if any(each.role == "in" and each.word not in _ONTO for each in goals):
            raise refused(
                RefusalKind.AMBIGUOUS,
                "it is not said whether it must run there or may only be moved there",
                "say `must run ...` or `may only be moved ...`",
                final=True,
            )
        if who.kind == "data":
            raise refused(
                RefusalKind.AMBIGUOUS,
                "it is not said whether the data must be there or only where it is sent",
                "say `must stay ...` or `may only be transferred ...`",
                final=True,
            )
        made = self._placed(clause, Verb("run", "run"), who, [_where(each) for each in goals], strength)
        if ways:
            moved = self._transfer(clause, Verb("move", "migrate"), who, ways, strength, migrating=True)
            made += moved
        return made

    def _transfer(
        self,
        clause: Clause,
        verb: Verb,
        who: Who,
        complements: list[Complement],
        strength: Strength,
        *,
        migrating: bool,
    ) -> Made:
        if strength != "required":
            raise refused(RefusalKind.NOT_UNDERSTOOD, "what a migration may touch is either required or not")
        groups = who.groups
        if who.kind in {"state", "migration"}:
            owners = tuple(owner for group in groups if group.ends is not None for owner in group.ends.owner)
            if not owners:
                raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not said whose state is meant")
            subjects = self._subjects.workloads(owners)
        elif who.kind == "flows":
            raise refused(RefusalKind.NOT_UNDERSTOOD, "packets are not migrated; name the workloads")
        else:
            subjects = self._subjects.workloads(groups)
        negated = clause.negated
        if negated and verb.kind in {"confine", "need", "prefer"}:
            raise refused(
                RefusalKind.OUT_OF_SCOPE, "to lift or deny a limit is no limit: intents only limit", final=True
            )
        if verb.kind in {"migrate", "send"} and not complements:
            if negated:
                return [(subjects, TransferRule(state=who.state, forbidden=True))]
            raise refused(RefusalKind.OUT_OF_SCOPE, "to migrate something is an order, not a limit")
        if any(
            each.role in {"from", "between", "for", "each", "together", "apart", "latency", "bandwidth"}
            for each in complements
        ):
            raise refused(RefusalKind.NOT_UNDERSTOOD, "what the migration may touch is not clear")
        if verb.kind == "leave":
            if not negated:
                raise refused(RefusalKind.AMBIGUOUS, "it is not said where to, when it must leave")
            negated = False
            self._stays(complements)
        elif verb.kind == "avoid":
            negated = not negated
        moving = verb.kind in {"migrate", "send"}
        if (
            moving
            and clause.imperative
            and not (negated or clause.only)
            and any(_outwards(each) for each in complements)
        ):
            raise _order()
        only = clause.only or any(each.only or each.role == "out" for each in complements)
        if moving and not negated and not only and not any(each.negated for each in complements):
            vias = [each for each in complements if each.role == "via"]
            if len(vias) != len(complements) and clause.imperative:
                raise refused(
                    RefusalKind.OUT_OF_SCOPE,
                    "to migrate something is an order, not a limit",
                    "say where it may only be migrated",
                )
        made: dict[str, Predicate] = {}
        crossing = verb.kind in {"cross", "use"}
        for chunk in (
            [each for each in complements if each.role == "via"],
            [each for each in complements if each.role != "via"],
        ):
            if not chunk:
                continue
            limiting = self._limiting(chunk)
            via = chunk[0].role == "via" or crossing
            default: tuple[Kind, ...] = NETWORK if via else NODE
            place = all(self._limits.is_place(group) for each in limiting for group in each.groups)
            if not via and place and verb.kind in {"stay", "leave", "avoid", "enter", "run", "confine"}:
                default = ("node", *NETWORK)
            for kind, predicate in self._limits.of(limiting, default, negated=negated).items():
                if kind in made:
                    raise refused(RefusalKind.NOT_UNDERSTOOD, "too much in one clause; say it in two")
                made[kind] = predicate
        if not made:
            raise refused(RefusalKind.NOT_UNDERSTOOD, "what the migration may touch is not clear")
        rules: Made = [
            (
                subjects,
                TransferRule(
                    state=who.state, nodes=made.get("node"), switches=made.get("switch"), links=made.get("link")
                ),
            )
        ]
        stays = (
            verb.kind in {"stay", "leave", "run", "confine"} and who.kind == "state" and not migrating and not moving
        )
        if stays and "node" in made:
            rules.append((subjects, PlacementRule(nodes=made["node"])))
        return rules


def _outwards(goal: Complement) -> bool:
    return goal.role == "out" and not (goal.only or goal.negated)


def _order() -> Refused:
    return refused(
        RefusalKind.OUT_OF_SCOPE,
        "to move something is an order, not a limit",
        "say where it must run, or where it may only be moved",
    )


def _where(goal: Complement) -> Complement:
    return replace(goal, role="in") if goal.role == "to" else goal
