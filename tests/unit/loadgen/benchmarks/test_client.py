"""The client against the mock server over loopback, and against canned bytes where the wire itself matters."""

import json
from collections.abc import AsyncIterator

import httpx
import pytest

from loadgen.benchmarks.client import CompletionClient, StreamRequest, served_model
from loadgen.errors import ServerError
from loadgen.gaps import inter_token_latencies_ms, largest_gap, percentile, time_to_first_token_ms
from loadgen.mock.behaviour import Behaviour, Fault, TokenSource
from loadgen.mock.server import MODEL
from loadgen.records import Outcome, StreamRecord
from loadgen.server import free_port
from tests.unit.loadgen.streams import mock_server

REQUEST = StreamRequest("one", "Hello", 24, temperature=0.8, seed=7)
TRUTH = tuple(TokenSource("Hello", 0.8, 7).at(index) for index in range(24))


async def ask(behaviour: Behaviour | None = None, request: StreamRequest = REQUEST) -> StreamRecord:
    async with mock_server(behaviour) as (url, _), CompletionClient(url, MODEL) as client:
        return await client.stream(request)


def streaming(body: bytes) -> httpx.Response:
    async def reads() -> AsyncIterator[bytes]:
        yield body

    return httpx.Response(200, content=reads())


async def canned(body: bytes, request: StreamRequest = REQUEST) -> StreamRecord:
    """What the client makes of a response with exactly these bytes."""
    transport = httpx.MockTransport(lambda _: streaming(body))
    async with CompletionClient("http://mock", MODEL, transport=transport) as client:
        return await client.stream(request)


def event(*, text: str = "x", finish_reason: str | None = None, head: str = "cmpl-1", **choice: object) -> bytes:
    choices = [{"index": 0, "text": text, "finish_reason": finish_reason, **choice}]
    payload = {"id": head, "created": 1, "model": MODEL, "choices": choices}
    return f"data: {json.dumps(payload, ensure_ascii=False)}\n\n".encode()


class TestFinishedStream:
    async def test_every_token_is_recorded_in_order(self):
        record = await ask()
        assert (record.outcome, record.finish_reason, record.detail) == (Outcome.FINISHED, "length", None)
        assert record.token_ids == TRUTH
        assert record.text == "".join(f" {token}" for token in TRUTH)
        assert record.prompt_token_ids == tuple(b"Hello")
        assert record.reported_tokens == 24
        assert len(record.identities) == 1
        assert not record.broken

    async def test_moments_are_in_order_on_one_axis(self):
        record = await ask()
        moments = [record.started_ns, *(token.arrived_ns for token in record.tokens), record.ended_ns]
        assert moments == sorted(moments)

    async def test_tokens_of_one_chunk_share_chunk_and_moment(self):
        record = await ask(Behaviour(tokens_per_chunk=4))
        assert record.token_ids == TRUTH
        by_chunk = [[t for t in record.tokens if t.chunk == chunk] for chunk in range(6)]
        assert [len(tokens) for tokens in by_chunk] == [4] * 6
        assert all(len({t.arrived_ns for t in tokens}) == 1 for tokens in by_chunk)
        assert all([bool(t.text) for t in tokens] == [False, False, False, True] for tokens in by_chunk)

    async def test_latencies_are_those_of_the_server(self):
        record = await ask(Behaviour(ttft_ms=60, itl_ms=10))
        assert 55 < (time_to_first_token_ms(record) or 0) < 1000
        assert 9 < percentile(inter_token_latencies_ms(record), 50) < 200

    async def test_a_stall_is_the_largest_gap_and_lies_where_it_was(self):
        record = await ask(Behaviour(faults=(Fault("stall", 10, stall_ms=300),)))
        gap = largest_gap(record)
        assert gap is not None
        assert gap.start_ns == record.tokens[9].arrived_ns
        assert 295 < gap.ms < 2000

    async def test_arrivals_are_announced_while_the_stream_runs(self):
        counts: list[int] = []
        async with mock_server(Behaviour(tokens_per_chunk=4)) as (url, _), CompletionClient(url, MODEL) as client:
            await client.stream(REQUEST, on_tokens=counts.append)
        assert counts == [4] * 6

    async def test_a_greedy_stream_does_not_depend_on_its_seed(self):
        one = await ask(request=StreamRequest("one", "Hello", 8, seed=1))
        two = await ask(request=StreamRequest("two", "Hello", 8, seed=2))
        assert one.token_ids == two.token_ids != TRUTH[:8]


