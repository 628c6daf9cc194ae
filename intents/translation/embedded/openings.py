"""How statements begin: wrappers ("ensure that", "it is forbidden to"), fronted phrases, topics, gerunds."""

from __future__ import annotations

from abc import ABC
from dataclasses import replace
from typing import TYPE_CHECKING

from intents.translation.embedded.lists import WORKLOADS
from intents.translation.embedded.predicates import Predicates, Statement
from intents.translation.embedded.shapes import flow_between
from intents.translation.embedded.tree import Clause, Complement, Group, Verb
from intents.translation.embedded.verbs import is_move

if TYPE_CHECKING:
    from collections.abc import Iterator


_TALKS = frozenset({"talk", "exchange", "send", "receive"})


class Openings(Predicates, ABC):
    """Reads what statements begin with."""

    def _when(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        """Read `When imaging is migrated, ...`."""
        p = self._p
        should = [
            each for each in p.lex(first, "MODAL") if p.tokens[first].norm == "should"
        ]  # "Should A be moved, ..."
        for start, _ in [*p.lex(first, "WHEN"), *should]:
            for end, groups in p.list(start):
                for stop, aux in self._v.auxiliaries(end):
                    if aux.negated or aux.only or aux.soft or aux.migration or aux.modal == "ban":
                        continue
                    for behind, verbs in self._v.verbs(stop, passive=aux.be):
                        if all(is_move(verb.lemma) for verb in verbs):
                            topic = () if all(each.kind == "pronoun" for each in groups) else groups
                            yield from self._statement(behind, replace(frame, migration=True, topic=topic))
                            yield from self._moved(behind, replace(frame, subject=groups, migration=True))
                            yield from self._received(behind, replace(frame, subject=groups, migration=True))
        for start, _ in p.lex(first, "WHEREVER"):  # "Wherever A runs, its packets must ..."
            for end, groups in p.list(start):
                for stop, verbs in [
                    *self._v.verbs(end, passive=False),
                    *self._v.verbs(p.skip(end, "BE"), passive=True),
                ]:
                    if all(verb.kind == "run" for verb in verbs) and p.mark(stop, ","):
                        yield from self._statement(stop + 1, replace(frame, topic=groups))

    def _moved(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        """Read `, then only to nodes in Germany`, `, it has to be to nodes in Germany` behind `If A is moved`."""
        p = self._p
        start = p.skip(first + 1 if p.mark(first, ",") else first, "FILLER")
        starts = [(start, False)]
        for begin, _ in p.lex(start, "PRON"):
            for last, aux in self._v.auxiliaries(begin):
                if not aux.negated and (aux.modal == "must" or aux.only):
                    starts.append((last, True))
        for start, told in starts:
            for end, complements in self._complements.all(start):
                if (
                    complements
                    and (told or complements[0].only)
                    and all(each.role in {"to", "in", "via"} and not each.negated for each in complements)
                ):
                    moved = replace(frame, modal="must", only=True, verbs=(Verb("move", "migrate"),))
                    yield end, (replace(moved, complements=tuple(replace(each, only=False) for each in complements)),)

    def _from_to(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        """Read `From A to B, traffic must ...`, `Between A and B, use ...`."""
        p = self._p
        if not p.lex(first, "FROM", "BETWEEN", "ENDPOINTS"):
            return
        for end, flow in p.ended(Group(first, first, "traffic"), first):
            ends = flow.ends
            if ends is None or not ends.source or not ends.target:
                continue
            following = end + 1 if p.mark(end, ",") else end
            subject = replace(frame, subject=(flow,))
            yield from self._imperative(following, subject)
            for begin, _ in p.lex(following, "AGENT"):
                yield from self._imperative(begin, subject, agent=True)
            for stop, rest in self._with_subject(
                following, frame
            ):  # "Between A and B only encrypted links may be used"
                used = (
                    len(rest) == 1 and not rest[0].complements and rest[0].verbs[0].kind in {"use", "avoid", "excluded"}
                )
                if used and flow.ends is not None:
                    between = Complement("on", (flow,))
                    yield stop, (replace(rest[0], complements=(between,)),)
            for last, value in p.lex(p.skip(following, "QUANT", "DET"), "NOUN"):
                if value in {"traffic", "network", "measure", "link", "switch"}:
                    ended = replace(frame, subject=(replace(flow, kind=value),))
                    yield from self._predicate(last, ended)
            for last, complements in self._complements.all(following):  # "From A to B, encrypted links only"
                if complements and complements[0].role == "object" and complements[0].only:
                    yield last, (replace(subject, modal="must", verbs=(Verb("use", "use"),), complements=complements),)

    def _topic(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        """Read `For health data, use ...`."""
        p = self._p
        for start, _ in p.lex(first, "FOR"):
            for end, groups in p.list(start):
                if all((each.kind or "") in WORKLOADS | {"traffic", "pronoun"} for each in groups):
                    following = end + 1 if p.mark(end, ",", ":") else end
                    topic = replace(frame, subject=groups)
                    yield from self._imperative(following, topic)
                    for begin, _ in p.lex(following, "AGENT"):  # "For ledger we need trusted nodes"
                        yield from self._imperative(begin, topic, agent=True)
                    yield from self._predicate(following, topic, nominal=True)
                    for stop, rest in self._with_subject(following, frame):  # "For X, only trusted nodes may be used"
                        verb = rest[0].verbs[0].kind
                        used = len(rest) == 1 and not rest[0].complements and verb in {"use", "avoid", "excluded"}
                        if used:
                            yield stop, (replace(rest[0], complements=(Complement("for", groups),)),)

    def _by_agent(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        """Read `We must not run X ...`, `We only host X ...`, `You have to make sure that ...`."""
        for last, _ in self._p.lex(first, "AGENT"):
            yield from self._imperative(last, frame, agent=True)
            for end, aux in self._v.auxiliaries(last):
                plain = aux.modal in {"must", "should"} and not (aux.negated or aux.only or aux.be)
                if plain and self._p.lex(end, "ENSURE", "LETNOT"):
                    yield from self._statement(end, replace(frame, soft=frame.soft or aux.soft))

    def _it_is(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        """Read `It is mandatory that ...`, `... for X to ...`, `... to run X in ...`."""
        p = self._p
        for last, _ in p.lex(first, "ITIS"):
            demand = replace(frame, modal="must")
            for end, _ in p.lex(last, "RELATIVE"):
                yield from self._statement(end, demand)
            for end, _ in p.lex(last, "TO"):
                no = p.lex(end, "NEG")
                yield from self._imperative(no[0][0] if no else end, replace(demand, negated=bool(no)))
            for end, _ in p.lex(last, "FOR"):
                for stop, groups in p.list(end):
                    no = p.lex(stop, "NEG")
                    for begin, _ in p.lex(no[0][0] if no else stop, "TO"):
                        yield from self._predicate(begin, replace(demand, subject=groups, negated=bool(no)))

    def _gerund(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        """Read `Running X in the US is forbidden`, `The hosting of X ... must be avoided`, `Storage of X ...`."""
        p = self._p
        if frame.negated or frame.only:
            return
        start, none, only = first, False, False
        for last, _ in p.lex(first, "ONLY"):
            start, only = last, True
        for last, value in p.lex(start, "QUANT"):
            if value in {"none", "any", "all"}:
                start, none = last, value == "none"
        start = p.skip(start, "DET")
        deeds = [
            (last, lemma.partition(":")[0], False) for last, lemma in p.lex(start, "VERB") if lemma.endswith(":ing")
        ]
        for end, groups in p.list(start):  # "ledger's placement"
            for begin, lemma in p.lex(end + 1, "DEED") if p.lex(end, "POSS") and not only else ():
                yield from self._judged(
                    begin, replace(frame, subject=groups, verbs=(Verb(lemma, self._v.kind(lemma)),)), none=none
                )
        deeds += [(end, lemma, True) for last, lemma in p.lex(start, "DEED") for end, _ in p.lex(last, "OF")]
        for last, lemma, of in deeds:
            verb = Verb(lemma, self._v.kind(lemma))
            starts = [(last, frame)]
            if of:
                starts = [(end, replace(frame, subject=groups)) for end, groups in p.list(last)]
            for begin, base in starts:
                for end, complements in self._complements.all(begin):
                    deed = replace(base, verbs=(verb,), complements=complements, imperative=not of, only=only)
                    yield from self._judged(end, deed, none=none)

    def _judged(self, first: int, deed: Clause, *, none: bool) -> Iterator[tuple[int, Statement]]:
        """Read what is said of a deed: `is forbidden`, `must be avoided`, `is only allowed in X`, `must take place`."""
        p = self._p
        for last, aux in self._v.auxiliaries(first):
            negated = aux.negated or none
            if aux.soft or aux.migration or (aux.negated and none):
                continue
            said: list[tuple[int, str]] = []
            if aux.modal in {"may", "ban"}:
                said.append((last, aux.modal))
            runs = deed.verbs[0].kind == "run"
            if aux.be and not (negated or deed.only or deed.complements or aux.modal in {"may", "ban"}):
                for end, verbs in self._v.verbs(last, passive=True):  # "Placement of ledger is limited to Germany"
                    if len(verbs) == 1 and verbs[0].kind == "confine" and deed.subject and runs:
                        confined = replace(deed, verbs=verbs, modal="must", only=aux.only)
                        yield from self._completed(end, confined, needs=True)
            if aux.be:
                said += p.lex(last, "ALLOWED")
                said += [
                    (end, "ban")
                    for end, verbs in self._v.verbs(last, passive=True)
                    if len(verbs) == 1 and verbs[0].passive and verbs[0].kind in {"avoid", "forbid", "prevent"}
                ]
            for end, how in said:
                only = aux.only or deed.only
                if (how == "ban" and not negated and not only) or (how == "may" and negated and not only):
                    yield from self._done(end, replace(deed, modal="ban"), more=False)
                elif how == "may" and only and not negated:
                    yield from self._done(end, replace(deed, modal="must", only=True), more=aux.only)
                elif how == "may" and not negated:
                    yield from self._done(end, replace(deed, modal="may"), more=True)
                elif how == "must" and not negated and not only:
                    yield from self._done(end, replace(deed, modal="must"), more=False)
            for end, _ in p.lex(last, "HAPPEN"):
                if aux.modal in {"must", "may", "should", ""}:
                    happens = replace(deed, modal=aux.modal or "must", negated=negated, only=aux.only or deed.only)
                    yield from self._done(end, happens, more=True)

    def _done(self, last: int, deed: Clause, *, more: bool) -> Iterator[tuple[int, Statement]]:
        readings = self._complements.all(last) if more else [(last, ())]
        for end, complements in readings:
            if deed.complements and complements and deed.imperative is False:
                continue
            yield end, (replace(deed, complements=(*deed.complements, *complements)),)

    def _except_for(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        """Read `Except for website, every workload must ...`."""
        p = self._p
        for start, _ in p.lex(first, "EXCEPT"):
            for end, groups in p.list(start):
                if not p.mark(end, ",") or any((group.kind or "") not in WORKLOADS for group in groups):
                    continue
                for stop, clauses in self._with_subject(end + 1, frame):
                    if len(clauses) == 1:
                        taken = Complement("except", groups)
                        yield stop, (replace(clauses[0], complements=(*clauses[0].complements, taken)),)

    def _wrapped(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        """Read `do not let X ...`, `only allow X in Y`, `prevent X from ...`."""
        p = self._p
        for last, kind in p.lex(first, "LETNOT"):
            changed = replace(
                frame,
                ordered=True,
                modal={"neg": "ban", "pos": "may", "only": "must", "must": "must", "who": "may"}[kind],
                only=kind == "only" or frame.only,
                subject_only=kind == "who",
            )
            if kind == "pos" and not frame.only and not frame.modal:
                changed = replace(changed, modal="may")
            for end, groups in p.list(last):
                for stop, rest in self._wrapped_predicate(end, replace(changed, subject=groups)):
                    if kind != "only" or rest[0].verbs[0].kind not in _TALKS:  # only A may talk, or A only to B?
                        yield stop, rest
                if kind == "neg" and all(each.ends is not None for each in groups):  # forbid traffic between A and B
                    yield from self._completed(end, replace(changed, subject=groups, verbs=(Verb("pass", "cross"),)))
            yield from self._wrapped_predicate(last, replace(changed, imperative=True))
        for last, value in p.lex(first, "VERB"):  # keep X from crossing ...
            if value == "avoid:base" and not frame.negated:  # avoid running X in ...
                for end, verbs in self._v.verbs(last, passive=False, shape="ing"):
                    yield from self._completed(end, replace(frame, verbs=verbs, modal="ban", imperative=True))
            if value == "block:base" and not frame.negated:  # block X from reaching Y
                for end, groups in p.list(last):
                    if p.lex(end, "FROM"):
                        yield from self._wrapped_predicate(end, replace(frame, subject=groups, modal="ban"))
            if value == "keep:base" and not frame.negated:
                for end, groups in p.list(last):
                    if p.lex(end, "FROM"):
                        yield from self._wrapped_predicate(end, replace(frame, subject=groups, modal="ban"))
                    for stop, verbs in self._v.verbs(self._filled(end), passive=True):  # keep X isolated from Y
                        if all(verb.passive for verb in verbs):
                            yield from self._completed(stop, replace(frame, subject=groups, modal="must", verbs=verbs))

    def _wrapped_predicate(self, end: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        p = self._p
        start = end
        for stop, _ in p.lex(end, "TO", "FROM"):
            start = stop
        while self._filled(start) != start and not p.lex(start, "IN", "OUT"):
            start = self._filled(start)
        for stop, _ in p.lex(start, "ONLY"):
            frame, start = replace(frame, only=True), stop
        be = p.lex(start, "BE")
        start = be[0][0] if be else start
        for stop, verbs in self._v.verbs(start, passive=bool(be)):
            yield from self._completed(stop, replace(frame, verbs=verbs))
        for stop, verbs in self._v.verbs(start, passive=True, shape="ed") if not be and frame.modal == "must" else ():
            yield from self._completed(stop, replace(frame, verbs=verbs))  # "have ledger hosted in Germany"
        for stop, verb in self._v.adjective(start) if be else ():
            yield from self._completed(stop, replace(frame, verbs=(verb,)))
        if frame.subject:  # "we don't want ledger on untrusted nodes"
            for stop, rest in self._completed(start, replace(frame, verbs=(Verb("be", "run"),)), needs=True):
                if frame.modal != "ban" or all(each.role in {"in", "out"} for each in rest[0].complements):
                    yield stop, rest

    def _filled(self, first: int) -> int:
        found = self._p.lex(first, "FILLER", "HARD")
        return found[0][0] if found else first

    def _there(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        for last, value in self._p.lex(first, "THERE"):
            start = last
            if value == "not":  # there must not be any traffic between ...
                for end, groups in self._p.list(last):
                    if all(each.quantifier in {"", "any"} and each.ends is not None for each in groups):
                        verbs = (Verb("pass", "cross"),)
                        clause = replace(frame, subject=groups, modal="must", negated=True, verbs=verbs)
                        yield from self._completed(end, clause)
                continue
            yield from self._bounded(last, frame)
            for end, _ in self._p.lex(last, "NEG"):
                start = end
            for end, groups in self._p.list(start):
                negative = start != last or any(each.quantifier == "none" for each in groups)
                clause = replace(
                    frame, subject=groups, modal="must", negated=start != last, verbs=(Verb("pass", "cross"),)
                )
                if negative:
                    yield from self._completed(end, clause)

    def _bounded(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        """Read `(there must be) at least 1 Gbps between A and B`."""
        for last, complements in self._complements.all(first):
            roles = [each.role for each in complements]
            if sorted(roles) in (["bandwidth", "between"], ["between", "latency"]):
                flow = next(each for each in complements if each.role == "between")
                rest = tuple(each for each in complements if each is not flow)
                subject = (flow_between(flow),)
                yield (
                    last,
                    (replace(frame, subject=subject, modal="must", verbs=(Verb("have", "have"),), complements=rest),),
                )

    def _fronted(self, first: int, frame: Clause) -> Iterator[tuple[int, Statement]]:
        """Read `Under no circumstances may X leave ...`, `Only in the EU may X run`, `In the EU only may X run`."""
        p = self._p
        for last, _ in p.lex(first, "NEG"):
            if [token.norm for token in p.tokens[first:last]] == ["no", "way"]:  # "no way ledger goes to the US"
                for stop, groups in p.list(last):
                    yield from self._predicate(stop, replace(frame, subject=groups, negated=True))
            for end, _ in [*p.lex(last, "MODAL"), *p.lex(last, "DO")]:
                for stop, groups in p.list(end):
                    yield from self._predicate(stop, replace(frame, subject=groups, modal="must", negated=True))
            for end, complement in self._complements.one(last):  # "Never in the US may X run"
                if complement.role in {"in", "out"} and not (complement.only or complement.negated or complement.soft):
                    yield from self._inverted(end, replace(frame, modal="must", negated=True), complement)
        for end, complements in self._complements.all(first):
            if not complements or any(each.role not in {"in", "out"} or each.negated for each in complements):
                continue
            only = any(each.only for each in complements)
            if only and len(complements) == 1:  # "On trusted nodes only may X run"
                yield from self._inverted(end, replace(frame, modal="must"), complements[0])
            for stop, _ in p.lex(end, "BE"):  # "In Paris, on a node with a GPU, is where X must run"
                for behind, _ in p.lex(stop, "WHERETO"):
                    yield from self._led(behind, frame, complements)
            if p.mark(end, ","):
                for stop, _ in p.lex(end + 1, "BE"):
                    for behind, _ in p.lex(stop, "WHERETO"):
                        yield from self._led(behind, frame, complements)
            if not only and len(complements) == 1:
                yield from self._framed(end + 1 if p.mark(end, ",") else end, frame, complements[0])
        for end, groups in p.list(first):  # "Germany is where X must run"
            if all(group.kind in {None, "node"} for group in groups):
                for stop, _ in p.lex(end, "BE"):
                    for behind, _ in p.lex(stop, "WHERETO"):
                        yield from self._led(behind, frame, (Complement("in", groups),))
        for last, _ in p.lex(first, "ONLY"):
            for end, complement in self._complements.one(last):
                yield from self._inverted(end, replace(frame, modal="must"), replace(complement, only=True))

    def _inverted(self, end: int, frame: Clause, complement: Complement) -> Iterator[tuple[int, Statement]]:
        """Read `may X run` behind a fronted complement."""
        for stop, _ in self._p.lex(end, "MODAL"):
            for behind, groups in self._p.list(stop):
                for after, rest in self._predicate(behind, replace(frame, subject=groups)):
                    head = replace(rest[0], complements=(*rest[0].complements, complement))
                    yield after, (head, *rest[1:])

    def _led(self, first: int, frame: Clause, complements: tuple[Complement, ...]) -> Iterator[tuple[int, Statement]]:
        """Read `X must run` behind `... is where`."""
        for end, groups in self._p.list(first):
            for stop, rest in self._predicate(end, replace(frame, subject=groups), nominal=True):
                if not rest[0].complements and rest[0].modal in {"must", "should"}:
                    yield stop, (replace(rest[0], complements=complements), *rest[1:])
            for stop, aux in self._v.auxiliaries(end):  # "is where X must be"
                if aux.be and aux.modal in {"must", "should"} and not (aux.negated or aux.only):
                    verb = Verb("be", "run")
                    yield (
                        stop,
                        (replace(frame, subject=groups, modal=aux.modal, verbs=(verb,), complements=complements),),
                    )

    def _framed(self, first: int, frame: Clause, complement: Complement) -> Iterator[tuple[int, Statement]]:
        """Read `In the US, X must never run`; what limits further ("... only on trusted nodes") would not be clear."""
        for end, groups in self._p.list(first):
            for stop, rest in self._predicate(end, replace(frame, subject=groups)):
                if len(rest) == 1 and not rest[0].complements and not rest[0].only:
                    yield stop, (replace(rest[0], complements=(complement,)),)
