"""Prompts by a Hugging Face tokenizer.

Words are the vocabulary's own runs of small letters that begin a word. Each is kept only if the tokenizer, asked for it
twice in a row, answers with twice the same single token; then all of them together, in random order, must give exactly
these tokens. Byte-level tokenizers count the space to the word, so texts begin with one; others (sentence pieces,
word pieces) add or drop it themselves. Both ways are tried.

Every prompt is tokenised once more when it is made: an inexact prompt is an error, never a wrong figure.
"""

import re
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from loadgen.workloads.contents import LEAST_VOCABULARY, Words
from loadgen.workloads.errors import PromptError
from loadgen.workloads.plan import Prompt
from loadgen.workloads.prompts import Vocabulary, WordSource

_MARK = "\u0120\u2581"  # how byte-level and sentence-piece vocabularies write the space before a word
_MARKED = re.compile(f"[{_MARK}]([a-z]{{2,}})")
_BARE = re.compile("([a-z]{2,})")


class TokenizerSource(WordSource):
    """Prompts by a tokenizer of the `transformers` library (or one that is called and answers alike)."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        self._tokenizer = tokenizer
        self._name = name
        super().__init__(self._find_words())

    @classmethod
    def load(cls, name: str) -> Self:
        """Load the tokenizer of a folder or hub id; a hub id may be downloaded. No code of the model's is run."""
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise PromptError(
                "prompts by a tokenizer need the package transformers: install it, or use the server's own tokenizer "
                "(kind: server) or token ids (kind: token_ids)"
            ) from None
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise PromptError(f"cannot load the tokenizer {name!r}: {reason}. Give a folder or a hub id.") from error
        return cls(tokenizer, name)

    def prompt(self, words: Words) -> Prompt:
        """Return the prompt with these words, tokenised to see that it is right."""
        prompt = super().prompt(words)
        found = self._encode([prompt.text or ""], special=True)[0]
        if tuple(found) != prompt.token_ids:
            raise PromptError(
                f"the tokenizer {self._name!r} makes {len(found)} tokens of a text meant to be {prompt.tokens}: "
                "its words do not keep apart. Use token ids instead (kind: token_ids)."
            )
        return prompt

    def _encode(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        # Without `verbose` a text longer than the model's context is no reason for a warning: the server decides.
        answer = self._tokenizer(list(texts), add_special_tokens=special, verbose=False)
        return [list(ids) for ids in answer["input_ids"]]

    def _find_words(self) -> Vocabulary:
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        marked = any(token[:1] in _MARK for token in vocabulary if token)
        pattern = _MARKED if marked else _BARE
        found = {match[1] for token in vocabulary if (match := pattern.fullmatch(token))}
        candidates = sorted(found)  # by name: the numbers of words must not depend on the order of a dict
        for lead in (" ", ""):
            pairs = self._encode([f"{lead}{word} {word}" for word in candidates], special=False) if candidates else []
            good = [
                (word, ids[0])
                for word, ids in zip(candidates, pairs, strict=True)
                if len(ids) == 2 and ids[0] == ids[1]
            ]
            if len(good) < LEAST_VOCABULARY:
                continue
            words, token_ids = zip(*good, strict=True)
            order = np.random.default_rng(0).permutation(len(words))
            text = lead + " ".join(words[number] for number in order)
            expected = [token_ids[number] for number in order]
            around = self._encode([text], special=True)[0]
            before = _position(around, expected)
            if before is not None:
                after = around[before + len(expected) :]
                return Vocabulary(words, token_ids, lead, tuple(around[:before]), tuple(after))
        raise PromptError(
            f"the tokenizer {self._name!r} has no words that keep apart, so no text of exact length can be made. "
            "Use token ids instead (kind: token_ids)."
        )


def _position(tokens: Sequence[int], part: Sequence[int]) -> int | None:
    """Return where `part` stands in `tokens`, at most a few special tokens from either end."""
    spare = len(tokens) - len(part)
    return next((start for start in range(spare + 1) if list(tokens[start : start + len(part)]) == list(part)), None)
