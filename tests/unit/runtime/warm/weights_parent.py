"""Scenarios around the weights of a host, each run as a process of its own: a test process has too many threads.

``python -m tests.unit.runtime.warm.weights_parent SCENARIO`` prints what came out as one JSON line.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any

import msgspec

from runtime.warm.weights import LoadOrder, Weights
from runtime.warm.zygote import ZygoteError, be_zygote
from tests.unit.runtime.warm.zygote_parent import DEADLINE_S, Exits, eventually, is_alive


def be_weights(payload: bytes, descriptors: list[int]) -> None:
    """Be a zygote of weights of as many bytes as the name of their precision says; "never" never loads."""
    order = msgspec.msgpack.decode(payload, type=LoadOrder)

    def load() -> dict[str, int]:
        if order.precision == "never":
            signal.pause()
        return {"bytes": int(order.precision)}

    be_zygote(descriptors[0], lambda _payload, _descriptors: signal.pause(), load)


def make(exits: Exits) -> Weights:
    return Weights(be_weights, lambda: None, exits)


def refused(weights: Weights, precision: str) -> str:
    try:
        weights.of(precision)
    except ZygoteError as error:
        return str(error)
    return ""


def two_precisions_come_and_one_goes() -> dict[str, Any]:
    exits = Exits()
    weights = make(exits)
    first = weights.load("16", DEADLINE_S, background=False)
    again = weights.load("16", DEADLINE_S, background=True)
    weights.load("8", DEADLINE_S, background=True)
    held = weights.held_bytes()
    old, new = weights.of("16").fork("a", b""), weights.of("8").fork("b", b"")
    gone = weights.keep(lambda: {"8"})
    ended = eventually(lambda: not is_alive(old)) and is_alive(new)
    seen = exits.wait(1)
    weights.kill("b")
    both = exits.wait(2)
    asked = refused(weights, "16")
    weights.load("16", DEADLINE_S, background=True)
    back = sorted(weights.held_bytes())
    weights.close()
    return {
        "loaded": [first, again],
        "held": held,
        "gone": gone,
        "ended": ended,
        "seen": seen,
        "both": both,
        "refused": asked,
        "back": back,
    }


def loading_is_stopped() -> dict[str, Any]:
    weights = make(Exits())
    weights.load("16", DEADLINE_S, background=False)
    failed: list[str] = []

    def load() -> None:
        try:
            weights.load("never", DEADLINE_S, background=True)
        except ZygoteError as error:
            failed.append(str(error))

    loading = threading.Thread(target=load)
    loading.start()
    while loading.is_alive():  # a zygote that was not there yet when it was asked to stop is asked again
        weights.stop_loading()
        loading.join(0.01)
    held = weights.held_bytes()
    pid = weights.of("16").pid
    weights.close()
    return {"failed": failed, "held": held, "ended": eventually(lambda: not is_alive(pid)), "own": os.getpid() != pid}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))  # noqa: T201
