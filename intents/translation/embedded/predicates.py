"""Predicates: auxiliaries, verbs and their complements, and how further verb phrases and statements are joined."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING

from intents.translation.embedded.complements import Complements
from intents.translation.embedded.tree import Clause, Complement, Group, Verb
from intents.translation.embedded.verbs import VerbGroups

if TYPE_CHECKING:
    from collections.abc import Iterator

    from intents.translation.embedded.phrases import Phrases

_BUDGET = 4000
Statement = tuple[Clause, ...]


class Predicates(ABC):
    """Reads predicates of one sentence."""

    def __init__(self, phrases: Phrases) -> None:
        self._p = phrases
        self._complements = Complements(phrases)
        self._steps = 0
        self._v = VerbGroups(phrases)

    @abstractmethod
    def _statement(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        """Read one statement and what is joined to it."""

    @abstractmethod
    def _own_statement(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        """Read a statement that has a subject of its own."""

    @abstractmethod
    def _again(self, first: int) -> Iterator[tuple[int, Statement]]:
        """Read a statement that repeats the one before for others."""

    @abstractmethod
    def _received(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        """Read `the target node must be trusted` behind `When A is migrated`."""

    @abstractmethod
    def _appended(self, first: int, done: Clause, joined: list[int]) -> Iterator[tuple[int, Statement]]:
        """Read what is added without a subject or verb: `; encrypted links only`, `, isolated from B`."""

    def _spent(self) -> bool:
        self._steps += 1
        return self._steps > _BUDGET

    def _with_subject(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        p = self._p
        start, only, negated = first, False, False
        for last, _ in p.lex(first, "ONLY"):
            start, only = last, True
        for last, value in p.lex(start, "CORR"):
            if value == "neither":
                start, negated = last, True
        subjects = [(end, groups, negated) for end, groups in p.list(p.skip(start, "OF") if negated else start)]
        subjects += [(end, groups, False) for end, groups in p.list(first)] if negated and not only else []
        for end, groups, negated in subjects:
            subject = replace(frame, subject=groups, subject_only=only, negated=frame.negated or negated)
            stop = end + 1 if p.mark(end, ",") else end
            yield from self._predicate(stop, subject, nominal=True)
            for behind, _ in p.lex(stop, "PRON") if stop > end else ():  # "ledger, it must run in Germany"
                yield from self._predicate(behind, subject)

    def _imperative(self, first: int, frame: Clause, *, agent: bool = False) -> Iterator[tuple[int, Statement]]:
        """Read `keep X in Germany`, or behind `we`: `must keep X in Germany`."""
        for last, aux in self._v.auxiliaries(first):
            if (aux.modal and not agent) or aux.be or (aux.negated and frame.negated):
                continue
            for end, verbs in self._v.verbs(last, passive=False, shape="base"):
                if agent and verbs[0].lemma == "want":
                    continue  # "we do not want ledger there" forbids; it denies no need
                clause = replace(
                    frame,
                    modal=aux.modal or frame.modal or "must",
                    negated=frame.negated or aux.negated,
                    only=frame.only or aux.only,
                    soft=frame.soft or aux.soft,
                    verbs=verbs,
                    imperative=True,
                )
                yield from self._completed(end, clause)

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
                if len(verbs) == 1 and verbs[0].kind == "stay":  # must be kept isolated from ...
                    for stop, kept in self._v.verbs(self._p.skip(end, "FILLER"), passive=True):
                        if all(verb.passive and verb.kind in {"isolate", "block", "encrypt"} for verb in kept):
                            yield from self._completed(stop, replace(clause, verbs=kept))
            if aux.modal == "ban":  # is strictly forbidden from leaving
                for end, _ in self._p.lex(last, "FROM"):
                    for stop, verbs in self._v.verbs(end, passive=False, shape="ing"):
                        yield from self._completed(stop, replace(clause, verbs=verbs))
                for stop, verbs in self._v.verbs(last, passive=False, shape="ing"):  # has no business talking to
                    yield from self._completed(stop, replace(clause, verbs=verbs))
                if not clause.complements and not clause.only:  # "For A, US nodes are off limits"
                    yield last, (replace(clause, modal="must", verbs=(Verb("exclude", "excluded", passive=True),)),)
            for end, lemma in self._p.lex(last, "NOCONTACT"):
                if not clause.negated:
                    yield from self._completed(end, replace(clause, verbs=(Verb(lemma, "talk"),), negated=True))
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
        for start, how in tuple(joins):  # ", and, at the same time, may not ..."
            filled = p.skip(start + 1, "FILLER", "HARD") if p.mark(start, ",") else start
            if filled > start + 1 and p.mark(filled, ","):
                joins.append((filled + 1, how))
        further = [start for start, how in joins if how != "or"]
        for start in dict.fromkeys([comma, *further] if comma > last or further else []):
            for end, rest in self._again(start):
                yield end, (done, *rest)
        for start, _ in p.lex(comma, "BUT"):  # "..., while keeping both in Germany", "while avoiding s1"
            plain = p.tokens[comma].norm == "while" and not done.negated and done.modal == "must"
            for end, verbs in self._v.verbs(start, passive=False, shape="ing") if plain else ():
                kept = Clause(subject=() if done.imperative else done.subject, modal="must", imperative=done.imperative)
                for stop, rest in self._completed(end, replace(kept, verbs=verbs)):
                    yield stop, (done, *rest)
        yield from self._absolute(comma, done)
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
                empty = done.verbs[0].kind == "run" and not (
                    done.complements or done.negated or done.modal in {"ban", "may"}
                )
                such = empty and p.tokens[comma].norm in {"such", "so", "in"}  # "are deployed such that they ..."
                for end, rest in self._joined_statement(start, keep, done):
                    yield end, (replace(rest[0], topic=done.subject), *rest[1:]) if such else (done, *rest)
        yield from self._appended(comma, done, [start for start, how in joins if how in {"and", "but"}])

    def _absolute(self, first: int, done: Clause) -> Iterator[tuple[int, Statement]]:
        """Read `with its packets to B passing through s1`, `with all of its traffic encrypted`."""
        p = self._p
        for start, _ in p.lex(first, "WITH"):
            for end, groups in p.list(start):
                if any(group.ends is None or group.kind == "node" for group in groups):
                    continue
                mine = groups[0].ends
                if len(groups) == 1 and mine is not None and mine.target and not (mine.owner or mine.source):
                    owner = (Group(start, start, "pronoun"),)  # "with traffic to B limited to ..."
                    mine = replace(mine, owner=owner)
                subject = (replace(groups[0], ends=mine),) if len(groups) == 1 else groups
                clause = Clause(subject=subject, modal="must")
                for stop, verbs in [
                    *self._v.verbs(end, passive=False, shape="ing"),
                    *self._v.verbs(end, passive=True, shape="ed"),
                ]:
                    for behind, complements in self._complements.all(stop):
                        yield behind, (done, replace(clause, verbs=verbs, complements=complements))
                for stop, selector in p.atoms(end):
                    state = Complement("object", (Group(end, stop, None, selector),))
                    yield stop, (done, replace(clause, verbs=(Verb("be", "run"),), complements=(state,)))

    def _joined_statement(self, start: int, keep: Clause, done: Clause) -> Iterator[tuple[int, Statement]]:
        """Read a further statement; behind a statement with a subject it must have its own."""
        if done.imperative or done.ordered:
            yield from self._statement(start, replace(keep, ordered=True))
            return
        first = self._p.skip(start, "FILLER")
        yield from self._own_statement(first, keep)
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
