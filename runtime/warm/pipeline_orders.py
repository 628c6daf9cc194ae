"""What a head may order for a pipeline of its own that is hosted here, and which order may be carried out when.

Orders are carried out by the threads of their pipeline, a few at once. Two kinds are special:

* ``copy_stop`` and ``copy_pace`` are carried out at once, by whoever brings them: rounds of copies may keep all threads
  busy, and who stops or slows one must not wait for it.
* What changes the KV is carried out one at a time, under the pipeline's ``at_kv``. The head may have lost and resumed
  its pipeline since it gave an order: no order of an earlier life is begun, and none that changes the KV is under way
  when the next life begins. A stage that was started for an earlier life is ended.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from runtime.warm.node import NodeError
from runtime.warm.order_arguments import ReserveOrder, StartOrder, check_layers, convert, copy_name, pace, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.migration.kv_transfer import KVSender
    from runtime.warm.hosted_pipeline import HostedPipeline
    from runtime.warm.pipeline_hosting import PipelineHosting

_AT_ONCE = frozenset({"copy_stop", "copy_pace"})
_CHANGE_KV = frozenset({"copy_blocks", "give_back", "scrub"})


class PipelineOrders:
    """See the module. Thread-safe; has no state of its own. `hosting` closes pipelines and makes room for them."""

    def __init__(self, hosting: PipelineHosting) -> None:
        self._orders: dict[str, Callable[[HostedPipeline, dict[str, Any]], object]] = {
            "reserve": lambda hosted, arguments: hosting.reserve(hosted, convert(arguments, ReserveOrder)),
            "start": lambda hosted, arguments: hosted.start(convert(arguments, StartOrder)),
            "kill": _kill,
            "copy_blocks": lambda hosted, arguments: hosted.node.copy_blocks(
                convert(arguments.get("moved"), dict[int, int])
            ),
            "give_back": lambda hosted, arguments: hosted.node.give_back(convert(arguments.get("first"), int)),
            "scrub": lambda hosted, arguments: hosted.node.scrub(_layers(hosted, arguments)),
            "copy_begin": lambda hosted, arguments: hosted.begin_copy(
                copy_name(hosted.name, arguments), text(arguments, "host"), _layers(hosted, arguments)
            ),
            "copy_round": _copy_round,
            "copy_stale": lambda hosted, arguments: _copy(hosted, arguments).stale_bytes(),
            "copy_finish": lambda hosted, arguments: _copy(hosted, arguments).finish(),
            "copy_pace": lambda hosted, arguments: _copy(hosted, arguments).pace(pace(arguments)),
            "copy_stop": lambda hosted, arguments: _copy(hosted, arguments).stop(),
            "copy_end": lambda hosted, arguments: hosted.end_copy(text(arguments, "copy")),
            "copy_allow": lambda hosted, arguments: hosted.node.allow_copy(
                copy_name(hosted.name, arguments), text(arguments, "host")
            ),
            "copy_forget": lambda hosted, arguments: hosted.node.forget_copy(text(arguments, "copy")),
            "close": lambda hosted, _: hosting.close(hosted, "its head is done with it"),
        }

    def __contains__(self, method: str) -> bool:
        """Tell whether there is such an order."""
        return method in self._orders

    def take(
        self,
        hosted: HostedPipeline,
        method: str,
        arguments: dict[str, Any],
        answered: Callable[[Callable[[], object]], None],
    ) -> None:
        """Have an order carried out, and what came of it `answered`."""
        if method in _AT_ONCE:
            answered(lambda: self._orders[method](hosted, arguments))
            return
        life = hosted.life
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            hosted.orders.submit(answered, lambda: self._obey(hosted, life, method, arguments))

    def _obey(self, hosted: HostedPipeline, life: int, method: str, arguments: dict[str, Any]) -> object:
        """Do what an order says, unless its head has lost and resumed this pipeline since."""
        with hosted.at_kv if method in _CHANGE_KV else contextlib.nullcontext():
            if hosted.life != life:
                raise NodeError(f"pipeline {hosted.name} was resumed since {method!r} was ordered")
            done = self._orders[method](hosted, arguments)
        if method == "start" and hosted.life != life:
            _kill(hosted, arguments)
        return done


def _kill(hosted: HostedPipeline, arguments: dict[str, Any]) -> None:
    hosted.node.kill(text(arguments, "stage"))


def _copy_round(hosted: HostedPipeline, arguments: dict[str, Any]) -> tuple[int, float, int]:
    copied = _copy(hosted, arguments).round()
    return copied.sent_bytes, copied.seconds, copied.stale_bytes


def _copy(hosted: HostedPipeline, arguments: dict[str, Any]) -> KVSender:
    return hosted.copy(text(arguments, "copy"))


def _layers(hosted: HostedPipeline, arguments: dict[str, Any]) -> list[int]:
    layers: list[int] = convert(arguments.get("layers"), list[int])
    check_layers(layers, hosted.node.pool.shape.layers)
    return layers
