"""Whether the generator kept up: what it says about its own errors, so that nobody takes them for the server's.

Three things are watched. The *lag probe* asks for a callback every 10 ms and sees how late it comes: for as long is
every arrival stamped late that falls into that moment. Moments that were missed while the loop stood still count each
with their own lateness, so the percentiles go by time, like the errors. *Late sends* say how long after its due time a
request was sent although a place was free. *Held back* are requests that waited for a place.
"""

import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import psutil

from loadgen.clock import now_ns
from loadgen.streaming.deadlines import Deadline, Deadlines
from loadgen.streaming.lateness import Lateness

MAX_LAG_MS = 5.0
_PROBE_NS = 10_000_000
_USAGE_NS = 1_000_000_000
_SPARE_DESCRIPTORS = 32


class Sampler(Protocol):
    """Takes values of named series, at moments of the run's axis."""

    def sample(self, name: str, at_ns: int, value: float) -> None:
        """Take one."""


@dataclass(frozen=True, slots=True)
class Health:
    """How the generator did.

    Attributes:
        lag_ms: The loop's lateness: p50, p99, max. An error bound for every timestamp.
        late_send_ms: Lateness of sends for which a place was free: p50, p99, max.
        held_back: Requests that waited for a place.
        places: Streams that could run at a time.
        places_by: What set that number: "max_in_flight" or "ulimit -n".
        cpu: CPUs used, on average.
        cpu_max: CPUs used in the busiest second.
        cpu_wait: Share of the time in which the loop could have run but waited for a processor: lag that comes from
            the machine's other work, not from the generator. None if the kernel does not say.
        rss_mb: Largest resident memory, in 10^6 bytes.
    """

    lag_ms: dict[str, float]
    late_send_ms: dict[str, float]
    held_back: int
    places: int
    places_by: str
    cpu: float
    cpu_max: float
    cpu_wait: float | None
    rss_mb: float

    @property
    def fell_behind(self) -> bool:
        """Whether latencies of this run contain the generator's own lateness."""
        return max(self.lag_ms["p99"], self.late_send_ms["p99"]) > MAX_LAG_MS

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the results must know, in sentences."""
        said = []
        if self.fell_behind:
            waited = "" if self.cpu_wait is None else f"; it waited for a processor {self.cpu_wait:.0%} of the time"
            said.append(
                f"the generator fell behind: its loop was up to {self.lag_ms['max']:.1f} ms late "
                f"(p99 {self.lag_ms['p99']:.1f} ms), its sends up to {self.late_send_ms['max']:.1f} ms "
                f"(p99 {self.late_send_ms['p99']:.1f} ms); p99 must stay below {MAX_LAG_MS:g} ms{waited}"
            )
        if self.held_back:
            remedy = "raise it" if self.places_by == "max_in_flight" else "raise the limit of open files"
            said.append(
                f"{self.held_back} requests waited because {self.places} streams were in flight "
                f"({self.places_by}; {remedy}); their waiting counts in their latency"
            )
        return tuple(said)


class HealthProbe:
    """Measures the generator while it runs; `start` and `stop` on the loop that it is about."""

    def __init__(self, deadlines: Deadlines, sampler: Sampler, origin_ns: int, in_flight: Callable[[], int]) -> None:
        self.late_sends = Lateness()
        self.held_back = 0
        self._deadlines = deadlines
        self._sampler = sampler
        self._origin = origin_ns
        self._in_flight = in_flight
        self._lag = Lateness()
        self._process = psutil.Process()
        self._begun = self._usage_at = now_ns()
        self._due = self._begun + _PROBE_NS
        self._cpu_at_begin = self._cpu = self._cpu_s()
        self._cpu_max = 0.0
        self._waited = _processor_wait_ns()
        self._rss = 0
        self._pending: list[Deadline] = []

    def start(self) -> None:
        """Begin to measure."""
        self._pending = [
            self._deadlines.at(self._due, self._probe),
            self._deadlines.at(self._usage_at + _USAGE_NS, self._use),
        ]

    def stop(self, places: int, places_by: str) -> Health:
        """Stop, and say how the generator did with so many places."""
        for deadline in self._pending:
            deadline.cancel()
        self._take_lag(now_ns())
        self._take_usage()
        waited = _processor_wait_ns()
        lasted = max(self._usage_at - self._begun, 1)
        return Health(
            lag_ms=self._lag.figures(),
            late_send_ms=self.late_sends.figures(),
            held_back=self.held_back,
            places=places,
            places_by=places_by,
            cpu=(self._cpu - self._cpu_at_begin) * 1e9 / lasted,
            cpu_max=self._cpu_max,
            cpu_wait=None if waited is None or self._waited is None else (waited - self._waited) / lasted,
            rss_mb=self._rss / 1e6,
        )

    def _probe(self) -> None:
        self._take_lag(now_ns())
        self._pending[0] = self._deadlines.at(self._due, self._probe)

    def _take_lag(self, now: int) -> None:
        while self._due <= now:
            late = now - self._due
            self._lag.add(late)
            self._sampler.sample("client.lag_ms", self._due - self._origin, late / 1e6)
            self._due += _PROBE_NS

    def _use(self) -> None:
        self._take_usage()
        self._pending[1] = self._deadlines.at(self._usage_at + _USAGE_NS, self._use)

    def _take_usage(self) -> None:
        now, cpu = now_ns(), self._cpu_s()
        used = (cpu - self._cpu) * 1e9 / max(now - self._usage_at, 1)
        rss: int = self._process.memory_info().rss
        if now - self._usage_at >= _USAGE_NS // 2:
            self._cpu_max = max(self._cpu_max, used)
            for name, value in (("cpu", used), ("rss_mb", rss / 1e6), ("in_flight", self._in_flight())):
                self._sampler.sample(f"client.{name}", now - self._origin, value)
        self._usage_at, self._cpu, self._rss = now, cpu, max(self._rss, rss)

    def _cpu_s(self) -> float:
        times = self._process.cpu_times()
        used: float = times.user + times.system
        return used


def _processor_wait_ns() -> int | None:
    """Return how long the main thread, where the loop runs, has waited for a processor (Linux's schedstat)."""
    try:
        with open("/proc/self/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1])
    except (OSError, ValueError, IndexError):
        return None


def descriptors_for_streams() -> int:
    """Raise this process's limit of open files as far as it may, and return how many streams that leaves room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard - len(os.listdir("/proc/self/fd")) - _SPARE_DESCRIPTORS
