"""A random generator whose state can travel with its request.

vLLM gives every seeded request a generator on its last stage. To go on with the same tokens elsewhere the state has
to go along. Also, vLLM takes one draw back when it samples for an unfinished prompt, by moving the generator's offset;
CPU generators have no offset, so this class takes the draw back by returning to the state before it.
"""

from __future__ import annotations

import numpy as np
import torch


class SeededGenerator(torch.Generator):
    """A `torch.Generator` that knows its state before the last draw."""

    def __new__(cls, device: torch.device, seed: int, state: bytes | None) -> SeededGenerator:  # noqa: ARG004, PYI034
        """Construct on `device`; torch takes the device here, not in ``__init__``."""
        return super().__new__(cls, device=device)

    def __init__(self, device: torch.device, seed: int, state: bytes | None) -> None:  # noqa: ARG002
        super().__init__()
        self.manual_seed(seed)
        if state is not None:
            self.set_state(torch.from_numpy(np.frombuffer(state, np.uint8).copy()))
        self._before_draw = self.get_state()

    def remember(self) -> None:
        """Keep the present state as the one before the next draw."""
        self._before_draw = self.get_state()

    def get_offset(self) -> int:
        """Return a position from which only ``set_offset(get_offset() - 4)`` makes sense: one draw back."""
        return 4

    def set_offset(self, offset: int) -> None:
        """Take the last draw back."""
        if offset != 0:
            raise ValueError(f"only the last draw can be taken back, not offset {offset}")
        self.set_state(self._before_draw)

    def state_bytes(self) -> bytes:
        """Return the state in torch's own format: a few kilobytes on CPU, 16 bytes on CUDA."""
        return self.get_state().numpy().tobytes()
