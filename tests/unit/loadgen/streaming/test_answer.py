"""From reads to tokens: every way of cutting, counting and ending."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.records import Outcome
from loadgen.streaming.answer import Answer
from tests.unit.loadgen.streaming.support import WHOLE, text_event


def event(choice: dict[str, Any] | None, **fields: Any) -> bytes:
    return f"data: {json.dumps({'choices': [] if choice is None else [choice], **fields})}\n\n".encode()


def usage(completion: int, prompt: int = 3) -> dict[str, int]:
    return {"completion_tokens": completion, "prompt_tokens": prompt}


DONE = b"data: [DONE]\n\n"


async def read(*reads: bytes, **options: Any) -> Answer:
    """Each read arrives one later than the one before."""
    answer = Answer(0, **options)
    for at, each in enumerate(reads, start=1):
        answer.take(each, at)
    return answer


async def test_a_token_has_the_moment_of_its_read_and_the_number_of_its_event():
    answer = await read(text_event("a"), text_event("b") + text_event("c"), text_event("d", "stop") + DONE)
    assert answer.at_ns == [1, 2, 2, 3]
    assert answer.chunks_of == [0, 1, 2, 3]
    assert (answer.outcome, answer.finish_reason, answer.ended_ns, answer.detail) == (
        Outcome.FINISHED,
        "stop",
        3,
        None,
    )


@given(st.lists(st.integers(1, 400), max_size=20), st.sampled_from([b"\n", b"\r\n"]))
async def test_the_cut_of_the_reads_changes_nothing(cuts, end):
    body = b": keep-alive\n\nevent: x\nid: 4\n" + text_event("a\u2028b", None) + WHOLE
    body = body.replace(b"\n", end)
    ends = sorted({min(cut, len(body)) for cut in cuts} | {len(body)})
    answer = await read(*(body[a:b] for a, b in zip([0, *ends], ends, strict=False)))
    assert (answer.outcome, len(answer.at_ns), answer.chunks_of) == (Outcome.FINISHED, 3, [0, 1, 2])


class TestCounting:
    async def test_ids_are_the_tokens(self):
        body = event({"text": "ab", "token_ids": [1, 2]}) + event(
            {"text": "", "token_ids": [3], "finish_reason": "length"}
        )
        answer = await read(body + event(None, usage=usage(3)) + DONE)
        assert (answer.ids, answer.chunks_of, answer.chunks) == ([1, 2, 3], [0, 0, 1], 2)
        assert (answer.reported_tokens, answer.prompt_tokens, answer.detail) == (3, 3, None)

    async def test_ids_that_the_server_counts_otherwise_are_reported_and_kept(self):
        answer = await read(
            event({"text": "a", "token_ids": [1], "finish_reason": "stop"}) + event(None, usage=usage(2)) + DONE
        )
        assert answer.detail == "1 tokens arrived, the server counts 2"
        assert answer.outcome is Outcome.FINISHED

    async def test_usage_in_every_chunk_counts_its_tokens(self):
        first = event({"delta": {"role": "assistant", "content": ""}}, usage=usage(0))
        rest = event({"delta": {"content": "abc"}}, usage=usage(3)) + event({"delta": {"content": "d"}}, usage=usage(4))
        last = event({"delta": {"content": ""}, "finish_reason": "stop"}, usage=usage(5))
        answer = await read(first, rest, last, event(None, usage=usage(5)) + DONE)
        assert answer.at_ns == [2, 2, 2, 2, 3]
        assert answer.chunks_of == [1, 1, 1, 2, 3]
        assert answer.detail is None

    async def test_usage_only_in_the_last_chunk_is_no_count_of_that_chunk(self):
        answer = await read(
            event({"text": "a"}),
            event({"text": "b"}),
            event({"text": "", "finish_reason": "stop"}, usage=usage(6)) + DONE,
        )
        assert len(answer.at_ns) == 2
        assert answer.detail == "several tokens in one chunk: 2 chunks, the server counts 6 tokens"

    async def test_a_tokenizer_spreads_what_the_server_counts(self):
        answer = await read(
            event({"text": "abcd"}),
            event({"text": "ef", "finish_reason": "stop"}) + event(None, usage=usage(3)) + DONE,
            keep_texts=True,
        )
        assert answer.countable
        assert not answer.final
        answer.spread(lambda text: len(text) // 2)
        assert (answer.at_ns, answer.chunks_of) == ([1, 1, 2], [0, 0, 1])

    async def test_with_ids_or_with_equal_counts_a_tokenizer_has_nothing_to_say(self):
        ids = await read(event({"text": "a", "token_ids": [1, 2]}) + DONE, keep_texts=True)
        equal = await read(WHOLE.replace(DONE, event(None, usage=usage(2)) + DONE), keep_texts=True)
        assert not ids.countable
        assert not equal.countable
        with pytest.raises(ValueError, match="no tokenizer"):
            equal.spread(len)


class TestEnds:
    @pytest.mark.parametrize(
        ("body", "outcome", "detail"),
        [
            (b"", Outcome.EMPTY, "without a token"),
            (DONE, Outcome.EMPTY, "without a token"),
            (text_event("a"), Outcome.TRUNCATED, "ended after 1 tokens with None"),
            (text_event("a", "abort") + DONE, Outcome.TRUNCATED, "'abort'"),
            (text_event("a", "stop"), Outcome.TRUNCATED, "before [DONE]"),
            (text_event("a", "tool_calls") + DONE, Outcome.FINISHED, None),
            (text_event("a") + b'data: {"error":{"message":"boom"}}\n\n', Outcome.ERROR, "boom"),
            (text_event("a") + b"data: {nope\n\n", Outcome.MALFORMED, "event 1"),
            (text_event("a") + b'data: "\xff"\n\n', Outcome.MALFORMED, "event 0"),
        ],
    )
    async def test_each_end_has_its_outcome(self, body, outcome, detail):
        answer = await read(body)
        answer.close(9)
        assert answer.outcome is outcome
        assert (detail in answer.detail) if detail else answer.detail is None
        assert answer.ended.done()

    async def test_the_first_end_counts_and_what_comes_later_is_skipped(self):
        answer = await read(WHOLE, text_event("late"))
        answer.fail(Outcome.DISCONNECTED, "gone", 5)
        assert (answer.outcome, answer.ended_ns, len(answer.at_ns)) == (Outcome.FINISHED, 1, 2)

    async def test_a_target_that_must_send_ids_and_does_not_is_malformed_and_not_guessed_at(self):
        answer = await read(text_event("a"), needs_ids=True)
        assert answer.outcome is Outcome.MALFORMED
        assert "return_token_ids" in (answer.detail or "")
