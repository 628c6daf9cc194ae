"""Which events a trigger wants: the filters of Knative's Trigger, as values.

`Matching` is the older ``spec.filter.attributes``, where empty text stands for any value that is there. The others are
``spec.filters``, the Subscriptions API of CloudEvents. All compare text, with case; an attribute that an event does not
have matches nothing.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping


class Filter(Protocol):
    """Something that an event passes or not."""

    def matches(self, attributes: Mapping[str, str]) -> bool:
        """Whether an event with these attributes passes."""
        ...


@dataclass(frozen=True, slots=True)
class Matching:
    """Every attribute has the value wanted, or is just there if the value wanted is empty."""

    wanted: tuple[tuple[str, str], ...]

    def matches(self, attributes: Mapping[str, str]) -> bool:
        """Whether an event with these attributes passes."""
        return all(name in attributes and text in {"", attributes[name]} for name, text in self.wanted)


class Comparison(enum.StrEnum):
    """How `Comparing` compares."""

    EXACT = "exact"
    PREFIX = "prefix"
    SUFFIX = "suffix"


@dataclass(frozen=True, slots=True)
class Comparing:
    """Every attribute named is there and equals, begins with or ends with the text given."""

    comparison: Comparison
    wanted: tuple[tuple[str, str], ...]

    def matches(self, attributes: Mapping[str, str]) -> bool:
        """Whether an event with these attributes passes."""
        return all(name in attributes and self._holds(attributes[name], text) for name, text in self.wanted)

    def _holds(self, value: str, text: str) -> bool:
        match self.comparison:
            case Comparison.EXACT:
                return value == text
            case Comparison.PREFIX:
                return value.startswith(text)
            case Comparison.SUFFIX:
                return value.endswith(text)


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every one of the filters passes; of no filters, everything does."""

    filters: tuple[Filter, ...]

    def matches(self, attributes: Mapping[str, str]) -> bool:
        """Whether an event with these attributes passes."""
        return all(one.matches(attributes) for one in self.filters)


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one of the filters passes."""

    filters: tuple[Filter, ...]

    def matches(self, attributes: Mapping[str, str]) -> bool:
        """Whether an event with these attributes passes."""
        return any(one.matches(attributes) for one in self.filters)


@dataclass(frozen=True, slots=True)
class Not:
    """The filter does not pass."""

    negated: Filter

    def matches(self, attributes: Mapping[str, str]) -> bool:
        """Whether an event with these attributes passes."""
        return not self.negated.matches(attributes)
