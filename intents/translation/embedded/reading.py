"""Reading the words of one sentence: entries of the lexicon, marks and mentions, by position."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from intents.translation.embedded.lexicon import lexicon
from intents.translation.embedded.senses import Mention, Named

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intents.translation.embedded.mentions import Spotter
    from intents.translation.embedded.tokens import Token
    from intents.translation.embedded.vocabulary import Vocabulary

_Read = TypeVar("_Read")
MOST = 10
_LONGEST = 9


class Reader:
    """Looks up words and mentions of one sentence; `furthest` is the last token that was looked at."""

    def __init__(self, tokens: Sequence[Token], spotter: Spotter, vocabulary: Vocabulary) -> None:
        self.tokens = tokens
        self._spotter = spotter
        self._vocabulary = vocabulary
        self._lexicon = lexicon()
        self._mentions: dict[int, list[Mention]] = {}
        self._entries: dict[int, list[tuple[int, str, str]]] = {}
        self.furthest = 0

    # words

    def lex(self, first: int, *categories: str) -> list[tuple[int, str]]:
        """Return (end, value) of the words of these categories that begin here, the longest first."""
        return [(last, value) for last, category, value in self._at(first) if category in categories]

    def _at(self, first: int) -> list[tuple[int, str, str]]:
        if first not in self._entries:
            found: list[tuple[int, str, str]] = []
            said: list[str] = []
            for index in range(first, min(first + _LONGEST, len(self.tokens))):
                token = self.tokens[index]
                if token.kind != "word":
                    break
                said.append(token.norm)
                key = tuple(part for part in said if part != "'s") if len(said) > 1 else tuple(said)
                found += [(index + 1, category, value) for category, value in self._lexicon.get(key, ())]
            found.sort(key=lambda each: -each[0])
            if found and found[0][1] == "EVENIN":  # "also during a migration" is never "during a migration"
                found = found[:1] if found[0][2] == "migration" else found
            self._entries[first] = found
            self.furthest = max(self.furthest, first)
        return self._entries[first]

    def mark(self, first: int, *marks: str) -> bool:
        """Whether this token is one of these punctuation marks."""
        return first < len(self.tokens) and self.tokens[first].kind == "mark" and self.tokens[first].norm in marks

    def mentions(self, first: int) -> list[Mention]:
        """Return the mentions that begin here."""
        if first >= len(self.tokens):
            return []
        if first not in self._mentions:
            found = self._spotter.at(first)
            names = [each for each in found if each.last - first > 1 and self._is_whole_name(each)]
            self._mentions[first] = [each for each in found if each.last >= names[0].last] if names else found
        return self._mentions[first]

    @staticmethod
    def _is_whole_name(mention: Mention) -> bool:
        """Whether this is an element's name as it is written, which is not taken apart."""
        return any(
            isinstance(sense, Named) and any(name.casefold() == mention.text.casefold() for _, name in sense.elements)
            for sense in mention.senses
        )

    def skip(self, first: int, *categories: str) -> int:
        """Return the position behind any words of these categories."""
        while True:
            found = self.lex(first, *categories)
            if not found:
                return first
            first = found[0][0]


def distinct(readings: Iterator[tuple[int, _Read]]) -> list[tuple[int, _Read]]:
    """Return the readings without repetitions, the longest first, and no more than a few."""
    found: list[tuple[int, _Read]] = []
    for reading in readings:
        if reading not in found:
            found.append(reading)
        if len(found) >= MOST * 4:
            break
    found.sort(key=lambda each: -each[0])
    return found[:MOST]
