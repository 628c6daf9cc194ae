"""Statements that repeat the one before for others: `and so must B`, `The same holds for B`, `Neither may B`."""

from __future__ import annotations

from abc import ABC
from dataclasses import replace
from typing import TYPE_CHECKING

from intents.translation.embedded.lists import WORKLOADS
from intents.translation.embedded.predicates import Predicates, Statement
from intents.translation.embedded.tree import Clause, Group, Verb

if TYPE_CHECKING:
    from collections.abc import Iterator


class Additions(Predicates, ABC):
    """Reads repetitions; the clause that comes of it has the verb `again`."""

    def _again(self, first: int) -> Iterator[tuple[int, Statement]]:
        p = self._p
        if first >= len(p.tokens):
            return
        for last, _ in p.lex(first, "SO"):
            yield from self._must(last, negated=False)
        for last, value in [*p.lex(first, "CORR"), *p.lex(first, "AND")]:
            if value in {"neither", "nor"}:
                yield from self._must(last, negated=True)
        for last, _ in p.lex(first, "SAMEHOLDS"):
            for end, _ in p.lex(last, "FOR", "TO", "INTO"):
                for stop, groups in self._others(end):
                    yield stop, (_repeated(groups, ""),)
        for end, groups in self._others(first):  # "claims too", "claims must too"
            modal = p.lex(end, "MODAL")
            for stop, _ in p.lex(modal[0][0] if modal else end, "TOO"):
                yield stop, (_repeated(groups, "positive"),)

    def _must(self, first: int, *, negated: bool) -> Iterator[tuple[int, Statement]]:
        p = self._p
        for last, value in [*p.lex(first, "MODAL"), *p.lex(first, "DO"), *p.lex(first, "BE")]:
            if value in {"must", "may", "should", "do", "be"}:
                for end, groups in self._others(last):
                    yield end, (_repeated(groups, "negative" if negated else "positive"),)

    def _own_traffic(self, first: int) -> Iterator[tuple[int, tuple[Group, ...]]]:
        """Read `its traffic`, to which the rule about the place may be extended."""
        for end, groups in self._p.list(first):
            owners = [owner for each in groups if each.ends is not None for owner in each.ends.owner]
            if len(groups) == 1 and groups[0].kind == "traffic" and [each.kind for each in owners] == ["pronoun"]:
                yield end, groups

    def _others(self, first: int) -> Iterator[tuple[int, tuple[Group, ...]]]:
        yield from self._own_traffic(first)
        for end, groups in self._p.list(first):
            if all((each.kind or "") in WORKLOADS and each.quantifier in {"", "all", "any"} for each in groups):
                yield end, tuple(replace(each, quantifier="") for each in groups)


def _repeated(groups: tuple[Group, ...], polarity: str) -> Clause:
    return Clause(subject=groups, verbs=(Verb(polarity, "again"),))
