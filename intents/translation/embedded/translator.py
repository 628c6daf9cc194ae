"""The embedded translator: reads a sentence, or says which words it did not understand.

    tokens -> mentions -> phrases -> clauses -> rules -> typed intent

Every reading covers all words. Readings are tried in the order of their likelihood; one that is understood in full is
the answer. If there is none, the sentence is refused with the words that nothing here knows, or with the reason why
the likeliest reading makes no rule. It never answers with a part of the sentence.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pydantic import ValidationError

from intents.knowledge.base import knowledge
from intents.model.intent import IntentMetadata, PrivacyIntent, intent_name
from intents.model.refusal import Refusal, RefusalKind
from intents.translation.embedded.clauses import Clauses
from intents.translation.embedded.diagnosis import diagnose
from intents.translation.embedded.grounding import Grounder
from intents.translation.embedded.lexicon import lexicon
from intents.translation.embedded.meaning import specs_of
from intents.translation.embedded.mentions import Spotter
from intents.translation.embedded.phrases import Phrases
from intents.translation.embedded.refusals import Refused
from intents.translation.embedded.spans import spans_of
from intents.translation.embedded.tokens import tokenize
from intents.translation.embedded.vocabulary import Vocabulary, vocabulary_of
from intents.translation.interface import Translation

if TYPE_CHECKING:
    from intents.model.inventory import Inventory
    from intents.translation.interface import Span

_LONGEST_SENTENCE = 2000
_MOST_TOKENS = 160
_READINGS = 60


class EmbeddedTranslator:
    """Translates without a network and without a model; the same sentence always gets the same answer."""

    name = "embedded"

    def __init__(self) -> None:
        lexicon()
        knowledge()
        self._indexed: tuple[Inventory, Vocabulary] | None = None

    def translate(self, sentence: str, inventory: Inventory) -> Translation:
        """Understand a sentence about this inventory, or refuse it."""
        began = time.perf_counter()
        answer, spans = self._answer(sentence, inventory)
        took = (time.perf_counter() - began) * 1000
        if isinstance(answer, Refusal):
            return Translation(None, answer, spans, latency_ms=took)
        return Translation(answer, None, spans, latency_ms=took)

    def _vocabulary(self, inventory: Inventory) -> Vocabulary:
        if self._indexed is None or self._indexed[0] is not inventory:
            self._indexed = (inventory, vocabulary_of(inventory))
        return self._indexed[1]

    def _answer(self, sentence: str, inventory: Inventory) -> tuple[PrivacyIntent | Refusal, tuple[Span, ...]]:
        if len(sentence) > _LONGEST_SENTENCE:
            return Refusal(
                RefusalKind.NOT_UNDERSTOOD, f"longer than {_LONGEST_SENTENCE} characters: say it in fewer words"
            ), ()
        tokens = tokenize(sentence)
        if len(tokens) > _MOST_TOKENS:
            return Refusal(RefusalKind.NOT_UNDERSTOOD, f"more than {_MOST_TOKENS} words: say it in several intents"), ()
        vocabulary = self._vocabulary(inventory)
        spotter = Spotter(sentence, tokens, vocabulary)
        phrases = Phrases(tokens, spotter, vocabulary)
        early = diagnose(tokens, spotter, vocabulary)
        if early is not None:
            return early, ()
        reasons: list[Refusal] = []
        for number, clauses in enumerate(Clauses(phrases).texts()):
            grounder = Grounder(vocabulary)
            try:
                specs = specs_of(clauses, vocabulary, grounder)
                intent = PrivacyIntent(
                    metadata=IntentMetadata(name=intent_name(sentence), sentence=sentence), specs=specs
                )
            except Refused as refusal:
                reasons.append(refusal.refusal)
                if refusal.final:
                    break
            except ValidationError as error:  # a rule that says nothing: the model knows best
                reasons.append(Refusal(RefusalKind.NOT_UNDERSTOOD, f"no rule comes of it: {error.errors()[0]['msg']}"))
            else:
                return intent, spans_of(sentence, tokens, grounder.meanings)
            if number >= _READINGS:
                break
        return _reason(reasons, sentence, tokens, phrases.furthest), ()


def _reason(reasons: list[Refusal], sentence: str, tokens: object, furthest: int) -> Refusal:
    for kind in (RefusalKind.OUT_OF_SCOPE, RefusalKind.AMBIGUOUS, RefusalKind.VACUOUS):
        if reasons and reasons[-1].kind is kind:
            return reasons[-1]
    for kind in (RefusalKind.AMBIGUOUS, RefusalKind.VACUOUS, RefusalKind.OUT_OF_SCOPE, RefusalKind.NOT_UNDERSTOOD):
        for reason in reasons:
            if reason.kind is kind:
                return reason
    listed = tokens if isinstance(tokens, tuple) else ()
    where = sentence[listed[furthest].start :] if furthest < len(listed) else sentence
    shown = where if len(where) <= 60 else where[:60] + "..."
    return Refusal(
        RefusalKind.NOT_UNDERSTOOD,
        f"every word is known, but not how they go together, from about {shown!r} on"
        if listed
        else "there are no words",
        "say it in short sentences: who, must or must not, where",
    )
