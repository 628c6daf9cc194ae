"""One time axis for everything measured: `time.perf_counter_ns`.

Token arrivals must be taken from a clock that never jumps, while a server reports moments of a change as unix
seconds. `unix_offset_ns` ties the two: `unix_ns = perf_counter_ns + offset`. It is sampled close to the moment of use
(each `StreamRecord` carries its own), because the wall clock may be slewed during a long run. Marks of a server on
another machine are only as good as the synchronisation of the two wall clocks.
"""

import time

_SAMPLES = 5


def now_ns() -> int:
    """Return the present moment on the axis, in nanoseconds; its zero is arbitrary."""
    return time.perf_counter_ns()


def unix_offset_ns() -> int:
    """Return unix time minus axis time in nanoseconds.

    The wall clock is read between two readings of the axis; of a few such brackets the tightest is used, which
    keeps the error below that bracket's width (usually under a microsecond).
    """
    brackets = []
    for _ in range(_SAMPLES):
        before = time.perf_counter_ns()
        unix = time.time_ns()
        after = time.perf_counter_ns()
        brackets.append((after - before, unix - (before + after) // 2))
    _, offset = min(brackets)
    return offset


def unix_to_axis_ns(unix_seconds: float, offset_ns: int) -> int:
    """Place a moment given as unix seconds on the axis; `offset_ns` is what `unix_offset_ns` returned."""
    return round(unix_seconds * 1e9) - offset_ns
