"""Memory is measured as what was taken, whatever this process had freed before."""

from __future__ import annotations

import subprocess
import sys

MEBIBYTE = 1 << 20
FREED_BEFORE = """
from runtime.warm.memory import measured
chunks = [bytes(2000) for _ in range(60_000)]
kept = chunks[::50]  # so that the C library does not give back what is freed between them by itself
del chunks
"""


def measured_after(act: str) -> int:
    """Return the bytes that acting takes, in a process of its own that has freed 120 MB."""
    code = f"{FREED_BEFORE}\nheld = []\nprint(measured(lambda: {act})[1])"
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60).stdout)


def test_what_was_freed_before_does_not_make_it_seem_less() -> None:
    taken = measured_after("held.extend(b'1' * 10_000 for _ in range(2000))")
    assert 19 * MEBIBYTE <= taken <= 24 * MEBIBYTE


def test_what_is_freed_on_the_way_does_not_count() -> None:
    assert measured_after("held.extend([b'1' * 10_000 for _ in range(2000)][::50])") <= 4 * MEBIBYTE
