import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.sse import EventDecoder


def decode(*reads: bytes) -> list[str]:
    decoder = EventDecoder()
    return [event for read in reads for event in decoder.feed(read)]


def test_an_event_is_whole_only_after_its_blank_line():
    decoder = EventDecoder()
    assert decoder.feed(b"data: a\n") == []
    assert decoder.feed(b"\n") == ["a"]


def test_several_events_in_one_read_keep_their_order():
    assert decode(b"data: a\n\ndata: b\n\n") == ["a", "b"]


def test_lines_of_one_event_are_joined_and_other_fields_skipped():
    assert decode(b": comment\nevent: x\ndata: a\ndata: b\n\n") == ["a\nb"]


def test_carriage_returns_before_line_feeds_are_dropped():
    assert decode(b"data: a\r\n\r\n") == ["a"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_characters_that_python_takes_for_line_ends_stay_inside_an_event(separator):
    event = f"before{separator}after"
    assert decode(f"data: {event}\n\n".encode()) == [event]


payloads = st.lists(
    st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1), max_size=5
)


@given(payloads, st.data())
def test_events_do_not_depend_on_how_the_bytes_are_cut(events, data):
    stream = "".join(f"data: {event}\n\n" for event in events).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    reads = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert decode(*reads) == events
