"""The whole way, from plan to summary, against a mock in a process of its own: what is measured is what was configured.

Bounds are the larger of 1 ms and 1 %. A machine that does other things delays single moments, and only ever delays:
so of times that two processes share in (TTFT, E2E) the smallest is compared, of the rhythm the median. The mock says
how late it was itself (`late_ms`), and that much is not the generator's. What neither can know is how long a packet lay
in the kernel until one of them got a CPU: where a bound is missed while the machine has other things to do, or one of
the two reports that it was late, the measurement is made once more, with the reason printed. If the machine is as busy
still, the figures must lie within the error that mock and generator report themselves.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from loadgen.clock import now_ns, unix_offset_ns
from loadgen.mock.behaviour import Behaviour, script
from loadgen.results.manifest import RunManifest
from loadgen.results.reader import read_run
from loadgen.results.streams import Streams, streams_of
from loadgen.results.summary import RunSummary, summarise
from loadgen.results.writer import RunWriter
from loadgen.streaming.runner import Runner
from loadgen.streaming.target import Limits, Target
from tests.unit.loadgen.streaming.support import MS, HandMade, mock_process, open_loop

TOKENS = 40


@dataclass
class Seen:
    summary: RunSummary
    streams: Streams
    chunk_gaps_ms: list[float]
    outcomes: list[str]
    mock_late_ms: float
    mock_late_p99_ms: float
    within_reported: bool = False

    def close(self, truth_ms: float, *, steps: int = 1) -> object:
        """Return what a time of this truth may be measured as, if `steps` latenesses may add up in it."""
        slack = self.mock_late_ms
        lag = self.summary.generator.lag_ms
        if self.within_reported and lag is not None:
            slack = self.mock_late_p99_ms + lag.p99
        return pytest.approx(truth_ms, abs=max(1.0, truth_ms / 100) + steps * slack)


async def measure(tmp_path: Path, plan: HandMade, *arguments: str, limits: Limits | None = None) -> Seen:
    async with mock_process(tmp_path, *arguments) as url, Runner(plan, Target(url), limits) as load:
        origin = now_ns() + 100 * MS
        manifest = RunManifest(name="truth", seed=0, started_unix_ns=origin + unix_offset_ns())
        with RunWriter(tmp_path / "run", manifest) as writer:
            await load.run(writer, origin_ns=origin)
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            truth = (await http.get("/mock/truth")).json()
    run = read_run(tmp_path / "run")
    tokens = run.tokens.sort_by([("request", "ascending"), ("index", "ascending")])
    request, chunk, at = (tokens[name].to_numpy() for name in ("request", "chunk", "at_ns"))
    border = (np.diff(request) == 0) & (np.diff(chunk) > 0)
    rows = run.requests.sort_by("request")
    return Seen(
        summarise(run),
        streams_of(run),
        list(np.diff(at)[border] / MS),
        rows["outcome"].to_pylist(),
        truth["late_ms"]["p50"],
        truth["late_ms"]["p99"],
    )


def busy(seen: Seen) -> str | None:
    """Return why this measurement may be the machine's fault; None if nothing says so."""
    lag = seen.summary.generator.lag_ms
    if seen.mock_late_p99_ms > 1:
        return f"the mock was {seen.mock_late_p99_ms:.1f} ms late (p99)"
    if lag is not None and lag.p99 > 1:
        return f"the generator was {lag.p99:.1f} ms late (p99) and says so"
    load, cpus = os.getloadavg()[0], len(os.sched_getaffinity(0))
    return f"load {load:.1f} on {cpus} CPUs" if load > cpus / 2 else None


async def hold(
    tmp_path: Path,
    holds: Callable[[Seen], None],
    plan: Callable[[], HandMade],
    *arguments: str,
    limits: Limits | None = None,
) -> None:
    """Measure, and assert that it is as `holds` says; see the module for a busy machine."""
    for last in (False, True):
        folder = tmp_path / ("again" if last else "first")
        folder.mkdir()
        seen = await measure(folder, plan(), *arguments, limits=limits)
        why = busy(seen)
        seen.within_reported = last and why is not None
        try:
            holds(seen)
        except AssertionError as error:
            if why is None or last:
                raise
            print(f"measured again, since {why}: {str(error).splitlines()[0]}")  # noqa: T201
        else:
            return


async def test_rhythm_totals_and_rates_are_the_configured_ones(tmp_path):
    lasted_ms = 80 + (TOKENS - 1) * 20
    whole_s = (39 * 25 + lasted_ms) / 1e3

    def holds(seen: Seen) -> None:
        figures = seen.summary.figures
        assert figures.output_tokens == 40 * TOKENS
        assert seen.outcomes == ["finished"] * 40
        assert figures.ttft_ms.min == seen.close(80)
        assert figures.tpot_ms.p50 == seen.close(20)
        assert figures.itl_ms.p50 == seen.close(20)
        assert figures.e2e_ms.min == seen.close(lasted_ms)
        assert np.median(seen.chunk_gaps_ms) == seen.close(20)
        assert figures.output_tokens_per_s == pytest.approx(
            40 * TOKENS / whole_s, rel=0.01 + seen.mock_late_p99_ms / 1e3
        )

    await hold(tmp_path, holds, lambda: open_loop(40, every_ms=25, tokens=TOKENS), "--ttft-ms", "80", "--itl-ms", "20")


