"""Which cores a stage computes on.

The stages of a node share its cores and compute one after the other. Left to itself, the kernel now and then puts two
threads of a stage on one core, mostly when something else ran for a moment: one then spins at a barrier while the one
it waits for wants the core. Measured on two cores: a batch of 16 ms took 33 ms, up to one time in four, and most often
right after a change.

vLLM's own binding gives every rank cores of its own, which would leave all of them but one idle here.
"""

from __future__ import annotations

import os
import threading

import torch

_ALL_THREADS_WORK = 1 << 20  # elements: enough that an operation is divided among all threads


class ComputeThreads:
    """The calling thread, which computes, and its OpenMP helpers. Starts the helpers.

    Attributes:
        cores: the cores this process may use.
        ids: native ids; the computing thread first.

    """

    def __init__(self) -> None:
        self.cores = sorted(os.sched_getaffinity(0))
        before = _threads()
        torch.zeros(_ALL_THREADS_WORK).add_(1)
        self.ids = [threading.get_native_id(), *sorted(_threads() - before)]

    def spread(self, rank: int) -> None:
        """Give every helper a core of its own; stages of neighbouring ranks get different ones while there are some.

        A team of three or more threads may shrink and grow, and a new helper inherits the cores of the computing
        thread. So that one is bound only beside a single helper, which stays.
        """
        size = len(self.ids)
        if not 1 < size <= len(self.cores):
            return
        for place, thread in enumerate(self.ids):
            if place or size == 2:
                try:
                    os.sched_setaffinity(thread, {self.cores[(rank * size + place) % len(self.cores)]})
                except ProcessLookupError:
                    continue  # it was replaced


def _threads() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}
