"""Conditions behind a noun: `with a GPU and a TEE`, `located in France`, `that is neither trusted nor certified`.

A `not` reaches over an `or` that has no verb of its own ("not in France or untrusted"); over an `and` it would have two
readings, and is not read. `and` between two conditions means both, however they are worded.
"""

from __future__ import annotations

from abc import ABC
from typing import TYPE_CHECKING

from intents.translation.embedded.lists import WORKLOADS, bare_kind, flat
from intents.translation.embedded.modifiers import Modifiers
from intents.translation.embedded.senses import Areas, Cities, Named
from intents.translation.embedded.tree import Everything, Join, Minus, Not, Said, Selector

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MOST = 4


class Conditions(Modifiers, ABC):
    """Reads conditions behind a noun."""

    def conditions(self, last: int, kind: str) -> Iterator[tuple[int, Selector]]:
        """Yield the conditions that begin here, as one selector."""
        for end, _ in self.lex(last, "RELATIVE"):
            yield from self._predicates(end, kind, inherited=False, depth=0)
        for end, selector in self._prepositional(last, kind):
            yield from self._more_phrases(end, (selector,), "", kind)
            yield end, selector

    def _more_phrases(
        self, last: int, parts: tuple[Selector, ...], how: str, kind: str
    ) -> Iterator[tuple[int, Selector]]:
        """Read further participles: `carrying disk=nvme and located in Germany`; not `in Germany and in France`."""
        following, spoken = self.conjunction(last)
        if following == last or (how and spoken not in {"", how}) or len(parts) > _MOST:
            return
        if not self.lex(following, "PARTICIPLE", "WITH", "WITHOUT", "LABELLED", "OF") or self.lex(following, "IN"):
            return
        for end, selector in self._prepositional(following, kind):
            found, said = (*parts, selector), spoken or how
            yield from self._more_phrases(end, found, said, kind)
            if said:
                yield end, Join("all" if said == "and" else "or", found)

    # relative clauses

    def _predicates(self, start: int, kind: str, *, inherited: bool, depth: int) -> Iterator[tuple[int, Selector]]:
        """Read what follows `that`: predicates, each with its own verb and `not`, or sharing those before."""
        if depth > _MOST:
            return
        for end, selector, negated in self._predicate_one(start, kind, inherited=inherited, bare=depth > 0):
            following, spoken = self.conjunction(end)
            if following == end:  # ", but not in France"
                comma = end + 1 if self.mark(end, ",") else end
                for behind, _ in self.lex(comma, "BUT"):
                    following, spoken = behind, "and"
                    break
            if following != end:
                relative = self.lex(following, "RELATIVE")
                begin = relative[0][0] if relative else following
                own = bool(relative or self.lex(begin, "BE", "HASVERB", "DO", "NEG"))
                for stop, more in self._predicates(
                    begin, kind, inherited=negated and spoken == "or" and not own, depth=depth + 1
                ):
                    if negated and spoken != "or" and not own:
                        continue
                    how = "or" if spoken == "or" and (own or not negated) else "all"
                    yield stop, Join(how, (selector, *flat(more, how)))
            yield end, selector

    def _predicate_one(
        self, start: int, kind: str, *, inherited: bool, bare: bool
    ) -> Iterator[tuple[int, Selector, bool]]:
        """Read one predicate: `has a GPU`, `does not belong to acme`, `is not in France`, `are trusted`."""
        position, negated = start, inherited
        if any(end - start > 1 for end, _ in self.lex(start, "MODAL")):
            return  # "that ... and has to stay": a clause of its own
        for end, _ in self.lex(position, "DO"):
            position = end
        for end, _ in self.lex(position, "NEG"):
            position, negated = end, True
        for end, verb in self.lex(position, "HASVERB"):
            for stop, selector in self._had(end, verb, kind):
                if negated and any(value == "and" for at in range(end, stop) for _, value in self.lex(at, "AND")):
                    continue  # "do not have a GPU and a TEE": both or either?
                yield stop, Not(selector) if negated else selector, negated
        be = self.lex(position, "BE")
        if not be and not bare:
            return
        position = be[0][0] if be else position
        position = self.skip(position, "FILLER")
        for end, _ in self.lex(position, "NEG"):
            position, negated = end, True
        for end, selector in self._either(position, kind):
            yield end, Not(selector) if negated else selector, negated
        for end, selector in [*self._joined(position), *self._prepositional(position, kind)]:
            if negated and isinstance(selector, Join) and selector.how == "and" and not _places(selector):
                continue  # "not in France and untrusted": both or either?
            yield end, Not(selector) if negated else selector, negated

    def _either(self, start: int, kind: str) -> Iterator[tuple[int, Selector]]:
        """Read `either trusted or in Germany`, `neither trusted nor certified`, `both trusted and certified`."""
        for begin, value in self.lex(start, "CORR"):
            wanted = {"either": "or", "neither": "nor", "both": "and"}[value]
            for end, parts in self._listed(begin, kind, wanted):
                if wanted == "nor":
                    yield end, Not(Join("or", parts))
                else:
                    yield end, Join("or" if wanted == "or" else "all", parts)

    def _listed(self, start: int, kind: str, wanted: str) -> Iterator[tuple[int, tuple[Selector, ...]]]:
        simple = [*self.atoms(start), *self._prepositional(start, kind)]
        for end, selector in simple:
            for following, spoken in self.lex(end, "AND"):
                if spoken == wanted:
                    for stop, more in [*self.atoms(following), *self._prepositional(following, kind)]:
                        yield from ((last, (selector, *rest)) for last, rest in self._listed(following, kind, wanted))
                        yield stop, (selector, more)

    def _had(self, start: int, verb: str, kind: str) -> Iterator[tuple[int, Selector]]:
        if verb == "lie":
            yield from self._placed(self._place_words(start))
        elif verb == "belong":
            for end, groups in self.list(start):
                if len(groups) == 1 and groups[0].kind is None:
                    yield end, groups[0].selector
        elif verb == "lack":
            for end, selector in self._features(start):
                yield end, Not(selector)
        elif kind not in WORKLOADS or verb == "label":
            for last, value in self.lex(start, "QUANT"):
                if value == "none":
                    for end, selector in self._features(last):
                        yield end, Not(selector)
            yield from self._features(start)

    def _features(self, start: int) -> Iterator[tuple[int, Selector]]:
        """Read `a GPU and confidential computing`, `neither a GPU nor a TEE`, `the label disk=nvme`."""
        for begin, value in self.lex(start, "CORR"):
            for end, parts, how in self._feature_list(begin, "", 0):
                if len(parts) > 1 and how == {"either": "or", "neither": "nor", "both": "and"}[value]:
                    yield end, Not(Join("or", parts)) if how == "nor" else Join("or" if how == "or" else "all", parts)
        for end, parts, how in self._feature_list(start, "", 0):
            if len(parts) == 1:
                yield end, parts[0]
            elif how in {"and", "or"}:
                yield end, Join("all" if how == "and" else "or", parts)

    def _feature_list(self, start: int, how: str, depth: int) -> Iterator[tuple[int, tuple[Selector, ...], str]]:
        for end, selector in self._feature(start):
            following, spoken = self.conjunction(end)
            for last, value in self.lex(end, "AND"):
                following, spoken = (last, "nor") if value == "nor" else (following, spoken)
            if following != end and depth < _MOST and (not how or spoken in {"", how}):
                again = self.lex(following, "WITH")
                begin = again[0][0] if again else following
                for stop, more, said in self._feature_list(begin, spoken or how, depth + 1):
                    if spoken or said:
                        yield stop, (selector, *more), spoken or said
            yield end, (selector,), how

    def _feature(self, start: int) -> Iterator[tuple[int, Selector]]:
        begin = self.skip(start, "DET")
        for last, value in self.lex(begin, "QUANT"):
            begin = self.skip(last, "DET") if value == "any" else begin
        parts: list[Selector] = []
        found: list[tuple[int, Selector]] = []
        position = begin
        for _ in range(3):
            atom = next(iter(self.atoms(position)), None)
            if atom is None:
                break
            position = atom[0]
            parts.append(atom[1])
            found.append((position, parts[0] if len(parts) == 1 else Join("all", tuple(parts))))
        for end, selector in reversed(found):
            for stop, _ in self.lex(end, "FEATURE"):
                yield stop, selector
            for stop, value in self.lex(end, "NOUN"):
                if value in {"place", "state:kv"}:
                    yield stop, selector
            yield end, selector
        yield from ((end, selector) for end, selector in self.atoms(begin) if (end, selector) not in found)

    # participles and prepositions

    def _place_words(self, start: int) -> Sequence[tuple[int, bool]]:
        return [(end, False) for end, _ in self.lex(start, "IN")] + [(end, True) for end, _ in self.lex(start, "OUT")]

    def _placed(self, starts: Sequence[tuple[int, bool]]) -> Iterator[tuple[int, Selector]]:
        for start, outside in starts:
            for end, groups in self.list(start):
                if (
                    len(groups) == 1
                    and groups[0].kind is None
                    and not groups[0].quantifier.startswith(("none", "bad", "least", "counted"))
                ):
                    selector = groups[0].selector
                    if outside and isinstance(selector, Minus):
                        selector = Minus(Not(selector.base), selector.taken)
                    elif outside:
                        selector = Not(selector)
                    yield end, selector

    def _prepositional(self, last: int, kind: str) -> Iterator[tuple[int, Selector]]:
        starts: list[tuple[int, bool]] = []
        if kind not in WORKLOADS:  # where a workload runs is no property to select it by
            for end, _ in self.lex(last, "PARTICIPLE"):
                starts += [(stop, role) for stop, role in self._place_words(end)]
            starts += self._place_words(last)
            if kind in {"switch", "link", "network"}:  # no hop through the US
                starts += [(end, False) for end, _ in self.lex(last, "VIA")]
        yield from self._placed(starts)
        for start, _ in self.lex(last, "IN", "OF") if kind in WORKLOADS else ():  # everything in the advisor pipeline
            for end, groups in self.list(start):
                one = groups[0]
                labelled = one.kind == "generic" and not isinstance(one.selector, Everything) and one.ends is None
                if len(groups) == 1 and labelled and not one.quantifier and not _is_name(one.selector):
                    yield end, one.selector
        for start, _ in self.lex(last, "NOTOF"):
            for end, groups in self.list(start):
                if len(groups) == 1 and groups[0].kind is None:
                    yield end, Not(groups[0].selector)
        for start, _ in (
            self.lex(last, "OF", "FROM") if kind in {"node", "switch", "link", "workload", "generic", "data"} else ()
        ):
            for end, groups in self.list(start):
                if len(groups) == 1 and (
                    groups[0].kind is None or (kind == "data" and groups[0].kind in {"workload", "generic"})
                ):
                    yield end, groups[0].selector
        for start, _ in self.lex(last, "WITH", "LABELLED"):
            begin = self.skip(start, "DET")
            for end, selector in self._joined(begin):
                if bare_kind(selector) == "workload" and kind in WORKLOADS and _is_name(selector):
                    continue  # "ledger with claims" is no property of ledger
                stop = self.lex(end, "NOUN")
                if stop and stop[0][1] in {"place", "state:kv"}:
                    yield stop[0][0], selector
                yield end, selector
            yield from (each for each in self._features(start) if kind not in WORKLOADS or not _is_name(each[1]))
        for start, _ in self.lex(last, "WITHOUT"):
            for end, selector in self._joined(self.skip(start, "DET", "QUANT")):
                yield end, Not(selector)
            for end, selector in self._features(start):
                if isinstance(selector, Join) and selector.how == "or":  # "without a GPU or a TEE"
                    yield end, Not(selector)
        if kind in {"workload", "generic"}:
            for start, _ in self.lex(last, "CARRYING", "WITH", "FOR"):
                for end, groups in self.list(start):
                    if len(groups) == 1 and groups[0].kind == "data" and groups[0].ends is None:
                        yield end, groups[0].selector
        for start, _ in self.lex(last, "NAMED"):
            for mention in self.mentions(start):
                if any(isinstance(sense, Named) for sense in mention.senses):
                    yield mention.last, Said(mention, name_wanted=True)
        for start, _ in self.lex(last, "WHOSE"):
            begin = self.skip(start, "DET")
            for end, selector in self.keyed_list(begin):
                for following, value in self.lex(end, "AND"):
                    for again, _ in self.lex(following, "WHOSE"):
                        for after, more in self.keyed_list(self.skip(again, "DET")):
                            yield after, Join("all" if value == "and" else "or", (selector, more))
                yield end, selector


def _places(selector: Join) -> bool:
    return all(
        isinstance(part, Said) and any(isinstance(sense, Areas | Cities) for sense in part.mention.senses)
        for part in selector.parts
    )


def _is_name(selector: Selector) -> bool:
    return isinstance(selector, Said) and any(isinstance(sense, Named) for sense in selector.mention.senses)
