"""From a selector to predicates over this inventory: one that proves it, and one that proves its opposite.

The two are kept apart because the opposite of "in the US" is not always the negated term: where only cloud regions tell
where a node is, a region that nobody knows proves neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intents.model import labels
from intents.model.predicate import ANYTHING, NOTHING, Predicate, both, either, term
from intents.model.refusal import RefusalKind
from intents.translation.embedded.places import Grounded
from intents.translation.embedded.readings import Readings
from intents.translation.embedded.refusals import refused
from intents.translation.embedded.tree import Everything, Join, Minus, Not, Said, Selector

if TYPE_CHECKING:
    from intents.translation.embedded.vocabulary import Kind


class Grounder(Readings):
    """Grounds the selectors of one sentence."""

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
        return self._join(
            selector, parts, kind, avoid=avoid or bool(subject and selector.how == "and" and _names(selector))
        )

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

    def _join(self, selector: Join, parts: list[Grounded], kind: Kind, *, avoid: bool) -> Grounded:
        any_of = Grounded(one_of(kind, *(part.yes for part in parts)), both(*(part.no for part in parts)))
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


def one_of(kind: Kind, *parts: Predicate) -> Predicate:
    """Return that one of them holds; of a link's two ends each may be in another one: "in the EU and Switzerland"."""
    terms = [part.any_of[0].all_of[0] for part in parts if len(part.any_of) == 1 == len(part.any_of[0].all_of)]
    together = len(terms) == len(parts) and len({(each.key, each.op) for each in terms}) == 1
    if kind == "link" and together and terms[0].key != labels.NAME and terms[0].op == "in":
        return term(terms[0].key, *(value for each in terms for value in each.values))
    return either(*parts)


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
