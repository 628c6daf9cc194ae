"""Statements without a verb: `ledger: Germany only, no US transit`, `A to B: at most 10 ms`, `Germany for ledger`.

A heading says who is meant: workloads, or the packets between two. What follows are items, parted by commas, semicolons
or `and`: a place or elements, what there must be none of, a bound, a participle, or a predicate of its own.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import replace
from typing import TYPE_CHECKING

from intents.translation.embedded.lists import WORKLOADS
from intents.translation.embedded.predicates import Predicates, Statement
from intents.translation.embedded.senses import Classes
from intents.translation.embedded.tree import Clause, Complement, Ends, Group, Said, Verb

if TYPE_CHECKING:
    from collections.abc import Iterator

_MARKS = (":", "=", "-", "\u2013", "\u2014")
_FLOWING = frozenset({"traffic", "measure", "network", "link"})
_PLACED = frozenset({"object", "in", "out", "via", "with", "without"})
_MEASURES = frozenset({"latency", "bandwidth"})
_MOST = 5


class Notes(Predicates, ABC):
    """Reads statements without a verb."""

    def _noted(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        """Read a heading and its items."""
        p = self._p
        for end, groups, marked in self._headings(first):
            noted = replace(frame, subject=groups, modal="must")
            if p.mark(end, *_MARKS) or p.lex(end, "ARROW"):
                start = end + 1
                yield from self._items(start, noted, (), 0)
                yield from self._referring(start, groups)
            elif marked:  # "A -> B at most 10 ms"; "A -> B must go via s1"
                yield from self._items(end, noted, (), 0)
                yield from self._predicate(end, replace(frame, subject=groups))
            elif p.lex(end, "IN", "ONLY", "OUT"):  # "ledger in Germany, no contact with website"
                yield from self._items(end, noted, (), 0)
        yield from self._meant_for(first, frame)
        yield from self._provided(first, frame)
        for start, _ in p.lex(first, "FOR"):  # "For ledger, at most 20 ms to claims"
            for end, groups in p.list(start):
                if _workloads(groups) and p.mark(end, ",", ":"):
                    yield from self._items(end + 1, replace(frame, subject=groups, modal="must"), (), 0)

    def _referring(self, first: int, groups: tuple[Group, ...]) -> Iterator[tuple[int, Statement]]:
        """Read a statement about what its heading names: `A and B: the path between them must avoid s1`."""
        for end, clauses in self._own_statement(first, Clause()):
            if all(_refers(group) for group in clauses[0].subject) and clauses[0].subject and not clauses[0].topic:
                yield end, (replace(clauses[0], topic=groups), *clauses[1:])

    def _headings(self, first: int) -> Iterator[tuple[int, tuple[Group, ...], bool]]:
        """Yield who is meant, and whether an arrow says that it is a heading."""
        p = self._p
        nouns = [(last, value) for last, value in p.lex(first, "NOUN") if value in _FLOWING]
        for start, kind in [(first, "traffic"), *nouns]:
            for end, left in p.list(start):
                if not _workloads(left):
                    continue
                arrows = p.lex(end, "ARROW")
                for middle, how in arrows or [(stop, "to") for stop, _ in p.lex(end, "INTO", "TO")]:
                    for last, right in p.list(middle):
                        if _workloads(right):
                            ends = Ends(source=left, target=right, mutual=how == "both")
                            yield last, (Group(first, last, kind, ends=ends),), bool(arrows)
        deeds = [stop for end, lemma in p.lex(p.skip(first, "DET"), "DEED") for stop, _ in p.lex(end, "OF")
                 if self._v.kind(lemma) == "run"]  # "Residency of ledger: Germany"  # fmt: skip
        for end, groups in [each for start in [first, *deeds] for each in p.list(start)]:
            if _workloads(groups) or all(
                self._is_data(each) or (each.kind in _FLOWING and each.ends is not None) for each in groups
            ):
                yield end, tuple(replace(each, kind=each.kind or "data") for each in groups), False

    @staticmethod
    def _is_data(group: Group) -> bool:
        selector = group.selector
        return (
            group.kind is None
            and isinstance(selector, Said)
            and any(
                isinstance(sense, Classes) and all(each.group == "data" for each in sense.readings)
                for sense in selector.mention.senses
            )
        )

    def _items(self, first: int, frame: Clause, done: Statement, depth: int) -> Iterator[tuple[int, Statement]]:
        if depth > _MOST or self._spent():
            return
        for end, item in self._item(first, frame, alone=depth == 0):
            found = (*done, *item)
            for start in self._next_items(end):
                yield from self._items(start, frame, found, depth + 1)
            yield end, found

    def _next_items(self, end: int) -> Iterator[int]:
        p = self._p
        after = end + 1 if p.mark(end, ",", ";") else end
        for start, how in [*p.lex(after, "AND"), *p.lex(after, "BUT")]:
            if how in {"and", "but"}:
                yield start
        if after > end:
            yield after

    def _item(self, first: int, frame: Clause, *, alone: bool) -> Iterator[tuple[int, Statement]]:
        p = self._p
        yield from self._lacking(first, frame)
        for last, aux in self._v.auxiliaries(first):  # "never migrated", "not reachable from B", "kept in Germany"
            if aux.modal or aux.be or aux.do:
                continue
            told = replace(frame, negated=aux.negated, only=aux.only, soft=aux.soft, migration=aux.migration)
            for end, verbs in self._v.verbs(last, passive=True, shape="ed"):
                yield from self._completed(end, replace(told, verbs=verbs))
            for end, verb in self._v.adjective(last):
                yield from self._completed(end, replace(told, verbs=(verb,)))
        yield from self._predicate(first, replace(frame, modal=""))
        if alone:
            yield from self._imperative(first, replace(frame, modal=""))
        for end, complements in self._complements.all(first):
            said = tuple(each for each in complements if not _on_their_paths(each))
            left_out = self._verb_of(frame, said)
            if left_out is not None:
                yield end, (replace(frame, verbs=(left_out,), complements=said),)
        for start, _ in p.lex(first, "WITH"):
            yield from self._lacking(start, frame)
        for start, value in p.lex(first, "ALL"):  # "its traffic: nothing over unencrypted links"
            for end, complements in self._complements.all(start) if value == "none" else ():
                crossed = all(each.role == "via" and not (each.negated or each.only) for each in complements)
                if crossed and complements and not frame.negated:
                    verbs = (Verb("pass", "cross"),)
                    yield end, (replace(frame, verbs=verbs, complements=complements, negated=True),)
        for last, selector in p.atoms(first):  # "; confidential computing is mandatory"
            for start, _ in p.lex(last, "BE"):
                for end, how in p.lex(start, "ALLOWED"):
                    if how == "must" and not any(group.ends for group in frame.subject):
                        node = Complement("object", (Group(first, last, "node", selector),))
                        yield end, (replace(frame, verbs=(Verb("need", "need"),), complements=(node,)),)

    def _appended(self, first: int, done: Clause, joined: list[int]) -> Iterator[tuple[int, Statement]]:
        """Read `; encrypted links only`, `, no contact with B`, `, isolated from B` behind a statement."""
        if done.subject_only or done.topic or done.migration:
            return
        subject = (Group(first, first, "pronoun"),) if done.imperative else done.subject
        frame = Clause(subject=tuple(replace(each, quantifier="") for each in subject), modal="must")
        for start in dict.fromkeys((first, *joined)):
            for end, clauses in self._addition(start, frame, plain=not (done.negated or done.modal == "ban")):
                yield end, (done, *clauses)
                after = end + 1 if self._p.mark(end, ",", ";") else end
                further = [begin for begin, how in self._p.lex(after, "AND") if how == "and"]
                for stop, more in self._appended(after, clauses[0], further) if after > end or further else ():
                    yield stop, (done, *more)

    def _addition(self, first: int, frame: Clause, *, plain: bool) -> Iterator[tuple[int, Statement]]:
        if self._spent():
            return
        for start in [first, *(last for last, _ in self._p.lex(first, "WITH"))]:
            yield from self._without_more(self._lacking(start, frame))
        for end, verbs in self._v.verbs(first, passive=True, shape="ed"):  # not behind "must not run in Germany"
            if plain and all(verb.kind in {"isolate", "separate", "encrypt"} for verb in verbs):
                yield from self._without_more(self._completed(end, replace(frame, verbs=verbs)))
        for end, read in self._complements.all(first):
            between = [each for each in read if each.role == "between"]
            complements = tuple(
                each for each in read if each.role not in {"between", "with"} or each.groups[0].kind != "pronoun"
            )
            if between:  # "with only encrypted links between them"
                if len(between) > 1 or any(group.kind != "pronoun" for group in between[0].groups):
                    continue
                them = tuple(replace(group, plural=True) for group in between[0].groups)
                ends = Ends(source=them, target=them, mutual=True)
                frame = replace(frame, subject=(Group(first, end, "traffic", ends=ends),))
            marked = all(
                each.role == "object" and (each.only or each.soft or any(g.quantifier == "none" for g in each.groups))
                for each in complements
            )
            verb = self._verb_of(frame, complements) if marked and complements else None
            if verb is not None:
                yield end, (replace(frame, verbs=(verb,), complements=complements),)

    @staticmethod
    def _without_more(readings: Iterator[tuple[int, Statement]]) -> Iterator[tuple[int, Statement]]:
        yield from ((end, clauses) for end, clauses in readings if len(clauses) == 1)

    def _lacking(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        """Read `no contact with B`, `no access to B`."""
        for end, lemma in self._p.lex(first, "NOCONTACT"):
            yield from self._completed(end, replace(frame, verbs=(Verb(lemma, "talk"),), negated=True))

    @staticmethod
    def _verb_of(frame: Clause, complements: tuple[Complement, ...]) -> Verb | None:
        """Return the verb that is left out, if these complements can stand without one."""
        roles = {each.role for each in complements}
        if roles & _MEASURES and roles <= _MEASURES | {"to", "from"}:
            return Verb("have", "have")
        if roles in ({"together"}, {"apart"}):
            return Verb("run", "run")
        elements = [each for each in complements if each.role in _PLACED]
        if not elements or roles - _PLACED - {"else", "migration"}:
            return None
        if any(group.kind in WORKLOADS for each in elements for group in each.groups):
            return None
        flows = any(group.ends is not None for group in frame.subject)
        if "via" in roles or (flows and "object" in roles):
            return Verb("pass", "cross")
        return Verb("stay", "stay")

    def _provided(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        """Read `A bandwidth of at least 1 Gbps must be available between A and B`."""
        for end, bound in self._complements.all(first):
            if not bound or any(each.role not in _MEASURES or each.only or each.negated for each in bound):
                continue
            for last, aux in self._v.auxiliaries(end):
                if not aux.be or aux.modal not in {"", "must", "should"} or aux.negated or aux.only or aux.soft:
                    continue
                for stop, _ in self._p.lex(last, "PROVIDED"):
                    for behind, rest in self._complements.all(stop):
                        if len(rest) == 1 and rest[0].role == "between" and all(map(_of_workloads, rest[0].groups)):
                            groups = rest[0].groups
                            ends = Ends(source=groups[:1], target=groups[1:] or groups[:1], mutual=True)
                            flow = Group(first, behind, "traffic", ends=ends)
                            said = replace(frame, subject=(flow,), modal="must", verbs=(Verb("have", "have"),))
                            yield behind, (replace(said, complements=bound),)

    def _meant_for(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        """Read `Germany or France for ledger, no other country`, `Only encrypted links for ledger`."""
        for end, complements in self._complements.all(first):
            whom = [each for each in complements if each.role in {"for", "between"}]
            what = tuple(each for each in complements if each not in whom)
            if len(whom) != 1 or not what or not all(_of_workloads(group) for group in whom[0].groups):
                continue
            groups = whom[0].groups
            if whom[0].role == "between":
                ends = Ends(source=groups[:1], target=groups[1:] or groups[:1], mutual=True)
                groups = (Group(first, end, "traffic", ends=ends),)
            noted = replace(frame, subject=groups, modal="must")
            verb = self._verb_of(noted, what)
            if verb is not None:
                item = (replace(noted, verbs=(verb,), complements=what),)
                for start in self._next_items(end):
                    yield from self._items(start, noted, item, 1)
                yield end, item


def _refers(group: Group) -> bool:
    """Whether it is a pronoun, or the packets of one."""
    ends = group.ends
    if ends is None:
        return group.kind == "pronoun"
    return any(_refers(each) for each in (*ends.owner, *ends.source, *ends.target))


def _on_their_paths(complement: Complement) -> bool:
    """Whether it is "on its paths" behind what there must be none of, which adds nothing."""
    return complement.role == "in" and all(
        group.kind == "network" and group.ends is not None and [each.kind for each in group.ends.owner] == ["pronoun"]
        for group in complement.groups
    )


def _of_workloads(group: Group) -> bool:
    return (group.kind or "") in WORKLOADS | {"pronoun"} and group.ends is None


def _workloads(groups: tuple[Group, ...]) -> bool:
    return all(_of_workloads(group) and group.quantifier in {"", "all", "any"} for group in groups)
