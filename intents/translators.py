"""The translators by name, for commands and services."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from intents.errors import TranslatorError
from intents.knowledge.naming import union_members
from intents.planning import same_effect
from intents.translation.agreement import AgreementTranslator
from intents.translation.embedded.translator import EmbeddedTranslator
from intents.translation.openai import OpenAITranslator

if TYPE_CHECKING:
    from intents.translation.interface import Translator

WITNESS = EmbeddedTranslator()
"""Asked about what a translator says whose word is not enough."""


class TranslatorKind(enum.StrEnum):
    """Who understands a sentence."""

    EMBEDDED = "embedded"
    OPENAI = "openai"
    BOTH = "both"


def make_translator(
    kind: TranslatorKind, endpoint: str | None = None, model: str | None = None, *, hashed: bool = False
) -> Translator:
    """Return the translator; the endpoint's key is read from OPENAI_API_KEY.

    Raises:
        TranslatorError: it needs an endpoint and none is given.
    """
    if kind is TranslatorKind.EMBEDDED:
        return WITNESS
    if endpoint is None:
        raise TranslatorError(f"the translator {kind!s} needs --endpoint, such as http://127.0.0.1:8000/v1")
    asked = OpenAITranslator(endpoint, model, unions=union_members(), hashed=hashed)
    return asked if kind is TranslatorKind.OPENAI else AgreementTranslator(asked, WITNESS, same_effect)
