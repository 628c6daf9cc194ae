"""The part of an inventory that a language model is shown: names and labels, nothing about who is connected to whom.

Where an inventory must not leave the house, names are replaced by made-up ones (`hashed=True`), in the sentence as well
as in the snapshot, and put back in the answer. The made-up names are keyed by a random salt of the snapshot: whoever
reads the prompts cannot test a guess. Labels stay: a sentence cannot be understood without them.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intents.model import labels

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from intents.model.inventory import Inventory, Link, Node, Switch, Workload

_MOST_NAMES = 200
"""Of one kind: beyond that a prompt would consist of names, and the sentence's own names are shown only."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is shown, and how to put back the names.

    Attributes:
        sentence: The sentence, with made-up names if asked for.
        elements: Per kind (nodes, workloads, switches, links) its `names` and its `labels` with their values.
        aliases: The real name of each made-up one.
    """

    sentence: str
    elements: Mapping[str, Mapping[str, Any]]
    aliases: Mapping[str, str]

    def values(self, key: str) -> tuple[str, ...]:
        """Return every value that some element has for the label, or every shown name, sorted."""
        if key == labels.NAME:
            return tuple(sorted({name for kind in self.elements.values() for name in kind["names"]}))
        return tuple(sorted({value for kind in self.elements.values() for value in kind["labels"].get(key, ())}))

    def keys(self) -> tuple[str, ...]:
        """Return every label key that some element carries, sorted."""
        return tuple(sorted({key for kind in self.elements.values() for key in kind["labels"]}))


def take_snapshot(sentence: str, inventory: Inventory, *, hashed: bool = False) -> Snapshot:
    """Reduce the inventory to what a model needs for this sentence."""
    kinds: dict[str, Sequence[Node | Workload | Switch | Link]] = {
        "nodes": inventory.nodes,
        "workloads": inventory.workloads,
        "switches": inventory.switches,
        "links": inventory.links,
    }
    shown = {kind: _names(elements, sentence) for kind, elements in kinds.items()}
    aliases: dict[str, str] = {}
    if hashed:
        salt = secrets.token_bytes(16)
        for kind, names in shown.items():
            for name in names:
                alias = f"{kind[0]}-{hashlib.blake2b(name.encode(), key=salt, digest_size=4).hexdigest()}"
                aliases.setdefault(alias, name)
    made_up = {name: alias for alias, name in aliases.items()}
    return Snapshot(
        _replace(sentence, made_up),
        {
            kind: {
                "names": [made_up.get(name, name) for name in shown[kind]],
                "labels": _label_values(elements),
            }
            for kind, elements in kinds.items()
        },
        aliases,
    )


def _names(elements: Sequence[Node | Workload | Switch | Link], sentence: str) -> list[str]:
    names = sorted({element.name for element in elements})
    if len(names) <= _MOST_NAMES:
        return names
    return [name for name in names if _named_in(name, sentence)]


def _label_values(elements: Iterable[Node | Workload | Switch | Link]) -> dict[str, list[str]]:
    values: dict[str, set[str]] = {}
    for element in elements:
        for key, value in element.labels.items():
            values.setdefault(key, set()).add(value)
    return {key: sorted(found) for key, found in sorted(values.items())}


def _replace(sentence: str, names: Mapping[str, str]) -> str:
    if not names:
        return sentence
    longest_first = sorted(names, key=len, reverse=True)
    pattern = "|".join(rf"(?<![\w.-]){re.escape(name)}(?![\w-])" for name in longest_first)
    return re.sub(pattern, lambda found: names[found.group()], sentence)


def _named_in(name: str, sentence: str) -> bool:
    return re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", sentence) is not None