class TestBrokenStream:
    """Each way of breaking has its own outcome, and the tokens that did arrive are kept."""

    @pytest.mark.parametrize(
        ("kind", "outcome", "detail"),
        [
            ("disconnect", Outcome.DISCONNECTED, "closed"),
            ("truncate", Outcome.TRUNCATED, "ended after 9 tokens"),
            ("abort", Outcome.TRUNCATED, "'abort'"),
            ("error", Outcome.ERROR, "the mock engine failed"),
            ("garbage", Outcome.MALFORMED, "event 9"),
        ],
    )
    async def test_a_fault_in_mid_stream(self, kind, outcome, detail):
        record = await ask(Behaviour(faults=(Fault(kind, 9),)))
        assert record.outcome is outcome
        assert record.broken
        assert detail in (record.detail or "")
        assert record.token_ids == TRUTH[:9]

    async def test_a_refused_request_carries_status_and_message(self):
        record = await ask(Behaviour(refuse_status=503))
        assert record.outcome is Outcome.REFUSED
        assert record.detail == "HTTP 503: the mock server refuses completions"

    async def test_nobody_listening_is_unreachable(self):
        async with CompletionClient(f"http://127.0.0.1:{free_port()}", MODEL) as client:
            record = await client.stream(REQUEST)
        assert (record.outcome, record.tokens) == (Outcome.UNREACHABLE, ())

    async def test_silence_longer_than_the_client_waits_is_a_timeout(self):
        behaviour = Behaviour(faults=(Fault("stall", 5, stall_ms=60_000),))
        async with mock_server(behaviour) as (url, _), CompletionClient(url, MODEL, silence_s=1.0) as client:
            record = await client.stream(REQUEST)
        assert record.outcome is Outcome.TIMED_OUT
        assert record.token_ids == TRUTH[:5]

    async def test_a_stream_without_tokens_is_empty(self):
        assert (await canned(b"data: [DONE]\n\n")).outcome is Outcome.EMPTY
        assert (await canned(b"")).outcome is Outcome.EMPTY

    async def test_a_stream_closed_after_its_last_token_but_before_done_is_truncated(self):
        record = await canned(event(token_ids=[1], finish_reason="length"))
        assert (record.outcome, record.detail) == (Outcome.TRUNCATED, "the stream was closed before [DONE]")

    async def test_a_server_that_sends_no_token_ids_is_malformed_and_not_guessed_at(self):
        record = await ask(Behaviour(send_token_ids=False))
        assert record.outcome is Outcome.MALFORMED
        assert "return_token_ids" in (record.detail or "")

    async def test_a_change_of_identity_within_a_stream_is_visible(self):
        record = await ask(Behaviour(faults=(Fault("rename", 9),)))
        assert record.outcome is Outcome.FINISHED
        assert [i.response_id for i in record.identities] == ["cmpl-1", "cmpl-1-renamed"]


async def test_text_with_unusual_line_separators_does_not_cut_a_stream():
    body = event(text="a\u2028b\x85c", token_ids=[1]) + event(token_ids=[2], finish_reason="stop") + b"data: [DONE]\n\n"
    record = await canned(body)
    assert (record.outcome, record.token_ids) == (Outcome.FINISHED, (1, 2))


async def test_the_request_on_the_wire_asks_for_ids_usage_and_a_stream():
    seen: list[dict[str, object]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return streaming(b"data: [DONE]\n\n")

    async with CompletionClient("http://mock", MODEL, transport=httpx.MockTransport(answer)) as client:
        await client.stream(REQUEST)
        await client.stream(StreamRequest("two", "Hello", 1))
    assert seen[0] == {
        "model": MODEL,
        "prompt": "Hello",
        "max_tokens": 24,
        "temperature": 0.8,
        "seed": 7,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    assert "seed" not in seen[1]


async def test_the_served_model_is_the_one_the_server_lists():
    async with mock_server() as (url, _):
        assert await served_model(url) == MODEL


async def test_a_server_that_cannot_name_its_model_is_an_error():
    with pytest.raises(ServerError, match="does not name a model"):
        await served_model(f"http://127.0.0.1:{free_port()}")
