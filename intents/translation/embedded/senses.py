"""What a mention may stand for, before it is known what kind of element it is said of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intents.knowledge.base import Area, City, Class
    from intents.translation.embedded.vocabulary import Kind


@dataclass(frozen=True, slots=True)
class Named:
    """Elements of this name; `plain` if the name is an ordinary word, which needs an element's noun beside it."""

    elements: tuple[tuple[Kind, str], ...]
    plain: bool = False


@dataclass(frozen=True, slots=True)
class Valued:
    """A label's value that occurs in the inventory."""

    where: tuple[tuple[Kind, str, str], ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """A label and values, as `disk=ssd` says it; `negated` for `!=`."""

    key: str
    values: tuple[str, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Flag:
    """A label that is true or not."""

    key: str
    present: bool = True


@dataclass(frozen=True, slots=True)
class Areas:
    """A place by countries; several for a word with several readings."""

    readings: tuple[Area, ...]


@dataclass(frozen=True, slots=True)
class Cities:
    """A city, or several of one name."""

    readings: tuple[City, ...]


@dataclass(frozen=True, slots=True)
class Classes:
    """Classes of label values."""

    readings: tuple[Class, ...]


@dataclass(frozen=True, slots=True)
class PartOfName:
    """A part of workloads' names."""

    names: tuple[str, ...]


Sense = Named | Valued | Pair | Flag | Areas | Cities | Classes | PartOfName


@dataclass(frozen=True, slots=True)
class Mention:
    """Words of the sentence (tokens `first` up to `last`, exclusive) that name something."""

    first: int
    last: int
    text: str
    senses: tuple[Sense, ...]
    quoted: bool = False
