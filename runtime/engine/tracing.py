"""Spans of a pipeline: what stages did for a request, and the steps of a change. Off unless vLLM's own traces are on.

Problem: vLLM makes one span of a request (``llm_request``, in the server's process) and knows nothing of stages. With
``--otlp-traces-endpoint`` the engine's process has OpenTelemetry's provider too, which these spans go to.

Protocol, for a client's trace that comes with the headers ``traceparent`` and ``tracestate``::

    client's span
    ├── llm_request                                  vLLM's
    ├── midstream.request                            from its arrival at the scheduler to its end
    │   ├── midstream.stage                          one for each stage that computed for it, by epoch
    │   └── events "carried over", "replayed"        when it changed chains
    └── midstream.reconfiguration                    one for each change; without a trace of its own, a root
        └── midstream.reconfiguration.<step>         plan, prepare, ...

A request without these headers costs one look-up for each batch. Spans are made when a request or a change has ended,
from what was added up until then, on a thread of their own: making four takes longer than sending a batch.

Caveats: a batch is computed for all of its requests at once, and its time counts for each of them. The clocks of stages
on other hosts are not ours: when a stage computed is reckoned back from the arrival of the batch's result, so time on
the way between stages counts as a stage's wait, not as its work. Sampling is the client's choice (OTEL_TRACES_SAMPLER).
"""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor

    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer
    from vllm.config import VllmConfig

    from runtime.engine.dispatcher import Dispatcher
    from runtime.engine.messages import ScheduledBatch
    from runtime.migration.journal import Entry, Journal
    from runtime.transport.frames import StageSpan

_FLUSH_MS = 1000
_REPORTED = {
    "id": "midstream.change",
    "request": "midstream.request",
    "from": "midstream.from",
    "to": "midstream.to",
    "state": "midstream.state",
    "reason": "midstream.reason",
    "method": "midstream.method",
    "carried_by": "midstream.carried_by",
    "epoch": "midstream.epoch",
    "bytes_moved": "midstream.bytes_moved",
    "rounds": "midstream.rounds",
    "pause_ms": "midstream.pause_ms",
    "requests_carried": "midstream.requests_carried",
}
"""What a change's span takes from its report, with the attributes' names."""

_tracings: dict[int, Tracing] = {}


@dataclass(slots=True)
class _Work:
    """What a stage did for a request; times in unix nanoseconds."""

    index: int
    first_ns: int
    last_ns: int = 0
    busy_ns: int = 0
    batches: int = 0
    tokens: int = 0


@dataclass(slots=True)
class _Request:
    """A request with trace context, from its arrival on."""

    context: Context
    at_ns: int
    work: dict[tuple[int, str], _Work] = field(default_factory=dict)  # by epoch and stage
    moves: list[Entry] = field(default_factory=list)


