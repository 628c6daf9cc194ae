"""From a selector to predicates over this inventory: one that proves it, and one that proves its opposite.

The two are kept apart because the opposite of "in the US" is not always the negated term: where only cloud regions tell
where a node is, a region that nobody knows proves neither. A mention with several senses is grounded in all of them;
where they select the same elements the first counts, where they differ the sentence is ambiguous.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intents.knowledge.base import knowledge
from intents.model import labels
from intents.model.predicate import ANYTHING, NOTHING, Predicate, both, either, named, opposite, term
from intents.model.refusal import Refusal, RefusalKind
from intents.translation.embedded.places import Grounded, area, city
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
from intents.translation.embedded.tree import Everything, Join, Minus, Not, Said, Selector
from intents.translation.embedded.vocabulary import FALSE, TRUE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from intents.knowledge.base import Class
    from intents.model.predicate import Known
    from intents.translation.embedded.vocabulary import Kind, Vocabulary

_KEY_OF = {"tiers": labels.TIER, "trust": labels.TRUST, "providers": labels.PROVIDER, "data": labels.DATA}
_SHOWN = 8
_DATA_KEYS = frozenset({"data", "class", "classification", "sensitivity", "category", "dataclass"})


class Refused(Exception):
    """This reading of the sentence is refused; `final` if another reading would not help."""

    def __init__(self, refusal: Refusal, *, final: bool = False) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
        self.final = final


def refused(
    kind: RefusalKind, message: str, nearest: str | None = None, *, final: bool = False, details: tuple[str, ...] = ()
) -> Refused:
    """Return the exception that refuses with this message."""
    return Refused(Refusal(kind, message, nearest, details), final=final)


@dataclass(frozen=True, slots=True)
class Reading:
    """One sense of a mention as predicates, in words."""

    grounded: Grounded
    meaning: str
    by_name: bool = False
    empty: bool = False


class Grounder:
    """Grounds the selectors of one sentence; `meanings` says afterwards what each mention was taken for."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._knowledge = knowledge()
        self.meanings: dict[tuple[int, int], str] = {}

    def ground(self, selector: Selector, kind: Kind, *, avoid: bool = False, subject: str = "") -> Grounded:
        """Return the predicates of a selector for this kind of element.

        Args:
            selector: What was said.
            kind: The elements that it is said of.
            avoid: It is to be avoided, so that "untrusted and US nodes" means both sorts.
            subject: For subjects and peers: `name`, `label` or `any`, the sense to prefer. Exceptions then take away
                only what is proven to be excepted.
        """
        if isinstance(selector, Everything):
            return Grounded(ANYTHING, NOTHING)
        if isinstance(selector, Said):
            return self._mention(selector, kind, subject)
        if isinstance(selector, Not):
            part = self.ground(selector.part, kind, avoid=not avoid, subject=subject)
            return Grounded(self._without(part, kind) if subject else part.no, part.yes)
        if isinstance(selector, Minus):
            base = self.ground(selector.base, kind, avoid=avoid, subject=subject)
            taken = self.ground(selector.taken, kind, avoid=True, subject=subject)
            if subject and not self._selects(taken.yes, kind):
                raise refused(RefusalKind.VACUOUS, "the exception matches no workload")
            if subject and self._selects(base.yes, kind) and not self._selects(both(base.yes, taken.yes), kind):
                raise refused(RefusalKind.NOT_UNDERSTOOD, "the exception is none of those that it is taken from")
            rest = self._without(taken, kind) if subject else taken.no
            return Grounded(both(base.yes, rest), either(base.no, taken.yes))
        parts = [self.ground(part, kind, avoid=avoid, subject=subject) for part in selector.parts]
        if selector.how == "same":
            return self._described(parts[0], parts[1], kind)
        return self._join(selector, parts, avoid=avoid or bool(subject and selector.how == "and" and _names(selector)))

    def _described(self, named: Grounded, described: Grounded, kind: Kind) -> Grounded:
        """Return the first, if what stands in brackets behind it is true of all of it."""
        for index, _ in enumerate(self._vocabulary.elements[kind]):
            if self.holds(named.yes, kind, index) and not self.holds(described.yes, kind, index):
                raise refused(
                    RefusalKind.AMBIGUOUS,
                    "what stands in brackets is not the same as what stands before it",
                    final=True,
                )
        return named

    def _join(self, selector: Join, parts: list[Grounded], *, avoid: bool) -> Grounded:
        any_of = Grounded(either(*(part.yes for part in parts)), both(*(part.no for part in parts)))
        all_of = Grounded(both(*(part.yes for part in parts)), either(*(part.no for part in parts)))
        if selector.how == "or":
            return any_of
        if selector.how == "all":
            if _exclude_each_other(parts):
                raise refused(RefusalKind.NOT_UNDERSTOOD, "nothing can be all of this: `and` or `or` is missing")
            return all_of
        keys = [part.yes.keys() for part in parts]
        if avoid or all(each == keys[0] for each in keys):
            return any_of
        if any(labels.NAME in each for each in keys):
            raise refused(
                RefusalKind.AMBIGUOUS,
                "it is not clear whether all of these conditions or any of them is meant: say `or`",
                final=True,
            )
        return all_of

    def _without(self, part: Grounded, kind: Kind) -> Predicate:
        """Return everything that is not proven to be `part`: elements without the label stay in."""
        known = [
            (name, self.holds(part.yes, kind, index))
            for index, (name, _, _) in enumerate(self._vocabulary.elements[kind])
        ]
        if all(holds is not None for _, holds in known):
            return part.no
        names = [name for name, holds in known if holds]
        return term(labels.NAME, *names, op="not_in") if names else ANYTHING

    def holds(self, predicate: Predicate, kind: Kind, index: int) -> Known:
        """Judge one element of the inventory."""
        name, own, ends = self._vocabulary.elements[kind][index]
        return predicate.holds(name, own) if ends is None else predicate.holds_for_link(name, own, ends)

    def nodes_that_hold(self, predicate: Predicate) -> list[str]:
        """Return the nodes that satisfy a predicate over workloads and have no workload's name."""
        if predicate == ANYTHING:
            return []
        workloads = {name for name, _, _ in self._vocabulary.elements["workload"]}
        nodes = self._vocabulary.elements["node"]
        if not any(("node", key) in self._vocabulary.values_of for key in predicate.keys() - {labels.NAME}):
            return []
        return [name for name, own, _ in nodes if name not in workloads and predicate.holds(name, own)]

    def how_many(self, predicate: Predicate) -> int:
        """Return how many workloads satisfy a predicate."""
        return sum(
            self.holds(predicate, "workload", index) is True
            for index in range(len(self._vocabulary.elements["workload"]))
        )

    def _selects(self, predicate: Predicate, kind: Kind) -> bool:
        return any(self.holds(predicate, kind, index) for index in range(len(self._vocabulary.elements[kind])))

    # mentions

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


def _exclude_each_other(parts: list[Grounded]) -> bool:
    """Whether two parts ask for different values of one label: `Germany, France` without an `or`."""
    said = [
        part.yes.any_of[0].all_of[0] for part in parts if len(part.yes.any_of) == 1 == len(part.yes.any_of[0].all_of)
    ]
    return any(
        left.key == right.key and left.op == right.op == "in" and not set(left.values) & set(right.values)
        for index, left in enumerate(said)
        for right in said[index + 1 :]
    )


def _names(selector: Join) -> bool:
    return all(not isinstance(part, Not) for part in selector.parts)


def _title(title: str, codes: tuple[str, ...], as_of: str) -> str:
    if len(codes) == 1:
        return f"{title} ({codes[0]})"
    return f"{title}: {', '.join(codes)} (as of {as_of})"
