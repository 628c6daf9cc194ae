"""The weights of one model on this host, in one precision or in two: a zygote for each.

::

    seed (the engine, imported) --fork--> zygote of a precision (weights) --fork--> stages

Weights are loaded when a precision is asked for and stay until they are not wanted any more. While a pipeline changes
from one precision to another, both are there. All zygotes are children of one seed, so none outlives it.
"""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

import msgspec

from runtime.warm.zygote import Zygote, ZygoteError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from runtime.warm.zygote import ChildMain, Preload


class LoadOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a zygote of weights is told: their precision, and whether others are being served meanwhile."""

    precision: str
    background: bool


class Weights:
    """See the module. Thread-safe; one precision is loaded at a time.

    Args:
        main: what a child of the seed runs with an encoded `LoadOrder`: to be a zygote whose `preload` returns
            ``{"bytes": memory of the weights}``.
        preload: what the seed does before.
        on_exit: called with (key, status) when a stage process ends.

    """

    def __init__(self, main: ChildMain, preload: Preload, on_exit: Callable[[str, int], None]) -> None:
        self._seed = Zygote(main, preload, lambda _key, _status: None)  # the zygotes' own sockets tell of their end
        self._on_exit = on_exit
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._loaded: dict[str, tuple[Zygote, int]] = {}  # by precision; with the bytes of the weights
        self._loading: str | None = None  # key of the zygote that is not ready yet
        self._unwanted: str | None = None  # the one of them that was stopped
        self._closed = False

    def of(self, precision: str) -> Zygote:
        """Return the zygote of a precision; raises ZygoteError when its weights are not loaded."""
        with self._lock:
            if precision not in self._loaded:
                raise ZygoteError(f"no weights in {precision} are loaded, only {', '.join(self._loaded) or 'none'}")
            return self._loaded[precision][0]

    def load(self, precision: str, timeout_s: float, *, background: bool) -> bool:
        """Have the weights in a precision, and wait for them; False when they are there already.

        In the `background` they are loaded only with processor time that nobody else wants.

        Raises:
            ZygoteError: they cannot be loaded, with the reason; it took longer than `timeout_s` seconds; or
                `stop_loading` was called.

        """
        if self._has(precision):
            return False
        self._seed.wait_ready(timeout_s)
        key = f"weights-{next(self._numbers)}"
        self._loading = key
        zygote: Zygote | None = None
        try:
            order = msgspec.msgpack.encode(LoadOrder(precision, background))
            zygote = Zygote.within(self._seed, key, order, self._on_exit)
            if self._unwanted == key:  # stopped before there was a process to end
                raise ZygoteError("the loading was stopped")
            facts = zygote.wait_ready(timeout_s)
            with self._lock:
                if not self._closed:
                    self._loaded[precision] = zygote, facts["bytes"]
                    return True
            raise ZygoteError("the weights are given up")
        except ZygoteError:
            if zygote is not None:
                self._seed.kill(key)
                zygote.close()
            raise
        finally:
            self._loading = None

    def _has(self, precision: str) -> bool:
        with self._lock:
            return precision in self._loaded

    def stop_loading(self) -> None:
        """Let a `load` that is under way fail now."""
        key = self._loading
        if key is not None:
            self._unwanted = key
            self._seed.kill(key)

    def keep(self, wanted: Callable[[], Collection[str]]) -> list[str]:
        """Give up the weights in all other precisions, with all that their zygotes have forked; returns these.

        `wanted` is asked while no weights come or go.
        """
        with self._lock:
            kept = wanted()
            unwanted = {name: zygote for name, (zygote, _) in self._loaded.items() if name not in kept}
            for name in unwanted:
                del self._loaded[name]
        for zygote in unwanted.values():
            zygote.close()
        return list(unwanted)

    def kill(self, key: str) -> None:
        """End a stage process; nothing happens if it has ended."""
        with self._lock:
            zygotes = [zygote for zygote, _ in self._loaded.values()]
        for zygote in zygotes:
            zygote.kill(key)

    def held_bytes(self) -> dict[str, int]:
        """Return the memory of the weights, by precision."""
        with self._lock:
            return {precision: size for precision, (_, size) in self._loaded.items()}

    def close(self) -> None:
        """End all zygotes and their children."""
        with self._lock:
            self._closed = True
        self.stop_loading()
        self.keep(list)
        self._seed.close()
