"""Spans as a collector would get them, from what the journal and the dispatcher tell."""

from __future__ import annotations

import time
from concurrent.futures import Executor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode, format_span_id, format_trace_id

from runtime.engine.dispatcher import Chain, Dispatcher
from runtime.engine.ledger import Ledger
from runtime.engine.messages import encode
from runtime.engine.tracing import Tracing, tracing_of
from runtime.migration.journal import Entry, Journal
from runtime.transport.frames import Result, StageSpan
from tests.unit.runtime.engine.batches import BLOCK_TOKENS, batch, known, new, output

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

TRACE, CLIENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADERS = {"traceparent": f"00-{TRACE}-{CLIENT}-01"}
REPORT: dict[str, Any] = {
    "id": "change-1",
    "boot": "b",
    "request": "/senders/me#7",
    "traceparent": HEADERS["traceparent"],
    "state": "committed",
    "from": "2,2",
    "to": "1,3",
    "epoch": 2,
    "reason": None,
    "method": "pre_copy",
    "carried_by": "copy",
    "started_at": 1000.0,
    "ended_at": 1000.5,
    "steps_ms": {"plan": 1.0, "prepare": 400.0, "cutover": 99.5},
    "pause_ms": 12.5,
    "rounds": 2,
    "bytes_moved": 4096,
    "requests_carried": 3,
}
MS = 1_000_000


class AtOnce(Executor):
    """Runs what it is given before it returns."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)


class Bench:
    """A journal, a dispatcher whose stages are this test, and the spans that were made."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.journal = Journal()
        self.dispatcher = Dispatcher(Ledger(BLOCK_TOKENS), lambda _: None, lambda *_: None, self.journal.tell)
        self.tracing = Tracing(provider.get_tracer("test"), AtOnce())
        self.journal.listen(self.tracing.told)
        self.dispatcher.on_computed = self.tracing.computed
        self._sequence = 0

    def serve_from(self, epoch: int) -> None:
        self.dispatcher.install(Chain(epoch, ("first", "second"), (SimpleNamespace(send=lambda *_: None),) * 2))

    def compute(self, scheduled: Any, *busy_ms: float, **sampled: int | None) -> None:
        """Dispatch a batch that each stage takes so long for."""
        self._sequence += 1
        answer = self.dispatcher.dispatch(scheduled)
        epoch = self.dispatcher.epoch
        # A clock of another host: it began to count at some other time.
        spans = tuple(StageSpan(f"stage-{epoch}-{n}", 7, 7 + round(ms * MS)) for n, ms in enumerate(busy_ms, 1))
        buffers = encode(output(**sampled))
        self.dispatcher.on_result(Result(epoch, self._sequence, len(buffers), spans), buffers)
        assert answer.done()

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.serve_from(1)
    return made


def parent_of(span: ReadableSpan) -> str | None:
    return format_span_id(span.parent.span_id) if span.parent else None


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return format_trace_id(span.context.trace_id)


def id_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return format_span_id(span.context.span_id)


def test_what_each_stage_did_for_a_request_hangs_below_its_client(bench: Bench) -> None:
    before = time.time_ns()
    bench.tracing.came("a", HEADERS)
    bench.compute(batch(new("a", 3, [0]), tokens=3), 5, 2, a=1)
    bench.compute(batch(known("a", 3, outputs=1)), 3, 1, a=2)

    assert not bench.exporter.get_finished_spans()  # it goes on
    bench.dispatcher.finish(["a"])

    (request,) = bench.spans("midstream.request")
    assert (trace_of(request), parent_of(request)) == (TRACE, CLIENT)
    assert request.attributes == {"midstream.request_id": "a", "midstream.epoch": 1}
    assert request.start_time is not None
    assert request.end_time is not None
    assert before <= request.start_time <= request.end_time <= time.time_ns()
    stages = sorted(bench.spans("midstream.stage"), key=lambda span: span.start_time or 0)
    common = {"midstream.epoch": 1, "midstream.batches": 2, "midstream.tokens": 4}
    assert [span.attributes for span in stages] == [
        {"midstream.stage": "stage-1-1", "midstream.stage_index": 0, "midstream.busy_ms": 8.0, **common},
        {"midstream.stage": "stage-1-2", "midstream.stage_index": 1, "midstream.busy_ms": 3.0, **common},
    ]
    assert {parent_of(span) for span in stages} == {id_of(request)}


def test_times_are_ours_whatever_the_clock_of_a_stage_says(bench: Bench) -> None:
    bench.tracing.came("a", HEADERS)
    before = time.time_ns()
    bench.compute(batch(new("a", 3, [0]), tokens=3), 5, 2, a=1)
    after = time.time_ns()
    bench.dispatcher.finish(["a"])

    first, second = sorted(bench.spans("midstream.stage"), key=lambda span: span.start_time or 0)
    assert first.end_time == second.start_time
    assert second.end_time is not None
    assert second.start_time == second.end_time - 2 * MS
    assert first.start_time == second.start_time - 5 * MS
    assert before <= second.end_time <= after


