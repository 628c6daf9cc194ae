"""Memory is measured as what was taken, whatever this process had freed before."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from runtime.warm import memory

if TYPE_CHECKING:
    from pathlib import Path

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


@pytest.mark.parametrize(
    ("limit", "used", "stat", "free"),
    [
        ("1000", "900", "anon 300\ninactive_file 500\n", 600),
        ("max", "900", "inactive_file 500\n", None),
        ("1000", "900", "anon 300\n", None),
    ],
    ids=["limited", "no limit", "no figure"],
)
def test_cached_files_do_not_count_as_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, used: str, stat: str, free: int | None
) -> None:
    for name, text in (("memory.max", limit), ("memory.current", used), ("memory.stat", stat)):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    found = memory.available_bytes()
    assert found == free if free is not None else found > 1000


def test_what_was_freed_before_does_not_make_it_seem_less() -> None:
    taken = measured_after("held.extend(b'1' * 10_000 for _ in range(2000))")
    assert 19 * MEBIBYTE <= taken <= 24 * MEBIBYTE


def test_what_is_freed_on_the_way_does_not_count() -> None:
    assert measured_after("held.extend([b'1' * 10_000 for _ in range(2000)][::50])") <= 4 * MEBIBYTE
