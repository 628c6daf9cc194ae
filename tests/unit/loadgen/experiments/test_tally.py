import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from loadgen.experiments.tally import Tally
from loadgen.results.columns import LAG_SAMPLE, MarkRow, RequestRow

if TYPE_CHECKING:
    from loadgen.results.writer import RunWriter

MS = 1_000_000


class Kept:
    """Stands in for the writer: keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.calls.append((name, arguments))


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def tally(kept: Kept) -> Tally:
    return Tally(cast("RunWriter", kept))


def ended(request: int, outcome: str, *, due: int | None, first: int | None) -> RequestRow:
    return RequestRow(request, 0, 0, None, due, 10 * MS, first, 90 * MS, 4, 8, 8, 8, 8, outcome, "length", None)


def test_everything_is_passed_on(tally: Tally, kept: Kept):
    tally.tokens(3, 0, [1, 2], [0, 1], [7, 8])
    tally.mark(MarkRow("m", "mark", 1, 1, "cli"))
    tally.sample("x", 5, 0.5)
    row = ended(3, "finished", due=None, first=20 * MS)
    tally.request(row)
    assert [name for name, _ in kept.calls] == ["tokens", "mark", "sample", "request"]
    assert kept.calls[0][1] == (3, 0, [1, 2], [0, 1], [7, 8])
    assert tally.last_mark == "m"


def test_the_largest_gap_is_within_a_stream_and_across_batches(tally: Tally):
    tally.tokens(1, 0, [0, 10 * MS], [0, 1])
    tally.tokens(2, 0, [500 * MS], [0])
    tally.tokens(1, 2, [45 * MS, 50 * MS], [2, 3])
    assert tally.largest_gap_ns == 35 * MS


def test_first_tokens_are_waited_for_since_they_were_due(tally: Tally):
    tally.request(ended(1, "finished", due=None, first=30 * MS))
    tally.request(ended(2, "finished", due=0, first=60 * MS))
    tally.request(ended(3, "refused", due=0, first=None))
    tally.request(ended(4, "cancelled", due=0, first=None))
    assert tally.ttft_p50_ms() == 40.0
    assert (tally.finished, tally.broken) == (2, 1)


def test_the_rate_is_of_the_last_seconds(tally: Tally):
    tally.tokens(1, 0, [1000 * MS], [0])
    tally.tokens(1, 1, [9000 * MS] * 30, [1] * 30)
    assert tally.tokens_per_s(10_000 * MS) == 10.0
    assert tally.tokens_per_s(0) == 0.0


def test_the_generators_lateness_is_counted_from_its_samples(tally: Tally):
    assert tally.lag_p99_ms() is None
    for _ in range(100):
        tally.sample(LAG_SAMPLE, 0, 0.5)
    assert tally.lag_p99_ms() == pytest.approx(0.5, abs=0.02)


async def test_who_waits_for_tokens_is_woken_by_them(tally: Tally):
    waiting = asyncio.create_task(tally.until_tokens(3))
    await asyncio.sleep(0)
    tally.tokens(1, 0, [1, 2], [0, 1])
    await asyncio.sleep(0)
    assert not waiting.done()
    tally.tokens(2, 0, [3], [0])
    await asyncio.wait_for(waiting, 1)
    await tally.until_tokens(3)
