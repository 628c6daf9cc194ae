"""The tree of a sentence: selectors, groups of elements, complements, clauses. No inventory, no predicates yet."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from intents.translation.embedded.senses import Mention


@dataclass(frozen=True, slots=True)
class Everything:
    """No condition."""


@dataclass(frozen=True, slots=True)
class Said:
    """One mention; `name_wanted` if an element's noun beside it says that it is a name."""

    mention: Mention
    name_wanted: bool = False


@dataclass(frozen=True, slots=True)
class Not:
    """Everything else (`non-EU`, `outside the EU`)."""

    part: Selector


@dataclass(frozen=True, slots=True)
class Join:
    """Several conditions: `and`/`or` as spoken between them, `all` where they simply follow each other."""

    how: str
    parts: tuple[Selector, ...]


@dataclass(frozen=True, slots=True)
class Minus:
    """The first without the second (`the EU except Germany`)."""

    base: Selector
    taken: Selector


Selector = Everything | Said | Not | Join | Minus


@dataclass(frozen=True, slots=True)
class Ends:
    """Between whom traffic flows; `owner` where only one side is given (`of`, `from`: source, `to`: target)."""

    owner: tuple[Group, ...] = ()
    source: tuple[Group, ...] = ()
    target: tuple[Group, ...] = ()
    mutual: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Elements that a phrase speaks of.

    Attributes:
        kind: node, switch, link, network, workload, data, traffic, state:..., migration, topology, pronoun; None: no
            noun says.
        selector: Which of them.
        quantifier: all, any, none, bad, "least" with `number`, or "".
        ends: For traffic, paths and state: whose.
        singular: A singular noun with `a`, or one name.
        topology: For "the same node", "different zones": the topology, and whether `apart` or `together`.
    """

    first: int
    last: int
    kind: str | None
    selector: Selector = field(default_factory=Everything)
    quantifier: str = ""
    number: int = 0
    ends: Ends | None = None
    singular: bool = False
    plural: bool = False
    relation: str = ""
    direction: str = ""


@dataclass(frozen=True, slots=True)
class Complement:
    """What stands behind a verb: a role (`in`, `out`, `via`, `to`, `from`, `with`, `object`, ...) and groups.

    `word` is the preposition as it was written.
    """

    role: str
    groups: tuple[Group, ...]
    only: bool = False
    negated: bool = False
    soft: bool = False
    linked: str = ""
    verb_role: str = ""
    number: float = 0.0
    word: str = ""


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb: its lemma and class, and whether it is passive."""

    lemma: str
    kind: str
    passive: bool = False


@dataclass(frozen=True, slots=True)
class Clause:
    """One statement.

    Attributes:
        subject: What it is about; empty for an imperative.
        modal: must, should, may, ban, free, or "" where there is none (an imperative or the plain present).
        ordered: It began like an imperative ("never let X ..."): another one may follow.
    """

    subject: tuple[Group, ...] = ()
    modal: str = ""
    negated: bool = False
    only: bool = False
    subject_only: bool = False
    soft: bool = False
    verbs: tuple[Verb, ...] = ()
    complements: tuple[Complement, ...] = ()
    migration: bool = False
    imperative: bool = False
    topic: tuple[Group, ...] = ()
    ordered: bool = False

    def without_verbs(self) -> Clause:
        """Return the frame that a further verb phrase of the same subject starts from."""
        return replace(self, verbs=(), complements=(), topic=())


def mentions_of(clause: Clause) -> Iterator[Mention]:
    """Yield every mention of a clause."""
    for group in (*clause.subject, *clause.topic, *(each for part in clause.complements for each in part.groups)):
        yield from _of_group(group)


def _of_group(group: Group) -> Iterator[Mention]:
    yield from _of_selector(group.selector)
    if group.ends is not None:
        for each in (*group.ends.owner, *group.ends.source, *group.ends.target):
            yield from _of_group(each)


def _of_selector(selector: Selector) -> Iterator[Mention]:
    if isinstance(selector, Said):
        yield selector.mention
    elif isinstance(selector, Not):
        yield from _of_selector(selector.part)
    elif isinstance(selector, Minus):
        yield from _of_selector(selector.base)
        yield from _of_selector(selector.taken)
    elif isinstance(selector, Join):
        for part in selector.parts:
            yield from _of_selector(part)
