"""What the generator itself costs, and how far its timestamps are off.

A mock server in a process of its own streams to the real client, the real runner and the real results on disk. Both
processes read the same clock, and the mock keeps the moment at which it sent each chunk: arrival minus sending is the
error of a timestamp, the way through the kernel included. So the figure is an upper bound.

    midstream bench load --streams 500 --rate 50 --seconds 20 --json
"""

import random
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.table import Table

from loadgen.clock import now_ns, unix_offset_ns
from loadgen.errors import MeasurementError, OptionsError
from loadgen.machine import machine_facts
from loadgen.results.columns import FINISHED
from loadgen.results.manifest import RunManifest
from loadgen.results.reader import read_run
from loadgen.results.writer import RunWriter
from loadgen.server import ServerProcess, free_port
from loadgen.streaming.health import Health
from loadgen.streaming.runner import Runner
from loadgen.streaming.target import Target
from loadgen.workloads.plan import PlannedRequest, PlannedUser, Prompt

_LEAD_NS = 200_000_000  # to open the results before the first stream is due
_SPREAD_NS = 1_000_000_000  # over which the streams begin, so that they do not march in step


@dataclass(frozen=True, slots=True)
class OverheadOptions:
    """How much to stream: `streams` at a time, `rate` tokens per second each, for `seconds`."""

    streams: int = 500
    rate: float = 50.0
    seconds: float = 20.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.streams < 1 or self.rate <= 0 or self.seconds * self.rate < 1:
            raise OptionsError(
                f"{self.streams} streams, {self.rate:g} tokens/s, {self.seconds:g} s: at least one stream and one token"
            )


class _SteadyStreams:
    """A plan: all streams begin within a second, at random moments, and last equally long."""

    concurrent_users = None
    duration_ns = None

    def __init__(self, options: OverheadOptions) -> None:
        self.total_requests = options.streams
        self._options = options

    def users(self) -> Iterator[PlannedUser]:
        """Return one user per stream."""
        source = random.Random(self._options.seed)  # noqa: S311 - moments, not secrets
        moments = sorted(source.randrange(_SPREAD_NS) for _ in range(self._options.streams))
        tokens = round(self._options.rate * self._options.seconds)
        for index, at in enumerate(moments):
            text = f"stream {index}"
            request = PlannedRequest(index, at, None, 0, 0, Prompt(len(text), text, None), tokens)
            yield PlannedUser(at, None, iter([request]))

    def notes(self) -> Mapping[str, int | str | list[str]]:
        """Return nothing: there is nothing to say."""
        return {}


async def measure(options: OverheadOptions) -> dict[str, Any]:
    """Run the mock and the generator against it, and return what that cost.

    Raises:
        LoadgenError: the mock does not run, or streams broke.
    """
    port, itl_ms = free_port(), 1e3 / options.rate
    argv = (sys.executable, "-m", "loadgen.mock", "--port", str(port), "--record-times")
    with tempfile.TemporaryDirectory(prefix="midstream-overhead-") as name:
        folder = Path(name)
        rhythm = ("--ttft-ms", str(itl_ms), "--itl-ms", str(itl_ms))
        server = ServerProcess("mock", (*argv, *rhythm), port=port, log_path=folder / "mock.log", start_deadline_s=60)
        async with server, Runner(_SteadyStreams(options), Target(server.base_url)) as runner:
            mock_cpu = server.cpu_seconds()
            origin = now_ns() + _LEAD_NS
            manifest = RunManifest(name="overhead", seed=options.seed, started_unix_ns=origin + unix_offset_ns())
            with RunWriter(folder / "run", manifest) as writer:
                health = await runner.run(writer, origin_ns=origin)
                lasted_s = (now_ns() - origin) / 1e9
            mock_cpu = (server.cpu_seconds() - mock_cpu) / lasted_s
            async with httpx.AsyncClient(base_url=server.base_url, trust_env=False, timeout=60) as http:
                truth = (await http.get("/mock/truth")).json()
                times = (await http.get("/mock/times")).json()
        errors_ms = _errors_ms(folder / "run", origin, [times[runner.request_id(i)] for i in range(options.streams)])
    return _result(options, health, errors_ms, lasted_s, truth["late_ms"] | {"cpu": mock_cpu})


def _errors_ms(folder: Path, origin: int, times: list[dict[str, list[int]]]) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Return arrival minus sending of every token, in milliseconds."""
    run = read_run(folder)
    outcomes = run.requests["outcome"].to_pylist()
    broken = [outcome for outcome in outcomes if outcome != FINISHED]
    if broken or len(outcomes) != len(times):
        raise MeasurementError(
            f"{len(outcomes)} of {len(times)} streams ended, {len(broken)} of them broken: {broken[:5]}"
        )
    tokens = run.tokens
    sent = np.full((len(times), max(len(each["sent_ns"]) for each in times)), -1, dtype=np.int64)
    for number, each in enumerate(times):
        sent[number, : len(each["sent_ns"])] = each["sent_ns"]
    arrived = tokens["at_ns"].to_numpy() + origin
    return np.asarray((arrived - sent[tokens["request"].to_numpy(), tokens["chunk"].to_numpy()]) / 1e6)


def _result(
    options: OverheadOptions,
    health: Health,
    errors_ms: "np.ndarray[Any, np.dtype[np.float64]]",
    lasted_s: float,
    mock: dict[str, float],
) -> dict[str, Any]:
    p50, p99 = np.percentile(errors_ms, [50, 99])
    return {
        "streams": options.streams,
        "rate": options.rate,
        "seconds": lasted_s,
        "tokens": len(errors_ms),
        "tokens_per_s": len(errors_ms) / lasted_s,
        "cpu_cores": health.cpu,
        "cpu_cores_max": health.cpu_max,
        "cpu_wait": health.cpu_wait,
        "rss_mb": health.rss_mb,
        "timestamp_error_ms": {"p50": float(p50), "p99": float(p99), "max": float(errors_ms.max())},
        "lag_ms": health.lag_ms,
        "late_send_ms": health.late_send_ms,
        "fell_behind": health.fell_behind,
        "mock_late_ms": {name: mock[name] for name in ("p50", "p99", "max")},
        "mock_cpu_cores": mock["cpu"],
        "machine": machine_facts(),
    }


def render(result: dict[str, Any]) -> Table:
    """Return the result as a table for people."""
    table = Table("what", "value", title=f"The generator's own cost: {result['streams']} streams", title_justify="left")
    table.add_row("tokens per second", f"{result['tokens_per_s']:.0f}")
    table.add_row("CPU", f"{result['cpu_cores']:.2f} cores (busiest second {result['cpu_cores_max']:.2f})")
    if result["cpu_wait"] is not None:
        table.add_row("waited for a processor", f"{result['cpu_wait']:.1%} of the time")
    table.add_row("resident memory", f"{result['rss_mb']:.0f} MB")
    for name, what in (
        ("timestamp_error_ms", "timestamp error"),
        ("lag_ms", "lag of the loop"),
        ("late_send_ms", "late sends"),
        ("mock_late_ms", "the mock's own lateness"),
    ):
        values = result[name]
        table.add_row(what, f"p50 {values['p50']:.2f} ms, p99 {values['p99']:.2f} ms, max {values['max']:.2f} ms")
    table.add_row("CPU of the mock", f"{result['mock_cpu_cores']:.2f} cores")
    if result["fell_behind"]:
        table.add_row("[bold]verdict[/]", "[bold]the generator fell behind[/]")
    return table