def test_a_request_that_changes_chains_has_the_stages_of_both_and_the_moment(bench: Bench) -> None:
    bench.tracing.came("a", HEADERS)
    bench.compute(batch(new("a", 3, [0]), tokens=3), 1, 1, a=1)
    bench.serve_from(2)
    bench.compute(batch(known("a", 3, outputs=1)), 1, 1, a=2)
    bench.dispatcher.finish(["a"])

    assert {(span.attributes or {})["midstream.stage"] for span in bench.spans("midstream.stage")} == {
        "stage-1-1",
        "stage-1-2",
        "stage-2-1",
        "stage-2-2",
    }
    (request,) = bench.spans("midstream.request")
    (moved,) = request.events
    assert moved.name == "carried over"
    assert moved.attributes == {"midstream.epoch": 2, "midstream.tokens": 3}


def test_only_requests_with_trace_context_are_traced(bench: Bench) -> None:
    bench.tracing.came("a", HEADERS)
    bench.tracing.came("b", None)
    bench.compute(batch(new("a", 3, [0]), new("b", 2, [1]), tokens={"a": 3, "b": 2}), 5, a=1, b=1)
    bench.dispatcher.finish(["b"])

    assert not bench.exporter.get_finished_spans()
    bench.dispatcher.finish(["a"])
    (stage,) = bench.spans("midstream.stage")
    assert (stage.attributes or {})["midstream.tokens"] == 3


def test_a_request_that_was_never_computed_has_no_stages_and_is_forgotten(bench: Bench) -> None:
    bench.tracing.came("a", HEADERS)
    bench.dispatcher.finish(["a"])
    bench.dispatcher.finish(["a"])

    assert [span.name for span in bench.exporter.get_finished_spans()] == ["midstream.request"]


def test_a_change_is_a_span_in_the_trace_it_was_asked_for_in_with_its_steps(bench: Bench) -> None:
    bench.journal.tell("change-1", "planned", **{**REPORT, "state": "running", "ended_at": None})
    assert not bench.exporter.get_finished_spans()

    bench.journal.tell("change-1", "ended", **REPORT)

    (change,) = bench.spans("midstream.reconfiguration")
    assert (trace_of(change), parent_of(change)) == (TRACE, CLIENT)
    assert (change.start_time, change.end_time) == (1_000_000 * MS, 1_000_500 * MS)
    assert change.attributes == {
        "midstream.change": "change-1",
        "midstream.request": "/senders/me#7",
        "midstream.from": "2,2",
        "midstream.to": "1,3",
        "midstream.state": "committed",
        "midstream.method": "pre_copy",
        "midstream.carried_by": "copy",
        "midstream.epoch": 2,
        "midstream.bytes_moved": 4096,
        "midstream.rounds": 2,
        "midstream.pause_ms": 12.5,
        "midstream.requests_carried": 3,
    }
    assert change.status.status_code is StatusCode.UNSET
    steps = [span for span in bench.exporter.get_finished_spans() if span is not change]
    assert {parent_of(step) for step in steps} == {id_of(change)}
    assert [(step.name, step.start_time, step.end_time) for step in steps] == [
        ("midstream.reconfiguration.plan", 1_000_000 * MS, 1_000_001 * MS),
        ("midstream.reconfiguration.prepare", 1_000_001 * MS, 1_000_401 * MS),
        ("midstream.reconfiguration.cutover", 1_000_401 * MS, 1_000_500 * MS),  # not after the change itself
    ]


@pytest.mark.parametrize("traceparent", [None, "nonsense"])
def test_a_change_outside_of_any_trace_begins_one(bench: Bench, traceparent: str | None) -> None:
    bench.journal.tell("change-1", "ended", **{**REPORT, "traceparent": traceparent})

    (change,) = bench.spans("midstream.reconfiguration")
    assert change.parent is None


def test_a_change_that_was_aborted_is_an_error_with_its_reason(bench: Bench) -> None:
    bench.journal.tell("change-1", "ended", **{**REPORT, "state": "aborted", "reason": "a node is gone"})

    (change,) = bench.spans("midstream.reconfiguration")
    assert change.status.status_code is StatusCode.ERROR
    assert change.status.description == "a node is gone"


def test_without_a_place_to_send_spans_to_nothing_listens() -> None:
    config: Any = SimpleNamespace(observability_config=SimpleNamespace(otlp_traces_endpoint=None))
    dispatcher = Dispatcher(Ledger(BLOCK_TOKENS), lambda _: None, lambda *_: None)

    assert Tracing.start(config, Journal(), dispatcher) is None
    assert tracing_of(config) is None
    assert dispatcher.on_computed is None


def test_with_one_the_scheduler_finds_what_traces_its_engine() -> None:
    config: Any = SimpleNamespace(observability_config=SimpleNamespace(otlp_traces_endpoint="http://127.0.0.1:4317"))
    dispatcher = Dispatcher(Ledger(BLOCK_TOKENS), lambda _: None, lambda *_: None)

    tracing = Tracing.start(config, Journal(), dispatcher)

    assert tracing is not None
    assert tracing_of(config) is tracing
    assert dispatcher.on_computed == tracing.computed
    tracing.close()
    tracing.told(Entry(1.0, "change-1", "ended", REPORT))  # too late for a span, and no error
