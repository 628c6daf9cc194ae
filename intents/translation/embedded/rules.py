"""One verb of one subject: which kind of rule it makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intents.model.refusal import RefusalKind
from intents.translation.embedded.grounding import refused
from intents.translation.embedded.spreading import Spreading
from intents.translation.embedded.talking import Talking
from intents.translation.embedded.transferring import Transferring

if TYPE_CHECKING:
    from intents.model.intent import Strength
    from intents.translation.embedded.routing import Made
    from intents.translation.embedded.subjects import Who
    from intents.translation.embedded.tree import Clause, Complement, Verb


class Rules(Talking, Spreading, Transferring):
    """Makes the rules of a clause, one verb at a time."""

    def of(self, clause: Clause, verb: Verb, who: Who, strength: Strength) -> Made:
        """Return the rules with their subjects.

        Raises:
            Refused: the verb makes no rule of such a subject and such complements.
        """
        complements = [each for each in clause.complements if each.role not in {"else", "transit"}]
        if any(each.role == "rest" for each in complements):
            raise refused(RefusalKind.OUT_OF_SCOPE, "what lies on disks is neither placement nor route", final=True)
        soft = [each for each in complements if each.soft]
        if soft and strength == "required":
            hard = [each for each in complements if not each.soft]
            made = self._made(clause, verb, who, hard, strength) if hard else []
            return made + self._made(clause, verb, who, soft, "preferred")
        return self._made(clause, verb, who, complements, strength)

    def _made(self, clause: Clause, verb: Verb, who: Who, complements: list[Complement], strength: Strength) -> Made:
        migrating = clause.migration or any(each.role == "migration" for each in complements)
        complements = [each for each in complements if each.role != "migration"]
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
        if withouts:
            return self._without(clause, verb, who, complements, withouts, strength)
        measures = [each for each in complements if each.role in {"latency", "bandwidth"}]
        peerless = [
            each
            for each in complements
            if each not in measures and each.role not in {"to", "from", "with", "between", "for", "each"}
        ]
        if measures and peerless and not clause.negated and all(each.verb_role != "bare" for each in measures):
            others = [each for each in complements if each not in measures]
            asked = [each for each in complements if each not in peerless]
            return self._made(clause, verb, who, others, strength) + self._measure(clause, verb, who, asked, strength)
        if measures:
            return self._measure(clause, verb, who, complements, strength)
        if verb.kind in {"talk", "exchange", "send", "receive", "isolate", "block"}:
            return self._talk(clause, verb, who, complements, strength)
        if verb.kind == "encrypt":
            return self._encrypted(clause, verb, who, complements, strength)
        if who.kind == "flows":
            return self._routes(clause, verb, who, complements, strength)
        if verb.kind == "cross":
            return self._crossing(clause, verb, who, complements, strength)
        return self._placed(clause, verb, who, complements, strength)
