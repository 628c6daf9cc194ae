"""Writes a safetensors file one tensor at a time.

The safetensors library wants all tensors in memory at once: 540 MB for the built-in model. Here the peak is one
tensor. Format (from the library's README): the header's length in bytes as a little-endian unsigned 64-bit
integer, the header as JSON padded with spaces to a multiple of 8, then the tensors without gaps. The header
gives each tensor's dtype, shape and [begin, end) in bytes after the header.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.model.errors import ConversionError
from runtime.model.progress import Advance

FLOAT32_BYTES = 4


@dataclass(frozen=True)
class LazyTensor:
    """A float32 tensor of known shape whose values are made only when they are written."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], NDArray[Any]]

    @property
    def size_bytes(self) -> int:
        """Size in the written file."""
        return prod(self.shape) * FLOAT32_BYTES


def write_safetensors(path: Path, tensors: Sequence[LazyTensor], advance: Advance) -> None:
    """Write `tensors` as float32, in the given order, calling `advance` after each.

    Raises:
        ConversionError: a tensor turned out to have another shape than announced.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.size_bytes
        header[tensor.name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for tensor in tensors:
            values = np.ascontiguousarray(tensor.read(), dtype="<f4")
            if values.shape != tensor.shape:
                raise ConversionError(f"tensor {tensor.name} has shape {values.shape}, expected {tensor.shape}")
            file.write(values.data)
            advance(tensor.size_bytes)