class Tracing:
    """Adds up what stages do for requests that are traced, and makes the spans. Thread-safe."""

    def __init__(self, tracer: Tracer, worker: Executor) -> None:
        self._tracer = tracer
        self._worker = worker
        self._lock = threading.Lock()
        self._requests: dict[str, _Request] = {}

    @classmethod
    def start(cls, config: VllmConfig, journal: Journal, dispatcher: Dispatcher) -> Tracing | None:
        """Trace the engine of `config` from now on; None, with nothing done, unless it is told where spans go."""
        _tracings.pop(id(config), None)  # of an engine that is gone
        if config.observability_config.otlp_traces_endpoint is None:
            return None
        from opentelemetry import trace

        tracing = _tracings[id(config)] = cls(trace.get_tracer("midstream"), ThreadPoolExecutor(1, "traces"))
        journal.listen(tracing.told)
        dispatcher.on_computed = tracing.computed
        return tracing

    def came(self, request_id: str, headers: Mapping[str, str] | None) -> None:
        """Take a request that arrived at the scheduler, with its headers of trace context."""
        if not headers:
            return
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        request = _Request(TraceContextTextMapPropagator().extract(headers), time.time_ns())
        with self._lock:
            self._requests[request_id] = request

    def computed(self, batch: ScheduledBatch, epoch: int, spans: Sequence[StageSpan]) -> None:
        """Take a batch whose result has just come, with what each stage of its chain did, in order."""
        if not self._requests:
            return
        with self._lock:
            traced = [
                (request, tokens)
                for request_id, tokens in batch.scheduled_tokens.items()
                if (request := self._requests.get(request_id)) is not None
            ]
            if not traced:
                return
            end_ns = time.time_ns()
            for index in range(len(spans) - 1, -1, -1):
                span = spans[index]
                key, busy_ns = (epoch, span.stage), span.end_ns - span.start_ns
                for request, tokens in traced:
                    work = request.work.get(key)
                    if work is None:
                        work = request.work[key] = _Work(index, end_ns - busy_ns)
                    work.last_ns = end_ns
                    work.busy_ns += busy_ns
                    work.batches += 1
                    work.tokens += tokens
                end_ns -= busy_ns

    def told(self, entry: Entry) -> None:
        """Take an entry of the journal: a request changes chains, a request or a change ends."""
        match entry.event:
            case "ended" if "steps_ms" in entry.details:
                self._later(self._change_ended, entry.details)
            case "ended":
                with self._lock:
                    request = self._requests.pop(entry.subject, None)
                if request is not None:
                    self._later(self._request_ended, entry, request)
            case "carried over" | "replayed" if entry.subject in self._requests:
                with self._lock:
                    if request := self._requests.get(entry.subject):
                        request.moves.append(entry)

    def close(self) -> None:
        """Send what is still here, for a moment at most: whoever collects it may be gone."""
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider

        self._worker.shutdown()
        provider = trace.get_tracer_provider()
        if isinstance(provider, TracerProvider):
            provider.force_flush(_FLUSH_MS)

    def _later(self, make: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # closed
            self._worker.submit(make, *arguments)

    def _request_ended(self, entry: Entry, request: _Request) -> None:
        from opentelemetry import trace

        last_ns = max((work.last_ns for work in request.work.values()), default=request.at_ns)
        span = self._tracer.start_span(
            "midstream.request",
            request.context,
            start_time=request.at_ns,
            attributes={"midstream.request_id": entry.subject, "midstream.epoch": entry.details["epoch"]},
        )
        for move in request.moves:
            details = {f"midstream.{name}": value for name, value in move.details.items()}
            span.add_event(move.event, details, timestamp=_ns(move.at))
        inside = trace.set_span_in_context(span, request.context)
        for (epoch, stage), work in request.work.items():
            self._tracer.start_span(
                "midstream.stage",
                inside,
                start_time=work.first_ns,
                attributes={
                    "midstream.stage": stage,
                    "midstream.stage_index": work.index,
                    "midstream.epoch": epoch,
                    "midstream.batches": work.batches,
                    "midstream.tokens": work.tokens,
                    "midstream.busy_ms": work.busy_ns / 1e6,
                },
            ).end(work.last_ns)
        span.end(max(last_ns, _ns(entry.at)))

    def _change_ended(self, report: Mapping[str, Any]) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = report["traceparent"]
        context = TraceContextTextMapPropagator().extract({"traceparent": parent} if parent else {})
        at_ns, end_ns = _ns(report["started_at"]), _ns(report["ended_at"])
        attributes = {name: report[key] for key, name in _REPORTED.items() if report[key] is not None}
        span = self._tracer.start_span("midstream.reconfiguration", context, start_time=at_ns, attributes=attributes)
        if report["state"] != "committed":
            span.set_status(trace.StatusCode.ERROR, report["reason"])
        inside = trace.set_span_in_context(span, context)
        for step, ms in report["steps_ms"].items():
            child = self._tracer.start_span(f"midstream.reconfiguration.{step}", inside, start_time=at_ns)
            at_ns = min(at_ns + round(1e6 * ms), end_ns)
            child.end(at_ns)
        span.end(end_ns)


def tracing_of(config: VllmConfig) -> Tracing | None:
    """Return what traces the engine of `config` (one engine, one process), if it is traced."""
    return _tracings.get(id(config))


def _ns(at: float) -> int:
    return round(1e9 * at)
