"""One event, as different servers write it."""

import msgspec
import pytest

from loadgen.streaming.chunks import StreamError, Usage, error_message, read_event


def test_a_completion_says_text_ids_and_reason():
    said = read_event('{"id":"x","choices":[{"index":0,"text":" a","token_ids":[7],"finish_reason":"stop"}]}')
    assert (said.text, said.token_ids, said.finish_reason, said.usage) == (" a", [7], "stop", None)


@pytest.mark.parametrize(
    ("delta", "text"),
    [
        ('{"role":"assistant","content":""}', ""),
        ('{"content":"a"}', "a"),
        ('{"content":null,"reasoning_content":"hm"}', "hm"),
        ('{"reasoning":"hm"}', "hm"),
        ('{"refusal":"no"}', "no"),
        ('{"tool_calls":[{"index":0}]}', '[{"index":0}]'),
        ('{"content":null,"tool_calls":[]}', ""),
        ('{"tool_calls":null}', ""),
        ("{}", ""),
    ],
)
def test_every_kind_of_content_of_a_chat_counts_and_a_bare_role_does_not(delta, text):
    assert read_event(f'{{"choices":[{{"delta":{delta}}}]}}').text == text


def test_the_final_usage_comes_without_a_choice():
    said = read_event('{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}')
    assert said.usage == Usage(4, 3)
    assert not said.from_choice


@pytest.mark.parametrize(
    "event",
    [
        '{"error":{"message":"out of memory","type":"x","code":500}}',
        '{"error":"out of memory"}',
        '{"object":"error","message":"out of memory","code":400}',
        '{"choices":"none","error":{"message":"out of memory"}}',
    ],
)
def test_an_error_is_an_error_in_each_of_its_shapes(event):
    with pytest.raises(StreamError, match="out of memory"):
        read_event(event)
    assert error_message(event) == "out of memory"


@pytest.mark.parametrize("event", ["{not json", "{}", "[]", '"text"', '{"choices":[{"text":1}]}', '{"error":null}'])
def test_what_is_neither_is_malformed(event):
    with pytest.raises(msgspec.DecodeError):
        read_event(event)
    assert error_message(event) is None
