"""What prompts are made of: word numbers, drawn so that only what should be shared is shared.

A word is one token of the target's tokenizer; here it is only a number below the size of the source's vocabulary
(`loadgen.workloads.prompts` turns numbers into text and token ids). All parts of prompts are made here:

- words of their own begin with a *lead* that spells an identity (a request's index, a block's hash) in as few words as
  hold 2^31 identities: no two of a plan begin alike, so that no prompt is served from the prefix cache by accident. The
  first words alone differ between as many consecutive identities as the vocabulary has words;
- a shared prefix depends on the seed, its length and its group only: the same across the phases of a plan;
- a block depends on the seed and its hash only, so that prompts share exactly the blocks whose hashes they share.
"""

import math

import numpy as np
from numpy.typing import NDArray

from loadgen.workloads.randomness import Purpose, stream

Words = NDArray[np.int64]
LEAST_VOCABULARY = 128  # fewer words make texts that repeat themselves: a cache or a drafter would profit
_IDENTITIES = 2**31


class Contents:
    """The parts of all prompts of one seed over a vocabulary of `size` words."""

    def __init__(self, seed: int, size: int) -> None:
        self._seed = seed
        self._size = size
        self._lead_words = math.ceil(math.log(_IDENTITIES) / math.log(size))
        self._leads = size**self._lead_words
        draw = stream(seed, Purpose.LEAD)
        self._shift = int(draw.integers(self._leads))
        self._factor = int(draw.integers(1, self._leads))
        while math.gcd(self._factor, size) != 1:  # a common divisor would give two identities the same first word
            self._factor = int(draw.integers(1, self._leads))

    def own(self, count: int, identity: int | None, *keys: int | str) -> Words:
        """Return `count` words that begin with the lead of `identity`, if any; `keys` name the stream of the others."""
        return self._led(count, identity, Purpose.PROMPT_WORDS, keys)

    def answer(self, count: int, *keys: int | str) -> Words:
        """Return `count` words of a made-up answer."""
        return self._draw(count, Purpose.ANSWER_WORDS, keys)

    def prefix(self, count: int, group: int) -> Words:
        """Return a prefix that all prompts of a group share."""
        return self._led(count, group, Purpose.PREFIX_WORDS, (count, group))

    def block(self, count: int, hash_id: int) -> Words:
        """Return the first `count` words of the block with that hash."""
        return self._led(count, hash_id, Purpose.BLOCK_WORDS, (hash_id,))

    def _draw(self, count: int, purpose: Purpose, keys: tuple[int | str, ...]) -> Words:
        return stream(self._seed, purpose, *keys).integers(self._size, size=count)

    def _led(self, count: int, identity: int | None, purpose: Purpose, keys: tuple[int | str, ...]) -> Words:
        words = self._draw(count, purpose, keys)
        if identity is None:
            return words
        scattered = (identity * self._factor + self._shift) % self._leads
        for position in range(min(count, self._lead_words)):
            scattered, words[position] = divmod(scattered, self._size)
        return words
