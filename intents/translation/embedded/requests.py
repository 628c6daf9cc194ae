"""Requests in other clothes: questions ("Could ledger be kept in Germany?"), `just keep ...`, `we want to keep ...`.

A question may only ask whether something is possible or allowed. It counts as a demand where what it asks for limits by
itself (`kept in`, `limited to`, `only`), or where a `please` asks for something to stay; else it is no rule.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING

from intents.translation.embedded.predicates import Predicates, Statement
from intents.translation.embedded.tree import Clause, Complement, Group, Verb

if TYPE_CHECKING:
    from collections.abc import Iterator

_LIMITING = frozenset({"stay", "confine", "isolate", "separate", "encrypt", "avoid"})
_PLEASE = frozenset({"please", "pls", "plz", "kindly"})


class Requests(Predicates, ABC):
    """Reads questions and orders that begin like ones."""

    @abstractmethod
    def _wrapped(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        """Read `do not let X ...`, `prevent X from ...`."""

    def _asked(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        """Read `can we keep X in Germany?`, `Could X be kept off US nodes?`."""
        p = self._p
        if frame.negated or frame.only or frame.modal:
            return
        for last, whom in p.lex(first, "ASK"):
            start = p.skip(last, "FILLER")
            if whom == "must":
                for end, groups in p.list(start):
                    asked = replace(frame, subject=groups, modal="must")
                    yield from self._limiting(self._predicate(end, asked))
                continue
            yield from self._limiting(self._imperative(start, replace(frame, modal="must")))
            yield from (each for each in self._wrapped(start, frame) if each[1][0].modal == "ban")

    def _limiting(self, readings: Iterator[tuple[int, Statement]]) -> Iterator[tuple[int, Statement]]:
        """Keep the readings that ask for a limit rather than whether something can be done."""
        please = any(token.norm in _PLEASE for token in self._p.tokens)
        for end, clauses in readings:
            first = clauses[0]
            kept = all(verb.kind in _LIMITING and (verb.passive or first.imperative) for verb in first.verbs)
            stays = all(verb.kind == "stay" for verb in first.verbs)
            limits = kept or any(each.only for each in first.complements) or (please and stays)
            if limits and first.modal == "must" and not first.negated:
                yield end, clauses

    def _plainly(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        """Read `just keep X in Germany`, where `just` is no `only`."""
        p = self._p
        if p.tokens[first].norm == "just" and frame == Clause():
            yield from self._wrapped(first + 1, frame)
            yield from self._imperative(first + 1, frame)

    def _received(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        """Read `, the target node must be trusted` behind `When A is migrated`: where it may be moved to."""
        p = self._p
        for start, _ in p.lex(first + 1 if p.mark(first, ",") else first, "RECEIVER"):
            for last, aux in self._v.auxiliaries(start):
                if not aux.be or aux.modal != "must" or aux.negated or aux.only or aux.soft or aux.migration:
                    continue
                goals = [(end, Complement("to", (Group(last, end, "node", each),))) for end, each in p.atoms(last)]
                goals += [
                    (end, replace(each, role="to"))
                    for end, each in self._complements.one(last)
                    if each.role == "in" and not (each.negated or each.only or each.soft)
                ]
                for end, goal in goals:
                    moved = replace(frame, modal="must", only=True, verbs=(Verb("move", "migrate"),))
                    yield end, (replace(moved, complements=(goal,)),)
