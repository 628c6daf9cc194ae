"""Rules of `share a node`, `separate zones`, `together`: which workloads run apart or together."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from intents.model.intent import SpreadRule, Strength, Topology
from intents.model.refusal import RefusalKind
from intents.translation.embedded.limits import is_single
from intents.translation.embedded.lists import WORKLOADS
from intents.translation.embedded.placing import Placing
from intents.translation.embedded.refusals import refused
from intents.translation.embedded.routing import Made, negated_of
from intents.translation.embedded.subjects import Who, apart
from intents.translation.embedded.tree import Clause, Complement, Everything, Group, Verb


class Spreading(Placing):
    """Makes the rules of clauses about what workloads share."""

    def _spread(self, clause: Clause, verb: Verb, who: Who, complements: list[Complement], strength: Strength) -> Made:
        shared = [each for each in complements if any((g.kind or "").startswith("topology") for g in each.groups)]
        if len(shared) > 1:  # "share a region but not a node"
            if any(each.linked == "or" for each in shared):
                raise refused(RefusalKind.AMBIGUOUS, "it is not clear what `or` joins", "say it in two sentences")
            parts = [[each for each in complements if each is one or each not in shared] for one in shared]
            return [rule for part in parts for rule in self._spread(clause, verb, who, part, strength)]
        topology: Topology = "node"
        relation = {"share": "together", "colocate": "together", "separate": "apart", "spread": "apart"}.get(
            verb.kind, ""
        )
        others: tuple[Group, ...] = ()
        rest: list[Complement] = []
        for each in complements:
            topologies = [group for group in each.groups if (group.kind or "").startswith("topology")]
            if topologies and len(topologies) == len(each.groups) == 1:
                topology = topologies[0].kind.partition(":")[2]  # type: ignore[union-attr, assignment]
                said = {"same": "together", "different": "apart"}.get(topologies[0].relation, "")
                if relation and said and said != relation:
                    raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear whether apart or together is meant")
                relation = relation or said
                if not isinstance(topologies[0].selector, Everything):  # "different trusted nodes"
                    if each.negated or topologies[0].quantifier:
                        raise refused(RefusalKind.NOT_UNDERSTOOD, "too much in one negated clause; say it in two")
                    kind = "node" if topology == "node" else None
                    rest.append(Complement("in", (replace(topologies[0], kind=kind, relation=""),)))
                if each.negated != (topologies[0].quantifier == "none"):
                    clause = negated_of(clause)
            elif each.role in {"together", "apart"}:
                said = {"together": "apart", "apart": "together"}[each.role] if each.negated else each.role
                if (relation and relation != said) or (each.negated and (clause.negated or each.role == "apart")):
                    raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear whether apart or together is meant")
                relation = said
            elif each.role == "each":
                continue
            elif (
                each.groups
                and all((group.kind or "") in WORKLOADS | {"pronoun"} for group in each.groups)
                and not others
            ):
                if each.role not in {"with", "as", "from", "to", "object"} or each.negated or each.only:
                    raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear with whom")
                others = self._subjects.resolve(each.groups)
            else:
                rest.append(each)
        if not relation:
            raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear whether apart or together is meant")
        if who.kind not in {"workloads", "data"}:
            raise refused(RefusalKind.NOT_UNDERSTOOD, "only workloads run apart or together")
        if clause.negated:
            relation = "apart" if relation == "together" else "together"
            if verb.kind in {"separate", "spread"}:
                raise refused(RefusalKind.OUT_OF_SCOPE, "not to separate is no limit")
        if any(group.quantifier == "least" for group in clause.subject):
            raise refused(RefusalKind.NOT_UNDERSTOOD, "`at least` is understood of workloads on nodes only")
        subjects = self._subjects.workloads(who.groups)
        members = apart(who.groups)
        rules: Made = []
        if not others and self._grounder.how_many(subjects) == 1:
            raise refused(
                RefusalKind.VACUOUS,
                "there is only one such workload, which runs neither apart from itself nor together",
            )
        which: Literal["apart", "together"] = "apart" if relation == "apart" else "together"
        if others:
            peers = self._subjects.workloads(others)
            rules.append((subjects, SpreadRule(relation=which, others=peers, topology=topology, strength=strength)))
        elif len(members) > 1 and relation == "apart" and not all(is_single(member) for member in members):
            for index, left in enumerate(members):
                for right in members[index + 1 :]:
                    rules.append(
                        (
                            self._subjects.workloads((left,)),
                            SpreadRule(
                                relation="apart",
                                others=self._subjects.workloads((right,)),
                                topology=topology,
                                strength=strength,
                            ),
                        )
                    )
        else:
            rules.append((subjects, SpreadRule(relation=which, others=subjects, topology=topology, strength=strength)))
        if rest:
            if clause.negated:
                raise refused(RefusalKind.NOT_UNDERSTOOD, "too much in one negated clause; say it in two")
            rules += self._placed(clause, Verb("run", "run"), who, rest, strength)
        return rules
