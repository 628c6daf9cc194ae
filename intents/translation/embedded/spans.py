"""What each part of an understood sentence was taken to mean, for the user to read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intents.translation.embedded.lexicon import lexicon
from intents.translation.interface import Span

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intents.translation.embedded.tokens import Token

_GLOSSES = {
    "NEG": "negation",
    "ONLY": "nothing else",
    "MODAL": "how strongly it is meant",
    "VERB": "what is asked",
    "NOUN": "which sort of thing",
    "EXCEPT": "an exception",
    "SOFT": "preferred, not required",
    "FILLER": "says nothing that could be checked",
    "PRON": "what was spoken of before",
    "POSSPRON": "what was spoken of before",
    "OUT": "not there",
    "QUANT": "how many of them",
}
_LONGEST = 9


def spans_of(sentence: str, tokens: Sequence[Token], meanings: Mapping[tuple[int, int], str]) -> tuple[Span, ...]:
    """Return one span per mention and per word or phrase of the language; together they cover every word."""
    found: list[Span] = []
    begins = {first: (last, meaning) for (first, last), meaning in sorted(meanings.items())}
    index = 0
    while index < len(tokens):
        if index in begins:
            last, meaning = begins[index]
        else:
            last, meaning = _word(tokens, index, begins)
        if tokens[index].kind != "mark" or index in begins or any(each.isalnum() for each in tokens[index].text):
            start, end = tokens[index].start, tokens[last - 1].end
            found.append(Span(start, end, sentence[start:end], meaning))
        index = last
    return tuple(found)


def _word(tokens: Sequence[Token], first: int, begins: Mapping[int, object]) -> tuple[int, str]:
    said: list[str] = []
    best, meaning = first + 1, "part of the phrase around it"
    for index in range(first, min(first + _LONGEST, len(tokens))):
        if tokens[index].kind != "word" or (index > first and index in begins):
            break
        said.append(tokens[index].norm)
        entries = lexicon().get(tuple(said), ())
        if entries:
            best = index + 1
            glosses = [_GLOSSES[category] for category, _ in entries if category in _GLOSSES]
            meaning = glosses[0] if glosses else "joins the parts of the sentence"
    return best, meaning
