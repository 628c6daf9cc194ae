"""Two translators that must agree: the second is asked too, and what only one of them understood is refused.

The intent of the second, which explains itself, is the one that counts.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from intents.model.refusal import Refusal, RefusalKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from intents.model.intent import PrivacyIntent
    from intents.model.inventory import Inventory
    from intents.translation.interface import Translation, Translator

    Same = Callable[[PrivacyIntent, PrivacyIntent, Inventory], bool]


class AgreementTranslator:
    """See the module. `same` judges whether two intents mean the same on an inventory."""

    name = "both"

    def __init__(self, model: Translator, embedded: Translator, same: Same) -> None:
        self._model = model
        self._embedded = embedded
        self._same = same

    def translate(self, sentence: str, inventory: Inventory) -> Translation:
        """Ask both; the embedded translator first: what it refuses costs no tokens."""
        started = time.perf_counter()
        explained = self._embedded.translate(sentence, inventory)
        if explained.intent is None:
            return explained
        answered = self._model.translate(sentence, inventory)
        spent_ms = 1e3 * (time.perf_counter() - started)
        told = replace(explained, tokens=answered.tokens, rounds=answered.rounds, latency_ms=spent_ms)
        if answered.intent is None:
            why = answered.refusal.message if answered.refusal is not None else ""
            refusal = Refusal(RefusalKind.UNTRUSTED, f"only one of two translators understood the sentence: {why}")
            return replace(told, intent=None, refusal=refusal)
        if self._same(answered.intent, explained.intent, inventory):
            return told
        refusal = Refusal(RefusalKind.UNTRUSTED, "the two translators understood different things")
        return replace(told, intent=None, refusal=refusal)
