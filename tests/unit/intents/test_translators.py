"""The translators by name."""

import sys

import pytest

from intents.errors import TranslatorError
from intents.translators import TranslatorKind, make_translator, witness


def test_the_embedded_translator_is_made_once():
    assert make_translator(TranslatorKind.EMBEDDED) is witness()


@pytest.mark.parametrize("kind", [TranslatorKind.OPENAI, TranslatorKind.BOTH])
def test_a_language_model_needs_an_endpoint_and_its_client(kind: TranslatorKind, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(TranslatorError, match=f"the translator {kind} needs --endpoint"):
        make_translator(kind)
    monkeypatch.delitem(sys.modules, "intents.translation.openai", raising=False)
    monkeypatch.setitem(sys.modules, "openai", None)  # the import system's own way to say "not installed"
    with pytest.raises(TranslatorError, match=r"pip install 'midstream\[intents\]'"):
        make_translator(kind, "http://127.0.0.1:1/v1")
