"""What a mention means for one kind of element: a name, a label's value, a place, a class, a flag, as predicates.

A mention with several senses is grounded in all of them; where they select the same elements the first counts, where
they differ the sentence is ambiguous.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intents.knowledge.base import knowledge
from intents.model import labels
from intents.model.predicate import Predicate, named, opposite, term
from intents.model.refusal import RefusalKind
from intents.translation.embedded.places import Grounded, area, city
from intents.translation.embedded.refusals import Refused, refused
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
from intents.translation.embedded.tree import Said, Selector
from intents.translation.embedded.vocabulary import FALSE, TRUE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from intents.knowledge.base import Class
    from intents.model.predicate import Known
    from intents.translation.embedded.vocabulary import Kind, Vocabulary

_KEY_OF = {"tiers": labels.TIER, "trust": labels.TRUST, "providers": labels.PROVIDER, "data": labels.DATA}
_SHOWN = 8
_DATA_KEYS = frozenset({"data", "class", "classification", "sensitivity", "category", "dataclass"})


@dataclass(frozen=True, slots=True)
class Reading:
    """One sense of a mention as predicates, in words."""

    grounded: Grounded
    meaning: str
    by_name: bool = False
    empty: bool = False


class Readings:
    """Grounds the mentions of one sentence; `meanings` says afterwards what each was taken for."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._knowledge = knowledge()
        self.meanings: dict[tuple[int, int], str] = {}

    def holds(self, predicate: Predicate, kind: Kind, index: int) -> Known:
        """Judge one element of the inventory."""
        name, own, ends = self._vocabulary.elements[kind][index]
        return predicate.holds(name, own) if ends is None else predicate.holds_for_link(name, own, ends)

    def _mention(self, said: Said, kind: Kind, subject: str) -> Grounded:
        mention = said.mention
        wanted = said.name_wanted or mention.quoted
        readings = list(self._readings(mention, kind, named_wanted=wanted, several=subject == "label"))
        if not readings:
            raise self._nothing(mention, kind)
        chosen = self._choose(mention, kind, readings, subject)
        self.meanings[mention.first, mention.last] = chosen.meaning
        return chosen.grounded

    def _nothing(self, mention: Mention, kind: Kind) -> Refused:
        for sense in mention.senses:
            if isinstance(sense, PartOfName):
                return refused(
                    RefusalKind.AMBIGUOUS,
                    f"{mention.text!r} is part of several names: {', '.join(sorted(sense.names))}",
                    f"name one of {', '.join(sorted(sense.names))}",
                )
        keys = [sense.key for sense in mention.senses if isinstance(sense, Pair)]
        keys += [key for sense in mention.senses if isinstance(sense, Valued) for _, key, _ in sense.where]
        if keys and not any(isinstance(sense, Classes | Areas | Cities | Flag) for sense in mention.senses):
            return self._no_such_value(mention, kind, dict.fromkeys(keys))
        if mention.quoted:
            return refused(RefusalKind.VACUOUS, f"nothing here is named {mention.text}")
        return refused(RefusalKind.NOT_UNDERSTOOD, f"{mention.text!r} says nothing about a {kind} of this inventory")

    def _no_such_value(self, mention: Mention, kind: Kind, keys: Iterable[str]) -> Refused:
        for key in keys:
            values = sorted(self._vocabulary.values_of.get((kind, key), {}))
            if values:
                wanted = mention.text.rpartition("=")[2].strip("\"' ")
                close = difflib.get_close_matches(wanted, values[:2000], n=1)
                more = ", ..." if len(values) > _SHOWN else ""
                return refused(
                    RefusalKind.VACUOUS,
                    f"no {kind} is labelled {mention.text}: {key} is {', '.join(values[:_SHOWN])}{more}",
                    f"did you mean {key}={close[0]}?" if close else None,
                )
        return refused(RefusalKind.VACUOUS, f"no {kind} is labelled {mention.text}, nor has it another such label")

    def may_occur(self, selector: Selector, kind: Kind) -> bool:
        """Whether this is not a label's value that no element of this kind has."""
        pairs = isinstance(selector, Said) and [each for each in selector.mention.senses if isinstance(each, Pair)]
        return not pairs or any(self._occurs(each, kind) for each in pairs)

    def _occurs(self, pair: Pair, kind: Kind) -> bool:
        """Whether an element has such a value, or the value is known: a country, `untrusted`, `true`."""
        present = self._vocabulary.values_of.get((kind, pair.key), {})
        return any(
            labels.value_matches(pair.key, each, value) or _is_known(pair.key, value)
            for value in pair.values
            for each in (*present, "")
        )

    def _choose(self, mention: Mention, kind: Kind, readings: list[Reading], subject: str) -> Reading:
        present = [each for each in readings if not each.empty and self._carried(each, kind)]
        readings = present or readings
        if subject == "name" and any(each.by_name for each in readings):
            readings = [each for each in readings if each.by_name]
        if subject == "label" and any(not each.by_name for each in readings):
            readings = [each for each in readings if not each.by_name]
        if len(readings) > 1:
            vectors = [self._vector(each.grounded, kind) for each in readings]
            differing = [each for each, vector in zip(readings, vectors, strict=True) if vector != vectors[0]]
            if differing:
                said = "; ".join(dict.fromkeys(each.meaning for each in readings))
                raise refused(
                    RefusalKind.AMBIGUOUS,
                    f"{mention.text!r} can mean several things that differ on this inventory: {said}",
                    f"say one of: {said}",
                    final=True,
                    details=tuple(dict.fromkeys(each.meaning for each in readings)),
                )
        return readings[0]

    def _carried(self, reading: Reading, kind: Kind) -> bool:
        keys = reading.grounded.yes.keys()
        return all(key == labels.NAME or (kind, key) in self._vocabulary.values_of for key in keys)

    def _vector(self, grounded: Grounded, kind: Kind) -> list[Known]:
        return [self.holds(grounded.yes, kind, index) for index in range(len(self._vocabulary.elements[kind]))]

    def _readings(self, mention: Mention, kind: Kind, *, named_wanted: bool, several: bool) -> Iterator[Reading]:
        others = any(not isinstance(sense, Named | PartOfName) for sense in mention.senses)
        found = False
        for sense in mention.senses:
            if isinstance(sense, PartOfName):
                continue
            if isinstance(sense, Named) and sense.plain and not named_wanted and (others or not mention.quoted):
                continue
            for reading in self._sense(mention, sense, kind):
                found = True
                yield reading
        for sense in mention.senses:
            if found or kind != "workload" or not isinstance(sense, PartOfName):
                continue
            if len(sense.names) == 1 or several:  # "the llm workloads": all that are called so
                yield Reading(_of(named(*sense.names)), f"the workloads {', '.join(sense.names)}", by_name=True)

    def _sense(self, mention: Mention, sense: Sense, kind: Kind) -> Iterator[Reading]:
        if isinstance(sense, Named):
            names = [name for each, name in sense.elements if each == kind]
            if len(names) > 1 and kind != "link":
                raise refused(
                    RefusalKind.AMBIGUOUS,
                    f"{mention.text!r} is the name of several: {', '.join(sorted(names))}",
                    final=True,
                )
            if names:
                yield Reading(_of(named(*names)), f"the {kind} {names[0]}", by_name=True)
        elif isinstance(sense, Pair):
            if not self._occurs(sense, kind):
                return
            value = _of(term(sense.key, *sense.values))
            yield Reading(
                Grounded(value.no, value.yes) if sense.negated else value,
                f"{sense.key} is {'not ' if sense.negated else ''}{', '.join(sense.values)}",
            )
        elif isinstance(sense, Valued):
            keys: dict[str, list[str]] = {}
            for where, key, text in sense.where:
                if where == kind:
                    keys.setdefault(key, []).append(text)
            for key, values in keys.items():
                yield Reading(_of(term(key, *values)), f"{key} is {values[0]}")
        elif isinstance(sense, Flag):
            yield self._flag(sense, kind)
        elif isinstance(sense, Areas):
            for place in sense.readings:
                yield Reading(area(place, kind, self._vocabulary), _title(place.title, place.codes, place.as_of))
        elif isinstance(sense, Cities):
            found = [(town, city(town, kind, self._vocabulary)) for town in sense.readings]
            if not any(grounded for _, grounded in found) and len(mention.senses) == 1:
                raise self._unprovable_city(mention, sense)
            for town, grounded in found:
                if grounded is not None:
                    yield Reading(grounded, f"{town.title}, by its labels here")
        elif isinstance(sense, Classes):
            for known in sense.readings:
                yield from self._class(known, kind)

    def _unprovable_city(self, mention: Mention, sense: Cities) -> Refused:
        countries = sorted({each.country for each in sense.readings})
        title = self._knowledge.codes[countries[0].lower(),].title if len(countries) == 1 else ", ".join(countries)
        return refused(
            RefusalKind.VACUOUS,
            f"no label here says what is in {mention.text}: being in {title} proves neither that nor the opposite",
            f"say {title}, or label what is in {mention.text}",
        )

    def _flag(self, sense: Flag, kind: Kind) -> Reading:
        values = self._vocabulary.values_of.get((kind, sense.key), {})
        positive = [value for value in values if value.casefold() not in FALSE] or ["true"]
        negative = [value for value in values if value.casefold() in FALSE]
        if all(value.casefold() in TRUE for value in positive):
            yes, no = term(sense.key, *positive), term(sense.key, *positive, op="not_in")
        else:
            yes, no = term(sense.key, *positive), term(sense.key, *(negative or ["false"]))
        name = sense.key.rpartition("/")[2]
        if sense.present:
            return Reading(Grounded(yes, no), f"with {name}")
        return Reading(Grounded(no, yes), f"without {name}")

    def _class(self, known: Class, kind: Kind) -> Iterator[Reading]:
        if (known.group == "data") != (kind == "workload"):
            return
        key = _KEY_OF[known.group]
        present = [
            value for value in self._vocabulary.values_of.get((kind, key), {}) if value.casefold() in known.values
        ]
        if known.group == "data" and not present:
            for (each, other), values in self._vocabulary.values_of.items():
                matching = [value for value in values if value.casefold() in known.values]
                last = set(other.rpartition("/")[2].replace("_", "-").split("-"))
                if each == kind and matching and last & _DATA_KEYS:
                    yield Reading(_of(term(other, *matching)), f"{known.name} data ({other} is {', '.join(matching)})")
                    return
        if not present and known.else_readings:
            for other in known.else_readings:
                name = other.removeprefix("not ")
                named_class = self._knowledge.class_named(known.group, name)
                here = [
                    v for v in self._vocabulary.values_of.get((kind, key), {}) if v.casefold() in named_class.values
                ]
                found = _of(term(key, *(here or [name])))
                yield Reading(Grounded(found.no, found.yes) if other != name else found, f"{key} is {other}")
            return
        if known.group == "trust":
            yield Reading(_of(term(key, *known.values)), f"{key} is {' or '.join(known.values)}")
            return
        meant = present or [known.name]
        yield Reading(_of(term(key, *meant)), f"{key} is {' or '.join(meant)}", empty=not present)


def _is_known(key: str, value: str) -> bool:
    known = knowledge()
    if key == labels.JURISDICTION:
        return (labels.jurisdiction(value).partition("-")[0].lower(),) in known.codes
    if key in {labels.CONFIDENTIAL, labels.ENCRYPTED}:
        return value.casefold() in TRUE | FALSE
    groups = {group for group, each in _KEY_OF.items() if each == key and group in {"tiers", "trust"}}
    return any(
        value.casefold() in each.values for found in known.classes.values() for each in found if each.group in groups
    )


def _of(predicate: Predicate) -> Grounded:
    return Grounded(predicate, opposite(predicate))


def _title(title: str, codes: tuple[str, ...], as_of: str) -> str:
    if len(codes) == 1:
        return f"{title} ({codes[0]})"
    return f"{title}: {', '.join(codes)} (as of {as_of})"
