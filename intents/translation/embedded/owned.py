"""Whose packets and whose nodes: `traffic from A to B`, `packets that A sends`, `switches that carry health data`.

Also how many of them ("none of", "at least one of") and what stands in brackets behind a noun.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING

from intents.translation.embedded.conditions import Conditions
from intents.translation.embedded.lists import WORKLOADS, limited
from intents.translation.embedded.reading import MOST
from intents.translation.embedded.senses import Mention, Named
from intents.translation.embedded.tree import Ends, Everything, Group, Join, Said

if TYPE_CHECKING:
    from collections.abc import Iterator

_HOSTS = frozenset({"host", "run", "process", "store", "serve", "handle", "hold", "execute", "keep"})
_CARRIES = frozenset({"carry", "transport", "relay", "forward", "route", "see", "handle", "process", "serve"})
_USES = frozenset({"use", "cross", "traverse", "pass", "take", "transit", "visit", "travel", "go"})
_RUNS = frozenset({"run", "live", "reside", "sit", "execute", "operate", "work", "stay", "lie"})


class Owned(Conditions, ABC):
    """Reads end points and owners behind a noun."""

    @abstractmethod
    def group(self, first: int) -> list[tuple[int, Group]]:
        """Read one noun phrase."""

    def _ends(self, group: Group, last: int) -> Iterator[tuple[int, Group]]:
        ends = group.ends or Ends()
        if group.kind in {"link", "switch"} and group.ends is None:  # every link on the path between A and B
            for start, _ in self.lex(last, "IN", "OF"):
                for end, inner in self.group(start):
                    if inner.kind in {"network", "traffic"} and inner.ends is not None:
                        yield end, replace(group, ends=inner.ends)
        if group.kind == "traffic" and group.ends is None and not group.direction:  # transmission of packets between
            for start, _ in self.lex(last, "OF"):
                for end, inner in self.group(start):
                    if inner.kind == "traffic" and inner.ends is not None and not inner.quantifier:
                        yield end, replace(group, ends=inner.ends, direction=inner.direction)
        for start, _ in self.lex(last, "BETWEEN"):
            if ends.mutual:
                break
            for end, left in self.group(start):
                for middle, value in self.lex(end, "AND"):
                    if value == "and":
                        for stop, right in self.list(middle):
                            yield stop, replace(group, ends=replace(ends, source=(left,), target=right, mutual=True))
                yield end, replace(group, ends=replace(ends, source=(left,), target=(left,), mutual=True))
        if group.ends is None and group.kind in {"traffic", "data"} and isinstance(group.selector, Everything):
            yield from self._sent(group, last)
        if ends.owner and not ends.source and not ends.target and group.kind == "traffic":
            for start, _ in self.lex(last, "WITH"):  # communication of A with B
                for end, groups in self.list(start):
                    if self._workloads(groups):
                        yield end, replace(group, ends=Ends(source=ends.owner, target=groups, mutual=True))
        if not (ends.owner or ends.source or ends.target) and group.kind in {"traffic", "network", "data"}:
            for start, _ in self.lex(last, "BOTHWAYS"):  # to and from ledger
                for end, groups in self.list(start):
                    if self._workloads(groups):
                        yield end, replace(group, ends=replace(ends, owner=groups))
        if ends.owner and not ends.source and not ends.target:
            for start, _ in self.lex(last, "BOTHWAYS"):
                for end, groups in self.list(start):
                    if self._workloads(groups):
                        yield end, replace(group, ends=Ends(source=ends.owner, target=groups, mutual=True))
        if not ends.source and group.kind != "switch":
            goes = [each for end, _ in self.lex(last, "RELATIVE") for each in self.lex(end, "ENDPOINTS")]
            for start, _ in [*self.lex(last, "FROM", "ENDPOINTS"), *goes]:
                for end, groups in self.list(start):
                    if self._workloads(groups):
                        yield end, replace(group, ends=replace(ends, source=groups))
        if not ends.target and group.kind != "switch":
            joined = [end for end, value in self.lex(last, "AND") if value == "and" and ends.source]
            bound = [each for end in joined for each in self.lex(end, "TOWARDS")]  # "and destined for B"
            for start, _ in [*self.lex(last, "INTO", "TOWARDS", "TO", "ARROW"), *bound]:
                for end, groups in self.list(start):
                    if self._workloads(groups):
                        yield end, replace(group, ends=replace(ends, target=groups))
        if not ends.owner and not ends.source and group.kind != "switch":
            by = ("BY",) if group.kind == "traffic" else ()  # access by A to B
            for start, _ in self.lex(last, "OF", "FOR", *by):
                for end, groups in self.list(start):
                    if self._workloads(groups):
                        yield end, replace(group, ends=replace(ends, owner=groups))

    def _sent(self, group: Group, last: int) -> Iterator[tuple[int, Group]]:
        """Read `(packets) that A sends to B`, `(whatever) A and B send each other`."""
        for begin in [last, *(end for end, _ in self.lex(last, "RELATIVE"))]:
            for end, groups in self.list(begin):
                about = all((each.kind or "") in WORKLOADS | {"pronoun"} and each.ends is None for each in groups)
                for stop, value in self.lex(end, "VERB") if about else ():
                    lemma, _, shape = value.partition(":")
                    if shape == "base" and lemma in {"send", "receive"}:  # anything A sends or receives
                        for behind, how in self.lex(stop, "AND"):
                            for final, other in self.lex(behind, "VERB") if how in {"and", "or"} else ():
                                if {other, f"{lemma}:base"} == {"send:base", "receive:base"}:
                                    yield final, replace(group, ends=Ends(owner=groups))
                    if lemma not in {"send", "exchange", "transmit"} or shape != "base":
                        continue
                    for behind, _ in self.lex(stop, "EACHOTHER"):
                        yield behind, replace(group, ends=Ends(source=groups, target=groups, mutual=True))
                    for behind, _ in self.lex(stop, "WITH"):
                        for final, others in self.list(behind):
                            if self._workloads(others):
                                yield final, replace(group, ends=Ends(source=groups, target=others, mutual=True))
                    if lemma == "exchange":
                        continue
                    for behind, _ in self.lex(stop, "INTO", "TO"):
                        for final, others in self.list(behind):
                            if self._workloads(others):
                                yield final, replace(group, ends=Ends(source=groups, target=others))
                    yield stop, replace(group, ends=Ends(source=groups))

    def _carrying(self, group: Group, last: int) -> Iterator[tuple[int, Group]]:
        """Read `that carry health data`, `hosting ledger`, `used by ledger`, `on which ledger runs`."""
        kind = group.kind or ""
        if kind == "link":
            yield from self._link_between(group, last)
        if kind == "node":
            for start, _ in self.lex(last, "OF"):
                for end, groups in self.list(start):
                    if all((each.kind or "") in WORKLOADS and each.ends is None for each in groups):
                        yield end, replace(group, ends=Ends(owner=groups))
        relative = [end for end, _ in self.lex(last, "RELATIVE")]
        for start in [last, *relative]:
            for end, value in self.lex(start, "VERB"):
                lemma, _, shape = value.partition(":")
                carries = lemma in (_HOSTS if kind == "node" else _CARRIES) and shape == (
                    "ing" if start == last else "base"
                )
                begin = end if carries else None
                if lemma in _USES and shape == "ed" and start == last:
                    begin = next((stop for stop, _ in self.lex(end, "BY")), None)
                for stop, groups in self.list(begin) if begin is not None else ():
                    ends = self._carried(groups)
                    if ends is not None:
                        yield stop, replace(group, ends=ends)
        starts = [(stop, True) for end, _ in self.lex(last, "IN") for stop, _ in self.lex(end, "RELATIVE")]
        starts += [(end, False) for end in relative] + [(end, True) for end, _ in self.lex(last, "WHERETO")]
        for begin, led in starts:  # "on which ledger runs", "that ledger's packets cross"
            for end, groups in self.list(begin):
                ends = self._carried(groups)
                for stop, value in self.lex(end, "VERB") if ends is not None else ():
                    lemma, _, shape = value.partition(":")
                    if lemma in (_RUNS if kind == "node" else _USES) and shape == "base":
                        behind = [] if led else [each for each, _ in self.lex(stop, "IN")]
                        for each in [*behind, *([stop] if led or kind != "node" else [])]:
                            yield each, replace(group, ends=ends)

    def _carried(self, groups: tuple[Group, ...]) -> Ends | None:
        """Return whose packets or work these are, where that is clear."""
        if len(groups) == 1 and groups[0].kind in {"traffic", "data"} and groups[0].ends is not None:
            return groups[0].ends if groups[0].quantifier in {"", "any", "all"} else None
        about = all((each.kind or "") in WORKLOADS | {"pronoun"} and each.ends is None for each in groups)
        return Ends(owner=groups) if about and all(each.quantifier in {"", "any", "all"} for each in groups) else None

    def _link_between(self, group: Group, last: int) -> Iterator[tuple[int, Group]]:
        """Read `between s1 and s2`, `from s1 to s2` behind `link`: the link of that name."""
        for first, joints in (("BETWEEN", ("AND",)), ("FROM", ("INTO", "TO"))):
            for start, _ in self.lex(last, first):
                for left in self.mentions(self.skip(start, "DET")):
                    for middle, value in self.lex(left.last, *joints):
                        if value not in {"and", "to"}:
                            continue
                        for right in self.mentions(self.skip(middle, "DET")):
                            ends = {name for each in (left, right) for name in self._switch_named(each)}
                            links = [
                                name for name, _, _ in self._vocabulary.elements["link"]
                                if len(ends) == 2 and name == "-".join(sorted(ends))
                            ]  # fmt: skip
                            if links and isinstance(group.selector, Everything):
                                text = " ".join(token.text for token in self.tokens[start : right.last])
                                named = Mention(left.first, right.last, text, (Named((("link", links[0]),)),))
                                yield right.last, replace(group, selector=Said(named, name_wanted=True), singular=True)

    @staticmethod
    def _switch_named(mention: Mention) -> list[str]:
        return [
            name
            for sense in mention.senses
            if isinstance(sense, Named)
            for kind, name in sense.elements
            if kind == "switch"
        ]

    @staticmethod
    def _workloads(groups: tuple[Group, ...]) -> bool:
        return all((group.kind or "") in WORKLOADS | {"pronoun", "node"} for group in groups)

    def ended(self, group: Group, last: int) -> list[tuple[int, Group]]:
        """Read `from A to B` or `between A and B` behind a group; all readings."""
        found: list[tuple[int, Group]] = []
        for end, more in self._ends(group, last):
            found += self.ended(more, end)
            found.append((end, more))
        return sorted(found, key=lambda each: -each[0])[:MOST]

    def _described(self, group: Group, start: int) -> Iterator[tuple[int, Group]]:
        """Read what stands in brackets: `llm workloads (app=llm)`, `ledger (the finance workload)`."""
        found = [(end, selector) for end, selector in self.atoms(start)]
        found += [
            (end, groups[0].selector)
            for end, groups in self.list(start)
            if len(groups) == 1
            and groups[0].ends is None
            and groups[0].quantifier in {"", "all"}
            and (groups[0].kind is None or groups[0].kind == group.kind or {groups[0].kind, group.kind} <= WORKLOADS)
        ]
        for end, selector in found:
            if self.tokens[end - 1].closes and not isinstance(selector, Everything):
                if isinstance(group.selector, Everything):
                    yield end, limited(group, selector)
                else:
                    yield end, replace(group, selector=Join("same", (group.selector, selector)))

    def _portions(self, first: int) -> Iterator[tuple[int, str]]:
        """Read `none of`, `neither of`, `both of`, `each of`, `all of` in front of a pronoun, or nothing."""
        yield first, ""
        found = [(last, value) for last, value in self.lex(first, "QUANT") if value in {"all", "none", "no two"}]
        found += [
            (last, "none" if value == "neither" else "")
            for last, value in self.lex(first, "CORR")
            if value in {"neither", "both"} and self.lex(last, "OF")
        ]
        for last, quantifier in found:
            yield self.skip(last, "OF"), quantifier

    def _least_of(self, first: int) -> Iterator[tuple[int, int]]:
        """Read `at least one of` in front of a list of names."""
        for last, value in self.lex(first, "QUANT"):
            if value == "least 1" and self.tokens[last - 1].norm == "of":
                yield last, 1
            for end, number in self.lex(last, "NUM") if value == "least" else ():
                for stop, _ in self.lex(end, "OF"):
                    yield stop, int(number)
