"""Conditions in front of a noun and behind it: `trusted EU`, `with a GPU`, `that are not in the US`.

Conditions that only follow each other all hold; what a comma or `and` between them means is decided when they are
grounded, because it depends on whether they speak of the same label.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING

from intents.translation.embedded.lists import WORKLOADS, flat
from intents.translation.embedded.reading import Reader
from intents.translation.embedded.senses import Areas, Mention, Named, Pair, Valued
from intents.translation.embedded.tree import Everything, Group, Join, Minus, Not, Said, Selector

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Modifiers(Reader, ABC):
    """Reads conditions."""

    @abstractmethod
    def list(self, first: int) -> list[tuple[int, tuple[Group, ...]]]:
        """Read a list of noun phrases; `nodes in Germany or France` needs one inside of a condition."""

    def atoms(self, first: int) -> Iterator[tuple[int, Selector]]:
        """Read one condition: a mention, `non-` and a mention, or a label's name with a value."""
        for last, _ in self.lex(first, "NON"):
            for end, selector in self.atoms(self.skip(last, "DET")):
                yield end, Not(selector)
        yield from self._keyed(first)
        for mention in self.mentions(first):
            yield mention.last, Said(mention)

    def _keyed(self, first: int) -> Iterator[tuple[int, Selector]]:
        for size in range(4, 0, -1):
            said = tuple(token.norm for token in self.tokens[first : first + size] if token.kind == "word")
            keys = self._vocabulary.keys.get(said) if len(said) == size else None
            if not keys:
                continue
            value = first + size
            if self.mark(value, "=", ":"):
                value += 1
            else:
                value = self.skip(value, "BE") if self.lex(value, "BE") else value
            wanted = {key for _, key in keys}
            yield from self._values(first, value, wanted)
            for mention in self.mentions(value):
                pairs = [
                    Pair(key, (text,))
                    for sense in mention.senses
                    if isinstance(sense, Valued)
                    for _, key, text in sense.where
                    if key in wanted
                ]
                if pairs:
                    yield mention.last, Said(replace(mention, first=first, senses=tuple(dict.fromkeys(pairs))))
                elif any(key.endswith(("jurisdiction", "country")) for key in wanted):
                    areas = tuple(sense for sense in mention.senses if isinstance(sense, Areas))
                    if areas:
                        yield mention.last, Said(replace(mention, first=first, senses=areas))

    def _values(self, first: int, value: int, wanted: set[str]) -> Iterator[tuple[int, Selector]]:
        """Read a value right behind the name of its label, even if it is an ordinary word (`provider own`)."""
        for last in range(min(value + 6, len(self.tokens)), value, -1):
            part = self.tokens[value:last]
            if any(token.kind != "word" for token in part):
                continue
            said = tuple(token.norm for token in part)
            pairs = [Pair(key, (text,)) for _, key, text in self._vocabulary.values.get(said, ()) if key in wanted]
            if pairs:
                text = " ".join(token.text for token in self.tokens[first:last])
                yield last, Said(Mention(first, last, text, tuple(dict.fromkeys(pairs))))

    def _joined(self, first: int) -> Iterator[tuple[int, Selector]]:
        """Read conditions joined by commas, `and`, `or`: `German, French or Dutch`."""
        for end, selector in self.atoms(first):
            last = self._participle(end)
            yield from self._more(last, [selector], "")
            yield last, selector

    def _more(self, last: int, parts: Sequence[Selector], how: str) -> Iterator[tuple[int, Selector]]:
        following, spoken = self.conjunction(last)
        if following == last or (spoken not in {"", how} and how):
            return
        for behind, selector in self.atoms(following):
            end = self._participle(behind)
            said = spoken or how
            yield from self._more(end, [*parts, selector], said)
            if said or self.lex(end, "NOUN"):
                yield end, Join(said or "and", (*parts, selector))

    def conjunction(self, first: int) -> tuple[int, str]:
        """Read `,`, `and`, `, or`, `/` between parts of a list: where the next part begins, and what was said."""
        last = first + 1 if self.mark(first, ",") else first
        if last == first and first < len(self.tokens) and self.tokens[first].glue == "/":
            return first, "or"
        for end, value in self.lex(last, "AND"):
            if value == "or" or value == "and":
                return end, value
            return end, "or"
        return last, ""

    def _participle(self, last: int) -> int:
        """Step over `-based`, `hosted` behind a place or a provider."""
        found = self.lex(last, "PARTICIPLE")
        if not found:
            return last
        end = found[0][0]
        glued = self.tokens[last].glue in {"-", "‑", "–"}  # noqa: RUF001
        followed = bool(self.lex(end, "NOUN")) or bool(self.lex(end, "AND")) or bool(self.mentions(end))
        return end if glued or followed else last

    def _modifiers(self, first: int) -> Iterator[tuple[int, Selector]]:
        """Read conditions that follow each other: `trusted EU edge`; the empty reading comes last."""
        for last, selector in self._joined(first):
            if last > first:
                for end, rest in self._modifiers(last):
                    yield end, (selector if isinstance(rest, Everything) else Join("all", (selector, *flat(rest))))
        if self.mark(first, ",") and self.mentions(first + 1):
            for end, rest in self._modifiers(first + 1):
                if not isinstance(rest, Everything):
                    yield end, rest
        yield first, Everything()

    # one group

    # behind the noun

    def _conditions(self, last: int, kind: str) -> Iterator[tuple[int, Selector]]:
        for end, _ in self.lex(last, "RELATIVE"):
            for start, _ in self.lex(end, "BE"):
                yield from self._predicates(start, kind, inherited=None)
        yield from self._prepositional(last, kind)

    def _predicates(self, start: int, kind: str, inherited: bool | None) -> Iterator[tuple[int, Selector]]:
        """Read what may follow `that are`: conditions and places, each with its own `not`, or a list of them.

        A `not` reaches over an `or` ("not in France or untrusted"); over an `and` it would have two readings.
        """
        no = self.lex(start, "NEG")
        own, negated = bool(no), bool(no) or bool(inherited)
        begin = no[0][0] if no else start
        for end, plain in [*self._joined(begin), *self._prepositional(begin, kind)]:
            selector: Selector = Not(plain) if negated else plain
            following, spoken = self.conjunction(end)
            if following != end:
                for stop, more in self._predicates(following, kind, inherited=negated if spoken == "or" else False):
                    if negated and spoken != "or" and not self.lex(following, "NEG"):
                        continue
                    how = "or" if spoken == "or" and not negated else "all"
                    yield stop, Join(how, (selector, *flat(more, how)))
            if own or inherited is not None or not no:
                yield end, selector

    def _prepositional(self, last: int, kind: str) -> Iterator[tuple[int, Selector]]:
        starts: list[tuple[int, bool]] = []
        if kind not in WORKLOADS:  # where a workload runs is no property to select it by
            for end, _ in self.lex(last, "PARTICIPLE"):
                starts += [(stop, role) for stop, role in self._place_words(end)]
            starts += self._place_words(last)
        for start, outside in starts:
            for end, groups in self.list(start):
                if (
                    len(groups) == 1
                    and groups[0].kind is None
                    and not groups[0].quantifier.startswith(("none", "bad", "least"))
                ):
                    selector = groups[0].selector
                    if outside and isinstance(selector, Minus):
                        selector = Minus(Not(selector.base), selector.taken)
                    elif outside:
                        selector = Not(selector)
                    yield end, selector
        for start, _ in self.lex(last, "NOTOF"):
            for end, groups in self.list(start):
                if len(groups) == 1 and groups[0].kind is None:
                    yield end, Not(groups[0].selector)
        for start, _ in (
            self.lex(last, "OF", "FROM") if kind in {"node", "switch", "link", "workload", "generic", "data"} else ()
        ):
            for end, groups in self.list(start):
                if len(groups) == 1 and (
                    groups[0].kind is None or (kind == "data" and groups[0].kind in {"workload", "generic"})
                ):
                    yield end, groups[0].selector
        for start, _ in self.lex(last, "WITH", "LABELLED"):
            begin = self.skip(start, "DET")
            for end, selector in self._joined(begin):
                stop = self.lex(end, "NOUN")
                if stop and stop[0][1] in {"place", "state:kv"}:
                    yield stop[0][0], selector
                yield end, selector
        for start, _ in self.lex(last, "WITHOUT"):
            for end, selector in self._joined(self.skip(start, "DET", "QUANT")):
                yield end, Not(selector)
        if kind in {"workload", "generic"}:
            for start, _ in self.lex(last, "CARRYING", "WITH", "FOR"):
                for end, groups in self.list(start):
                    if len(groups) == 1 and groups[0].kind == "data" and groups[0].ends is None:
                        yield end, groups[0].selector
        for start, _ in self.lex(last, "NAMED"):
            for mention in self.mentions(start):
                if any(isinstance(sense, Named) for sense in mention.senses):
                    yield mention.last, Said(mention, name_wanted=True)
        for start, _ in self.lex(last, "WHOSE"):
            for end, selector in self._keyed(self.skip(start, "DET")):
                yield end, selector

    def _place_words(self, start: int) -> Sequence[tuple[int, bool]]:
        return [(end, False) for end, _ in self.lex(start, "IN")] + [(end, True) for end, _ in self.lex(start, "OUT")]
