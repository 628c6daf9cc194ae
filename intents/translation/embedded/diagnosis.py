"""Why a sentence cannot be understood, as far as its words alone tell.

Words that nothing here knows, words about what is out of scope, words that would widen what is allowed, conditions, and
words whose meaning is not settled. Looked at before the grammar, because one such word decides.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from intents.knowledge.base import knowledge
from intents.model.refusal import Refusal, RefusalKind
from intents.translation.embedded.lexicon import lexicon
from intents.translation.embedded.senses import Named
from intents.translation.embedded.verbs import is_move

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from intents.knowledge.words import Words
    from intents.translation.embedded.mentions import Spotter
    from intents.translation.embedded.tokens import Token
    from intents.translation.embedded.vocabulary import Vocabulary

_LONGEST = 9
_MARKS = frozenset(",.!;:?=-–—/&\n")  # noqa: RUF001
_ELEMENTS = {"node": "node", "switch": "switch", "workload": "workload", "link": "link", "generic": "workload"}


def diagnose(tokens: Sequence[Token], spotter: Spotter, vocabulary: Vocabulary) -> Refusal | None:
    """Return why these words cannot be understood; None if the grammar may try."""
    if not any(token.kind != "mark" for token in tokens):
        return Refusal(RefusalKind.NOT_UNDERSTOOD, "there are no words")
    mentioned = _mentioned(tokens, spotter)
    known = knowledge()
    language = lexicon()
    entries = {
        (first, last): language[tuple(token.norm for token in tokens[first:last])]
        for first, last in _phrases(tokens, language)
    }
    for first, last in _phrases(tokens, known.out_of_scope):
        said = tuple(token.norm for token in tokens[first:last])
        known_here = said in language or _inside(first, last, entries)
        if not all(index in mentioned for index in range(first, last)) and not known_here:
            topic = known.out_of_scope[said]
            return Refusal(
                RefusalKind.OUT_OF_SCOPE,
                f"{_text(tokens, first, last)!r} is about {topic};"
                " intents are about placement, routes, isolation and migration",
            )
    covered = set(mentioned)
    for first, last in _phrases(tokens, known.unclear):
        if not any(index in mentioned for index in range(first, last)) and not _inside(first, last, entries):
            why = known.unclear[tuple(token.norm for token in tokens[first:last])]
            return Refusal(
                RefusalKind.AMBIGUOUS,
                f"{_text(tokens, first, last)!r} is not clear: {why}",
                "name the label that you mean",
            )
    for (first, last), each in entries.items():
        categories = {category for category, _ in each}
        if any(index in mentioned for index in range(first, last)):
            continue
        if categories == {"WIDEN"} and not _inside(first, last, entries):
            return Refusal(
                RefusalKind.OUT_OF_SCOPE,
                f"{_text(tokens, first, last)!r}: an intent only limits; it neither lifts rules nor gives permissions",
            )
        if (
            "COND" in categories
            and categories <= {"COND", "WHEN"}
            and not _of_migration(tokens, last)
            and not _inside(first, last, entries)
        ):
            return Refusal(
                RefusalKind.NOT_UNDERSTOOD,
                f"{_text(tokens, first, last)!r}: an intent holds always; conditions are not understood",
                "say it without the condition",
            )
        covered |= set(range(first, last))
    covered |= {index for index, token in enumerate(tokens) if token.norm[:1].isdecimal() and _measured(tokens, index)}
    unknown = [
        index
        for index, token in enumerate(tokens)
        if index not in covered and (token.kind != "mark" or token.norm not in _MARKS)
    ]
    if unknown:
        return _unknown(tokens, unknown, vocabulary)
    return None


def _mentioned(tokens: Sequence[Token], spotter: Spotter) -> set[int]:
    """Return the tokens that belong to a mention of something; plain names do not count."""
    found: set[int] = set()
    for index in range(len(tokens)):
        for mention in spotter.at(index):
            if all(isinstance(sense, Named) and sense.plain for sense in mention.senses) and mention.senses:
                if _beside_noun(tokens, mention.first, mention.last):
                    found |= set(range(mention.first, mention.last))
                continue
            found |= set(range(mention.first, mention.last))
    language = lexicon()
    known = knowledge()
    for index, token in enumerate(tokens):  # the name of a label before its value: `rack r7`
        if token.kind == "word" and (token.norm,) not in language and (token.norm,) not in known.out_of_scope:
            for spotted in _keys(tokens, index, spotter):
                found |= spotted
    return found


def _keys(tokens: Sequence[Token], first: int, spotter: Spotter) -> Iterator[set[int]]:
    for last in range(first + 1, min(first + 4, len(tokens)) + 1):
        if spotter.is_key(tuple(token.norm for token in tokens[first:last])):
            yield set(range(first, last))


def _beside_noun(tokens: Sequence[Token], first: int, last: int) -> bool:
    beside = [tokens[index].norm for index in (first - 1, last) if 0 <= index < len(tokens)]
    return any(("NOUN", kind) in lexicon().get((word,), ()) for word in beside for kind in _ELEMENTS)


def _phrases(tokens: Sequence[Token], table: Mapping[Words, object]) -> Iterator[tuple[int, int]]:
    for first in range(len(tokens)):
        said: list[str] = []
        for index in range(first, min(first + _LONGEST, len(tokens))):
            if tokens[index].kind != "word":
                break
            said.append(tokens[index].norm)
            if tuple(said) in table:
                yield first, index + 1


def _inside(first: int, last: int, entries: Mapping[tuple[int, int], object]) -> bool:
    return any(start <= first and last <= end and end - start > last - first for start, end in entries)


def _measured(tokens: Sequence[Token], index: int) -> bool:
    """Whether a number has a unit: `20 ms`, `20ms`, `2.5 s`."""
    if not tokens[index].norm.isdecimal():
        return tokens[index].norm.lstrip("0123456789") in {"ms", "s", "mbps", "gbps", "mbit", "gbit"}
    behind = [token.norm for token in tokens[index + 1 : index + 3]]
    if behind and tokens[index + 1].glue == ".":
        behind = behind[1:]
    return any(category == "UNIT" for size in (1, 2) for category, _ in lexicon().get(tuple(behind[:size]), ()))


def _of_migration(tokens: Sequence[Token], start: int) -> bool:
    """Whether a condition is that of a migration, which is understood: `when it is migrated`."""
    ahead = [token.norm for token in tokens[start : start + 7]]
    return any(
        category == "VERB" and is_move(value.partition(":")[0])
        for index, word in enumerate(ahead)
        for said in ((word,), tuple(ahead[index : index + 2]))
        for category, value in lexicon().get(said, ())
    )


def _text(tokens: Sequence[Token], first: int, last: int) -> str:
    return " ".join(token.text for token in tokens[first:last])


def _unknown(tokens: Sequence[Token], unknown: Sequence[int], vocabulary: Vocabulary) -> Refusal:
    language = lexicon()
    for index in unknown:
        token = tokens[index]
        start, end = index, index + 1
        while start > 0 and tokens[start].glue not in {" ", ""} and tokens[start - 1].kind == "word":
            start -= 1
        while end < len(tokens) and tokens[end].glue not in {" ", ""} and tokens[end].kind == "word":
            end += 1
        name = "".join((each.glue if place else "") + each.text for place, each in enumerate(tokens[start:end]))
        kind = None
        for beside in (start - 1, end):
            if not 0 <= beside < len(tokens):
                continue
            plural = tokens[beside].norm.endswith("s")
            part = beside + 1 < len(tokens) and tokens[beside + 1].glue not in {" ", ""}  # of `stage-2`
            if not plural and not part:
                kind = kind or next(
                    (
                        _ELEMENTS[value]
                        for category, value in language.get((tokens[beside].norm,), ())
                        if category == "NOUN" and value in _ELEMENTS
                    ),
                    None,
                )
        like_a_name = (any(each.isdigit() for each in name) and not name.isdecimal()) or token.kind == "quoted"
        if (kind is not None and not name[0].isspace()) or like_a_name:
            names = [each[0] for of, elements in vocabulary.elements.items() if kind in {None, of} for each in elements]
            close = difflib.get_close_matches(name, names[:2000], n=1, cutoff=0.5)
            return Refusal(
                RefusalKind.VACUOUS,
                f"there is no {kind or 'element'} named {name!r} here",
                f"did you mean {close[0]!r}?" if close else None,
            )
    shown = [repr(tokens[index].text) for index in unknown]
    return Refusal(RefusalKind.NOT_UNDERSTOOD, f"not understood: {', '.join(shown[:8])}", details=tuple(shown))
