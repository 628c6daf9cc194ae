"""The words of the language itself: function words, nouns of elements and verbs by class, in all their forms.

They stand in lexicon.yaml. What they *mean* is decided elsewhere; places, tiers and the like are knowledge, not
language. An entry has a category and a value, and a phrase may have several entries. Every form is listed under its
words, so that looking up is one dictionary access per length. A phrase may list alternatives: `(in|during) a move`.
"""

from __future__ import annotations

import itertools
import re
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import yaml

from intents.knowledge.words import Words, words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Entry = tuple[str, str]

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@cache
def lexicon() -> Mapping[Words, tuple[Entry, ...]]:
    """Return the entries by words."""
    found: dict[Words, dict[Entry, None]] = {}
    for phrase, entry in _entries(_file()):
        found.setdefault(phrase, {})[entry] = None
    return {phrase: tuple(entries) for phrase, entries in found.items()}


@cache
def verb_class() -> Mapping[str, str]:
    """Return the class of each verb."""
    return {lemma: name for name, lemmas in _file()["verbs"].items() for lemma in lemmas}


@cache
def _file() -> Any:
    text = resources.files("intents.translation.embedded").joinpath("lexicon.yaml").read_text(encoding="utf-8")
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader


def _entries(file: Any) -> Iterator[tuple[Words, Entry]]:
    for category, values in file["words"].items():
        for value, phrases in values.items():
            for phrase in phrases:
                for each in _alternatives(phrase):
                    yield words(each), (category, value)
                    for even in _even(file) if category == "MIGRATION" else ():
                        yield words(f"{even} {each}"), ("EVENIN", value)
    for kind, nouns in file["nouns"].items():
        for noun in nouns:
            for each in _alternatives(noun):
                yield words(each), ("NOUN", kind)
    for lemma in verb_class():
        verb, _, particle = lemma.partition(" ")  # "cut off": the forms of "cut"
        for form, shape in _forms(verb, file["irregular"].get(verb, ())):
            yield words(f"{form} {particle}"), ("VERB", f"{lemma}:{shape}")
    for form in ("end", "ends", "wind", "winds"):
        yield (form, "up"), ("VERB", "land:base")
    yield ("'s",), ("POSS", "of")
    for arrow, value in (("->", "to"), ("<->", "both")):
        yield (arrow,), ("ARROW", value)


def _even(file: Any) -> list[str]:
    return list(file["words"]["EVENIN"]["even"])


def _alternatives(phrase: str) -> Iterator[str]:
    """Yield what `(during|on) (a|) migration` stands for: every choice of its alternatives."""
    parts = [part.split("|") for part in re.split(r"[()]", phrase)]
    yield from ("".join(chosen) for chosen in itertools.product(*parts))


def _forms(lemma: str, irregular: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the forms of a verb with their shape: `base`, `ing` or `ed`."""
    stem = lemma if lemma.endswith("ee") else lemma.removesuffix("e")
    if lemma.endswith("y") and lemma[-2] not in "aeiou":
        third, past = lemma[:-1] + "ies", lemma[:-1] + "ied"
    else:
        third, past = lemma + ("es" if lemma.endswith(("s", "x", "ch", "sh", "o")) else "s"), stem + "ed"
    yield lemma, "base"
    yield third, "base"
    for form in irregular:
        yield form, "ing" if form.endswith("ing") else "ed"
    if not any(form.endswith("ing") for form in irregular):
        yield stem + "ing", "ing"
    if all(form.endswith("ing") for form in irregular):
        yield past, "ed"
