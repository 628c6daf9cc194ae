import pickle
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.transport.frames import (
    Batch,
    Call,
    Ended,
    Frame,
    FrameError,
    Hidden,
    KVTokens,
    Lost,
    Rejected,
    Reply,
    Result,
    StageSpan,
    TensorMeta,
    pack,
    unpack,
)

numbers = st.integers(0, 2**63 - 1)
signed = st.integers(-(2**63), 2**63 - 1)
spans = st.lists(st.builds(StageSpan, st.text(max_size=8), numbers, numbers), max_size=3).map(tuple)
metas = st.builds(TensorMeta, st.text(max_size=8), st.text(max_size=8), st.lists(numbers, max_size=4).map(tuple))
tensors = st.lists(metas, max_size=3).map(tuple)
few = st.integers(0, 4)
frames: st.SearchStrategy[Frame] = st.one_of(
    st.builds(Batch, signed, signed, few),
    st.builds(Hidden, signed, signed, tensors, spans),
    st.builds(Result, signed, signed, few, spans),
    st.builds(Rejected, st.text(max_size=8), signed, signed, st.text(max_size=20)),
    st.builds(Ended, st.text(max_size=8), signed),
    st.builds(Lost, st.text(max_size=8), st.text(max_size=8), st.text(max_size=20)),
    st.builds(KVTokens, st.text(max_size=8)),
    st.builds(Call, signed, st.text(max_size=8), st.just(1)),
    st.builds(Reply, st.text(max_size=8), signed, st.none(), st.just(1)),
    st.builds(Reply, st.text(max_size=8), signed, st.text(max_size=20), st.just(0)),
)

SAMPLES: tuple[Frame, ...] = (
    Batch(2, 41, 2),
    Hidden(2, 41, (TensorMeta("hidden_states", "float32", (3, 576)),), (StageSpan("stage-1", 10, 20),)),
    Batch(1, 0, 0),
    Result(2, 41, 1, (StageSpan("stage-1", 10, 20), StageSpan("stage-2", 21, 30))),
    Rejected("stage-1", 2, 41, "epoch 2 is not served"),
    Call(7, "prepare"),
    Reply("stage-1", 7),
    Reply("stage-1", 7, "StageError: no", 0),
)


def message(frame: Frame) -> list[bytes]:
    return [bytes(part) for part in pack(frame, [b"buffer %d" % index for index in range(frame.buffers)])]


def header(**fields: object) -> bytes:
    return msgspec.msgpack.encode(fields)


@given(frames)
def test_every_frame_comes_back_as_it_was_sent(frame: Frame):
    buffers = [b"buffer %d" % index for index in range(frame.buffers)]
    assert unpack(pack(frame, buffers)) == (frame, buffers)


def test_buffers_are_handed_on_without_a_copy():
    buffer = bytearray(100)
    assert pack(Result(1, 1, 1), [buffer])[1] is buffer
    received = memoryview(buffer)
    _, buffers = unpack([pack(Result(1, 1, 0))[0].replace(b"\xa7buffers\x00", b"\xa7buffers\x01"), received])
    assert buffers[0] is received


@pytest.mark.parametrize("frame", SAMPLES, ids=str)
def test_a_sender_that_miscounts_its_buffers_is_told(frame: Frame):
    with pytest.raises(FrameError, match=f"announces {frame.buffers} buffers, but got {frame.buffers + 1}"):
        pack(frame, [b""] * (frame.buffers + 1))


@pytest.mark.parametrize("frame", SAMPLES, ids=str)
def test_i8_a_missing_or_an_extra_buffer_rejects_the_whole_message(frame: Frame):
    parts = message(frame)
    with pytest.raises(FrameError, match="announces"):
        unpack([*parts, b"one more"])
    with pytest.raises(FrameError):
        unpack(parts[:-1])


@pytest.mark.parametrize("frame", SAMPLES, ids=str)
def test_i8_a_header_cut_short_anywhere_is_rejected(frame: Frame):
    whole, *buffers = message(frame)
    for length in range(len(whole)):
        with pytest.raises(FrameError):
            unpack([whole[:length], *buffers])


def test_i8_nothing_at_all_is_rejected():
    with pytest.raises(FrameError, match="empty message"):
        unpack([])


BATCH = {"type": "batch", "epoch": 1, "sequence": 1, "buffers": 0}
HIDDEN = {"type": "hidden", "epoch": 1, "sequence": 1}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"epoch": 1, "sequence": 1, "buffers": 0},
        BATCH | {"type": "exec"},
        BATCH | {"type": 1},
        BATCH | {"type": None},
        {"type": "batch"},
        BATCH | {"epoch": "1"},
        BATCH | {"epoch": None},
        BATCH | {"epoch": 1.5},
        BATCH | {"epoch": True},
        BATCH | {"sequence": [1]},
        HIDDEN | {"tensors": {}},
        HIDDEN | {"tensors": [1]},
        HIDDEN | {"tensors": [{"name": "x", "dtype": "float32"}]},
        HIDDEN | {"tensors": [{"name": "x", "dtype": "float32", "shape": "3"}]},
        HIDDEN | {"tensors": [{"name": "x", "dtype": "float32", "shape": [1.5]}]},
        HIDDEN | {"tensors": [{"name": b"x", "dtype": "float32", "shape": [1]}]},
        HIDDEN | {"spans": [{"stage": "a", "start_ns": 1}]},
        {"type": "reply", "stage": "a", "call": 1, "error": 5, "buffers": 0},
        {"type": "call", "call": 1, "method": b"release"},
    ],
    ids=str,
)
def test_i8_a_wrong_tag_a_missing_field_or_a_wrong_type_is_rejected(fields: dict[str, object]):
    with pytest.raises(FrameError, match="not a frame of this protocol"):
        unpack([header(**fields)])


