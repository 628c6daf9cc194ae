"""Clauses: subject, auxiliaries, verbs and their complements, and how clauses and verb phrases are joined.

A hand-made reader rather than a parser generator: half of the vocabulary is the inventory's, which differs from
sentence to sentence, adverbs may stand almost anywhere, and a reader knows how far it came, which is what a refusal
has to say. It reads all words or fails; it has no rule that skips one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from intents.translation.embedded.complements import Complements
from intents.translation.embedded.lists import WORKLOADS
from intents.translation.embedded.tokens import SPLITTERS
from intents.translation.embedded.tree import Clause, Group, Verb
from intents.translation.embedded.verbs import VerbGroups

if TYPE_CHECKING:
    from collections.abc import Iterator

    from intents.translation.embedded.phrases import Phrases

_BUDGET = 4000
Statement = tuple[Clause, ...]


class Clauses:
    """Reads the clauses of one sentence."""

    def __init__(self, phrases: Phrases) -> None:
        self._p = phrases
        self._complements = Complements(phrases)
        self._steps = 0
        self._v = VerbGroups(phrases)

    def texts(self) -> Iterator[tuple[Clause, ...]]:
        """Yield the readings of the whole text, the likeliest first."""
        yield from self._rest(0, (), 0)

    def _rest(self, first: int, done: Statement, depth: int) -> Iterator[Statement]:
        first = self._ends(first)
        if first >= len(self._p.tokens):
            yield done
            return
        if depth > 12 or self._spent():
            return
        for last, clauses in self._statement(first, Clause()):
            if last >= len(self._p.tokens) or self._p.mark(last, *SPLITTERS, ":"):
                yield from self._rest(last, done + clauses, depth + 1)

    def _ends(self, first: int) -> int:
        while first < len(self._p.tokens):
            following = first + 1 if self._p.mark(first, *SPLITTERS, ",", ":") else first
            following = self._p.skip(following, "FILLER") if following > first or first == 0 else following
            if following > first:
                for end, _ in self._p.lex(following, "AND", "BUT"):
                    following = end
                    break
            if following == first:
                return first
            first = following
        return first

    def _spent(self) -> bool:
        self._steps += 1
        return self._steps > _BUDGET

    # statements

    def _statement(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        if self._spent() or first >= len(self._p.tokens):
            return
        p = self._p
        if p.mark(first, ","):
            yield from self._statement(first + 1, frame)
            return
        for category in ("FILLER", "HARD", "SOFT", "ENSURE", "MIGRATION"):
            for last, _ in p.lex(first, category):
                changed = replace(
                    frame,
                    soft=frame.soft or category == "SOFT",
                    modal="must" if category == "ENSURE" else frame.modal,
                    migration=frame.migration or category == "MIGRATION",
                )
                starts = [last]
                if category == "MIGRATION":
                    for begin, _ in p.lex(last, "OF"):
                        starts = [end for end, _ in p.list(begin)]
                        for end, groups in p.list(begin):
                            yield from self._statement(end, replace(changed, subject=groups))
                for start in starts:
                    yield from self._statement(start, changed)
                if category == "ENSURE":  # I want ledger to stay ...
                    for end, groups in p.list(last):
                        for stop, _ in p.lex(end, "TO"):
                            yield from self._predicate(stop, replace(changed, subject=groups))
                break
        yield from self._when(first, frame)
        yield from self._wrapped(first, frame)
        yield from self._there(first, frame)
        yield from self._fronted(first, frame)
        yield from self._from_to(first, frame)
        verbal = any(value.endswith(":base") for _, value in p.lex(first, "VERB"))
        if verbal:
            yield from self._imperative(first, frame)
        yield from self._with_subject(first, frame)
        if not verbal:
            yield from self._imperative(first, frame)
        yield from self._topic(first, frame)

    def _when(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        """Read `When imaging is migrated, ...`."""
        p = self._p
        for start, _ in p.lex(first, "WHEN"):
            for end, groups in p.list(start):
                be = p.lex(end, "BE")
                stop = be[0][0] if be else end
                for behind, verbs in self._v.verbs(stop, passive=bool(be)):
                    if all(verb.kind == "migrate" for verb in verbs):
                        topic = () if all(each.kind == "pronoun" for each in groups) else groups
                        yield from self._statement(behind, replace(frame, migration=True, topic=topic))

    def _from_to(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        """Read `From A to B, traffic must ...`, `Between A and B, use ...`."""
        p = self._p
        if not p.lex(first, "FROM", "BETWEEN"):
            return
        for end, flow in p.ended(Group(first, first, "traffic"), first):
            ends = flow.ends
            if ends is None or not ends.source or not ends.target:
                continue
            following = end + 1 if p.mark(end, ",") else end
            subject = replace(frame, subject=(flow,))
            yield from self._imperative(following, subject)
            for last, value in p.lex(p.skip(following, "QUANT", "DET"), "NOUN"):
                if value in {"traffic", "network"}:
                    yield from self._predicate(last, subject)

    def _topic(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        """Read `For health data, use ...`."""
        for start, _ in self._p.lex(first, "FOR"):
            for end, groups in self._p.list(start):
                if all((each.kind or "") in WORKLOADS | {"traffic", "pronoun"} for each in groups):
                    following = end + 1 if self._p.mark(end, ",") else end
                    topic = replace(frame, subject=groups)
                    yield from self._imperative(following, topic)
                    yield from self._predicate(following, topic, nominal=True)

    def _wrapped(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        """Read `do not let X ...`, `only allow X in Y`, `prevent X from ...`."""
        p = self._p
        for last, kind in p.lex(first, "LETNOT"):
            changed = replace(
                frame, modal={"neg": "ban", "pos": "may", "only": "must"}[kind], only=kind == "only" or frame.only
            )
            if kind == "pos" and not frame.only and not frame.modal:
                changed = replace(changed, modal="may")
            for end, groups in p.list(last):
                yield from self._wrapped_predicate(end, replace(changed, subject=groups))
                if kind == "neg" and all(each.ends is not None for each in groups):  # forbid traffic between A and B
                    yield from self._completed(end, replace(changed, subject=groups, verbs=(Verb("pass", "cross"),)))
            yield from self._wrapped_predicate(last, replace(changed, imperative=True))
        for last, value in p.lex(first, "VERB"):  # keep X from crossing ...
            if value == "keep:base" and not frame.negated:
                for end, groups in p.list(last):
                    if p.lex(end, "FROM"):
                        yield from self._wrapped_predicate(end, replace(frame, subject=groups, modal="ban"))
                    for stop, verbs in self._v.verbs(self._filled(end), passive=True):  # keep X isolated from Y
                        if all(verb.passive for verb in verbs):
                            yield from self._completed(stop, replace(frame, subject=groups, modal="must", verbs=verbs))

    def _wrapped_predicate(self, end: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        p = self._p
        start = end
        for stop, _ in p.lex(end, "TO", "FROM"):
            start = stop
        while self._filled(start) != start:
            start = self._filled(start)
        for stop, _ in p.lex(start, "ONLY"):
            frame, start = replace(frame, only=True), stop
        be = p.lex(start, "BE")
        start = be[0][0] if be else start
        for stop, verbs in self._v.verbs(start, passive=bool(be)):
            yield from self._completed(stop, replace(frame, verbs=verbs))
        for stop, verb in self._v.adjective(start) if be else ():
            yield from self._completed(stop, replace(frame, verbs=(verb,)))
        if frame.subject and frame.modal != "ban":
            yield from self._completed(start, replace(frame, verbs=(Verb("be", "run"),)), needs=True)

    def _filled(self, first: int) -> int:
        found = self._p.lex(first, "FILLER", "HARD")
        return found[0][0] if found else first

    def _there(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        for last, _ in self._p.lex(first, "THERE"):
            start = last
            for end, _ in self._p.lex(last, "NEG"):
                start = end
            for end, groups in self._p.list(start):
                negative = start != last or any(each.quantifier == "none" for each in groups)
                clause = replace(
                    frame, subject=groups, modal="must", negated=start != last, verbs=(Verb("pass", "cross"),)
                )
                if negative:
                    yield from self._completed(end, clause)

    def _fronted(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        """Read `Under no circumstances may X leave ...`, `Only in the EU may X run`, `In the EU only may X run`."""
        p = self._p
        for last, _ in p.lex(first, "NEG"):
            for end, _ in [*p.lex(last, "MODAL"), *p.lex(last, "DO")]:
                for stop, groups in p.list(end):
                    yield from self._predicate(stop, replace(frame, subject=groups, modal="must", negated=True))
        for last, _ in p.lex(first, "ONLY"):
            for end, complement in self._complements.one(last):
                for stop, _ in p.lex(end, "MODAL"):
                    for behind, groups in p.list(stop):
                        start = replace(frame, subject=groups, modal="must")
                        for after, rest in self._predicate(behind, start):
                            head = replace(rest[0], complements=(*rest[0].complements, replace(complement, only=True)))
                            yield after, (head, *rest[1:])

    def _with_subject(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        p = self._p
        start, only, negated = first, False, False
        for last, _ in p.lex(first, "ONLY"):
            start, only = last, True
        for last, value in p.lex(start, "CORR"):
            if value == "neither":
                start, negated = last, True
        for end, groups in p.list(start):
            subject = replace(frame, subject=groups, subject_only=only, negated=frame.negated or negated)
            stop = end + 1 if p.mark(end, ",") else end
            yield from self._predicate(stop, subject, nominal=True)

    def _imperative(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        for last, aux in self._v.auxiliaries(first):
            if aux.modal or aux.be:
                continue
            for end, verbs in self._v.verbs(last, passive=False, shape="base"):
                clause = replace(
                    frame,
                    modal=frame.modal or "must",
                    negated=frame.negated or aux.negated,
                    only=frame.only or aux.only,
                    soft=frame.soft or aux.soft,
                    verbs=verbs,
                    imperative=True,
                )
                yield from self._completed(end, clause)

    # predicates

    def _predicate(self, first: int, frame: Clause, *, nominal: bool = False) -> Iterator[tuple[int, Statement]]:
        if self._spent():
            return
        for last, aux in self._v.auxiliaries(first):
            if aux.negated and frame.negated:
                continue
            clause = replace(
                frame,
                modal=aux.modal or frame.modal,
                negated=frame.negated or aux.negated,
                only=frame.only or aux.only,
                soft=frame.soft or aux.soft,
                migration=frame.migration or aux.migration,
            )
            for end, verbs in self._v.verbs(last, passive=aux.be):
                yield from self._completed(end, replace(clause, verbs=verbs))
            if aux.be:
                for end, verb in self._v.adjective(last):
                    yield from self._completed(end, replace(clause, verbs=(verb,)))
                for end, _ in self._p.lex(last, "ONES"):
                    inner = replace(clause, subject_only=True)
                    yield from self._predicate(end, inner)
            if aux.be or aux.modal or aux.words == 0 or nominal:
                bare = not aux.be and not aux.modal
                verb = Verb("be", "nominal" if bare else "run")
                yield from self._completed(last, replace(clause, verbs=(verb,)), needs=True)

    def _completed(self, first: int, clause: Clause, *, needs: bool = False) -> Iterator[tuple[int, Statement]]:
        for last, complements in self._complements.all(first):
            if needs and not complements and not _no_packets(clause):
                continue
            done = replace(clause, complements=(*clause.complements, *complements))
            yield from self._chained(last, done)
            yield last, (done,)

    def _chained(self, last: int, done: Clause) -> Iterator[tuple[int, Statement]]:
        """Read a further verb phrase of the same subject, or a further statement."""
        p = self._p
        comma = last + 1 if p.mark(last, ",", ";") else last
        joins: list[tuple[int, str]] = [*p.lex(comma, "AND"), *p.lex(comma, "BUT")]
        if comma > last:
            joins.append((comma, "and"))
        for start, how in joins:
            base = replace(done.without_verbs(), only=False, soft=False, migration=False)
            if done.imperative and how not in {"or", "nor"}:
                base = replace(base, modal="", negated=False, subject=())
            if not done.imperative or done.subject:
                yield from self._further(start, how, done, base)
            if how in {"or", "nor"} and done.imperative:
                fresh = replace(base, subject=())
                for end, rest in self._imperative(start, fresh):
                    yield end, (done, *rest)
            elif how not in {"or", "nor"}:
                keep = Clause(modal="must" if done.modal == "must" and not done.imperative else "", soft=False)
                for end, rest in self._joined_statement(start, keep, done):
                    yield end, (done, *rest)

    def _joined_statement(self, start: int, keep: Clause, done: Clause) -> Iterator[tuple[int, Statement]]:
        """Read a further statement; behind a statement with a subject it must have its own."""
        if done.imperative:
            yield from self._statement(start, keep)
            return
        first = self._p.skip(start, "FILLER")
        for each in (self._when, self._wrapped, self._there, self._fronted, self._from_to, self._with_subject):
            yield from each(first, keep)
        if self._p.lex(first, "SOFT", "MIGRATION"):
            yield from self._statement(first, keep)

    def _further(self, start: int, how: str, done: Clause, base: Clause) -> Iterator[tuple[int, Statement]]:
        if done.subject_only or done.imperative:
            return
        for last, aux in self._v.auxiliaries(start):
            own = aux.negated or bool(aux.modal) or aux.only
            none = any(each.quantifier == "none" for each in done.subject)
            if how in {"or", "nor"} and (own or not (done.negated or none or done.modal == "ban")):
                continue  # either of two demands: no rule says that
            negated = aux.negated or (not own and how in {"or", "nor"} and done.negated) or (how == "nor")
            if done.negated and not own and how not in {"or", "nor", "but"}:
                continue
            if done.modal == "ban" and not own:
                continue
            if any(each.quantifier == "none" for each in done.subject) and how not in {"or", "nor"}:
                continue
            if any(each.quantifier == "none" for each in done.subject) and (own and not aux.modal):
                continue
            modal = aux.modal or (
                "must" if done.modal in {"must", "should", "may"} and (own or how == "but") else done.modal
            )
            soft = aux.soft or (done.soft and not own)
            clause = replace(base, modal=modal, negated=negated, only=aux.only, soft=soft, migration=aux.migration)
            be = aux.be
            for end, verbs in self._v.verbs(last, passive=be):
                if not be and not aux.modal and any(verb.passive for verb in verbs):
                    continue
                for stop, rest in self._completed(end, replace(clause, verbs=verbs)):
                    yield stop, (done, *rest)
            if not be and done.verbs and done.verbs[0].passive:  # must be kept in X and never migrated to Y
                for end, verbs in self._v.verbs(last, passive=True):
                    for stop, rest in self._completed(end, replace(clause, verbs=verbs)):
                        yield stop, (done, *rest)
            if be:
                for end, verb in self._v.adjective(last):
                    for stop, rest in self._completed(end, replace(clause, verbs=(verb,))):
                        yield stop, (done, *rest)
                for stop, rest in self._completed(last, replace(clause, verbs=(Verb("be", "run"),)), needs=True):
                    yield stop, (done, *rest)


def _no_packets(clause: Clause) -> bool:
    """Whether it is "no traffic between A and B", which needs no verb."""
    return any(
        (each.quantifier == "none" or clause.modal == "ban")
        and each.kind in {"traffic", "network", "link"}
        and each.ends is not None
        for each in clause.subject
    )
