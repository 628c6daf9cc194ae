"""Prompts by the tokenizer of the server under test, over vLLM's `POST /tokenize`.

The server is asked when the plan is made, never while it runs: making prompts must not load what is measured. Words
come from a list of common English ones. Those that are a single token are found by asking for all of them at once and,
where the count is not right, for halves of them. The tokens of several texts out of these words, short and long, are
then compared with what they should be; that is the whole check, so a word that joins its neighbour only in some texts
could slip through. Prompts with a tokenizer at hand (kind: tokenizer) are checked one by one.

Protocol: `{"model": ..., "prompt": text, "add_special_tokens": true}` is answered by `{"count": n, "tokens": [...]}`.
"""

from collections.abc import Mapping, Sequence
from typing import Self

import httpx
import msgspec
import numpy as np

from loadgen.workloads.common_words import COMMON_WORDS
from loadgen.workloads.contents import LEAST_VOCABULARY
from loadgen.workloads.errors import PromptError
from loadgen.workloads.prompts import Vocabulary, WordSource

_TIMEOUT_S = 30.0
_INSTEAD = "Give a tokenizer (kind: tokenizer) or use token ids (kind: token_ids)."
_TRIALS = (1, 2, 17, 500)  # words in the texts that the vocabulary is tried on


class _Answer(msgspec.Struct):
    tokens: list[int]


class ServerSource(WordSource):
    """Prompts by a server's tokenizer; see `ask`."""

    @classmethod
    def ask(
        cls, url: str, *, model: str | None, headers: Mapping[str, str], transport: httpx.BaseTransport | None = None
    ) -> Self:
        """Find words by asking the server at the base URL `url`."""
        with httpx.Client(
            base_url=url.rstrip("/"), headers=dict(headers), timeout=_TIMEOUT_S, trust_env=False, transport=transport
        ) as client:
            return cls(_Probe(client, model).vocabulary())


class _Probe:
    def __init__(self, client: httpx.Client, model: str | None) -> None:
        self._client = client
        self._model = model

    def vocabulary(self) -> Vocabulary:
        for lead in (" ", ""):
            singles = self._singles(COMMON_WORDS, lead)
            if len(singles) < LEAST_VOCABULARY:
                continue
            found = self._with_specials(tuple(singles), tuple(singles.values()), lead)
            if found is not None and self._holds(found):
                return found
        raise PromptError(
            f"the tokenizer of {self._client.base_url} has too few common English words that are one token wherever "
            f"they stand, so no text of exact length can be made. {_INSTEAD}"
        )

    def _singles(self, words: Sequence[str], lead: str) -> dict[str, int]:
        """Return the words that are one token, with that token."""
        tokens = self._tokens(lead + " ".join(words), special=False)
        if len(tokens) == len(words):
            return dict(zip(words, tokens, strict=True))
        if len(words) == 1:
            return {}
        half = len(words) // 2
        return self._singles(words[:half], lead) | self._singles(words[half:], lead)

    def _with_specials(self, words: tuple[str, ...], token_ids: tuple[int, ...], lead: str) -> Vocabulary | None:
        around = self._tokens(lead + " ".join(words), special=True)
        for start in range(len(around) - len(words) + 1):
            end = start + len(words)
            if tuple(around[start:end]) == token_ids:
                return Vocabulary(words, token_ids, lead, tuple(around[:start]), tuple(around[end:]))
        return None

    def _holds(self, vocabulary: Vocabulary) -> bool:
        draw = np.random.default_rng(0)
        prompts = [vocabulary.prompt(draw.integers(len(vocabulary.words), size=count)) for count in _TRIALS]
        return all(tuple(self._tokens(prompt.text or "", special=True)) == prompt.token_ids for prompt in prompts)

    def _tokens(self, text: str, *, special: bool) -> list[int]:
        body = {"prompt": text, "add_special_tokens": special} | ({"model": self._model} if self._model else {})
        where = f"{str(self._client.base_url).rstrip('/')}/tokenize"
        try:
            response = self._client.post("/tokenize", json=body)
        except httpx.HTTPError as error:
            raise PromptError(f"{where} cannot be asked: {error!r}. Is the server up? {_INSTEAD}") from error
        if response.status_code != httpx.codes.OK:
            raise PromptError(f"{where} answered {response.status_code}: {response.text[:200]}. {_INSTEAD}")
        try:
            return msgspec.json.decode(response.content, type=_Answer).tokens
        except msgspec.DecodeError as error:
            raise PromptError(f"{where} gave no list of tokens ({error}). {_INSTEAD}") from error
