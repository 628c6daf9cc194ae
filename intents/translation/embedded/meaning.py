"""From clauses to rules: which verb of which subject makes which rule.

A clause must ask for a limit. What permits, or demands nothing, is refused; so is what would need to be guessed. The
table of meanings stands in ../README.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from intents.model.intent import (
    IntentSpec,
    IsolationRule,
    PlacementRule,
    RouteRule,
    SpreadRule,
    Strength,
    TransferRule,
)
from intents.model.refusal import RefusalKind
from intents.translation.embedded.carriers import CARRIERS, used
from intents.translation.embedded.limits import Limits
from intents.translation.embedded.lists import WORKLOADS
from intents.translation.embedded.refusals import refused
from intents.translation.embedded.rules import Rules
from intents.translation.embedded.shapes import plain
from intents.translation.embedded.subjects import Subjects, Who
from intents.translation.embedded.tree import Clause, Complement, Ends, Everything, Group, Minus, Verb, mentions_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intents.model.predicate import Predicate
    from intents.translation.embedded.grounding import Grounder
    from intents.translation.embedded.vocabulary import Vocabulary

Rule = PlacementRule | SpreadRule | RouteRule | IsolationRule | TransferRule

_ELSEWHERE = frozenset({"outside", "outside of", "out of", "beyond", "off", "off of", "away from"})
_PLACES = frozenset({"run", "stay", "confine", "be", "nominal"})


def specs_of(clauses: Sequence[Clause], vocabulary: Vocabulary, grounder: Grounder) -> tuple[IntentSpec, ...]:
    """Return the rules of all clauses, those about the same subjects together.

    Raises:
        Refused: a clause is no limit, or not clear, or this reading makes no sense.
    """
    reader = _Reader(vocabulary, grounder)
    reader.elliptic = len(clauses) > 1 and all(clause.verbs and clause.verbs[0].kind == "nominal" for clause in clauses)
    for clause in clauses:
        reader.read(clause)
    for mention in (each for clause in clauses for each in mentions_of(clause)):
        if (mention.first, mention.last) not in grounder.meanings:
            raise refused(RefusalKind.NOT_UNDERSTOOD, f"it is not clear what {mention.text!r} adds to the rule")
    merged: dict[Predicate, list[Rule]] = {}
    for subjects, rule in reader.rules:
        known = merged.setdefault(subjects, [])
        if rule not in known:
            known.append(rule)
    if not merged:
        raise refused(RefusalKind.NOT_UNDERSTOOD, "no rule was found in the sentence")
    return tuple(
        IntentSpec(
            subjects=subjects,
            placement=tuple(each for each in rules if isinstance(each, PlacementRule)),
            spread=tuple(each for each in rules if isinstance(each, SpreadRule)),
            routes=tuple(each for each in rules if isinstance(each, RouteRule)),
            isolation=tuple(each for each in rules if isinstance(each, IsolationRule)),
            transfer=tuple(each for each in rules if isinstance(each, TransferRule)),
        )
        for subjects, rules in merged.items()
    )


class _Reader:
    def __init__(self, vocabulary: Vocabulary, grounder: Grounder) -> None:
        self._subjects = Subjects(grounder)
        self._limits = Limits(grounder, vocabulary)
        self._rules = Rules(grounder, self._limits, self._subjects)
        self._grounder = grounder
        self.rules: list[tuple[Predicate, Rule]] = []
        self._last: Clause | None = None
        self._read: list[Clause] = []
        self.elliptic = False

    def read(self, clause: Clause) -> None:
        """Add the rules of one clause."""
        if clause.topic:
            self._subjects.remember(self._subjects.resolve(clause.topic))
        if clause.verbs and clause.verbs[0].kind == "again":
            return self._again(clause)
        clause = plain(self._gapped(used(clause)))
        if not clause.subject and clause.imperative and self._last is not None and clause.complements:
            clause = replace(clause, subject=(Group(0, 0, "pronoun"),))  # "...; if possible, pick one in France"
        if not clause.subject:
            raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not said which workloads the rule is about")
        clause = self._no_two(replace(clause, subject=self._subjects.others(clause.subject)))
        groups = self._excepted(self._subjects.resolve(clause.subject), clause)
        self._check_plural(clause, groups)
        clause = replace(clause, complements=tuple(each for each in clause.complements if each.role != "except"))
        if any((group.kind or "") in CARRIERS and group.ends is None for group in groups):
            if len(clause.verbs) == 1 and clause.verbs[0].kind == "excluded":
                return self._excluded(clause, groups)
            raise refused(RefusalKind.NOT_UNDERSTOOD, "the subject is no workload, traffic or state")
        for each in clause.complements:
            pronouns = [group for group in each.groups if group.kind == "pronoun"]
            if pronouns and each.role != "between" and set(self._subjects.resolve(pronouns)) & set(groups):
                raise refused(
                    RefusalKind.AMBIGUOUS, "it is not clear what the pronoun stands for", "name what is meant"
                )
        clause = self._polarity(replace(clause, subject=groups))
        self._ask(clause)
        self._remember(self._subjects.who(groups))
        self._subjects.accompany([group for each in clause.complements for group in each.groups])
        self._last = clause
        self._read.append(clause)
        return None

    @staticmethod
    def _check_plural(clause: Clause, groups: tuple[Group, ...]) -> None:
        """Refuse "they" behind "traffic between A and B": A and B may be meant; packets are "they", but run nowhere."""
        they = any(group.kind == "pronoun" and group.plural for group in clause.subject)
        runs = any(verb.kind == "run" and verb.lemma != "be" for verb in clause.verbs)
        flows = [
            group for group in groups if group.ends is not None and group.kind in {"traffic", "measure", "network"}
        ]
        if they and flows and (runs or any(not group.plural for group in flows)):
            raise refused(
                RefusalKind.AMBIGUOUS, "it is not clear who is meant by `they`", "name what is meant", final=True
            )

    @staticmethod
    def _no_two(clause: Clause) -> Clause:
        """Read "no two of them may share a node" as "they must not share a node"; of other verbs it has no rule."""
        if all(group.quantifier != "no two" for group in clause.subject):
            return clause
        shared = all(verb.kind == "share" for verb in clause.verbs) or any(
            group.relation == "same" for each in clause.complements for group in each.groups
        )
        if not shared or clause.negated or clause.only or clause.modal == "ban" or len(clause.subject) > 1:
            raise refused(RefusalKind.NOT_UNDERSTOOD, "`no two` is understood of what they share only")
        return replace(clause, subject=(replace(clause.subject[0], quantifier="none"),))

    def _ask(self, clause: Clause) -> None:
        """Add the rules of a clause whose subject and polarity are settled."""
        soft = clause.soft or any(verb.kind == "prefer" for verb in clause.verbs)
        strength: Strength = "preferred" if soft else "required"
        if any(each.role == "even migration" for each in clause.complements):
            return self._even_when_migrated(clause)
        for verb in clause.verbs:
            for part in self._split(clause):
                self.rules += self._rules.of(part, verb, self._subjects.who(part.subject), strength)
        return None

    def _even_when_migrated(self, clause: Clause) -> None:
        """Read "must stay in the EU, even during a migration": always, and what a migration may touch."""
        always = tuple(each for each in clause.complements if each.role != "even migration")
        kept = all(verb.kind in _PLACES | {"leave"} for verb in clause.verbs)
        soft = clause.soft or any(each.soft for each in clause.complements)
        if soft or not kept or clause.migration or any(each.role not in {"in", "out", "object"} for each in always):
            raise refused(RefusalKind.NOT_UNDERSTOOD, "what the migration may touch is not clear")
        self._ask(replace(clause, complements=always))
        self._ask(replace(clause, complements=always, migration=True))

    def _again(self, clause: Clause) -> None:
        """Ask the same of others: `and so must B`, `The same holds for B`."""
        if len(self._read) != 1:
            raise refused(
                RefusalKind.AMBIGUOUS, "it is not clear what holds for these too", "say it of both", final=True
            )
        before = self._read[0]
        polarity = clause.verbs[0].lemma
        if polarity and before.negated != (polarity == "negative"):
            raise refused(RefusalKind.AMBIGUOUS, "it is not clear whether this is to hold or not to hold", final=True)
        if before.subject_only:
            raise refused(RefusalKind.AMBIGUOUS, "`only` of two cannot hold of both", "say it of both", final=True)
        pronouns = any(
            group.kind == "pronoun" or group.ends is not None for each in before.complements for group in each.groups
        )
        if pronouns or any((group.kind or "") not in WORKLOADS or group.ends is not None for group in before.subject):
            raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear what holds for these too", "say it of both")
        again = replace(before, subject=self._subjects.resolve(clause.subject))
        if any(group.kind == "traffic" for group in again.subject):  # "and so must its traffic": where it runs
            place = all(self._limits.is_place(group) for each in before.complements for group in each.groups)
            if not place or any(verb.kind not in _PLACES for verb in before.verbs) or polarity == "negative":
                raise refused(RefusalKind.AMBIGUOUS, "it is not clear what its traffic must do too", final=True)
            again = replace(again, verbs=(Verb("stay", "stay"),))
        self._ask(again)
        self._subjects.remember((*before.subject, *again.subject))
        self._read.append(again)

    @staticmethod
    def _excepted(groups: tuple[Group, ...], clause: Clause) -> tuple[Group, ...]:
        """Take the workloads of an exception at the end ("..., except website") from the subjects."""
        taken = [group for each in clause.complements if each.role == "except" for group in each.groups]
        for each in taken:
            if len(groups) != 1 or groups[0].ends is not None or groups[0].kind not in WORKLOADS:
                raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear what the exception is taken from")
            groups = (replace(groups[0], selector=Minus(groups[0].selector, each.selector)),)
        return groups

    def _remember(self, who: Who) -> None:
        groups = who.groups
        if who.kind in {"state", "migration"}:
            groups = tuple(owner for group in groups if group.ends is not None for owner in group.ends.owner)
        elif who.kind == "flows":
            owners = tuple(owner for group in groups if group.ends for owner in group.ends.owner)
            groups = owners or groups
        self._subjects.remember(groups)

    @staticmethod
    def _split(clause: Clause) -> list[Clause]:
        """Return one clause per subject whose ends or quantifiers differ."""
        plain = [group for group in clause.subject if group.ends is None and group.quantifier != "least"]
        others = [group for group in clause.subject if group not in plain]
        parts = [replace(clause, subject=(group,)) for group in others]
        return ([replace(clause, subject=tuple(plain))] if plain else []) + parts

    def _gapped(self, clause: Clause) -> Clause:
        """Give a clause without a verb ("finance data in Germany") the verb of the clause before, or none at all."""
        if not clause.verbs or clause.verbs[0].kind != "nominal":
            return clause
        flows = all(group.ends is not None for group in clause.subject)
        if flows and clause.complements and all(each.role == "via" for each in clause.complements):
            return replace(clause, verbs=(Verb("pass", "cross"),), modal="must")  # "the path between them over s1"
        before = self._last
        goes = before is not None and before.verbs[0].lemma == "go" and not before.negated and bool(before.verbs)
        if before is not None and goes and {each.role for each in clause.complements} <= {"to", "in"}:
            return replace(clause, verbs=before.verbs, modal=before.modal, soft=clause.soft or before.soft)
        if before is not None and before.verbs and before.verbs[0].kind in _PLACES | {"nominal"} and not before.negated:
            quantified = any(group.quantifier == "none" for group in clause.subject)
            modal = clause.modal or before.modal
            if not quantified:
                return replace(clause, verbs=before.verbs, modal=modal, soft=clause.soft or before.soft)
        if clause.complements and all(each.role in {"latency", "bandwidth"} for each in clause.complements):
            return replace(clause, verbs=(Verb("have", "have"),), modal="must")
        if not clause.complements:  # "no traffic between A and B"
            return replace(clause, verbs=(Verb("pass", "cross"),), modal="must")
        limited = (
            clause.only
            or clause.subject_only
            or clause.negated
            or any(each.only or each.negated or each.role in {"out", "without"} for each in clause.complements)
        )
        none = any(group.quantifier == "none" for group in clause.subject)
        wanted = self.elliptic or (before is None and clause.modal == "must")
        said = wanted and all(each.role == "in" for each in clause.complements)
        if limited or none or clause.soft or said:
            return replace(clause, verbs=(Verb("stay", "stay"),), modal=clause.modal or "must")
        raise refused(RefusalKind.NOT_UNDERSTOOD, "a verb is missing")

    def _polarity(self, clause: Clause) -> Clause:
        """Reduce modal, negation and `no` to one: what remains is a demand, negated or not.

        Raises:
            Refused: it permits, or demands nothing.
        """
        none = [group.quantifier == "none" for group in clause.subject]
        if clause.modal == "free":
            raise refused(RefusalKind.OUT_OF_SCOPE, "it says what need not be: that limits nothing", final=True)
        negated = clause.negated
        if clause.modal == "ban":
            if clause.negated:
                raise refused(RefusalKind.OUT_OF_SCOPE, "to lift a ban is no limit: intents only limit", final=True)
            negated = True
        if any(none):
            if negated or not all(none):
                raise refused(RefusalKind.NOT_UNDERSTOOD, "two negations in one clause")
            negated = True
            clause = replace(clause, subject=tuple(_unquantified(group) for group in clause.subject))
        nothing_else = any(each.role == "else" for each in clause.complements)
        only = clause.only or clause.subject_only or nothing_else or any(each.only for each in clause.complements)
        limits = any(
            each.negated
            or each.role == "without"
            or (each.role == "out" and each.word not in _ELSEWHERE)
            or each.role.startswith("without ")
            or any(_takes_away(group) for group in each.groups)
            for each in clause.complements
        )
        limits = limits or any(each.role in {"latency", "bandwidth"} for each in clause.complements)
        limits = limits or (clause.ordered and all(verb.kind == "avoid" for verb in clause.verbs))
        if clause.modal == "may" and not negated and not only and not limits:
            raise refused(
                RefusalKind.OUT_OF_SCOPE,
                "it permits something, and intents only limit: what no intent forbids is allowed already",
                "say `may only ...` or `must ...`",
                final=True,
            )
        if any(each.negated and each.only for each in clause.complements):
            raise refused(RefusalKind.AMBIGUOUS, "`not only` can be read in two ways", final=True)
        if any(each.word == "anywhere near" and not (negated or each.negated) for each in clause.complements):
            raise refused(RefusalKind.AMBIGUOUS, "'near' is not clear: how near is not said", final=True)
        if negated and only:
            raise refused(RefusalKind.AMBIGUOUS, "`not` and `only` in one clause can be read in two ways", final=True)
        if clause.subject_only:
            clause = self._only_these(clause)
            negated = True
        only = (clause.only or nothing_else) and not clause.subject_only
        return replace(clause, negated=negated, modal="must", only=only)

    def _only_these(self, clause: Clause) -> Clause:
        """Turn "only health workloads may run on n1" into "workloads that are not proven to be health must not"."""
        if len(clause.subject) == 1 and all(verb.kind == "talk" for verb in clause.verbs):
            ends = clause.subject[0].ends  # "only traffic from A may reach B"
            if ends is not None and ends.source and not (ends.owner or ends.target or ends.mutual):
                clause = replace(clause, subject=ends.source)
        if len(clause.subject) != 1 or clause.subject[0].ends is not None or clause.complements == ():
            raise refused(RefusalKind.NOT_UNDERSTOOD, "`only` stands before what it cannot limit")
        group = clause.subject[0]
        return replace(
            clause,
            subject=(
                replace(
                    group,
                    kind="workload",
                    selector=Minus(Everything(), group.selector),
                    quantifier="all",
                    singular=False,
                ),
            ),
        )

    def _excluded(self, clause: Clause, groups: tuple[Group, ...]) -> None:
        """Read "nodes of provider acme are excluded", said of the subjects of the clause before."""
        before = self._subjects.resolve((Group(0, 0, "pronoun"),))
        if clause.negated or clause.modal in {"free", "ban"} or clause.complements:
            raise refused(RefusalKind.NOT_UNDERSTOOD, "what is excluded from what is not clear")
        ban = replace(
            clause,
            subject=before,
            verbs=(Verb("run", "run"),),
            negated=True,
            modal="must",
            complements=(Complement("in", groups),),
        )
        who = self._subjects.who(before)
        for part in self._split(ban):
            self.rules += self._rules.of(part, ban.verbs[0], who, "preferred" if clause.soft else "required")


def _takes_away(group: Group) -> bool:
    """Whether it is "any switch except s2": what is permitted is all but that."""
    return isinstance(group.selector, Minus) and isinstance(group.selector.base, Everything)


def _unquantified(group: Group) -> Group:
    if group.ends is not None:
        ends = Ends(
            owner=tuple(_unquantified(each) for each in group.ends.owner),
            source=group.ends.source,
            target=group.ends.target,
            mutual=group.ends.mutual,
        )
        return replace(group, quantifier="", ends=ends)
    return replace(group, quantifier="")
