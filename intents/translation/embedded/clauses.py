"""Clauses: statements one after the other, each with its subject, auxiliaries, verbs and complements.

A hand-made reader rather than a parser generator: half of the vocabulary is the inventory's, which differs from
sentence to sentence, adverbs may stand almost anywhere, and a reader knows how far it came, which is what a refusal
has to say. It reads all words or fails; it has no rule that skips one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from intents.translation.embedded.additions import Additions
from intents.translation.embedded.notes import Notes
from intents.translation.embedded.openings import Openings
from intents.translation.embedded.requests import Requests
from intents.translation.embedded.tokens import SPLITTERS
from intents.translation.embedded.tree import Clause

if TYPE_CHECKING:
    from collections.abc import Iterator

    from intents.translation.embedded.predicates import Statement


class Clauses(Additions, Openings, Requests, Notes):
    """Reads the clauses of one sentence."""

    def texts(self) -> Iterator[tuple[Clause, ...]]:
        """Yield the readings of the whole text, the likeliest first."""
        yield from self._rest(0, (), 0)

    def _rest(self, first: int, done: Statement, depth: int) -> Iterator[Statement]:
        if done and first < len(self._p.tokens):
            begin = first
            while self._p.mark(begin, *SPLITTERS, ","):
                begin += 1
            for last, clauses in self._again(begin) if begin < len(self._p.tokens) else ():  # "So must claims."
                if last >= len(self._p.tokens) or self._p.mark(last, *SPLITTERS, ":"):
                    yield from self._rest(last, done + clauses, depth + 1)
        first = self._ends(first)
        if first >= len(self._p.tokens):
            yield done
            return
        if depth > 12 or self._spent():
            return
        for last, clauses in self._statement(first, Clause()):
            if self._closes(last):
                yield from self._rest(last, done + clauses, depth + 1)

    def _closes(self, last: int) -> bool:
        """Whether a statement may end here: before a full stop, a new line, or nothing but a `please`."""
        p = self._p
        filled = p.skip(last + 1, "FILLER", "HARD") if p.mark(last, ",") else last
        if filled >= len(p.tokens) or (filled > last + 1 and p.mark(filled, *SPLITTERS)):
            return True
        return p.mark(last, *SPLITTERS, ":") or p.tokens[last].starts_line

    def _ends(self, first: int) -> int:
        while first < len(self._p.tokens):
            following = first + 1 if self._p.mark(first, *SPLITTERS, ",", ":") else first
            following = self._p.skip(following, "FILLER", "HARD") if following > first or first == 0 else following
            if following > first:
                for end, _ in self._p.lex(following, "AND", "BUT"):
                    following = end
                    break
            if following == first:
                return first
            first = following
        return first

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
                            yield from self._statement(end, replace(changed, subject=groups, topic=groups))
                for start in starts:
                    yield from self._statement(start, changed)
                if category == "ENSURE":  # I want ledger to stay ...
                    for end, groups in p.list(last):
                        no = p.lex(end, "NEG")
                        wanted = replace(changed, subject=groups, negated=bool(no))
                        for stop, _ in p.lex(no[0][0] if no else end, "TO"):
                            yield from self._predicate(stop, wanted)
                    for end, _ in p.lex(last, "TO"):  # we want to keep ledger ...
                        yield from self._wrapped(end, changed)
                        yield from self._imperative(end, changed)
                break
        if frame == Clause() or frame.modal:
            yield from self._by_agent(first, frame)
        yield from self._asked(first, frame)
        yield from self._plainly(first, frame)
        yield from self._it_is(first, frame)
        yield from self._gerund(first, frame)
        yield from self._except_for(first, frame)
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
        if not (frame.negated or frame.only):
            yield from self._noted(first, frame)

    def _own_statement(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        for each in (
            self._it_is,
            self._gerund,
            self._when,
            self._wrapped,
            self._there,
            self._fronted,
            self._from_to,
            self._with_subject,
        ):
            yield from each(first, frame)
