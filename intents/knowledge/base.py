"""The knowledge base: the YAML files next to this module, read once, looked up by words.

Nothing here depends on an inventory. Every list in the files names its source and the date at which it was looked up;
a member list is meant as it stands and is never fetched. Country names in other languages come from pycountry.
"""

from __future__ import annotations

import gettext
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import pycountry
import yaml

from intents.knowledge.words import Words, words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Area:
    """A country, a subdivision or a group of countries: ISO 3166 codes, with what to call it and where it is from."""

    title: str
    codes: tuple[str, ...]
    source: str
    as_of: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class City:
    """A city, its country, and the words and codes that labels may have for it."""

    title: str
    country: str
    names: tuple[Words, ...]


@dataclass(frozen=True, slots=True)
class Class:
    """A class of labels' values: `group` is tiers, trust, data, flags or providers; `values` all mean the class."""

    group: str
    name: str
    values: tuple[str, ...]
    else_readings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Everything by words; a word may be in several of these.

    Attributes:
        areas: Countries and unions.
        codes: ISO 3166 codes; they count only where they are written in capitals.
        several_areas: Words with several readings.
        cities: A name may belong to several cities.
        cloud_regions: Country and city by region code in words.
        classes: Tiers, trust, data classes, providers.
        flags: Label and whether it is true, by words.
        unclear: Why a word is no limit that could be checked.
        out_of_scope: The topic that a word belongs to.
    """

    areas: Mapping[Words, Area]
    codes: Mapping[Words, Area]
    several_areas: Mapping[Words, tuple[Area, ...]]
    cities: Mapping[Words, tuple[City, ...]]
    cloud_regions: Mapping[Words, tuple[str, Words]]
    classes: Mapping[Words, tuple[Class, ...]]
    flags: Mapping[Words, tuple[str, bool]]
    unclear: Mapping[Words, str]
    out_of_scope: Mapping[Words, str]

    def class_named(self, group: str, name: str) -> Class:
        """Return the class of this group and name; KeyError if there is none."""
        return next(
            each for found in self.classes.values() for each in found if (each.group, each.name) == (group, name)
        )


@cache
def knowledge() -> Knowledge:
    """Read the files; later calls return the same object."""
    places, concepts = _read("unions"), _read("concepts")
    unions = dict(_unions(places["unions"]))
    areas: dict[Words, Area] = dict(_countries(_read("countries")))
    for name, union in places["unions"].items():
        areas |= {words(each): unions[name] for each in union.get("words", ())}
    several = {
        words(word): tuple(unions[name] for name in names)
        for word, names in places["several_readings"]["words"].items()
    }
    for word in several:
        areas.pop(word, None)
    return Knowledge(
        areas=areas,
        codes=dict(_codes()),
        several_areas=several,
        cities=_cities(_read("cities")),
        cloud_regions=dict(_cloud_regions(_read("cloud_regions"))),
        classes=_classes(concepts),
        flags=dict(_flags(concepts["flags"]["classes"])),
        unclear={words(word): why for word, why in concepts["several_readings"]["words"].items()},
        out_of_scope={
            words(word): topic for topic, found in concepts["out_of_scope"]["topics"].items() for word in found
        },
    )


def _read(name: str) -> Any:
    text = resources.files("intents.knowledge").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader


def _unions(listed: Mapping[str, Any]) -> Iterator[tuple[str, Area]]:
    def members(name: str) -> set[str]:
        union = listed[name]
        return set(union["members"]).union(*(members(each) for each in union.get("includes", ())))

    for name, union in listed.items():
        yield (
            name,
            Area(
                union["title"],
                tuple(sorted(members(name))),
                union["source"],
                str(union["as_of"]),
                union.get("note", ""),
            ),
        )


def _countries(extra: Mapping[str, Any]) -> Iterator[tuple[Words, Area]]:
    translations = [
        gettext.translation("iso3166-1", pycountry.LOCALES_DIR, languages=[language]) for language in extra["languages"]
    ]
    also = {str(code): names for code, names in extra["also"].items()}
    as_of = str(extra["as_of"])
    for country in pycountry.countries:
        title = getattr(country, "common_name", country.name)
        area = Area(title, (country.alpha_2,), "ISO 3166-1", as_of)
        official = {title, country.name, getattr(country, "official_name", title)}
        local = {each.gettext(name) for each in translations for name in official}
        for name in official | local:
            # "Korea, Republic of", "Russie, Fédération de": what stands behind the comma belongs in front.
            head, comma, tail = name.partition(", ")
            yield words(f"{tail} {head}") if comma else words(head), area
    for code, names in also.items():
        title = pycountry.countries.get(alpha_2=code) or pycountry.subdivisions.get(code=code)
        area = Area(getattr(title, "common_name", title.name), (code,), extra["source"], as_of)
        for name in names:
            yield words(name), area


def _codes() -> Iterator[tuple[Words, Area]]:
    for country in pycountry.countries:
        title = getattr(country, "common_name", country.name)
        area = Area(title, (country.alpha_2,), "ISO 3166-1", "")
        yield (country.alpha_2.lower(),), area
        yield (country.alpha_3.lower(),), area
    yield ("uk",), Area("United Kingdom", ("GB",), "ISO 3166-1", "")


def _cities(listed: Mapping[str, Any]) -> dict[Words, tuple[City, ...]]:
    found: dict[Words, tuple[City, ...]] = {}

    def add(city: City) -> None:
        for name in city.names:
            found[name] = (*found.get(name, ()), city)

    for country, cities in listed["cities"].items():
        for title, known in cities.items():
            names = (title, *(known or {}).get("also", ()), *(known or {}).get("codes", ()))
            add(City(title, str(country), tuple(dict.fromkeys(words(str(name)) for name in names))))
    for country, names in listed["more"]["names"].items():
        for title in names:
            add(City(title, str(country), (words(title),)))
    return found


def _cloud_regions(listed: Mapping[str, Any]) -> Iterator[tuple[Words, tuple[str, Words]]]:
    for provider in ("aws", "gcp", "azure"):
        for code, (country, city) in listed[provider]["regions"].items():
            yield words(code), (country, words(city))


def _classes(concepts: Mapping[str, Any]) -> dict[Words, tuple[Class, ...]]:
    found: dict[Words, tuple[Class, ...]] = {}
    for group in ("tiers", "trust", "data", "providers"):
        for name, known in concepts[group]["classes"].items():
            each = Class(group, name, tuple(known["values"]), tuple(known.get("else_readings", ())))
            for word in dict.fromkeys(words(word) for word in known["words"]):
                found[word] = (*found.get(word, ()), each)
    return found


def _flags(listed: Mapping[str, Any]) -> Iterator[tuple[Words, tuple[str, bool]]]:
    for key, known in listed.items():
        for word in known["words"]:
            yield words(word), (key, True)
        for word in known.get("absent", ()):
            yield words(word), (key, False)
