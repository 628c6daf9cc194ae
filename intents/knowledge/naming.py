"""The name that people have for a list of codes: "the European Union" for its members, "Germany" for DE."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import pycountry

from intents.knowledge.base import knowledge
from intents.model import labels

if TYPE_CHECKING:
    from collections.abc import Mapping


def naming(key: str, values: tuple[str, ...]) -> str | None:
    """Return the name for these values of a label together, or None if they have none."""
    if key != labels.JURISDICTION:
        return None
    if len(values) == 1:
        country = pycountry.countries.get(alpha_2=labels.jurisdiction(values[0]))
        return country.name if country is not None else None
    return _unions().get(frozenset(values))


@cache
def union_members() -> Mapping[str, tuple[str, ...]]:
    """Return the codes of the members of every union of countries, by its title."""
    areas = sorted(set(knowledge().areas.values()), key=lambda area: area.title)
    return {area.title: tuple(sorted(area.codes)) for area in areas if len(area.codes) > 1}


@cache
def _unions() -> Mapping[frozenset[str], str]:
    return {frozenset(members): f"the {title}" for title, members in union_members().items()}
