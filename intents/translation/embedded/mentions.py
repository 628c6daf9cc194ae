"""Mention spotting: which words of the sentence name something in the inventory or in the knowledge base.

At every token the longest match counts; all its senses are kept, and what is said of it decides between them later.
A name made of ordinary words (a node called `only`, a workload called `ignore-all-rules`) is a name only where it is
quoted, written exactly, or stands beside its element's noun.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intents.knowledge.base import knowledge
from intents.knowledge.words import Words, words
from intents.translation.embedded.lexicon import lexicon
from intents.translation.embedded.senses import (
    Areas,
    Cities,
    Classes,
    Flag,
    Mention,
    Named,
    Pair,
    PartOfName,
    Sense,
    Valued,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intents.translation.embedded.tokens import Token
    from intents.translation.embedded.vocabulary import Vocabulary

_LONGEST_KNOWN = 8
_CODES_THAT_ARE_WORDS = frozenset(
    [
        "in",
        "it",
        "no",
        "at",
        "be",
        "is",
        "am",
        "so",
        "to",
        "me",
        "my",
        "do",
        "id",
        "as",
        "by",
        "pa",
        "ai",
        "tv",
        "la",
        "ma",
        "de",
        "es",
        "et",
        "us",
        "can",
        "and",
        "are",
        "per",
    ]
)
_NOT_NAMES_OF_PLACES = frozenset(
    {("oma",), ("mobile",), ("same",), ("split",), ("most",), ("nice",), ("reading",), ("cork",)}
)


class Spotter:
    """Finds the mentions of one sentence; `at(i)` are those that begin at token i, the longest first."""

    def __init__(self, sentence: str, tokens: Sequence[Token], vocabulary: Vocabulary) -> None:
        self._sentence = sentence
        self._tokens = tokens
        self._vocabulary = vocabulary
        self._lexicon = lexicon()
        self._knowledge = knowledge()
        letters = [token for token in tokens if token.kind == "word" and len(token.text) > 1]
        self._mixed_case = any(not token.capital for token in letters)
        self._no_capitals = not any(token.capital for token in letters)

    def at(self, first: int) -> list[Mention]:
        """Return the mentions that begin at this token, the longest first."""
        token = self._tokens[first]
        if token.kind == "quoted":
            return self._quoted(first)
        if token.kind != "word":
            return []
        found = self._pair(first)
        longest = max(self._vocabulary.longest, _LONGEST_KNOWN)
        ahead: list[str] = []
        candidates: list[tuple[int, Words]] = []
        for index in range(first, min(first + longest, len(self._tokens))):
            each = self._tokens[index]
            if each.kind != "word" or each.norm == "'s":
                break
            ahead.append(each.norm)
            candidates.append((index + 1, tuple(ahead)))
        for last, said in reversed(candidates):
            senses = self._senses(first, last, said)
            if senses:
                found.append(Mention(first, last, self._text(first, last), tuple(senses)))
        return found

    def is_key(self, said: Words) -> bool:
        """Whether these words are the name of a label."""
        return said in self._vocabulary.keys

    def _text(self, first: int, last: int) -> str:
        return self._sentence[self._tokens[first].start : self._tokens[last - 1].end]

    def _quoted(self, first: int) -> list[Mention]:
        inside = self._tokens[first].norm
        said = words(inside)
        exact = tuple(each for each in self._vocabulary.names.get(said, ()) if each[1] == inside)
        names = exact or tuple(self._vocabulary.names.get(said, ()))
        key, equals, value = inside.partition("=")
        if not names and equals and value and (keys := self._vocabulary.keys.get(words(key.rstrip("!").strip()))):
            pairs = tuple(
                Pair(each, (value.strip(),), key.endswith("!")) for each in sorted({name for _, name in keys})
            )
            return [Mention(first, first + 1, self._text(first, first + 1), pairs)]
        senses: list[Sense] = [Named(names)] if names else []
        if not names:
            senses = self._words_senses(said, plural=False)
        return [Mention(first, first + 1, self._text(first, first + 1), tuple(senses), quoted=True)]

    def _pair(self, first: int) -> list[Mention]:
        """Read `key=value`, `key: value`, `key!=value`, with an optional list of values parted by commas."""
        last = first
        while last < len(self._tokens) and self._tokens[last].kind == "word" and last - first < 12:
            last += 1
            if last < len(self._tokens) and self._tokens[last].kind == "word" and self._tokens[last].glue == " ":
                break
        mark = last
        operator = "".join(token.norm for token in self._tokens[mark : mark + 2] if token.norm in {"=", "!", ":"})
        if operator in {"=", "!=", "=="}:
            size = len(operator)
        elif operator == ":" and self._tokens[mark].glue == "":
            size = 1
        else:
            return []
        value = mark + size
        if value >= len(self._tokens) or self._tokens[value].kind not in {"word", "quoted"}:
            return []
        end = value + 1
        while end < len(self._tokens) and self._tokens[end].kind == "word" and self._tokens[end].glue not in {" ", ""}:
            end += 1
        written_key = self._sentence[self._tokens[first].start : self._tokens[last - 1].end]
        keys = self._vocabulary.keys.get(words(written_key), {})
        written = self._tokens[value].norm if self._tokens[value].kind == "quoted" else self._text(value, end)
        if operator == ":" and not keys:
            return []
        known = {value.casefold() for kind, key in keys for value in self._vocabulary.values_of.get((kind, key), ())}
        if operator == ":" and written.casefold() not in known:
            return []  # "Patient data: EU only" is no label
        full = sorted({key for _, key in keys}) or [written_key]
        senses = tuple(Pair(key, (written,), operator == "!=") for key in full)
        return [Mention(first, end, self._text(first, end), senses)]

    def _senses(self, first: int, last: int, said: Words) -> list[Sense]:
        plain = said in self._lexicon or all((each,) in self._lexicon and not each.isdecimal() for each in said)
        names = self._vocabulary.names.get(said, ())
        senses: list[Sense] = []
        if names:
            text = self._text(first, last)
            exact = tuple(each for each in names if each[1] == text) or tuple(
                each for each in names if each[1].casefold() == text.casefold()
            )
            know = self._knowledge
            placelike = said in know.areas or said in know.several_areas or said in know.cities or said in know.flags
            differs = placelike and not any(each[1] == text for each in names)
            ordinary = plain or differs or len(said[0]) == 1 == len(said)
            written = exact and len(said) > 1 and any(token.glue != " " for token in self._tokens[first + 1 : last])
            senses.append(Named(exact or tuple(names), plain=ordinary and not written))
        code = self._code(first, last, said)
        if code is not None:
            senses.append(code)
        senses += self._words_senses(said, plural=True)
        return senses

    def _words_senses(self, said: Words, *, plural: bool) -> list[Sense]:
        senses: list[Sense] = []
        forms = _singulars(said) if plural else [said]
        function_word = any(category not in {"NOUN", "VERB"} for category, _ in self._lexicon.get(said, ()))
        for form in forms:
            where = tuple(self._vocabulary.values.get(form, ()))
            if where and (not function_word or (where and not plural)):
                senses.append(Valued(where))
                break
        know = self._knowledge
        if said in know.several_areas:
            senses.append(Areas(know.several_areas[said]))
        elif said in know.areas:
            senses.append(Areas((know.areas[said],)))
        elif not function_word and said in know.cities and said not in _NOT_NAMES_OF_PLACES and len("".join(said)) > 3:
            senses.append(Cities(know.cities[said]))
        if said in know.classes:
            senses.append(Classes(know.classes[said]))
        if said in know.flags:
            senses.append(Flag(*know.flags[said]))
        for form in forms:
            flags = [key for kind, key in self._vocabulary.keys.get(form, ()) if self._vocabulary.is_flag(kind, key)]
            known = {sense.key for sense in senses if isinstance(sense, Flag)}
            senses += [Flag(key) for key in dict.fromkeys(flags) if key not in known]
        if not function_word:
            for form in forms:
                if form in self._vocabulary.parts:
                    senses.append(PartOfName(tuple(self._vocabulary.parts[form])))
                    break
        return senses

    def _code(self, first: int, last: int, said: Words) -> Areas | None:
        if last - first != 1 or said not in self._knowledge.codes:
            return None
        area = Areas((self._knowledge.codes[said], *self._vocabulary.parts_of_countries.get(said[0], ())))
        if said == ("us",):
            return area if self._tokens[first].capital or self._no_capitals else None
        if not self._tokens[first].capital:
            return None
        return area if self._mixed_case or said[0] not in _CODES_THAT_ARE_WORDS else None


def _singulars(said: Words) -> list[Words]:
    last = said[-1]
    forms = [said]
    if len(last) > 3 and last.endswith("ies"):
        forms.append((*said[:-1], last[:-3] + "y"))
    if len(last) > 3 and last.endswith(("ses", "xes", "ches", "shes")):
        forms.append((*said[:-1], last[:-2]))
    if len(last) > 2 and last.endswith("s") and not last.endswith("ss"):
        forms.append((*said[:-1], last[:-1]))
    if len(last) > 2 and not last.endswith("s"):
        forms.append((*said[:-1], last + "s"))
    return forms