@pytest.mark.parametrize(
    "fields",
    [
        BATCH | {"buffers": -1},
        BATCH | {"buffers": 2**63 - 1},
        BATCH | {"buffers": 2**64 - 1},
        {"type": "result", "epoch": 1, "sequence": 1, "buffers": -1},
        {"type": "result", "epoch": 1, "sequence": 1, "buffers": 2**62},
        {"type": "rejected", "stage": "a", "epoch": 1, "sequence": 1, "reason": "", "buffers": -1},
    ],
    ids=str,
)
def test_i8_a_negative_or_hostile_count_is_rejected(fields: dict[str, object]):
    for buffers in ([], [b""], [b"", b""]):
        with pytest.raises(FrameError):
            unpack([header(**fields), *buffers])


@pytest.mark.parametrize("count", [0, 2])
def test_i8_a_call_or_an_answer_without_exactly_one_buffer_is_rejected(count: int):
    for fields in ({"type": "call", "call": 1, "method": "bind"}, {"type": "reply", "stage": "a", "call": 1}):
        with pytest.raises(FrameError):
            unpack([header(**fields, buffers=count), *[b""] * count])


def test_i8_an_array_that_claims_four_billion_entries_is_rejected_without_making_room_for_them():
    claim = header(**HIDDEN).replace(b"\x83", b"\x84", 1) + msgspec.msgpack.encode("tensors") + b"\xdd\xff\xff\xff\xff"
    with pytest.raises(FrameError, match="truncated"):
        unpack([claim])


@pytest.mark.parametrize("nest", [b"\x91", b"\x81\xa1a"], ids=["lists", "maps"])
def test_i8_a_header_nested_beyond_all_reason_is_rejected(nest: bytes):
    deep = header(**BATCH).replace(b"\x84", b"\x85", 1) + msgspec.msgpack.encode("unknown") + nest * 200_000 + b"\xc0"
    with pytest.raises(FrameError):
        unpack([deep])


_opened: list[str] = []


class Trap:
    """Says so when somebody unpickles it."""

    def __reduce__(self) -> tuple[object, ...]:
        return _opened.append, ("somebody unpickled it",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_i8_a_pickle_is_rejected_and_never_opened(protocol: int):
    _opened.clear()
    trap = pickle.dumps(Trap(), protocol)
    extension = msgspec.msgpack.encode({**BATCH, "epoch": msgspec.msgpack.Ext(1, trap)})
    for parts in ([trap], [extension], [trap, trap]):
        with pytest.raises(FrameError):
            unpack(parts)
    assert _opened == []


def mutated(random_: random.Random) -> list[bytes]:
    """A message with a few things done to it: bits flipped, cut, joined, repeated, replaced by noise."""
    parts = message(random_.choice(SAMPLES))
    for _ in range(random_.randint(1, 3)):
        index = random_.randrange(len(parts)) if random_.random() < 0.3 else 0
        part = bytearray(parts[index])
        position = random_.randrange(len(part) + 1)
        match random_.randrange(6):
            case 0 if part:
                part[position % len(part)] ^= 1 << random_.randrange(8)
            case 1:
                del part[position:]
            case 2:
                part[position:position] = random_.randbytes(random_.randint(1, 8))
            case 3:
                other = message(random_.choice(SAMPLES))[0]
                part[position:] = other[random_.randrange(len(other)) :]
            case 4:
                part = bytearray(random_.randbytes(random_.randint(0, 60)))
            case _ if len(parts) > 1:
                parts.pop(random_.randrange(1, len(parts)))
                index = 0
                part = bytearray(parts[0])
            case _:
                pass
        parts[index] = bytes(part)
    return parts


def test_i8_ten_thousand_damaged_messages_are_frames_or_frame_errors_and_nothing_else():
    random_ = random.Random(20261121)
    rejected = 0
    for _ in range(10_000):
        parts = mutated(random_)
        try:
            frame, buffers = unpack(parts)
        except FrameError:
            rejected += 1
            continue
        assert unpack(pack(frame, buffers)) == (frame, buffers)
    assert rejected > 5_000


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_i8_whatever_bytes_come_the_answer_is_a_frame_or_a_frame_error(parts: list[bytes]):
    try:
        frame, buffers = unpack(parts)
    except FrameError:
        return
    assert len(buffers) == frame.buffers
