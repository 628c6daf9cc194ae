"""What an inventory calls things: names, labels' values and keys, by words. Built once per inventory.

A sentence is looked up in this index, never the other way round, so that a sentence about 5,000 nodes costs as much as
one about five. What stands in names and labels is data: it is compared, and never read as language.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import pycountry

from intents.knowledge.base import Area
from intents.knowledge.words import Words, words
from intents.model import labels

if TYPE_CHECKING:
    from collections.abc import Mapping

    from intents.model.inventory import Inventory

Kind = Literal["node", "workload", "switch", "link"]
KINDS: tuple[Kind, ...] = ("node", "workload", "switch", "link")
TRUE = frozenset({"true", "yes", "on", "enabled"})
FALSE = frozenset({"false", "no", "off", "none", "disabled", "0"})
_LONGEST = 24


@dataclass(slots=True)
class Vocabulary:
    """The index.

    Attributes:
        names: (kind, name) by words.
        values: (kind, key, value) by words of the value.
        keys: (kind, key) by words of the key, and of what stands behind its slash.
        parts: Workloads by part of their name.
        elements: (name, labels) by kind; for links the labels of both ends too.
        values_of: The values that occur, by kind and key.
        parts_of_countries: Subdivisions by their own code without that of the country: `ca` is `US-CA`, if it occurs.
        longest: The most words that anything here has.
    """

    names: dict[Words, list[tuple[Kind, str]]] = field(default_factory=dict)
    values: dict[Words, dict[tuple[Kind, str, str], None]] = field(default_factory=dict)
    keys: dict[Words, dict[tuple[Kind, str], None]] = field(default_factory=dict)
    parts: dict[Words, list[str]] = field(default_factory=dict)
    elements: dict[Kind, list[tuple[str, Mapping[str, str], tuple[Mapping[str, str], Mapping[str, str]] | None]]] = (
        field(default_factory=lambda: {kind: [] for kind in KINDS})
    )
    values_of: dict[tuple[Kind, str], dict[str, None]] = field(default_factory=dict)
    parts_of_countries: dict[str, tuple[Area, ...]] = field(default_factory=dict)
    longest: int = 1

    def is_flag(self, kind: Kind, key: str) -> bool:
        """Whether the label is true or false wherever it occurs on this kind of element."""
        found = self.values_of.get((kind, key), {})
        return bool(found) and all(value.casefold() in TRUE | FALSE for value in found)


def vocabulary_of(inventory: Inventory) -> Vocabulary:
    """Index an inventory."""
    vocabulary = Vocabulary()
    for node in inventory.nodes:
        _add(vocabulary, "node", node.name, node.labels)
    for workload in inventory.workloads:
        _add(vocabulary, "workload", workload.name, workload.labels)
        _add_parts(vocabulary, workload.name)
    for switch in inventory.switches:
        _add(vocabulary, "switch", switch.name, switch.labels)
    for link in inventory.links:
        ends = (inventory.switch[link.a].labels, inventory.switch[link.b].labels)
        _add(vocabulary, "link", link.name, link.labels, ends)
        backwards = words(f"{link.b}-{link.a}"), words(f"{link.a}-{link.b}")
        for each in backwards:
            known = vocabulary.names.setdefault(each, [])
            if ("link", link.name) not in known:
                known.append(("link", link.name))
    for key, _ in list(vocabulary.values_of.items()):
        kind, label = key
        for name in {words(label), words(label.rpartition("/")[2])}:
            if name:
                vocabulary.keys.setdefault(name, {})[kind, label] = None
                vocabulary.keys.setdefault((*name[:-1], name[-1] + "s"), {})[kind, label] = None
    for label in labels.WELL_KNOWN:
        for kind in KINDS:
            vocabulary.keys.setdefault(words(label), {})[kind, label] = None
            vocabulary.keys.setdefault(words(label.rpartition("/")[2]), {})[kind, label] = None
    longest = max(
        (len(each) for table in (vocabulary.names, vocabulary.values, vocabulary.keys) for each in table), default=1
    )
    vocabulary.longest = min(longest, _LONGEST)
    return vocabulary


def _add(
    vocabulary: Vocabulary,
    kind: Kind,
    name: str,
    element_labels: Mapping[str, str],
    ends: tuple[Mapping[str, str], Mapping[str, str]] | None = None,
) -> None:
    vocabulary.elements[kind].append((name, element_labels, ends))
    known = vocabulary.names.setdefault(words(name), [])
    if (kind, name) not in known:
        known.append((kind, name))
    carried = list(element_labels.items())
    for end in ends or ():
        carried += [(k, v) for k, v in end.items() if k not in element_labels and k != labels.ENCRYPTED]
    for key, value in carried:
        values = vocabulary.values_of.setdefault((kind, key), {})
        if value in values:
            continue
        values[value] = None
        if key == labels.JURISDICTION:
            _add_part_of_country(vocabulary, labels.jurisdiction(value))
        if value.casefold() not in TRUE | FALSE and (said := words(value)):
            vocabulary.values.setdefault(said, {})[kind, key, value] = None


def _add_part_of_country(vocabulary: Vocabulary, code: str) -> None:
    part = code.partition("-")[2].casefold()
    known = vocabulary.parts_of_countries.get(part, ())
    if part and all(each.codes != (code,) for each in known):
        title = getattr(pycountry.subdivisions.get(code=code), "name", code)
        vocabulary.parts_of_countries[part] = (*known, Area(title, (code,), "ISO 3166-2", ""))


def _add_parts(vocabulary: Vocabulary, name: str) -> None:
    said = words(name)[:8]
    parts = {said[start:end] for start in range(len(said)) for end in range(start + 1, len(said) + 1)} - {said}
    for part in parts:
        if any(len(each) > 1 and not each.isdigit() for each in part):
            vocabulary.parts.setdefault(part, []).append(name)
