"""Rules of `run`, `stay`, `leave`, `avoid`, `need`: on which nodes workloads run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intents.model.intent import PlacementRule, RouteRule, Strength
from intents.model.refusal import RefusalKind
from intents.translation.embedded.refusals import refused
from intents.translation.embedded.routing import NETWORK, Made, Routing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intents.translation.embedded.subjects import Who
    from intents.translation.embedded.tree import Clause, Complement, Group, Verb
    from intents.translation.embedded.vocabulary import Kind

NODE: tuple[Kind, ...] = ("node",)
_OF_PLACE = frozenset(
    {"run", "stay", "confine", "leave", "enter", "avoid", "need", "have", "prefer", "use", "excluded", "nominal", "be"}
)


class Placing(Routing):
    """Makes the rules of clauses about nodes."""

    def _placed(self, clause: Clause, verb: Verb, who: Who, complements: list[Complement], strength: Strength) -> Made:
        """Rules of `run`, `stay`, `leave`, `avoid`, `need`: nodes, unless an element's noun says otherwise."""
        if verb.kind not in _OF_PLACE:
            raise refused(RefusalKind.NOT_UNDERSTOOD, f"{verb.lemma!r} makes no rule about where something runs")
        negated = clause.negated
        held_out = verb.lemma == "keep" and any(each.role == "out" for each in complements)
        if negated and (verb.kind in {"confine", "need", "prefer"} or held_out):
            raise refused(
                RefusalKind.OUT_OF_SCOPE, "to lift or deny a limit is no limit: intents only limit", final=True
            )
        if verb.kind == "leave":
            if not negated:
                raise refused(RefusalKind.AMBIGUOUS, "it is not said where to, when it must leave")
            negated = False
            self._stays(complements)
        elif verb.kind in {"avoid", "excluded"}:
            negated = not negated
            if not negated:
                raise refused(RefusalKind.OUT_OF_SCOPE, "not to avoid something is no limit")
        elif verb.kind in {"enter", "use"} and not negated and verb.kind == "enter":
            raise refused(RefusalKind.AMBIGUOUS, "to enter a place is no limit; say where it must stay")
        between = [each for each in complements if each.role == "between"]
        links = [each for each in complements if each.groups and all(g.kind in {"link", "switch"} for g in each.groups)]
        if between and links and len(complements) > len(between) + len(links):
            # "must be kept in Germany, with encrypted links only between them"
            placed = [each for each in complements if each not in between and each not in links]
            flows, left = self._flows(who, between)
            if left:
                raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear between whom the links are")
            routed = self._restrict(flows, self._limiting(links), negated=clause.negated, strength=strength)
            return self._placed(clause, verb, who, placed, strength) + routed
        limiting = self._limiting(complements)
        if not limiting:
            raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not said where")
        elements = any(
            (group.kind or "") in {"node", "switch", "link", "network"} for each in limiting for group in each.groups
        )
        place = all(self._limits.is_place(group) for each in limiting for group in each.groups)
        moves = verb.kind in {"stay", "leave", "enter", "avoid"} or (verb.kind == "confine")
        default = NODE
        if who.kind == "data" and moves and place and not elements:
            default = ("node", *NETWORK)
        if verb.kind in {"use", "avoid", "enter", "leave"} and not elements and default == NODE:
            default = NODE
        found = self._limits.of(limiting, default, negated=negated)
        subjects = self._subjects.workloads(who.groups)
        made: Made = []
        if "node" in found:
            at_least = self._at_least(clause.subject)
            made.append((subjects, PlacementRule(nodes=found["node"], at_least=at_least, strength=strength)))
        elif self._at_least(clause.subject) is not None:
            raise refused(RefusalKind.NOT_UNDERSTOOD, "`at least` is understood of workloads on nodes only")
        if "switch" in found or "link" in found:
            if verb.kind == "use" and not negated and not clause.only and not any(each.only for each in limiting):
                return self._crossing(clause, verb, who, complements, strength)
            made.append((subjects, RouteRule(switches=found.get("switch"), links=found.get("link"), strength=strength)))
        return made

    @staticmethod
    def _at_least(groups: Sequence[Group]) -> int | None:
        numbers = [group.number for group in groups if group.quantifier == "least"]
        return numbers[0] if numbers else None
