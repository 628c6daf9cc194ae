"""Verb groups: modals, negation, `only` and adverbs in any order, and the verbs behind them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from intents.translation.embedded.lexicon import verb_class
from intents.translation.embedded.tree import Verb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from intents.translation.embedded.phrases import Phrases


_MOVES = frozenset({"reschedule", "redeploy", "rehost", "reassign"})


def is_move(lemma: str) -> bool:
    """Whether a condition of this verb ("if A is rescheduled") speaks of a migration."""
    return lemma in _MOVES or verb_class()[lemma] == "migrate"


@dataclass(frozen=True, slots=True)
class Auxiliaries:
    """What stood in front of the verb."""

    modal: str = ""
    negated: bool = False
    only: bool = False
    soft: bool = False
    be: bool = False
    do: bool = False
    migration: bool = False
    words: int = 0


class VerbGroups:
    """Reads the verb groups of one sentence."""

    def __init__(self, phrases: Phrases) -> None:
        self._p = phrases
        self._kinds = verb_class()

    def kind(self, lemma: str) -> str:
        """Return the class of a verb."""
        return self._kinds[lemma]

    def auxiliaries(self, first: int) -> list[tuple[int, Auxiliaries]]:
        """Read modals, negations, `only` and adverbs in any order; all prefixes, the longest first."""
        p, found, aux, position = self._p, [], Auxiliaries(), first
        found.append((first, aux))
        while True:
            step = self._auxiliary(position, aux)
            if step is None:
                break
            position, aux = step
            found.append((position, aux))
            if p.mark(position, ",") and p.lex(
                position + 1, "SOFT", "HARD", "FILLER", "MODAL", "NEG", "MIGRATION", "BE", "VERB", "ONLY"
            ):
                position += 1
                found.append((position, aux))
        return found[::-1]

    def _auxiliary(self, position: int, aux: Auxiliaries) -> tuple[int, Auxiliaries] | None:
        found = [
            (last, category, value)
            for category in ("MODAL", "NEG", "ONLY", "SOFT", "HARD", "FILLER", "DO", "BE", "MIGRATION", "BOTHIN")
            for last, value in self._p.lex(position, category)
        ]
        # "must neither leave the EU nor ..."; `either` says nothing, and `or` behind it is judged where it stands
        found += [(last, "CORR", value) for last, value in self._p.lex(position, "CORR") if value != "both"]
        if aux.be and not aux.modal and aux.words > 1:  # "is only ever to be hosted"
            found += [(last, "MODAL", "must") for last, _ in self._p.lex(position, "TO")]
        if not found:
            return None
        last, category, value = max(found, key=lambda each: each[0])
        words = aux.words + 1
        if category == "MODAL":
            return last, _compose(replace(aux, words=words, be=False), value)
        if category == "CORR" and value == "neither":
            return None if aux.negated else (last, replace(aux, negated=True, words=words))
        if category == "NEG":
            return None if aux.negated else (last, replace(aux, negated=True, words=words))
        if category == "ONLY":
            return last, replace(aux, only=True, words=words)
        if category == "SOFT":
            return last, replace(aux, soft=True, words=words)
        if category == "BE":
            return last, replace(aux, be=True, words=words)
        if category == "DO":
            return last, replace(aux, do=True, words=words)
        if category == "MIGRATION":
            return last, replace(aux, migration=True, words=words)
        return last, replace(aux, words=words)

    def verbs(self, first: int, *, passive: bool, shape: str = "") -> Iterator[tuple[int, tuple[Verb, ...]]]:
        """Read one verb or several joined by `and`, `or`, commas (`stored and processed`)."""
        for last, value in self._p.lex(first, "VERB"):
            lemma, _, form = value.partition(":")
            if shape and form != shape:
                continue
            verb = Verb(lemma, self._kinds[lemma], passive=form == "ed" and passive)
            if form == "ed" and not passive:
                continue
            if form == "base" and passive and lemma not in {"run", "put", "let", "cut"}:
                continue
            if lemma in {"run", "put", "cut"} and passive and form == "base":
                verb = replace(verb, passive=True)
            behind = self._p.skip(last, "FILLER")
            following, spoken = self._p.conjunction(behind)
            if following != behind:
                more = self._p.skip(following, "BE")
                for end, others in self.verbs(more, passive=passive, shape=shape):
                    if spoken or len(others) > 1:
                        yield end, (verb, *others)
            yield last, (verb,)

    def adjective(self, first: int) -> Iterator[tuple[int, Verb]]:
        """Read what may stand behind `be` for a verb: `reachable`, `co-located`, `excluded`."""
        for last, _ in self._p.lex(first, "REACHABLE"):
            yield last, Verb("reach", "talk", passive=True)
        for last, value in self._p.lex(first, "COLOCATE"):
            if value == "together":
                yield last, Verb("colocate", "colocate", passive=True)
        for last, _ in self._p.lex(first, "EXCLUDED"):
            yield last, Verb("exclude", "excluded", passive=True)


def _compose(aux: Auxiliaries, value: str) -> Auxiliaries:
    """Combine a modal with what stood before it: `must not be able to` forbids, `does not have to` demands nothing."""
    if value == "notmust":
        return replace(aux, modal="must", negated=True)
    if value == "free":
        return replace(aux, modal="free")
    if value == "ban":
        return replace(aux, modal="free" if aux.negated or aux.modal in {"ban", "free"} else "ban", negated=False)
    if not aux.modal:
        if value == "must" and aux.negated and aux.do:
            return replace(aux, modal="free")  # does not need to
        return replace(aux, modal=value)
    if aux.modal in {"free", "ban"}:
        return replace(aux, modal="free")
    order = (
        ("may", "should", "must")
        if not (value == "may" and not aux.negated and not aux.only)
        else ("must", "should", "may")
    )
    return replace(aux, modal=max((aux.modal, value), key=order.index))
