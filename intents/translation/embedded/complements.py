"""Complements of a verb: prepositional phrases and objects, each with its own `only`, `not` and `preferably`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from intents.translation.embedded.lists import WORKLOADS
from intents.translation.embedded.tree import Complement, Group

if TYPE_CHECKING:
    from collections.abc import Iterator

    from intents.translation.embedded.phrases import Phrases

_ROLES = {
    "IN": "in",
    "OUT": "out",
    "VIA": "via",
    "INTO": "to",
    "FROM": "from",
    "BETWEEN": "between",
    "WITH": "with",
    "WITHOUT": "without",
    "FOR": "for",
    "BY": "by",
    "OF": "of",
    "AS": "as",
}
_MOST = 6
_BOUNDS = frozenset(
    {
        ("latency", "max"),
        ("latency", "bare"),
        ("latency", "over"),
        ("latency", "to"),
        ("bandwidth", "min"),
        ("bandwidth", "bare"),
        ("bandwidth", "under"),
    }
)
_AVAILABLE = frozenset({"available", "installed", "enabled", "onboard"})
_UNITS = {"ms": 1.0, "s": 1000.0, "mbps": 1.0, "gbps": 1000.0}


class Complements:
    """Reads what stands behind a verb."""

    def __init__(self, phrases: Phrases) -> None:
        self._p = phrases
        self._known: dict[tuple[int, int], list[tuple[int, tuple[Complement, ...]]]] = {}

    def all(self, first: int, depth: int = 0) -> list[tuple[int, tuple[Complement, ...]]]:
        """Return the readings of all complements from here, the longest first; the empty one comes last."""
        if depth > 6:
            return [(first, ())]
        if (first, depth) not in self._known:
            self._known[first, depth] = [(first, ())]
            found: list[tuple[int, tuple[Complement, ...]]] = []
            for last, complement in self._next(first, opening=depth == 0):
                for end, rest in self.all(last, depth + 1):
                    reading = (end, (complement, *rest))
                    if reading not in found:
                        found.append(reading)
                if len(found) > 60:
                    break
            filled = self._p.skip(first, "FILLER", "HARD")
            for last, value in self._p.lex(filled, "CORR"):  # "must not be used either"
                if value == "either" and (last >= len(self._p.tokens) or self._p.tokens[last].kind == "mark"):
                    filled = last
            if filled > first and depth > 0:
                found.append((filled, ()))
            if filled > first and depth == 0 and self._p.mark(filled, ","):  # "run anywhere, but not in the US"
                found += [each for each in self.all(filled, 1) if each[1] and each[1][0].negated]
            found.append((first, ()))
            found.sort(key=lambda each: -each[0])
            self._known[first, depth] = found[:24]
        return self._known[first, depth]

    def _next(self, first: int, *, opening: bool) -> Iterator[tuple[int, Complement]]:
        """Read the next complement with what joins it to the one before: a comma, `and`, `but`, `or`, `nor`."""
        p = self._p
        for last, complement in self.one(first):
            if opening or complement.role != "object":
                yield last, complement
        if opening:
            return
        comma = first + 1 if p.mark(first, ",") else first
        if comma > first:
            for last, complement in self.one(comma):
                if complement.role != "object" or complement.only or complement.negated:
                    yield last, replace(complement, linked=",")
        for start, how in [*p.lex(comma, "AND"), *p.lex(comma, "BUT")]:
            for last, complement in self.one(start):
                none = any(group.quantifier == "none" for group in complement.groups)
                if complement.role == "object" and not complement.negated and not complement.only and not none:
                    continue
                negated = complement.negated or how == "nor"
                yield last, replace(complement, linked="but" if how == "but" else how, negated=negated)
        for start, _ in p.lex(comma, "RATHER"):  # in Germany rather than in France
            for last, complement in self.one(start):
                if not complement.negated and not complement.only:
                    yield last, replace(complement, linked="but", negated=True)
        for start, _ in p.lex(comma, "EXCEPT", "BUTEX"):
            for last, groups in p.list(start):
                if all((group.kind or "") in WORKLOADS for group in groups):
                    yield last, Complement("except", groups)
        for last, value in p.lex(comma, "EVENIN") if comma > first else ():
            if value == "migration":
                yield last, Complement("even migration", ())
        for last, _ in p.lex(comma, "ELSE"):
            yield last, Complement("else", ())
        for last, _ in p.lex(comma, "BOTHIN"):  # ..., both inside the EU
            for end, complement in self.one(last):
                if complement.role in {"in", "out"} and comma > first:
                    yield end, replace(complement, linked=",")

    def one(self, first: int) -> Iterator[tuple[int, Complement]]:
        """Read one complement."""
        p = self._p
        position, only, negated, soft = first, False, False, False
        for _ in range(4):
            found = [
                (last, category)
                for category in ("ONLY", "NEG", "SOFT", "HARD", "FILLER", "CORR")
                for last, value in p.lex(position, category)
                if category != "CORR" or value in {"neither", "either", "both"}
            ]
            if not found:
                break
            last, category = max(found)
            if category == "CORR":
                neither = any(value == "neither" for _, value in p.lex(position, "CORR"))
                negated = negated or neither
            only, negated, soft = only or category == "ONLY", negated or category == "NEG", soft or category == "SOFT"
            position = last
        for last, complement in self._plain(position):
            if negated and complement.negated:
                continue
            marked = replace(
                complement,
                only=only or complement.only,
                negated=negated or complement.negated,
                soft=soft or complement.soft,
            )
            yield from self._trailing(last, marked)
        if position > first and p.lex(first, "OUT", "IN"):  # "anywhere but in", whose first word is a filler too
            for last, complement in self._plain(first):
                yield from self._trailing(last, complement)

    def _trailing(self, last: int, complement: Complement) -> Iterator[tuple[int, Complement]]:
        """Read an `only`, `if possible` or `alone` behind the complement."""
        p = self._p
        for end, _ in p.lex(last, "ONLY"):
            behind = (
                end >= len(p.tokens)
                or p.tokens[end].kind == "mark"
                or bool(p.lex(end, "AND", "BUT", "BETWEEN", "FROM", "MODAL"))
                or p.skip(end, "FILLER", "HARD") >= len(p.tokens)
            )
            if behind:
                yield end, replace(complement, only=True)
        comma = last + 1 if p.mark(last, ",") else last
        for end, _ in p.lex(comma, "SOFT"):
            if p.mark(end, ","):  # "if that works, no problem if not"
                for stop, _ in p.lex(end + 1, "SOFT"):
                    yield stop, replace(complement, soft=True)
            if end >= len(p.tokens) or p.tokens[end].kind == "mark" or p.lex(end, "AND", "BUT"):
                yield end, replace(complement, soft=True)
        yield last, complement

    def _plain(self, first: int) -> Iterator[tuple[int, Complement]]:
        p = self._p
        yield from self._measure(first)
        for start, value in p.lex(p.skip(first, "DET"), "NOUN"):  # "a path through s1"
            if value == "network" and p.lex(start, "VIA", "OUT", "WITHOUT"):
                yield from (each for each in self._plain(start) if each[1].role in {"via", "out", "without"})
        yield from self._levels(first)
        yield from self._where(first)
        for category, role in _ROLES.items():
            for start, _ in p.lex(first, category):
                word = " ".join(token.norm for token in p.tokens[first:start])
                for last, complement in self._preposition(start, role):
                    yield last, replace(complement, word=word)
        for last, value in p.lex(first, "TOGETHER"):
            yield last, Complement(value, ())
        for last, _ in p.lex(first, "EACHOTHER"):
            yield last, Complement("each", ())
        for last, _ in p.lex(first, "BOTHDIR"):
            yield last, Complement("bothways", ())
        for last, _ in p.lex(first, "TRANSIT"):
            yield last, Complement("transit", ())
        for last, _ in p.lex(first, "ATREST"):
            yield last, Complement("rest", ())
        for last, _ in p.lex(first, "MIGRATION"):
            yield last, Complement("migration", ())
        for last, value in p.lex(first, "EVENIN"):
            if value == "migration":
                yield last, Complement("even migration", ())
        for last, groups in p.list(first):
            yield last, Complement("object", groups)

    def _where(self, first: int) -> Iterator[tuple[int, Complement]]:
        """Read `where a GPU is available`."""
        p = self._p
        for start, _ in p.lex(first, "WHERETO"):
            for last, selector in p.atoms(p.skip(start, "DET")):
                for end, _ in p.lex(last, "BE"):
                    if any(token.norm in _AVAILABLE for token in p.tokens[end : end + 1]):
                        yield end + 1, Complement("in", (Group(first, end + 1, "node", selector),))

    def _levels(self, first: int) -> Iterator[tuple[int, Complement]]:
        """Read `at node level`, `on the level of zones` behind "separated"."""
        p = self._p
        for start, _ in p.lex(first, "IN"):
            begin = p.skip(start, "DET")
            found = [(end, topology) for last, topology in p.lex(begin, "TOPO") for end, _ in p.lex(last, "LEVEL")]
            of = [stop for last, _ in p.lex(begin, "LEVEL") for stop, _ in p.lex(last, "OF")]
            found += [each for stop in of for each in p.lex(p.skip(stop, "DET"), "TOPO")]
            for end, topology in found:
                yield end, Complement("level", (Group(first, end, f"topology:{topology}", relation="different"),))

    def _preposition(self, start: int, role: str) -> Iterator[tuple[int, Complement]]:
        p = self._p
        if role == "between":
            for end, left in p.group(start):
                for middle, value in p.lex(end, "AND"):
                    for stop, right in p.list(middle) if value == "and" else ():
                        yield stop, Complement("between", (left, *right))
                yield end, Complement("between", (left,))
            return
        for last, _ in p.lex(start, "EACHOTHER"):
            yield last, Complement("each", ())
        for last, groups in p.list(start):
            yield last, Complement(role, groups)
        for begin, value in p.lex(start, "CORR"):
            if value == "neither":
                for last, groups in p.list(begin):
                    yield last, Complement(role, groups, negated=True)
        only = p.lex(start, "ONLY")
        for last, groups in p.list(only[0][0]) if only else ():
            yield last, Complement(role, groups, only=True)
        if role == "without":
            for last, value in p.lex(start, "VERB"):
                lemma, _, shape = value.partition(":")
                if shape == "ing":
                    for end, inner in self.one(last):
                        if inner.role in {"object", "via", "to", "in"} and not inner.negated and not inner.only:
                            yield end, replace(inner, role=f"without {lemma}", verb_role=inner.role)

    def _measure(self, first: int) -> Iterator[tuple[int, Complement]]:
        """Read `at most 20 ms`, `at least 100 Mbps`, with the noun before or behind it."""
        p = self._p
        starts = [first]
        for last, each in self._quantity(first, "bare"):
            yield last, each
        yield from self._wide(first)
        for last, _ in p.lex(first, "INTO"):  # limit the latency to 20 ms
            yield from self._quantity(last, "to")
        if first < len(p.tokens) and p.tokens[first].norm == "at":  # cap the latency at 20 ms
            yield from self._quantity(first + 1, "to")
        for category in ("BE", "WITH", "IN"):
            starts += [last for last, _ in p.lex(first, category)]
        starts += [p.skip(start, "DET") for start in starts if p.skip(start, "DET") > start]
        for start in dict.fromkeys(starts):
            begins = [start, *(p.skip(last, "OF") for last, _ in p.lex(start, "LATENCY"))]
            for begin in begins:
                for last, value in p.lex(begin, "ATMOST", "ATLEAST", "BEYOND"):
                    yield from self._quantity(last, value)

    def _wide(self, first: int) -> Iterator[tuple[int, Complement]]:
        """Read `(over) links with a bandwidth of at least 1 Gbps`, `a path of at most 15 ms`."""
        p = self._p
        starts = [first, *(last for last, _ in p.lex(first, "VIA"))]
        for start in starts:
            for last, value in p.lex(p.skip(start, "DET", "QUANT"), "NOUN"):
                for begin, _ in p.lex(last, "WITH", "OF") if value in {"link", "network"} else ():
                    for end, each in self._measure(begin):
                        if each.role in {"latency", "bandwidth"} and (value == "network" or each.role == "bandwidth"):
                            yield end, each

    def _quantity(self, first: int, bound: str) -> Iterator[tuple[int, Complement]]:
        p = self._p
        if first >= len(p.tokens):
            return
        text = p.tokens[first].text
        end = first + 1
        digits = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
        if end < len(p.tokens) and p.tokens[end].glue == "." and p.tokens[end].text.isdecimal():
            digits, end = f"{text}.{p.tokens[end].text}", end + 1
        units: list[tuple[int, str]] = list(p.lex(end, "UNIT"))
        if digits != text and text.isascii():
            unit = text[len(digits) :].lower()
            units = [(end, unit)] if unit in _UNITS else []
            units += [(end, "mbps")] if unit == "mbit" else []
        try:
            number = float(digits)
        except ValueError:
            return
        for last, unit in units:
            if any(token.text[:2] in {"MB", "GB", "KB"} for token in p.tokens[first + 1 : last]) or "B" in text[-4:-1]:
                continue  # bytes
            kind = "latency" if unit in {"ms", "s"} else "bandwidth"
            if (kind, bound) in _BOUNDS:
                more = [end for end, value in p.lex(last, "MORELESS") if value == kind] if bound == "bare" else []
                if more:
                    yield more[0], Complement(kind, (), number=number * _UNITS[unit], verb_role="")
                stop = p.skip(last, "OF")
                behind = p.lex(stop, "LATENCY")
                measure = Complement(kind, (), number=number * _UNITS[unit], verb_role=bound)
                yield (behind[0][0] if behind else last), measure
                if behind:
                    yield last, measure


def groups_of(complements: tuple[Complement, ...], *roles: str) -> tuple[Group, ...]:
    """Return all groups that stand in these roles."""
    return tuple(group for each in complements if each.role in roles for group in each.groups)
