"""Noun phrases: quantifier, conditions, head, what follows it, lists and exceptions.

Every rule returns all its readings, the longest first, and remembers them per position, so that a rule above may take
a shorter one ("in the EU and finance workloads must ..." is no list of two places). No word is ever skipped: a reading
ends where the next word does not fit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from intents.translation.embedded.lists import WORKLOADS, bare_kind, limited, may_take, merge
from intents.translation.embedded.owned import Owned
from intents.translation.embedded.reading import distinct
from intents.translation.embedded.senses import Named, PartOfName, Valued
from intents.translation.embedded.tree import Ends, Everything, Group, Join, Minus, Not, Said, Selector

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intents.translation.embedded.mentions import Spotter
    from intents.translation.embedded.tokens import Token
    from intents.translation.embedded.vocabulary import Vocabulary

# Words that mean all, or none, of those that an exception leaves: "every other workload than B", "nobody except B".
_BUT_SOME = {"other": "all", "no other": "none", "nobody": "none"}
_FLOWS = frozenset({"traffic", "network", "data", "migration", "link", "measure"})


class Phrases(Owned):
    """Reads phrases of one sentence."""

    def __init__(self, tokens: Sequence[Token], spotter: Spotter, vocabulary: Vocabulary) -> None:
        super().__init__(tokens, spotter, vocabulary)
        self._groups: dict[int, list[tuple[int, Group]]] = {}
        self._lists: dict[int, list[tuple[int, tuple[Group, ...]]]] = {}

    def group(self, first: int) -> list[tuple[int, Group]]:
        """Read one noun phrase."""
        if first not in self._groups:
            self._groups[first] = []  # a phrase does not begin with itself
            self._groups[first] = distinct(self._group(first))
        return self._groups[first]

    def _group(self, first: int) -> Iterator[tuple[int, Group]]:
        if first >= len(self.tokens):
            return
        yield from self._relation(first)
        yield from self._noun_names(first)
        if any(value == "one" for _, value in self.lex(first, "NOUN")):
            yield from self._headed(first, first, Everything(), "", 0, "a", "")
        start, quantifier, number, article = self._determiner(first)
        for last, _ in self.lex(first, "ALL"):  # what A and B exchange with C
            for end, more in self._sent(Group(first, last, "traffic", quantifier="all"), last):
                yield end, replace(more, last=end)
        for last, value in self.lex(first, "ALL"):
            if value == "what":
                continue
            quantifier = {"workload": "all"}.get(value, value)
            group = Group(first, last, "workload", quantifier=quantifier, plural=True)
            for end, selector in self._joined(last):  # nothing medical
                if bare_kind(selector) == "workload":
                    yield from self._postmodified(replace(group, selector=selector), end)
                elif value == "none":  # nothing unencrypted
                    yield end, replace(group, last=end, kind=None, selector=selector)
            yield from self._postmodified(group, last)
            if value in _BUT_SOME:
                continue
            for end, more in self._ends(replace(group, kind="traffic"), last):  # everything between A and B
                yield end, replace(more, last=end)
        for last, value in self.lex(first, "QUANT"):  # all but website
            if value == "all" and self.lex(last, "BUTEX", "EXCEPT"):
                yield last, Group(first, last, "workload", quantifier="all", plural=True)
        yield from self._pronouns(first)
        if article == "this":
            return
        direction = ""
        for last, value in self.lex(start, "DIRECTION"):
            start, direction = last, value
            break
        for last, selector in self._modifiers(start):
            yield from self._headed(first, last, selector, quantifier, number, article, direction)
        for last, value in self.lex(start, "NOUN"):  # node n1, switches s1 and s2, workload "only"
            if value in {"node", "switch", "link", "workload", "generic"}:
                yield from self._apposition(first, last, value, quantifier, number)

    def _noun_names(self, first: int) -> Iterator[tuple[int, Group]]:
        """Read a name that is a noun of the language too (a workload `records`), where it stands alone."""
        start = self.skip(first, "DET")
        for mention in self.mentions(start):
            named = [sense for sense in mention.senses if isinstance(sense, Named) and sense.plain]
            said = tuple(token.norm for token in self.tokens[start : mention.last])
            categories = {category for category, _ in self._lexicon.get(said, ())}
            exact = [
                each for sense in named for each in sense.elements if each[0] == "workload" and each[1] == mention.text
            ]
            alone = not self.lex(mention.last, "NOUN", "NAMED") and not any(
                m.senses for m in self.mentions(mention.last)
            )
            if exact and categories and categories <= {"NOUN", "VERB"} and alone:
                only = replace(mention, senses=(Named(tuple(exact)),))
                group = Group(first, mention.last, "workload", Said(only, name_wanted=True), singular=True)
                yield from self._possessed(group, mention.last)
                yield mention.last, group

    def _pronouns(self, first: int) -> Iterator[tuple[int, Group]]:
        for start, quantifier in self._portions(first):
            for last, value in self.lex(start, "PRON"):
                number = 2 if value == "two" else 0
                yield last, Group(first, last, "pronoun", quantifier=quantifier, number=number, plural=value != "it")
            for last, whose in self.lex(start, "POSSPRON"):
                begin, direction = last, ""
                for end, value in self.lex(last, "DIRECTION"):
                    begin, direction = end, value
                owner = Group(start, last, "pronoun", plural=whose == "they")
                for end, value, _ in self._heads(begin):
                    ends = Ends(owner=(owner,))
                    if direction == "mutual":
                        ends, direction = Ends(source=(owner,), target=(owner,), mutual=True), ""
                    group = Group(first, end, value, quantifier=quantifier, ends=ends, direction=direction)
                    yield from self._postmodified(group, end)
        for last, value in self.lex(first, "CORR"):
            if value == "neither" and self.lex(last, "MODAL"):  # "Neither may talk to website."
                yield last, Group(first, last, "pronoun", quantifier="none")
        # "these workloads", "this data", "the same pods": a pronoun with a noun.
        for last, _ in self.lex(first, "DET", "PRON"):
            words = {token.norm for token in self.tokens[first:last]}
            this = words & {"this", "these", "those", "such", "same", "said"}
            for end, value in self.lex(last, "NOUN") if this else ():
                if value in WORKLOADS or value == "traffic":
                    kind = "pronoun" if value != "traffic" else "pronoun:traffic"
                    yield end, Group(first, end, kind, plural=bool(words & {"these", "those"}))

    def _determiner(self, first: int) -> tuple[int, str, int, str]:
        position, quantifier, number, article = first, "", 0, ""
        for _ in range(5):
            found = (
                self.lex(position, "QUANT", "NUM", "DET", "OF")
                if position != first
                else self.lex(position, "QUANT", "NUM", "DET")
            )
            if not found:
                break
            last, value = found[0]
            if any(
                each.last > last and not isinstance(each.senses[0], Named)
                for each in self.mentions(position)
                if each.senses
            ):
                break  # "Five Eyes country"
            category = next(
                c for e, c, v in self._at(position) if e == last and v == value and c in {"QUANT", "NUM", "DET", "OF"}
            )
            if category == "QUANT" and value == "least 1":
                quantifier, number = ("least", 1) if not quantifier else ("bad", 0)
            elif category == "QUANT" and value == "one of" and quantifier == "least":
                number = 1
            elif category == "QUANT" and value == "both":
                quantifier, number = ("counted", 2) if not quantifier else ("bad", 0)
            elif category == "QUANT":
                quantifier = value if not quantifier else "bad"
            elif category == "NUM":
                number = int(value)
                if quantifier in {"", "all"} and number > 1 and (quantifier or article == "the"):  # "all three stages"
                    quantifier = "counted"
                elif quantifier != "least":
                    quantifier = "bad" if value != "1" else (quantifier or "one of")
            elif category == "DET":
                article = value
            position = last
        if quantifier == "least" and not number:
            quantifier = "bad"
        return position, quantifier, number, article

    def _headed(
        self, first: int, last: int, selector: Selector, quantifier: str, number: int, article: str, direction: str
    ) -> Iterator[tuple[int, Group]]:
        heads = self._heads(last)
        for end, kind, plural in heads:
            if kind in {"place", "one"}:
                if isinstance(selector, Everything) and kind == "place":
                    for start, _ in self.lex(end, "OF", "IN"):  # a member state of the EU
                        for stop, groups in self.list(start):
                            if len(groups) == 1 and groups[0].kind is None and not groups[0].quantifier:
                                yield stop, replace(groups[0], first=first, quantifier=quantifier, number=number)
                    for stop, elsewhere in self._elsewhere(end):
                        yield stop, Group(first, stop, None, elsewhere, quantifier, number)
                    continue
                group = Group(first, end, None, selector, quantifier, number, singular=not plural and kind == "one")
            else:
                ends = None
                chosen = selector
                owned = kind in {"traffic", "migration", "measure"} or kind.startswith("state")
                if owned and not isinstance(selector, Everything):  # "billing traffic"
                    owner = Group(first, last, bare_kind(selector) or "workload", selector)
                    ends, chosen = Ends(owner=(owner,)), Everything()
                group = Group(
                    first, end, kind, chosen, quantifier, number, ends=ends, singular=article == "a" or not plural,
                    plural=plural, direction=direction,
                )  # fmt: skip
            yield from self._postmodified(group, end)
            yield from self._possessed(group, end)
        if last > first and not isinstance(selector, Everything):
            bare = bare_kind(selector)
            group = Group(first, last, bare, selector, quantifier, number, singular=True, direction=direction)
            yield from self._possessed(group, last)
            yield from self._postmodified(group, last)

    def _elsewhere(self, last: int) -> Iterator[tuple[int, Selector]]:
        """Read `outside the EU`, `other than aws` behind `any country`, `a provider`."""
        for start, _ in self.lex(last, "OUT", "EXCEPT"):
            for end, groups in self.list(self.skip(start, "IN")):
                if len(groups) == 1 and groups[0].kind is None and not groups[0].quantifier:
                    inner = groups[0].selector
                    yield end, Minus(Not(inner.base), inner.taken) if isinstance(inner, Minus) else Not(inner)

    def _possessed(self, owner: Group, last: int) -> Iterator[tuple[int, Group]]:
        """Read `'s traffic` behind the owner."""
        if not self.lex(last, "POSS"):
            return
        start, direction = last + 1, ""
        for end, value in self.lex(start, "DIRECTION"):
            start, direction = end, value
            break
        for end, kind, plural in self._heads(start):
            owned = ("traffic", "state", "network", "migration", "data", "link", "measure")
            if kind.startswith(owned) or (kind in {"node", "switch"} and owner.kind in WORKLOADS):
                group = Group(
                    owner.first, end, kind, ends=Ends(owner=(owner,)), quantifier=owner.quantifier, direction=direction,
                    plural=plural,
                )  # fmt: skip
                owner = replace(owner, quantifier="")
                yield from self._postmodified(group, end)
            elif kind in WORKLOADS:
                yield end, replace(owner, last=end, kind=owner.kind or kind)

    def _heads(self, first: int) -> list[tuple[int, str, bool]]:
        """Read one noun or a compound of nouns ("data services"): the last one decides."""
        found: list[tuple[int, str, bool]] = []
        whole = {last for last, value in self.lex(first, "NOUN") if value == "network"}  # "network equipment"
        for last, value in self.lex(first, "NOUN"):
            if value == "generic" and self._names_workloads(first):
                continue  # "llm workloads" where workloads are called llm-...: not just any
            for end, kind, plural in self._heads(last):
                if end in whole:
                    continue
                if not (value in {"node", "switch", "link"} and kind != value) or kind in {"traffic", "network"}:
                    found.append((end, kind, plural))
            found.append((last, value, self.tokens[last - 1].norm.endswith("s")))
        found.sort(key=lambda each: -each[0])
        return found

    def _names_workloads(self, first: int) -> bool:
        """Whether a word such as `llm` or `stage` is a label's value or a part of names here."""
        return any(
            isinstance(sense, PartOfName)
            or (isinstance(sense, Valued) and any(kind == "workload" for kind, _, _ in sense.where))
            for mention in self.mentions(first)
            for sense in mention.senses
        )

    def _apposition(
        self, first: int, last: int, kind: str, quantifier: str, number: int
    ) -> Iterator[tuple[int, Group]]:
        start = self.skip(last, "NAMED")
        wanted = "workload" if kind in {"workload", "generic"} else kind

        def named(position: int) -> Iterator[tuple[int, Selector]]:
            for mention in self.mentions(position):
                names = [
                    Named(tuple(each for each in sense.elements if each[0] == wanted))
                    for sense in mention.senses
                    if isinstance(sense, Named) and any(each[0] == wanted for each in sense.elements)
                ]
                if names:
                    yield mention.last, Said(replace(mention, senses=(names[0],)), name_wanted=True)

        for end, selector in named(start):
            parts, how = [selector], ""
            readings, stop = [(end, selector)], end
            while True:
                following, spoken = self.conjunction(stop)
                more = next(named(following), None) if following != stop else None
                if more is None or (spoken and how and spoken != how):
                    break
                stop, how = more[0], spoken or how
                parts.append(more[1])
                readings.append((stop, Join(how or "and", tuple(parts))))
            for behind, chosen in reversed(readings):
                group = Group(first, behind, wanted, chosen, quantifier, number, singular=len(parts) == 1)
                yield from self._postmodified(group, behind)
                yield from self._possessed(group, behind)

    def _relation(self, first: int) -> Iterator[tuple[int, Group]]:
        """Read `the same node`, `different zones`, `separate nodes`."""
        for last, relation in self.lex(first, "SAME"):
            for begin, selector in self._modifiers(last):  # different trusted nodes
                for end, topology in self.lex(begin, "TOPO"):
                    yield end, Group(first, end, f"topology:{topology}", selector, relation=relation)
        for last, topology in self.lex(self.skip(first, "DET"), "TOPO"):
            if self.skip(first, "DET") > first or self.tokens[last - 1].norm.endswith("s"):
                yield last, Group(first, last, f"topology:{topology}", relation="")

    def _postmodified(self, group: Group, last: int) -> Iterator[tuple[int, Group]]:
        for end, more in self._postmodifiers(group, last):
            yield from self._postmodified(more, end)
        yield last, replace(group, last=last)

    def _postmodifiers(self, group: Group, last: int) -> Iterator[tuple[int, Group]]:
        kind = group.kind or ""
        if kind in _FLOWS or kind == "switch" or kind.startswith("state"):
            yield from self._ends(group, last)
        comma = last + 1 if self.mark(last, ",") else last
        if group.ends is not None and (group.ends.target or group.ends.owner):
            for end, _ in self.lex(comma, "BOTHDIR"):
                ends = group.ends if group.ends.owner else replace(group.ends, mutual=True)
                yield (end + 1 if self.mark(end, ",") else end), replace(group, ends=ends, direction="")
        if self.mark(last, ",") and self.tokens[last].text == "(":
            yield from self._described(group, last + 1)
        if kind in {"node", "switch", "link"} and group.ends is None:
            yield from self._carrying(group, last)
        if kind in {"node", "switch", "link", "network", "workload", "generic", "data"}:
            for end, selector in self.conditions(last, kind):
                yield end, limited(group, selector)
        if not kind and group.singular and isinstance(group.selector, Everything):  # "one in France"
            for end, selector in self.conditions(last, "node"):
                yield end, replace(group, selector=selector)
        if not kind:
            for start, _ in self.lex(last, "OF", "IN"):  # the edge of provider acme, region x of aws
                for end, inner in self.group(self.skip(start, "DET")):
                    if inner.kind is None and not inner.quantifier:
                        yield end, limited(group, inner.selector)

    # lists

    def list(self, first: int) -> list[tuple[int, tuple[Group, ...]]]:
        """Read noun phrases joined by `and`, `or`, `nor`, commas, and their exceptions; same kinds become one group."""
        if first not in self._lists:
            self._lists[first] = []
            self._lists[first] = distinct(self._list(first))
        return self._lists[first]

    def _list(self, first: int) -> Iterator[tuple[int, tuple[Group, ...]]]:
        corr = self.lex(first, "CORR")
        if corr and (corr[0][1] != "neither"):
            for last, groups in self.list(corr[0][0]):
                if len(groups) > 1 or isinstance(groups[0].selector, Join):  # "both workloads" counts them
                    yield last, groups
        for start, number in self._least_of(first):
            for last, groups in self.list(start):
                one = groups[0]
                if len(groups) == 1 and one.kind == "workload" and one.singular and isinstance(one.selector, Join):
                    yield last, (replace(one, first=first, quantifier="least", number=number, singular=False),)
        for last, group in self.group(first):
            for end, groups, _ in self._further(last, (group,), ""):
                yield from self._excepted(end, groups)
            yield from self._excepted(last, (group,))

    def _further(self, last: int, groups: tuple[Group, ...], how: str) -> Iterator[tuple[int, tuple[Group, ...], str]]:
        following, spoken = self.conjunction(last)
        if following == last and spoken == "":
            return
        if how and spoken and spoken != how:
            return
        for end, group in self.group(following):
            said = spoken or how
            own = bool(self.lex(following, "DET"))  # "a trusted or a certified node"
            merged = merge(groups, group, said, own=own and said == "or")
            if merged is None:
                continue
            yield from self._further(end, merged, said)
            if said:
                yield end, merged, said

    def _excepted(self, last: int, groups: tuple[Group, ...]) -> Iterator[tuple[int, tuple[Group, ...]]]:
        comma = last + 1 if self.mark(last, ",") else last
        for start, _ in self.lex(comma, "EXCEPT", "BUTEX"):
            plain_but = not self.lex(comma, "EXCEPT")
            sets = {"any", "none", "all", *_BUT_SOME}
            if plain_but and (groups[0].quantifier not in sets or self.lex(start, "IN")):
                continue  # "not in Germany but in France" takes nothing away
            for end, taken in self.list(self.skip(start, "IN")):
                if len(taken) == 1 and len(groups) == 1 and may_take(groups[0], taken[0]):
                    quantifier = _BUT_SOME.get(groups[0].quantifier, groups[0].quantifier)
                    rest = Minus(groups[0].selector, taken[0].selector)
                    base = replace(groups[0], selector=rest, quantifier=quantifier, last=end)
                    yield end, (base,)
                    if self.mark(end, ","):
                        yield end + 1, (base,)
        if not any(_BUT_SOME.get(group.quantifier) == "none" for group in groups):
            yield last, groups
