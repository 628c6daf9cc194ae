"""Conditions in front of a noun: `trusted EU`, `German, French or Dutch`, and labels with their values.

Conditions that only follow each other all hold; what a comma or `and` between them means is decided when they are
grounded, because it depends on whether they speak of the same label.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING

from intents.translation.embedded.lists import bare_kind, flat
from intents.translation.embedded.reading import Reader
from intents.translation.embedded.senses import Areas, Mention, Pair, Valued
from intents.translation.embedded.tree import Everything, Group, Join, Not, Said, Selector

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
        for value, wanted in self._key(first):
            yield from self._valued(first, value, wanted)

    def _key(self, first: int) -> Iterator[tuple[int, set[str]]]:
        """Read the name of a label and what stands between it and its value: `provider`, `disk =`, `the trust is`."""
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
            yield value, {key for _, key in keys}

    def _valued(self, first: int, value: int, wanted: set[str]) -> Iterator[tuple[int, Selector]]:
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

    def keyed_list(self, first: int) -> Iterator[tuple[int, Selector]]:
        """Read a label and its values behind `whose`: `provider is not acme`, `trust is trusted or certified`."""
        for begin, wanted in self._key(first):
            start, negated, nor = begin, False, False
            for last, _ in self.lex(start, "NEG"):
                start, negated = last, True
            for last, value in self.lex(start, "CORR"):
                start, nor = last, value == "neither"
            for end, selector in self._valued(first, start, wanted):
                yield from self._more_values(end, [selector], "", wanted, (negated, nor))
                if not nor:
                    yield end, Not(selector) if negated else selector

    def _more_values(
        self, last: int, parts: Sequence[Selector], how: str, wanted: set[str], no: tuple[bool, bool]
    ) -> Iterator[tuple[int, Selector]]:
        negated, nor = no
        following, spoken = self.conjunction(last)
        if nor:
            starts = [end for end, value in self.lex(last, "AND") if value == "nor"]
        else:
            starts = [following] if following != last and spoken in {"or", ""} else []
        for start in starts:
            for end, selector in self._valued(start, start, wanted):
                found = [*parts, selector]
                yield from self._more_values(end, found, spoken or how, wanted, no)
                if nor or spoken == "or":
                    joined = Join("or", tuple(found))
                    yield end, Not(joined) if nor or negated else joined

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
            if (bare_kind(parts[-1]) == "workload") != (bare_kind(selector) == "workload"):
                continue  # "in Germany and ledger in France" is no list of places
            end = self._participle(behind)
            said = spoken or how
            yield from self._more(end, [*parts, selector], said)
            if said or self.lex(end, "NOUN"):
                yield end, Join(said or "and", (*parts, selector))

    def conjunction(self, first: int) -> tuple[int, str]:
        """Read `,`, `and`, `, or`, `/` between parts of a list: where the next part begins, and what was said."""
        if self.mark(first, ",") and self.tokens[first].text != ",":
            return first, ""  # a bracket opens
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
        for begin, value in self.lex(first, "CORR"):
            wanted = {"either": "or", "both": "and"}.get(value)
            for last, selector in self._joined(begin):
                if isinstance(selector, Join) and selector.how == wanted:
                    yield last, selector
        for last, selector in self._joined(first):
            if last > first:
                for end, rest in self._modifiers(last):
                    yield end, (selector if isinstance(rest, Everything) else Join("all", (selector, *flat(rest))))
        if self.mark(first, ",") and self.tokens[first].text == "," and self.mentions(first + 1):
            for end, rest in self._modifiers(first + 1):
                if not isinstance(rest, Everything):
                    yield end, rest
        yield first, Everything()
