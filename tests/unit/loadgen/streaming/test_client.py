"""The client on a wire whose every byte is given."""

import asyncio
import socket
import time

import pytest

from loadgen.clock import now_ns
from loadgen.records import Outcome
from loadgen.server import free_port
from loadgen.streaming.answer import Answer
from loadgen.streaming.client import StreamingClient
from loadgen.streaming.deadlines import Deadlines
from loadgen.streaming.target import Limits, read_address
from tests.unit.loadgen.streaming.support import (
    CHUNKED,
    HEAD,
    WHOLE,
    WRITER,
    Wire,
    coded,
    exchange,
    planned,
    text_event,
    wired,
)
from tests.unit.loadgen.streams import eventually

END = b"0\r\n\r\n"
GOOD = CHUNKED + coded(WHOLE) + END


async def ask(*pieces: bytes, limits: Limits | None = None) -> Answer:
    async with wired(Wire([list(pieces)]), limits) as client:
        return await exchange(client)


class TestMessages:
    async def test_events_in_chunks_cut_anywhere(self):
        coding = b"".join(coded(WHOLE[n : n + 7]) for n in range(0, len(WHOLE), 7))
        data = CHUNKED + coding + END
        answer = await ask(*(data[n : n + 11] for n in range(0, len(data), 11)))
        assert (answer.outcome, len(answer.at_ns)) == (Outcome.FINISHED, 2)

    async def test_a_body_with_a_length_and_one_that_ends_with_the_connection(self):
        with_length = await ask(HEAD + b"content-length: %d\r\n\r\n" % len(WHOLE) + WHOLE)
        until_close = await ask(HEAD + b"connection: close\r\n\r\n", WHOLE)
        without_done = await ask(HEAD + b"\r\n", text_event("a", "stop"))
        assert (with_length.outcome, until_close.outcome) == (Outcome.FINISHED, Outcome.FINISHED)
        assert (without_done.outcome, without_done.detail) == (
            Outcome.TRUNCATED,
            "the stream was closed before [DONE]",
        )

    async def test_an_interim_answer_is_skipped(self):
        assert (await ask(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", GOOD)).outcome is Outcome.FINISHED

    async def test_reads_have_moments_of_their_own(self):
        answer = await ask(CHUNKED, coded(text_event("a")), coded(text_event("b", "stop") + b"data: [DONE]\n\n") + END)
        assert answer.at_ns[1] - answer.at_ns[0] >= 1_000_000


class TestTrouble:
    @pytest.mark.parametrize(
        ("pieces", "outcome", "detail"),
        [
            ([b""], Outcome.DISCONNECTED, "before it answered"),
            ([CHUNKED + coded(text_event("a"))], Outcome.DISCONNECTED, "in the middle of the answer"),
            ([HEAD + b"content-length: 999\r\n\r\n" + text_event("a")], Outcome.DISCONNECTED, "in the middle"),
            ([b"SMTP ready\r\n"], Outcome.MALFORMED, "HTTP/1.1"),
            ([CHUNKED + b"zz\r\n"], Outcome.MALFORMED, "HTTP/1.1"),
            ([CHUNKED + END], Outcome.EMPTY, "without a token"),
            ([CHUNKED + coded(b'data: {"error":"boom"}\n\n') + END], Outcome.ERROR, "boom"),
        ],
    )
    async def test_each_has_its_outcome_and_its_words(self, pieces, outcome, detail):
        wire = Wire([pieces])
        wire.go_on.set()
        async with wired(wire) as client:
            answer = await exchange(client)
        assert answer.outcome is outcome
        assert detail in (answer.detail or "")

    @pytest.mark.parametrize(
        ("body", "detail"),
        [
            (b'{"error":{"message":"no such model"}}', "HTTP 404: no such model"),
            (b'{"object":"error","message":"no such model"}', "HTTP 404: no such model"),
            (b"<html>\n  nothing here</html>", "HTTP 404: <html> nothing here</html>"),
            (b"", "HTTP 404: no reason given"),
        ],
    )
    async def test_a_refusal_carries_status_and_the_servers_words(self, body, detail):
        head = b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        answer = await ask(head + body)
        assert (answer.outcome, answer.detail) == (Outcome.REFUSED, detail)

    async def test_the_time_to_come_again_is_kept(self):
        answer = await ask(b"HTTP/1.1 503 Busy\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n")
        assert answer.retry_after_s == 7

    async def test_an_answer_that_is_not_streamed_is_malformed_with_what_it_says(self):
        body = b'{"id":"x","choices":[]}'
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        answer = await ask(head + body)
        assert answer.outcome is Outcome.MALFORMED
        assert "at once instead of streaming" in (answer.detail or "")

    async def test_nobody_listening_is_unreachable(self):
        with Deadlines() as deadlines:
            async with StreamingClient(read_address(f"http://127.0.0.1:{free_port()}"), Limits(), deadlines) as client:
                answer = await exchange(client)
        assert answer.outcome is Outcome.UNREACHABLE

    async def test_a_proxy_in_the_environment_is_not_used(self, monkeypatch):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
        assert (await ask(GOOD)).outcome is Outcome.FINISHED


class TestWaiting:
    @pytest.mark.parametrize(
        ("limits", "words"),
        [
            (Limits(silence_s=0.5), "0.5 s without a byte"),
            (Limits(total_s=0.5), "timed out after 0.5 s"),
        ],
    )
    async def test_silence_and_the_total_have_an_end_and_keep_what_came(self, limits, words):
        wire = Wire([[CHUNKED + coded(text_event("a")), b"", END]])
        async with wired(wire, limits) as client:
            answer = await exchange(client, Answer(now_ns()))
            wire.go_on.set()
        assert (answer.outcome, len(answer.at_ns)) == (Outcome.TIMED_OUT, 1)
        assert words in (answer.detail or "")

    async def test_a_loop_that_stood_still_reads_what_came_before_it_blames_the_server(self):
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        with ours, theirs:
            async with wired(Wire([[CHUNKED + coded(text_event("a")), b"", END]]), Limits(silence_s=0.1)) as client:
                answer = Answer(now_ns())
                asking = asyncio.create_task(exchange(client, answer))
                await eventually(lambda: answer.at_ns)
                loop.add_reader(ours, lambda: answer.take(text_event("b", "stop") + b"data: [DONE]\n\n", now_ns()))
                time.sleep(0.3)  # noqa: ASYNC251 - the loop stands still; the deadline passes, then bytes arrive
                theirs.send(b"x")
                await asking
                loop.remove_reader(ours)
        assert answer.outcome is Outcome.FINISHED

    async def test_cancelling_closes_the_stream_and_keeps_what_came(self):
        wire = Wire([[CHUNKED + coded(text_event("a")), b""]])
        async with wired(wire) as client:
            answer = Answer(now_ns())
            asking = asyncio.create_task(exchange(client, answer))
            await eventually(lambda: answer.at_ns)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            wire.go_on.set()
        assert (answer.outcome, answer.detail) == (Outcome.CANCELLED, "cancelled after 1 tokens")


class TestConnections:
    async def test_a_connection_is_used_again(self):
        wire = Wire([[GOOD], [GOOD], [GOOD]], close=False)
        async with wired(wire) as client:
            outcomes = [(await exchange(client)).outcome for _ in range(3)]
        assert (outcomes, wire.connections) == ([Outcome.FINISHED] * 3, 1)

    async def test_a_refusal_leaves_its_connection_usable(self):
        refusal = b"HTTP/1.1 429 Later\r\ncontent-length: 0\r\n\r\n"
        wire = Wire([[refusal], [GOOD]], close=False)
        async with wired(wire) as client:
            outcomes = [(await exchange(client)).outcome for _ in range(2)]
        assert (outcomes, wire.connections) == ([Outcome.REFUSED, Outcome.FINISHED], 1)

    async def test_one_that_the_server_closed_or_wants_closed_is_not(self):
        closing = GOOD.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)
        for first, close in ((GOOD, True), (closing, False)):
            wire = Wire([[first], [GOOD]], close=close)
            async with wired(wire) as client:
                assert (await exchange(client)).outcome is Outcome.FINISHED
                await asyncio.sleep(0.02)  # the end of the connection arrives
                assert (await exchange(client)).outcome is Outcome.FINISHED
            assert wire.connections == 2

    async def test_what_follows_an_error_event_does_not_reach_the_next_answer(self):
        failed = CHUNKED + coded(b'data: {"error":"boom"}\n\n')
        wire = Wire([[failed, coded(text_event("late")) + END], [GOOD]], close=False)
        async with wired(wire) as client:
            first, second = await exchange(client), await exchange(client)
        assert (first.outcome, second.outcome) == (Outcome.ERROR, Outcome.FINISHED)
        assert (len(first.at_ns), len(second.at_ns)) == (0, 2)


class TestReservations:
    async def test_a_connection_that_went_on_to_the_next_reservation_is_not_given_back_by_the_one_before(self):
        """Two requests on one connection: the second's answer would be lost, and waited for in vain."""
        async with wired(Wire([[GOOD], [GOOD], [GOOD]], close=False)) as client:
            first = client.reserve()
            answer = Answer(now_ns())
            await client.exchange(WRITER.write(planned(), 0), answer, first)
            used = first.result()
            assert used is not None
            await eventually(lambda: used.usable)
            second = client.reserve()
            assert await second is used
            client.give_back(first)
            third = client.reserve()
            assert await third is not used
            client.give_back(second)
            client.give_back(third)
