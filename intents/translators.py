"""The translators by name, for commands and services."""

from __future__ import annotations

import enum
from functools import cache
from typing import TYPE_CHECKING

from intents.errors import TranslatorError
from intents.knowledge.naming import union_members
from intents.planning import same_effect
from intents.translation.agreement import AgreementTranslator
from intents.translation.embedded.translator import EmbeddedTranslator

if TYPE_CHECKING:
    from intents.translation.interface import Translator


class TranslatorKind(enum.StrEnum):
    """Who understands a sentence."""

    EMBEDDED = "embedded"
    OPENAI = "openai"
    BOTH = "both"


@cache
def witness() -> EmbeddedTranslator:
    """Return who is asked about what a translator says whose word is not enough; the first call reads the knowledge."""
    return EmbeddedTranslator()


def make_translator(
    kind: TranslatorKind, endpoint: str | None = None, model: str | None = None, *, hashed: bool = False
) -> Translator:
    """Return the translator; the endpoint's key is read from OPENAI_API_KEY.

    Raises:
        TranslatorError: it needs an endpoint and none is given, or a library that is not installed.
    """
    if kind is TranslatorKind.EMBEDDED:
        return witness()
    if endpoint is None:
        raise TranslatorError(f"the translator {kind!s} needs --endpoint, such as http://127.0.0.1:8000/v1")
    try:
        from intents.translation.openai import OpenAITranslator  # importing it takes half a second
    except ImportError as error:
        raise TranslatorError("the OpenAI client is not installed: pip install 'midstream[intents]'") from error
    asked = OpenAITranslator(endpoint, model, unions=union_members(), hashed=hashed)
    return asked if kind is TranslatorKind.OPENAI else AgreementTranslator(asked, witness(), same_effect)
