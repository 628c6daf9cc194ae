"""One verb of one subject: which kind of rule it makes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from intents.model.intent import IsolationRule, RouteRule
from intents.model.refusal import RefusalKind
from intents.translation.embedded.refusals import refused
from intents.translation.embedded.spreading import Spreading
from intents.translation.embedded.talking import Talking
from intents.translation.embedded.transferring import Transferring
from intents.translation.embedded.tree import Complement, Everything, Group, Verb

if TYPE_CHECKING:
    from intents.model.intent import Strength
    from intents.translation.embedded.routing import Made, Rule
    from intents.translation.embedded.subjects import Who
    from intents.translation.embedded.tree import Clause


_WITHOUT_GROUPS = frozenset({"else", "transit", "migration", "each", "bothways"})


class Rules(Talking, Spreading, Transferring):
    """Makes the rules of a clause, one verb at a time."""

    def of(self, clause: Clause, verb: Verb, who: Who, strength: Strength) -> Made:
        """Return the rules with their subjects.

        Raises:
            Refused: the verb makes no rule of such a subject and such complements.
        """
        if any(each.negated and each.role in _WITHOUT_GROUPS for each in clause.complements):
            raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear what the negation belongs to")
        complements = [each for each in clause.complements if each.role not in {"else", "transit"}]
        if any(each.role == "bothways" for each in complements):
            clause = replace(clause, complements=tuple(each for each in clause.complements if each.role != "bothways"))
            return [(subjects, _both_ways(rule)) for subjects, rule in self.of(clause, verb, who, strength)]
        if verb.kind in {"prevent", "forbid"} and verb.passive and who.kind == "flows" and not complements:
            verb = Verb("block", "block", passive=True)
        if any(each.role == "rest" for each in complements):
            raise refused(RefusalKind.OUT_OF_SCOPE, "what lies on disks is neither placement nor route", final=True)
        levels = [each for each in complements if each.role == "level"]
        if levels:
            if verb.lemma not in {"separate", "split", "segregate"} or clause.negated or len(levels) > 1:
                raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear what the level belongs to")
            verb = Verb("separate", "separate", passive=verb.passive)
            complements = [replace(each, role="object") if each in levels else each for each in complements]
        soft = [each for each in complements if each.soft]
        if soft and strength == "required":
            hard = [each for each in complements if not each.soft]
            made = self._made(clause, verb, who, hard, strength) if hard else []
            return made + self._made(clause, verb, who, soft, "preferred")
        return self._made(clause, verb, who, complements, strength)

    def _at_home(
        self,
        clause: Clause,
        verb: Verb,
        who: Who,
        complements: list[Complement],
        homes: list[Complement],
        strength: Strength,
    ) -> Made:
        """Read `away from the node of B`: apart from B, or together with it."""
        home, rest = homes[0], [each for each in complements if each not in homes]
        ends = home.groups[0].ends
        if ends is not None and any(group.kind == "pronoun" for group in ends.owner):
            raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear whose node is meant")
        if len(homes) > 1 or len(home.groups) > 1 or ends is None or ends.source or ends.target or home.only:
            raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear whose node is meant")
        if verb.kind not in {"run", "stay", "be"} or (clause.negated and rest) or clause.only:
            raise refused(RefusalKind.NOT_UNDERSTOOD, "too much in one clause; say it in two")
        away = (home.role == "out") != (clause.negated != home.negated)
        where = Complement("object", (Group(0, 0, "topology:node", relation="different" if away else "same"),))
        told = replace(clause, negated=False)
        made = self._made(told, verb, who, rest, strength) if rest else []
        return made + self._spread(told, verb, who, [where, Complement("as", ends.owner)], strength)

    def _made(self, clause: Clause, verb: Verb, who: Who, complements: list[Complement], strength: Strength) -> Made:
        migrating = clause.migration or any(each.role == "migration" for each in complements)
        complements = [each for each in complements if each.role != "migration"]
        if (
            verb.lemma == "go"
            and who.kind in {"workloads", "data"}
            and any(each.role in {"to", "in"} or (each.role == "out" and each.word != "around") for each in complements)
        ):
            verb = Verb("go", "enter" if who.kind == "data" else "run")
        if verb.kind == "want" and not verb.passive:  # "trainer wants a GPU"
            verb = Verb("need", "need")
        if verb.kind == "run" and verb.passive and who.kind in {"workloads", "data"}:  # is served from Germany
            complements = [replace(each, role="in") if self._whence(each) else each for each in complements]
        homes = [each for each in complements if _is_home(each)]
        if homes and not migrating:
            return self._at_home(clause, verb, who, complements, homes, strength)
        if verb.kind == "migrate" and not migrating and who.kind in {"workloads", "data"}:
            settled = self._settled(clause, who, complements, strength)
            if settled is not None:
                return settled
        if migrating or who.kind in {"state", "migration"} or verb.kind == "migrate":
            return self._transfer(clause, verb, who, complements, strength, migrating=migrating)
        for each in complements:
            if any((group.kind or "").startswith("topology") for group in each.groups):
                relational = any(group.relation for group in each.groups) or verb.kind in {"share", "spread"}
                if relational:
                    return self._spread(clause, verb, who, complements, strength)
        if verb.kind in {"share", "colocate", "spread", "separate"} or any(
            each.role in {"together", "apart"} for each in complements
        ):
            return self._spread(clause, verb, who, complements, strength)
        withouts = [each for each in complements if each.role.startswith("without ")]
        bounds = [each for each in complements if each.role in {"latency", "bandwidth"}]
        if withouts and bounds:  # "at or below 20 ms without using s1"
            rest = [each for each in complements if each not in bounds]
            bounded = [each for each in complements if each not in withouts]
            made = self._without(clause, verb, who, rest, withouts, strength)
            return made + self._measure(clause, verb, who, bounded, strength)
        if withouts:
            return self._without(clause, verb, who, complements, withouts, strength)
        measures = [each for each in complements if each.role in {"latency", "bandwidth"}]
        if measures and verb.kind in {"talk", "send"}:  # must reach B within 15 ms
            complements = [replace(each, role="to") if each.role == "object" else each for each in complements]
        peerless = [
            each
            for each in complements
            if each not in measures and each.role not in {"to", "from", "with", "between", "for", "each"}
        ]
        if measures and peerless and not clause.negated and all(each.verb_role != "bare" for each in measures):
            placed = verb.kind in {"run", "stay", "be", "need", "have", "nominal"}
            others = peerless if placed else [each for each in complements if each not in measures]
            asked = [each for each in complements if each not in peerless]
            return self._made(clause, verb, who, others, strength) + self._measure(clause, verb, who, asked, strength)
        if measures:
            return self._measure(clause, verb, who, complements, strength)
        if (
            verb.kind == "send"
            and verb.passive
            and who.kind == "data"
            and all(each.role == "via" for each in complements)
        ):
            verb = Verb("cross", "cross")  # data that is transmitted: whoever sends it
        if verb.kind in {"talk", "exchange", "send", "receive", "isolate", "block"}:
            return self._talk(clause, verb, who, complements, strength)
        if verb.kind == "encrypt":
            return self._encrypted(clause, verb, who, complements, strength)
        if who.kind == "flows":
            return self._routes(clause, verb, who, complements, strength)
        if verb.kind == "cross":
            return self._crossing(clause, verb, who, complements, strength)
        return self._placed(clause, verb, who, complements, strength)

    def _whence(self, complement: Complement) -> bool:
        return complement.role == "from" and all(
            group.kind == "node" or self._limits.is_place(group) for group in complement.groups
        )


def _is_home(complement: Complement) -> bool:
    """Whether it is "on the node of claims", "away from the node that runs claims"."""
    return complement.role in {"in", "out"} and all(
        group.kind == "node" and group.ends is not None and isinstance(group.selector, Everything)
        for group in complement.groups
    )


def _both_ways(rule: Rule) -> Rule:
    """Return the rule for packets in both directions."""
    if not isinstance(rule, RouteRule | IsolationRule):
        raise refused(RefusalKind.NOT_UNDERSTOOD, "a direction is understood of packets only")
    return rule.model_copy(update={"direction": "both"})
