"""Series of a target beside its tokens: what its `/metrics` says each second, and how busy each stage was.

`/metrics` of vLLM is long, and parsing all of it would make the generator's own event loop late. Only lines of a few
series are parsed.

How busy a stage was comes from the control API's trace, which has the start and end of every batch on every stage. It
is read once, when the run is over or the server is about to be restarted, because reading it costs the server time. Its
moments are of the machine's monotonic clock, which `loadgen.clock` reads too: a target elsewhere has no such samples.
The trace holds the last 20,000 batches; of a longer run the beginning is missing, and there are no samples of it.
"""

import asyncio
import contextlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from loadgen.errors import ControlError
from loadgen.experiments.axis import Axis
from loadgen.experiments.tally import Tally
from loadgen.experiments.target_control import TargetControl
from loadgen.results.columns import STAGE_SAMPLE_PREFIX

_EVERY_S = 1.0
_ANSWER_S = 2.0
_BIN_NS = 1_000_000_000

_GAUGES = {
    "midstream_epoch": "server.epoch",
    "midstream_kv_blocks": "server.kv_blocks",
    "vllm:num_requests_running": "server.requests_running",
    "vllm:num_requests_waiting": "server.requests_waiting",
    "vllm:kv_cache_usage_perc": "server.kv_usage",
}
_LAYERS = "midstream_stage_layers"
_WANTED = (*_GAUGES, _LAYERS)


async def poll_metrics(base_url: str, axis: Axis, tally: Tally) -> None:
    """Sample a server's metrics each second, until cancelled; one that has none is not asked again."""
    async with httpx.AsyncClient(base_url=base_url, timeout=_ANSWER_S, trust_env=False) as http:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                response = await http.get("/metrics")
                if response.status_code == httpx.codes.NOT_FOUND:
                    return
                for name, value in gauges(response.text).items():
                    tally.sample(name, axis.now(), value)
            await asyncio.sleep(_EVERY_S)


def gauges(text: str) -> dict[str, float]:
    """Return the samples that a text of Prometheus' format has for us, by the name they get in a run."""
    lines = [line for line in text.splitlines() if line.startswith(_WANTED)]
    found: dict[str, float] = {}
    with contextlib.suppress(ValueError):  # not Prometheus' format: somebody else's /metrics
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                if not math.isfinite(sample.value):
                    continue
                if sample.name == _LAYERS:
                    found[f"{STAGE_SAMPLE_PREFIX}{sample.labels.get('stage', '?')}.layers"] = sample.value
                elif sample.name in _GAUGES:
                    found[_GAUGES[sample.name]] = found.get(_GAUGES[sample.name], 0.0) + sample.value
    return found


class BusySampler:
    """Reads the trace of a target and samples how busy its stages were since it did so last."""

    def __init__(self, control: TargetControl, axis: Axis, tally: Tally) -> None:
        self._control, self._axis, self._tally = control, axis, tally
        self._from_ns = 0

    async def read(self) -> None:
        """Sample up to now. A target without a trace has no such samples."""
        until = self._axis.now()
        with contextlib.suppress(ControlError):
            spans = stage_spans(await self._control.trace(), self._axis.zero_ns)
            for name, at, value in busy(spans, self._from_ns, until):
                self._tally.sample(name, at, value)
        self._from_ns = until


def stage_spans(events: Iterable[Mapping[str, Any]], zero_ns: int) -> dict[int, list[tuple[int, int]]]:
    """Return when each stage computed, on the run's axis, by the stage's place in its chain.

    The spans of a batch follow each other in the trace, in the order of the chain.
    """
    spans: dict[int, list[tuple[int, int]]] = {}
    batch, place = None, 0
    for event in events:
        this = (event["pid"], event["name"])
        place = place + 1 if this == batch else 0
        batch = this
        start = round(event["ts"] * 1e3) - zero_ns
        spans.setdefault(place, []).append((start, start + round(event["dur"] * 1e3)))
    return spans


def busy(spans: Mapping[int, list[tuple[int, int]]], start_ns: int, end_ns: int) -> list[tuple[str, int, float]]:
    """Return samples `stage.N.busy`, each at the end of its second and with the share of it that the stage computed.

    Seconds before the first span of any stage have no samples: the trace may not go back so far. The last one may be
    shorter than a second.
    """
    firsts = [start for each in spans.values() for start, _ in each]
    if not firsts or end_ns <= start_ns:
        return []
    begin = max(start_ns, min(firsts) // _BIN_NS * _BIN_NS)
    count = max(0, math.ceil((end_ns - begin) / _BIN_NS))
    rows = []
    for stage, each in sorted(spans.items()):
        sums = [0] * count
        for start, end in each:
            at, until = max(start, begin), min(end, end_ns)
            while at < until:
                number = (at - begin) // _BIN_NS
                edge = min(until, begin + (number + 1) * _BIN_NS)
                sums[number] += edge - at
                at = edge
        for number, total in enumerate(sums):
            edge = min(end_ns, begin + (number + 1) * _BIN_NS)
            share = total / (edge - begin - number * _BIN_NS)
            rows.append((f"{STAGE_SAMPLE_PREFIX}{stage}.busy", edge, min(1.0, share)))
    return rows
