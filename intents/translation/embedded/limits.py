"""What a verb's complements limit: nodes, switches and links, each as one predicate.

An element's noun decides ("trusted nodes", "a US switch", "encrypted links"); without one, a place or a property is
said of whatever the verb is about. Here negation, `only`, `outside`, and lists of complements are put together.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from intents.model import labels
from intents.model.predicate import ANYTHING, NOTHING, Predicate, both, either
from intents.model.refusal import RefusalKind
from intents.translation.embedded.grounding import one_of
from intents.translation.embedded.places import Grounded
from intents.translation.embedded.refusals import refused
from intents.translation.embedded.senses import Areas, Cities, Flag, Named, Pair, Valued
from intents.translation.embedded.tree import Complement, Everything, Group, Join, Minus, Not, Said, Selector

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intents.translation.embedded.grounding import Grounder
    from intents.translation.embedded.vocabulary import Kind, Vocabulary


_ON = frozenset({"on", "onto", "upon", "only on"})


@dataclass(frozen=True, slots=True)
class Limit:
    """What one complement asks of one kind of element."""

    kind: Kind
    grounded: Grounded
    linked: str
    keys: frozenset[str]


class Limits:
    """Turns complements into predicates per kind of element."""

    def __init__(self, grounder: Grounder, vocabulary: Vocabulary) -> None:
        self._grounder = grounder
        self._vocabulary = vocabulary

    def of(
        self, complements: Sequence[Complement], default: Sequence[Kind], *, negated: bool, merge: bool = True
    ) -> dict[Kind, Predicate]:
        """Return what every element of each kind must satisfy.

        Args:
            complements: Those that limit; their roles `in`, `via`, `object` mean the elements, `out` their opposite.
            default: The kinds that a place or property without a noun is said of.
            negated: The clause is negated.
            merge: Whether complements that only follow each other are one condition (`in the US on edge nodes`).
        """
        found: dict[Kind, list[tuple[Grounded, str]]] = {}
        mergeable: set[Kind] = set()
        after_not = False
        for complement in complements:
            contrast = negated and complement.linked == "but" and not complement.negated
            if negated and complement.negated and complement.linked in {"", "but"}:
                raise refused(RefusalKind.AMBIGUOUS, "two negations in one clause", "say it with one", final=True)
            if complement.linked == "or" and after_not and not complement.negated and not negated:
                raise refused(
                    RefusalKind.AMBIGUOUS, "it is not clear how far `not` reaches", "repeat it with `nor`", final=True
                )
            after_not = complement.negated
            against = (negated and not contrast) or complement.negated
            flip = complement.role == "out"
            for group in complement.groups:
                if group.ends is not None:
                    raise refused(
                        RefusalKind.NOT_UNDERSTOOD, "it is not clear which elements are meant by whose they are"
                    )
                if group.quantifier in {"bad", "least", "counted"}:
                    raise refused(
                        RefusalKind.NOT_UNDERSTOOD, "such a quantifier of nodes, switches or links is no rule"
                    )
                bare = group.kind in {"node", "switch", "link", "network"} and isinstance(group.selector, Everything)
                if bare:
                    raise refused(RefusalKind.NOT_UNDERSTOOD, f"it is not said which {group.kind} is meant")
                none = group.quantifier == "none"
                if none and against and not complement.negated:
                    raise refused(RefusalKind.NOT_UNDERSTOOD, "two negations in one clause")
                turned = against or none
                kinds = list(self.kinds(group, default))
                if turned and len(kinds) > 1:  # a label's value that only some of them carry
                    kinds = [kind for kind in kinds if self._grounder.may_occur(group.selector, kind)] or kinds
                for kind in kinds:
                    selector = group.selector
                    if group.singular and complement.word in _ON:
                        selector = _named_first(selector, kind)
                    if flip:  # outside the EU except Switzerland: Switzerland is taken from what lies outside
                        outside = isinstance(selector, Minus)
                        selector = (
                            Minus(Not(selector.base), selector.taken) if isinstance(selector, Minus) else Not(selector)
                        )
                        flipped = not outside
                    else:
                        flipped = False
                    part = self._grounder.ground(selector, kind, avoid=turned != flipped)
                    linked = complement.linked
                    if turned:
                        part = Grounded(part.no, part.yes)
                        # each is avoided by itself, unless the phrases only follow each other
                        if linked == "" and kind in mergeable and merge and not complement.negated:
                            before, how = found[kind].pop()
                            part = Grounded(either(before.yes, part.yes), both(before.no, part.no))
                            linked = how
                        found.setdefault(kind, []).append((part, "avoid" if linked != "" else ""))
                        if not complement.negated and not none:
                            mergeable.add(kind)
                    else:
                        found.setdefault(kind, []).append((part, linked))
        return {kind: self._together(kind, parts) for kind, parts in found.items()}

    @staticmethod
    def _together(kind: Kind, parts: list[tuple[Grounded, str]]) -> Predicate:
        result: list[Predicate] = []
        keys = {part.yes.keys() for part, _ in parts}
        if len(keys) == 1 and len(next(iter(keys))) == 1 and {linked for _, linked in parts[1:]} == {",", "or"}:
            parts = [(part, "or") for part, _ in parts]  # in France, in Germany or in Spain
        for (before, joined), (part, linked) in itertools.pairwise(parts):
            if joined == "," and linked == "or" and before.yes.keys() != part.yes.keys():
                raise refused(
                    RefusalKind.AMBIGUOUS,
                    "it is not clear what `or` joins",
                    "say `either ... or ...`, or two sentences",
                    final=True,
                )
        for part, linked in parts:
            same = bool(result) and result[-1].keys() == part.yes.keys() and len(part.yes.keys()) == 1
            if result and (linked == "or" or (linked == "and" and same)):
                result[-1] = one_of(kind, result[-1], part.yes)
            else:
                result.append(part.yes)
        limit = both(*result)
        if limit in {ANYTHING, NOTHING}:
            raise refused(RefusalKind.NOT_UNDERSTOOD, "no limit was found in it")
        return limit

    def kinds(self, group: Group, default: Sequence[Kind]) -> Iterator[Kind]:
        """Yield the kinds of element that a group is about."""
        if group.kind in {"node", "switch", "link"}:
            yield group.kind  # type: ignore[misc]
            return
        if group.kind not in {None, "network"}:
            raise refused(
                RefusalKind.NOT_UNDERSTOOD,
                f"a {(group.kind or '').partition(':')[0]} is no element that could be limited",
            )
        if group.kind == "network":
            default = ("switch", "link")
        named = {
            kind
            for sense in self._senses(group.selector)
            if isinstance(sense, Named) and not sense.plain
            for kind, _ in sense.elements
        }
        only = [kind for kind in default if kind in named]
        if only and group.kind is None:
            yield only[0]
            return
        keys = self._keys(group.selector)
        if keys == {labels.ENCRYPTED} and "link" in default:
            yield "link"
            return
        if keys == {labels.ENCRYPTED}:
            raise refused(
                RefusalKind.AMBIGUOUS,
                "it is not said whether it is encrypted on disks (which is out of scope) or in transit",
                "say that its traffic must be encrypted",
                final=True,
            )
        carried = [
            kind for kind in default if not keys or any((kind, key) in self._vocabulary.values_of for key in keys)
        ]
        places = any(isinstance(sense, Areas) for sense in self._senses(group.selector))
        yield from default if places or not carried else carried

    def _senses(self, selector: Selector) -> Iterator[object]:
        if isinstance(selector, Said):
            yield from selector.mention.senses
        elif isinstance(selector, Not):
            yield from self._senses(selector.part)
        elif isinstance(selector, Minus):
            yield from self._senses(selector.base)
            yield from self._senses(selector.taken)
        elif isinstance(selector, Join):
            for part in selector.parts:
                yield from self._senses(part)

    def _keys(self, selector: Selector) -> set[str]:
        keys: set[str] = set()
        for sense in self._senses(selector):
            if isinstance(sense, Flag | Pair):
                keys.add(sense.key)
            elif isinstance(sense, Valued):
                keys |= {key for _, key, _ in sense.where}
        return keys

    def is_place(self, group: Group) -> bool:
        """Whether a group is a place without an element's noun: `the EU`, `Frankfurt`, `zone a`."""
        if group.kind is not None or isinstance(group.selector, Everything):
            return False
        return any(
            isinstance(sense, Areas | Cities)
            or (
                isinstance(sense, Valued)
                and any(key in {labels.REGION, labels.ZONE, labels.JURISDICTION} for _, key, _ in sense.where)
            )
            or (isinstance(sense, Pair) and sense.key in {labels.REGION, labels.ZONE, labels.JURISDICTION})
            for sense in self._senses(group.selector)
        )


