"""Streams of randomness that do not disturb each other.

Everything random in a plan comes from one seed, but from a stream of its own: the stream's name and keys (a user, a
request) go into numpy's `SeedSequence` as the spawn key. So another distribution of lengths leaves the arrivals as they
were, one more user leaves the other users as they were, and prompt 7 is the same whether prompt 6 was made or not.

A stream's numbers are those of numpy's PCG64 `Generator`; numpy may change how a distribution uses them between
releases (NEP 19), so "the same seed, the same plan" holds for the same numpy.
"""

from collections.abc import Iterator
from enum import StrEnum
from zlib import crc32

import numpy as np

BLOCK = 256  # numbers drawn at once; part of what a seed means, since some distributions draw differently in bulk


class Purpose(StrEnum):
    """What a stream is for; the name is part of what a seed means."""

    ARRIVALS = "arrivals"
    INPUT_TOKENS = "input tokens"
    OUTPUT_TOKENS = "output tokens"
    THINK = "think"
    TURNS = "turns"
    PREFIX_GROUP = "prefix group"
    SAMPLE = "sample"
    LEAD = "lead"
    PROMPT_WORDS = "prompt words"
    ANSWER_WORDS = "answer words"
    PREFIX_WORDS = "prefix words"
    BLOCK_WORDS = "block words"


def stream(seed: int, purpose: Purpose, *keys: int | str) -> np.random.Generator:
    """Return the stream of `seed` for a purpose and its keys (numbers of at least 0, or names)."""
    spawn_key = [crc32(key.encode()) if isinstance(key, str) else key for key in (purpose.value, *keys)]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=spawn_key)))


def uniform_numbers(generator: np.random.Generator) -> Iterator[float]:
    """Return endless numbers from [0, 1)."""
    while True:
        yield from generator.random(BLOCK).tolist()
