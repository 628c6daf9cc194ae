"""A request and a change in one client's trace, from a real server to a collector that this test is."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from concurrent import futures
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
import pytest_asyncio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from loadgen.server import ServerProcess, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from opentelemetry.proto.trace.v1.trace_pb2 import Span

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

TRACE, CLIENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADERS = {"traceparent": f"00-{TRACE}-{CLIENT}-01"}
DEADLINE_S = 60.0


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans as OTLP over gRPC, which is what vLLM sends unless it is told otherwise."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._came = threading.Condition()

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - gRPC's name for it
        with self._came:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    self.spans.extend(scope.spans)
            self._came.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait_for(self, counts: Mapping[str, int]) -> bool:
        """Wait until so many spans of each name are there; False when that takes too long."""
        with self._came:
            return self._came.wait_for(
                lambda: all(len(self.named(name)) >= count for name, count in counts.items()),
                DEADLINE_S,
            )

    def named(self, name: str) -> list[Span]:
        return [span for span in list(self.spans) if span.name == name and span.trace_id.hex() == TRACE]


@dataclass
class Traced:
    """A server that sends spans, and where they come in."""

    server: ServerProcess
    collector: Collector


@pytest.fixture(scope="module")
def collector() -> Iterator[tuple[Collector, int]]:
    made = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(made, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield made, port
    server.stop(None).wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def traced(collector: tuple[Collector, int], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Traced]:
    made, collector_port = collector
    port = free_port()
    arguments = [
        "--layers",
        "15,15",
        "--port",
        str(port),
        "--otlp-traces-endpoint",
        f"http://127.0.0.1:{collector_port}",
    ]
    process = ServerProcess(
        "midstream",
        [sys.executable, "-m", "controller.cli", "serve", *arguments],
        port=port,
        log_path=tmp_path_factory.mktemp("traces") / "server.log",
        env={**os.environ, "OTEL_BSP_SCHEDULE_DELAY": "100"},
    )
    async with process:
        yield Traced(process, made)


async def test_a_request_is_traced_through_a_change_that_is_traced_too(traced: Traced) -> None:
    async with httpx.AsyncClient(base_url=traced.server.base_url, timeout=DEADLINE_S, trust_env=False) as http:
        body = {"prompt": "One, two, three,", "max_tokens": 240, "temperature": 0, "ignore_eos": True, "stream": True}
        options = {"stream_options": {"include_usage": True}}
        change: dict[str, Any] = {}
        async with http.stream("POST", "/v1/completions", json={**body, **options}, headers=HEADERS) as stream:
            pieces = 0
            async for line in stream.aiter_lines():
                pieces += line.startswith("data: {")
                if pieces == 10 and not change:
                    asked = await http.post("/midstream/v1/reconfigurations", json={"layers": "8,22"}, headers=HEADERS)
                    assert asked.status_code == 202, asked.text
                    change = asked.json()
        untraced = {**body, "stream": False, "max_tokens": 2}
        assert (await http.post("/v1/completions", json=untraced)).status_code == 200

    expected = {"llm_request": 1, "midstream.request": 1, "midstream.stage": 4, "midstream.reconfiguration": 1}
    assert await asyncio.to_thread(traced.collector.wait_for, expected), traced.collector.spans

    (reconfiguration,) = traced.collector.named("midstream.reconfiguration")
    assert reconfiguration.parent_span_id.hex() == CLIENT
    told = attributes(reconfiguration)
    assert (told["midstream.change"], told["midstream.state"]) == (change["id"], "committed")
    assert told["midstream.requests_carried"] == 1
    steps = [span for span in traced.collector.spans if span.parent_span_id == reconfiguration.span_id]
    assert {"midstream.reconfiguration.plan", "midstream.reconfiguration.prepare"} < {span.name for span in steps}

    (request,) = traced.collector.named("midstream.request")
    assert request.parent_span_id.hex() == CLIENT
    assert [event.name for event in request.events] == ["carried over"]
    assert reconfiguration.start_time_unix_nano < request.events[0].time_unix_nano < reconfiguration.end_time_unix_nano

    stages = traced.collector.named("midstream.stage")
    assert {span.parent_span_id for span in stages} == {request.span_id}
    did = [attributes(span) for span in stages]
    epochs = sorted({found["midstream.epoch"] for found in did})
    assert [(found["midstream.epoch"], found["midstream.stage_index"]) for found in did] == [
        (epoch, index) for epoch in epochs for index in (1, 0)
    ]
    # Every token but the last is computed once by every stage, before the change or after it.
    tokens = [sum(found["midstream.tokens"] for found in did if found["midstream.stage_index"] == i) for i in (0, 1)]
    (llm_request,) = traced.collector.named("llm_request")
    usage = attributes(llm_request)
    assert tokens == [usage["gen_ai.usage.prompt_tokens"] + usage["gen_ai.usage.completion_tokens"] - 1] * 2
    assert all(found["midstream.busy_ms"] > 0 for found in did)


def attributes(span: Span) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in span.attributes}