def _named_first(selector: Selector, kind: Kind) -> Selector:
    """Prefer the element of exactly this name to a label's value: `on hel-1`, where a zone is called so too."""
    if isinstance(selector, Join):
        return replace(selector, parts=tuple(_named_first(part, kind) for part in selector.parts))
    if not isinstance(selector, Said):
        return selector
    named = tuple(
        sense
        for sense in selector.mention.senses
        if isinstance(sense, Named) and not sense.plain and (kind, selector.mention.text) in sense.elements
    )
    others = [sense for sense in selector.mention.senses if not isinstance(sense, Named)]
    if not named or not all(isinstance(sense, Valued) for sense in others):
        return selector
    return replace(selector, mention=replace(selector.mention, senses=named))


def way_points(complement: Complement) -> tuple[Group, ...]:
    """Return the way points that a positive `via` names: `via s1 and s2` are two, `via s1 or s2` is one of either."""
    found: list[Group] = []
    for group in complement.groups:
        if isinstance(group.selector, Join) and group.selector.how == "and":
            found += [replace(group, selector=part) for part in group.selector.parts]
        else:
            found.append(group)
    return tuple(found)


def is_single(group: Group) -> bool:
    """Whether a group means one element: a name, or `a` with a singular noun."""
    if group.quantifier not in {"", "one of"} or isinstance(group.selector, Minus | Not):
        return False
    if group.singular and group.kind is not None:
        return True
    selectors = group.selector.parts if isinstance(group.selector, Join) else (group.selector,)
    return all(
        isinstance(each, Said) and any(isinstance(sense, Named) for sense in each.mention.senses) for each in selectors
    )