async def test_an_injected_stall_is_the_largest_gap_of_every_stream_and_nothing_else_changes(tmp_path):
    def holds(seen: Seen) -> None:
        assert seen.summary.figures.largest_gap_ms.p50 == seen.close(420)
        assert seen.summary.figures.ttft_ms.min == seen.close(50)
        assert seen.summary.figures.e2e_ms.min == seen.close(50 + 39 * 20 + 400)
        assert np.median(seen.chunk_gaps_ms) == seen.close(20)

    mock = ("--ttft-ms", "50", "--itl-ms", "20", "--stall-at", "10:400")
    await hold(tmp_path, holds, lambda: open_loop(20, tokens=TOKENS), *mock)


async def test_a_stall_of_the_whole_server_is_seen_by_all_streams_that_run(tmp_path):
    def holds(seen: Seen) -> None:
        assert seen.summary.figures.largest_gap_ms.p50 == seen.close(320)

    mock = ("--ttft-ms", "50", "--itl-ms", "20", "--stall-at", "0.4s:300")
    await hold(tmp_path, holds, lambda: open_loop(20, every_ms=1, tokens=TOKENS), *mock)


async def test_chunks_of_several_tokens_have_their_own_gaps_and_no_token_is_lost(tmp_path):
    def holds(seen: Seen) -> None:
        figures = seen.summary.figures
        assert figures.output_tokens == 20 * TOKENS
        assert len(seen.chunk_gaps_ms) == 20 * (TOKENS // 4 - 1)
        assert np.median(seen.chunk_gaps_ms) == seen.close(40)
        assert figures.tpot_ms.p50 == seen.close(9 * 40 / (TOKENS - 1))
        assert figures.ttft_ms.min == seen.close(60)

    mock = ("--ttft-ms", "60", "--itl-ms", "10", "--tokens-per-chunk", "4")
    await hold(tmp_path, holds, lambda: open_loop(20, tokens=TOKENS), *mock)


async def test_jitter_is_not_smoothed(tmp_path):
    def holds(seen: Seen) -> None:
        # Two independent uniform delays of 0 to 10 ms: the gap's standard deviation is 10 / sqrt(6).
        assert np.std(seen.chunk_gaps_ms) == pytest.approx(
            10 / 6**0.5, abs=1 + (seen.mock_late_p99_ms if seen.within_reported else seen.mock_late_ms)
        )

    await hold(tmp_path, holds, lambda: open_loop(40, tokens=TOKENS), "--itl-ms", "20", "--jitter-ms", "10")


async def test_each_broken_stream_is_counted_as_what_the_mock_made_of_it_and_enters_no_latency(tmp_path):
    shares = ("error", "disconnect", "truncate", "empty")
    arguments = [part for name in shares for part in (f"--{name}-rate", "0.15")]
    seen = await measure(tmp_path, open_loop(60, every_ms=5), "--seed", "3", "--itl-ms", "5", *arguments)
    behaviour = Behaviour(error_rate=0.15, disconnect_rate=0.15, truncate_rate=0.15, empty_rate=0.15, seed=3)
    names = {"disconnect": "disconnected", "truncate": "truncated"}
    expected = []
    for n in range(60):
        plan = script(behaviour, f"prompt {n}", 0, 5)
        kind = next((fault.kind for fault in plan.faults.values()), "finished" if plan.tokens else "empty")
        expected.append(names.get(kind, kind))
    assert seen.outcomes == expected
    assert len(set(expected)) == 5
    assert seen.summary.figures.ttft_ms.n == expected.count("finished")


async def test_a_server_beyond_its_limit_refuses_and_each_refusal_is_counted(tmp_path):
    seen = await measure(tmp_path, open_loop(6, every_ms=5, tokens=TOKENS), "--itl-ms", "20", "--max-streams", "4")
    assert seen.outcomes == ["finished"] * 4 + ["refused"] * 2


async def test_latency_counts_from_when_a_request_was_due(tmp_path):
    """With one place and 300 ms of work each, the last of three requests waits 600 ms until it is sent."""

    def holds(seen: Seen) -> None:
        figures = seen.summary.figures
        assert figures.ttft_ms.max == seen.close(3 * 300 - 2 + 1.5, steps=6)
        assert figures.ttft_ms.min == seen.close(300)
        assert figures.ttft_from_sent_ms.max < 500  # not the 600 ms that it waited for its place

    one_place = Limits(max_in_flight=1)
    await hold(tmp_path, holds, lambda: open_loop(3, every_ms=1, tokens=1), "--ttft-ms", "300", limits=one_place)
