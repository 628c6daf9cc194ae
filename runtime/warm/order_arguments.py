"""What heads order of a node runtime: the arguments of their calls, and how they are read.

What a head sends is of any shape. It is converted here, once; what is wrong with it is told to the head as NodeError,
with the name of the argument. Nothing here knows what is on the node: whether an order can be obeyed is decided
elsewhere (`runtime.warm.pipeline_hosting`, `runtime.warm.pipeline_orders`).
"""

from __future__ import annotations

import hashlib
import math
import re
from typing import TYPE_CHECKING, Any

import msgspec

from runtime.warm.kv_pool import KVPoolShape
from runtime.warm.model_fetch import ModelOrder
from runtime.warm.node import NodeError

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAME = re.compile(r"[A-Za-z0-9-]{1,32}")


class OpenOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of ``open``: the pipeline, its nodes, and what its zygote needs.

    engine: its configuration, which only the engine understands.
    model: the model's files; None when every node gets them from a model hub.
    """

    pipeline: str
    hosts: list[str]
    engine: bytes
    model: ModelOrder | None = None

    @property
    def key(self) -> bytes:
        """Name the weights: what one pipeline has loaded, another with the same key can use."""
        name = hashlib.blake2b(self.engine, digest_size=32)
        name.update(self.model.files.identity().encode() if self.model else b"")
        return name.digest()


class ResumeOrder(OpenOrder, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Arguments of ``resume``: those of ``open`` then, the pool's shape, and the layers whose KV is still wanted."""

    shape: KVPoolShape
    layers: list[int]


class ReserveOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of ``reserve``: the pool's shape, and how many of its layers will be in use at once on this node."""

    pipeline: str
    shape: KVPoolShape
    layers: int


class StartOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of ``start``: the stage's name, and its orders, which only it understands."""

    pipeline: str
    stage: str
    orders: bytes


def is_name(value: str) -> bool:
    """Tell whether a pipeline or stage may be called so: names become names of files and destinations."""
    return _NAME.fullmatch(value) is not None


def convert(value: Any, kind: Any) -> Any:
    """Read a value of some type; raises NodeError."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise NodeError(f"malformed {getattr(kind, '__name__', kind)}: {error}") from error


def text(arguments: dict[str, Any], name: str) -> str:
    """Read an argument that is text; raises NodeError."""
    value = arguments.get(name)
    if not isinstance(value, str):
        raise NodeError(f"{name} must be text, not {value!r}")
    return value


def copy_name(pipeline: str, arguments: dict[str, Any]) -> str:
    """Read the name of a copy, which begins with that of its pipeline: others have copies here too."""
    copy = text(arguments, "copy")
    if not copy.startswith(f"{pipeline}."):
        raise NodeError(f"copy {copy!r} is none of pipeline {pipeline}")
    return copy


def pace(arguments: dict[str, Any]) -> float | None:
    """Read how many bytes per second a copy may send; None for no limit."""
    bytes_per_second: float | None = convert(arguments.get("bytes_per_second"), float | None)
    if bytes_per_second is not None and not 0 < bytes_per_second < math.inf:
        raise NodeError(f"a copy cannot be made at {bytes_per_second} bytes per second")
    return bytes_per_second


def check_layers(layers: Sequence[int], total: int) -> None:
    """Check that a pipeline of `total` layers has these; raises NodeError."""
    if any(not 0 <= layer < total for layer in layers):
        raise NodeError(f"layers {layers} are not all among the {total} of this pipeline")
