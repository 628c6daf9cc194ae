"""The whole way, from plan to summary, against a mock in a process of its own: what is measured is what was configured.

Bounds are the larger of 1 ms and 1 %. A machine that does other things delays single moments, and only ever delays:
so of times that two processes share in (TTFT, E2E) the smallest is compared, of the rhythm the median. The mock says
how late it was itself (`late_ms`), and that much is not the generator's.
"""

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
    )


def close(truth_ms: float, mock_late_ms: float) -> object:
    return pytest.approx(truth_ms, abs=max(1.0, truth_ms / 100) + mock_late_ms)


async def test_rhythm_totals_and_rates_are_the_configured_ones(tmp_path):
    seen = await measure(tmp_path, open_loop(40, every_ms=25, tokens=TOKENS), "--ttft-ms", "80", "--itl-ms", "20")
    figures, late = seen.summary.figures, seen.mock_late_ms
    lasted_ms = 80 + (TOKENS - 1) * 20
    assert figures.ttft_ms.min == close(80, late)
    assert figures.tpot_ms.p50 == close(20, late)
    assert figures.itl_ms.p50 == close(20, late)
    assert figures.e2e_ms.min == close(lasted_ms, late)
    assert np.median(seen.chunk_gaps_ms) == close(20, late)
    assert figures.output_tokens == 40 * TOKENS
    whole_s = (39 * 25 + lasted_ms) / 1e3
    assert figures.output_tokens_per_s == pytest.approx(40 * TOKENS / whole_s, rel=0.01 + late / 1e3)
    assert seen.outcomes == ["finished"] * 40


async def test_an_injected_stall_is_the_largest_gap_of_every_stream_and_nothing_else_changes(tmp_path):
    seen = await measure(
        tmp_path, open_loop(20, tokens=TOKENS), "--ttft-ms", "50", "--itl-ms", "20", "--stall-at", "10:400"
    )
    late = seen.mock_late_ms
    assert seen.summary.figures.largest_gap_ms.p50 == close(420, late)
    assert seen.summary.figures.ttft_ms.min == close(50, late)
    assert seen.summary.figures.e2e_ms.min == close(50 + 39 * 20 + 400, late)
    assert np.median(seen.chunk_gaps_ms) == close(20, late)


async def test_a_stall_of_the_whole_server_is_seen_by_all_streams_that_run(tmp_path):
    seen = await measure(
        tmp_path,
        open_loop(20, every_ms=1, tokens=TOKENS),
        "--ttft-ms",
        "50",
        "--itl-ms",
        "20",
        "--stall-at",
        "0.4s:300",
    )
    assert seen.summary.figures.largest_gap_ms.p50 == close(320, seen.mock_late_ms)


async def test_chunks_of_several_tokens_have_their_own_gaps_and_no_token_is_lost(tmp_path):
    arguments = ("--ttft-ms", "60", "--itl-ms", "10", "--tokens-per-chunk", "4")
    seen = await measure(tmp_path, open_loop(20, tokens=TOKENS), *arguments)
    figures, late = seen.summary.figures, seen.mock_late_ms
    assert figures.output_tokens == 20 * TOKENS
    assert np.median(seen.chunk_gaps_ms) == close(40, late)
    assert len(seen.chunk_gaps_ms) == 20 * (TOKENS // 4 - 1)
    assert figures.tpot_ms.p50 == close(9 * 40 / (TOKENS - 1), late)
    assert figures.ttft_ms.min == close(60, late)


async def test_jitter_is_not_smoothed(tmp_path):
    seen = await measure(tmp_path, open_loop(40, tokens=TOKENS), "--itl-ms", "20", "--jitter-ms", "10")
    # Two independent uniform delays of 0 to 10 ms: the gap's standard deviation is 10 / sqrt(6).
    assert np.std(seen.chunk_gaps_ms) == pytest.approx(10 / 6**0.5, abs=1 + seen.mock_late_ms)


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
    seen = await measure(
        tmp_path,
        open_loop(3, every_ms=1, tokens=1),
        *("--ttft-ms", "300"),
        limits=Limits(max_in_flight=1),
    )
    figures = seen.summary.figures
    assert figures.ttft_ms.max == close(3 * 300 - 2, 3 * seen.mock_late_ms + 3)
    assert figures.ttft_ms.min == close(300, seen.mock_late_ms)
    assert figures.ttft_from_sent_ms.max < 400
