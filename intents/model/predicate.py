"""A predicate over names and labels, in one flat form: any of several conjunctions of terms.

The logic has three values. A term about a label that an element does not carry is *unknown*: neither the term nor its
opposite is proven. Whoever enforces an intent asks for `True` and treats unknown like false: fail closed. So "avoid
the US" (`jurisdiction not_in [US]`) is not met by a switch without a jurisdiction.

A link that lacks a label has what both of its ends have: a link between two switches in the EU lies in the EU
(`link_satisfies`). Only `midstream.dev/encrypted` is never inherited.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from intents.model import labels

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Known = bool | None
"""True, False or, as None, unknown."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Term(_Model):
    """One condition: the value of `key` is (or is not) one of `values`; `key` is a label or `name`."""

    key: Annotated[str, Field(min_length=1, max_length=253)]
    op: Literal["in", "not_in"] = "in"
    values: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=253)], ...], Field(min_length=1)]

    def holds(self, value: str | None) -> Known:
        """Judge the value that an element has for `key`; None: it has none."""
        if value is None:
            return None
        found = any(labels.value_matches(self.key, value, wanted) for wanted in self.values)
        return found if self.op == "in" else not found


class Conjunction(_Model):
    """All of these terms; without a term it is met by everything."""

    all_of: tuple[Term, ...] = ()


class Predicate(_Model):
    """Any of these conjunctions; without one it is met by nothing."""

    any_of: tuple[Conjunction, ...]

    def holds(self, name: str, element_labels: Mapping[str, str]) -> Known:
        """Judge an element by its name and labels."""
        return any_known(
            all_known(
                term.holds(name if term.key == labels.NAME else element_labels.get(term.key)) for term in part.all_of
            )
            for part in self.any_of
        )

    def holds_for_link(
        self, name: str, link: Mapping[str, str], ends: tuple[Mapping[str, str], Mapping[str, str]]
    ) -> Known:
        """Judge a link by its own labels and, for those it lacks, by the labels of the switches at its ends."""

        def judge(term: Term) -> Known:
            if term.key == labels.NAME:
                return term.holds(name)
            if term.key in link or term.key == labels.ENCRYPTED:
                return term.holds(link.get(term.key))
            return all_known(term.holds(end.get(term.key)) for end in ends)

        return any_known(all_known(judge(term) for term in part.all_of) for part in self.any_of)

    def keys(self) -> frozenset[str]:
        """Return every key that a term speaks of."""
        return frozenset(term.key for part in self.any_of for term in part.all_of)


ANYTHING = Predicate(any_of=(Conjunction(),))
NOTHING = Predicate(any_of=())


def term(key: str, *values: str, op: Literal["in", "not_in"] = "in") -> Predicate:
    """Return the predicate of a single term."""
    return Predicate(any_of=(Conjunction(all_of=(Term(key=key, op=op, values=values),)),))


def named(*names: str) -> Predicate:
    """Return the predicate that is met by the elements with these names."""
    return term(labels.NAME, *names)


def both(*predicates: Predicate) -> Predicate:
    """Return the predicate that is met where all of these are (in flat form: the product of their conjunctions)."""
    parts: tuple[Conjunction, ...] = (Conjunction(),)
    for predicate in predicates:
        parts = tuple(
            Conjunction(all_of=tuple(dict.fromkeys((*left.all_of, *right.all_of))))
            for left in parts
            for right in predicate.any_of
        )
    return Predicate(any_of=tuple(dict.fromkeys(parts)))


def either(*predicates: Predicate) -> Predicate:
    """Return the predicate that is met where any of these is."""
    return Predicate(any_of=tuple(dict.fromkeys(part for predicate in predicates for part in predicate.any_of)))


def opposite(predicate: Predicate) -> Predicate:
    """Return the predicate that is met exactly where this one is proven not to be (De Morgan, in flat form)."""
    flipped = [
        Predicate(
            any_of=tuple(
                Conjunction(all_of=(Term(key=each.key, op="not_in" if each.op == "in" else "in", values=each.values),))
                for each in part.all_of
            )
        )
        for part in predicate.any_of
    ]
    return both(*flipped)


def all_known(judged: Iterable[Known]) -> Known:
    """Kleene's conjunction: false if one is false, else unknown if one is unknown, else true."""
    unknown = False
    for each in judged:
        if each is False:
            return False
        unknown = unknown or each is None
    return None if unknown else True


def any_known(judged: Iterable[Known]) -> Known:
    """Kleene's disjunction: true if one is true, else unknown if one is unknown, else false."""
    unknown = False
    for each in judged:
        if each is True:
            return True
        unknown = unknown or each is None
    return None if unknown else False
