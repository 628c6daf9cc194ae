"""How the head knows at any moment whether the pipeline computes.

Problem: the pipeline lives in the engine's process, whose one thread waits while the pipeline wakes, so a call to it
waits as well, just when the answer matters. Protocol: the head makes one word of anonymous shared memory before the
engine starts and names it in the environment; the engine writes there what the pipeline does and since when. Reading
it is a load, which waits for nobody.

The word holds the time (CLOCK_MONOTONIC, the same for all processes of a machine, in ns) and in its lowest bits the
phase. It is written and read whole, so a reader never sees the time of another phase. What ends without a word, such
as a killed engine, leaves the last phase standing.
"""

from __future__ import annotations

import enum
import mmap
import os
import time
from dataclasses import dataclass

PHASE_VARIABLE = "MIDSTREAM_PHASE"

_WORD_BYTES = 8
_PHASE_BITS = 3


class Phase(enum.IntEnum):
    """What a pipeline does, as far as a request that waits for it is concerned."""

    AWAKE = 0
    ASLEEP = 1
    WAKING = 2
    RECOVERING = 3
    FAILED = 4
    FORBIDDEN = 5


@dataclass(frozen=True, slots=True)
class Standing:
    """A phase, and since when (seconds of `time.monotonic`) the pipeline has been awake, or has not."""

    phase: Phase
    since: float


class PhaseWord:
    """One process's view of the word. The engine's process writes, everybody reads; writes must not overlap."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, _WORD_BYTES)
        self._word = memoryview(self._memory).cast("Q")

    def read(self) -> Standing:
        """Return what the pipeline does now."""
        word = self._word[0]
        return Standing(Phase(word & (1 << _PHASE_BITS) - 1), (word >> _PHASE_BITS) / 1e9)

    def write(self, phase: Phase) -> None:
        """Tell what the pipeline does now; the time stays when it goes from one way of not being awake to another."""
        word = self._word[0]
        was_awake = word & (1 << _PHASE_BITS) - 1 == Phase.AWAKE
        since = time.monotonic_ns() if was_awake or phase is Phase.AWAKE else word >> _PHASE_BITS
        self._word[0] = since << _PHASE_BITS | phase


def make_phase_word() -> str:
    """Make a word that says awake; returns the path at which it can be opened while this process lives."""
    descriptor = os.memfd_create("midstream-phase")
    os.ftruncate(descriptor, _WORD_BYTES)
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def open_phase_word() -> PhaseWord | None:
    """Open the word that the environment names; None when it names none. Raises OSError when it is gone."""
    path = os.environ.get(PHASE_VARIABLE)
    if not path:
        return None
    descriptor = os.open(path, os.O_RDWR)
    try:
        return PhaseWord(descriptor)
    finally:
        os.close(descriptor)
