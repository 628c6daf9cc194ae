"""Places on this inventory: by jurisdiction, by cloud region, by what regions, zones and sites are called.

A country is proven by the jurisdiction; where no element of the kind has one, by cloud regions and city names whose
country is known. A city is proven only by a label that names it: its country proves neither that something is in the
city nor that it is not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intents.knowledge.base import knowledge
from intents.knowledge.words import words
from intents.model import labels
from intents.model.predicate import Predicate, both, either, opposite, term

if TYPE_CHECKING:
    from intents.knowledge.base import Area, City
    from intents.knowledge.words import Words
    from intents.translation.embedded.vocabulary import Kind, Vocabulary

_SITES = frozenset(
    {
        "site",
        "city",
        "location",
        "datacenter",
        "dc",
        "metro",
        "campus",
        "facility",
        "place",
        "pop",
        "town",
        "region",
        "zone",
    }
)

_COUNTRIES = frozenset({"country", "countrycode", "country-code", "country_code", "nation"})


@dataclass(frozen=True, slots=True)
class Grounded:
    """What proves that an element is meant, and what proves that it is not."""

    yes: Predicate
    no: Predicate


def area(wanted: Area, kind: Kind, vocabulary: Vocabulary) -> Grounded:
    """Return the predicates for a country or a group of countries."""
    jurisdictions = vocabulary.values_of.get((kind, labels.JURISDICTION), {})
    if jurisdictions:
        return _by_jurisdiction(wanted, [labels.jurisdiction(each) for each in jurisdictions])
    for (each, key), values in vocabulary.values_of.items():
        if (
            each == kind
            and key.rpartition("/")[2].casefold() in _COUNTRIES
            and all(_is_code(value) for value in values)
        ):
            inside = [value for value in values if labels.jurisdiction(value) in wanted.codes]
            outside = [value for value in values if value not in inside]
            none = term(labels.JURISDICTION, *wanted.codes)
            return Grounded(term(key, *inside) if inside else none, term(key, *outside) if outside else opposite(none))
    for key in (labels.REGION, labels.ZONE):
        countries = {value: _country(value) for value in vocabulary.values_of.get((kind, key), {})}
        inside = [value for value, country in countries.items() if country in wanted.codes]
        outside = [value for value, country in countries.items() if country is not None and country not in wanted.codes]
        if inside or outside:
            nowhere = term(labels.JURISDICTION, *wanted.codes)
            return Grounded(
                term(key, *inside) if inside else nowhere, term(key, *outside) if outside else opposite(nowhere)
            )
    inside_term = term(labels.JURISDICTION, *wanted.codes)
    return Grounded(inside_term, opposite(inside_term))


def _by_jurisdiction(wanted: Area, present: list[str]) -> Grounded:
    yes = term(labels.JURISDICTION, *wanted.codes)
    parts = [code for code in wanted.codes if "-" in code]
    if not parts:
        return Grounded(yes, opposite(yes))
    # An element labelled with the country alone may lie in any part of it.
    countries = sorted({code.partition("-")[0] for code in wanted.codes})
    others = [each for each in present if "-" in each and each.partition("-")[0] in countries and each not in parts]
    outside = term(labels.JURISDICTION, *countries, op="not_in")
    return Grounded(yes, either(outside, term(labels.JURISDICTION, *others)) if others else outside)


def city(wanted: City, kind: Kind, vocabulary: Vocabulary) -> Grounded | None:
    """Return the predicates for a city; None if no label of this kind names it."""
    found: dict[str, list[str]] = {}
    for (each, key), values in vocabulary.values_of.items():
        if each == kind and key.rpartition("/")[2].casefold() in _SITES:
            named = [value for value in values if _names(value, wanted)]
            if named:
                found[key] = named
    if not found:
        return None
    predicates = {key: term(key, *values) for key, values in found.items()}
    proven = {key: _selected(predicate, kind, vocabulary) for key, predicate in predicates.items()}
    everywhere: set[int] = set().union(*proven.values())
    for index in everywhere:
        jurisdiction = vocabulary.elements[kind][index][1].get(labels.JURISDICTION)
        if jurisdiction is not None and labels.jurisdiction(jurisdiction).partition("-")[0] != wanted.country:
            return None
    for key, predicate in predicates.items():
        if proven[key] == everywhere:
            return Grounded(predicate, opposite(predicate))
    return Grounded(either(*predicates.values()), both(*(opposite(each) for each in predicates.values())))


def _selected(predicate: Predicate, kind: Kind, vocabulary: Vocabulary) -> set[int]:
    return {
        index
        for index, (name, own, ends) in enumerate(vocabulary.elements[kind])
        if (predicate.holds(name, own) if ends is None else predicate.holds_for_link(name, own, ends))
    }


def _names(value: str, wanted: City) -> bool:
    said = words(value)
    region = _region(said)
    if region is not None:
        return region[1] in wanted.names
    return any(
        said[start : start + len(name)] == name for name in wanted.names for start in range(len(said) - len(name) + 1)
    )


def _region(said: Words) -> tuple[str, Words] | None:
    """Return country and city of a cloud region, or of a zone in one (`eu-central-1a`, `europe-west3-b`)."""
    regions = knowledge().cloud_regions
    if said in regions:
        return regions[said]
    if said and len(said[-1]) == 1 and said[:-1] in regions:
        return regions[said[:-1]]
    zone = re.fullmatch(r"(\d+)[a-z]", said[-1]) if said else None
    if zone is not None:
        return regions.get((*said[:-1], zone.group(1)))
    return None


def _is_code(value: str) -> bool:
    return (labels.jurisdiction(value).lower(),) in knowledge().codes


def _country(value: str) -> str | None:
    """Return the country of a region's or zone's name, if it is known."""
    said = words(value)
    region = _region(said)
    if region is not None:
        return region[0]
    known = knowledge()
    places = {area.codes[0] for start in range(len(said)) for end in range(start + 1, len(said) + 1)
              if (area := known.areas.get(said[start:end])) is not None and len(area.codes) == 1}  # fmt: skip
    places |= {each.country for start in range(len(said)) for end in range(start + 1, len(said) + 1)
               for each in known.cities.get(said[start:end], ())}  # fmt: skip
    return places.pop() if len(places) == 1 else None
