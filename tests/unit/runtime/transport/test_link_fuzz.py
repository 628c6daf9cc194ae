"""Whatever bytes come: a record is refused, or it is the one that was sent (invariant I8).

A digest is no signature: a whole record of another connection would pass for one of this. To prevent that is up to
TLS. So what is put into a stream here is noise, or comes from the same stream.
"""

import random
import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.transport.frames import (
    Batch,
    Call,
    Frame,
    FrameError,
    Hidden,
    Rejected,
    Reply,
    Result,
    StageSpan,
    TensorMeta,
    pack,
    unpack,
)
from runtime.transport.record import Limits, OutgoingRecord, RecordError, RecordReader

LIMITS = Limits(destination_bytes=16, parts=8, message_bytes=512)
HEADER = struct.Struct(">3sBHIQQ")
FIELDS = ((">B", 3), (">H", 4), (">I", 6), (">Q", 10), (">Q", 18))  # numbers of a header: format, offset
HOSTILE = (0, 1, 2, 9, 17, 255, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)
Content = tuple[str, tuple[bytes, ...]]

RECORDS = 120_000
FRAMES = 30_000


def encode(contents: list[Content], limits: Limits = LIMITS) -> list[bytes]:
    return [
        b"".join(OutgoingRecord(where, parts, limits).pieces(number)) for number, (where, parts) in enumerate(contents)
    ]


def read(data: bytes, reader: RecordReader, step: int = 1 << 20) -> tuple[list[Content], RecordError | None]:
    """Feed `data`, at most `step` bytes at a time; return what it held and why the reader stopped, if it did."""
    contents: list[Content] = []
    try:
        while data:
            assert len(reader.buffer) <= 512 + 16 + 8 * 8
            taken = min(len(data), len(reader.buffer), step)
            reader.buffer[:taken] = data[:taken]
            data = data[taken:]
            message = reader.advance(taken)
            if message is not None:
                contents.append((message.destination, tuple(bytes(part) for part in message.parts)))
        reader.finish()
    except RecordError as error:
        return contents, error
    return contents, None


def some_contents(random_: random.Random) -> list[Content]:
    contents: list[Content] = []
    for _ in range(3):
        where = random_.choice(("head", "stage-3", "node", ""))
        parts = [
            random_.randbytes(random_.choice((0, 1, 8, 40, 90))) for _ in range(random_.randrange(5) if where else 0)
        ]
        contents.append((where, tuple(parts)))
    return contents


def mutated(random_: random.Random, records: list[bytes]) -> bytes:
    """Return a stream of `records` to which one to three things were done."""
    data = bytearray(b"".join(records))
    for _ in range(random_.randint(1, 3)):
        position = random_.randrange(len(data) + 1)
        match random_.randrange(8):
            case 0 if data:
                data[position % len(data)] ^= 1 << random_.randrange(8)
            case 1:
                del data[position:]
            case 2:
                data[position:position] = random_.randbytes(random_.randint(1, 40))
            case 3:  # a piece of the stream, somewhere else in it
                start = random_.randrange(len(data) + 1)
                data[position:position] = data[start : start + random_.randint(1, 200)]
            case 4:  # a whole record repeated, or put before its turn
                data[position:position] = random_.choice(records)
            case 5:  # one taken out, or all of them in another order
                data = bytearray(b"".join(random_.sample(records, random_.randint(1, len(records)))))
            case 6:  # a length that lies
                start = len(b"".join(records[: random_.randrange(len(records))]))
                form, offset = random_.choice(FIELDS)
                lie = random_.choice(HOSTILE) % (1 << 8 * struct.calcsize(form))
                if start + HEADER.size <= len(data):
                    struct.pack_into(form, data, start + offset, lie)
            case _:
                data = bytearray(random_.randbytes(random_.randint(0, 200)))
    return bytes(data)


def test_what_is_not_changed_is_read_in_pieces_of_any_size():
    random_ = random.Random(20261122)
    for step in (1, 2, 3, 7, 26, 100, 10_000):
        for _ in range(20):
            contents = some_contents(random_)
            assert read(b"".join(encode(contents)), RecordReader(LIMITS), step) == (contents, None)


def test_i8_whatever_is_done_to_a_stream_what_is_read_of_it_is_what_was_sent():
    random_ = random.Random(20261123)
    rejected = unchanged = 0
    for number in range(RECORDS):
        if number % 100 == 0:
            contents = some_contents(random_)
            records = encode(contents)
        data = mutated(random_, records)
        found, error = read(data, RecordReader(LIMITS), random_.choice((5, 64, 1 << 20)))
        assert found == contents[: len(found)]
        if error is None:  # then it ends between two records, and nothing in it was changed
            assert data == b"".join(records[: len(found)])
            unchanged += 1
        else:
            rejected += 1
    assert rejected > 0.9 * RECORDS
    assert unchanged > 0


def test_i8_a_flipped_bit_anywhere_is_found():
    [record] = encode([("stage-3", (b"some", b"", b"tensors"))])
    for position in range(8 * len(record)):
        damaged = bytearray(record)
        damaged[position // 8] ^= 1 << position % 8
        found, error = read(bytes(damaged), RecordReader(LIMITS))
        assert found == []
        assert error is not None


def test_i8_a_stream_cut_short_anywhere_is_found():
    contents: list[Content] = [("head", (b"one",)), ("", ()), ("stage-3", (b"", b"two"))]
    records = encode(contents)
    data = b"".join(records)
    whole = {len(b"".join(records[:count])): count for count in range(4)}
    for length in range(len(data)):
        found, error = read(data[:length], RecordReader(LIMITS))
        assert found == contents[: len(found)]
        assert (error is None) == (length in whole)


edits = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.integers(0, 4000), st.integers(0, 7)),
        st.tuples(st.just("cut"), st.integers(0, 500), st.integers(1, 50)),
        st.tuples(st.just("insert"), st.integers(0, 500), st.binary(min_size=1, max_size=40)),
    ),
    min_size=1,
    max_size=4,
)
parts_of_one = st.lists(st.binary(max_size=60), max_size=8).map(tuple)
destinations = st.text("abc-/0123", min_size=1, max_size=16)


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.tuples(destinations, parts_of_one), min_size=1, max_size=3), edits)
def test_i8_no_edit_makes_another_message(contents: list[Content], changes: list[tuple[str, int, object]]):
    whole = b"".join(encode(contents))
    data = bytearray(whole)
    for kind, position, value in changes:
        if kind == "flip" and position < len(data):
            data[position] ^= 1 << value
        elif kind == "cut":
            del data[position : position + value]
        elif kind == "insert":
            data[position:position] = value
    found, error = read(bytes(data), RecordReader(LIMITS))
    assert found == contents[: len(found)]
    assert error is not None or whole.startswith(data)


@settings(max_examples=1500, deadline=None)
@given(st.binary(max_size=300))
def test_i8_noise_is_no_message(noise: bytes):
    found, error = read(noise, RecordReader(LIMITS))
    assert found == []
    assert error is not None or not noise


@settings(max_examples=1500, deadline=None)
@given(st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.binary(max_size=200))
def test_i8_whatever_lengths_a_header_announces_nothing_comes_of_it(where: int, parts: int, size: int, rest: bytes):
    found, _ = read(HEADER.pack(b"MSL", 2, where, parts, size, 0) + rest, RecordReader(LIMITS))
    assert found == []


@pytest.mark.parametrize(
    "data",
    [
        HEADER.pack(b"MSL", 2, 4, 1, 2**40, 0),
        HEADER.pack(b"MSL", 2, 4, 1, 2**64 - 1, 0),
        HEADER.pack(b"MSL", 2, 4, 2**32 - 1, 100, 0),
        HEADER.pack(b"MSL", 2, 2**16 - 1, 1, 100, 0),
        HEADER.pack(b"MSL", 2, 4, 1, 100, 0) + b"head" + struct.pack(">Q", 2**40),
        HEADER.pack(b"MSL", 2, 4, 2, 100, 0) + b"head" + struct.pack(">QQ", 2**64 - 1, 101),
    ],
    ids=["bytes", "all the bytes", "parts", "destination", "one part", "parts that wrap around"],
)
def test_i8_a_hostile_length_is_refused_before_memory_is_taken(data: bytes):
    tracemalloc.start()
    try:
        found, error = read(data, RecordReader(Limits(message_bytes=512)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == []
    assert error is not None
    assert "cut short" not in str(error)
    assert peak < 1 << 17


def test_i8_memory_stays_bounded_under_all_this():
    random_ = random.Random(20261124)
    records = encode(some_contents(random_))
    inputs = [mutated(random_, records) for _ in range(3000)]
    tracemalloc.start()
    try:
        for data in inputs:
            read(data, RecordReader(LIMITS))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


FRAME_SAMPLES: tuple[Frame, ...] = (
    Batch(2, 41, 2),
    Hidden(2, 41, (TensorMeta("hidden_states", "float32", (3, 576)),), (StageSpan("stage-1", 10, 20),)),
    Result(2, 41, 1, (StageSpan("stage-1", 10, 20), StageSpan("stage-2", 21, 30))),
    Rejected("stage-1", 2, 41, "epoch 2 is not served"),
    Call(7, "prepare"),
    Reply("stage-1", 7),
    Reply("stage-1", 7, "StageError: no", 0),
)


def test_i8_whatever_comes_in_a_record_only_a_frame_error_leaves_the_decoder():
    random_ = random.Random(20261125)
    headers = [bytes(pack(frame, [b""] * frame.buffers)[0]) for frame in FRAME_SAMPLES]
    rejected = 0
    for _ in range(FRAMES):
        frame = random_.choice(FRAME_SAMPLES)
        header = bytes(pack(frame, [b""] * frame.buffers)[0])
        buffers = [b"buffer"] * random_.choice((frame.buffers, frame.buffers, random_.randrange(4)))
        damaged = _damaged(random_, header, headers)
        try:
            unpack([memoryview(damaged), *buffers] if random_.random() < 0.99 else [])
        except FrameError:
            rejected += 1
    assert rejected > FRAMES / 2


def _damaged(random_: random.Random, header: bytes, others: list[bytes]) -> bytes:
    data = bytearray(header)
    for _ in range(random_.randint(1, 4)):
        position = random_.randrange(len(data) + 1)
        match random_.randrange(6):
            case 0 if data:
                data[position % len(data)] ^= 1 << random_.randrange(8)
            case 1:
                del data[position:]
            case 2:
                data[position:position] = random_.randbytes(random_.randint(1, 9))
            case 3:
                other = random_.choice(others)
                data[position:] = other[random_.randrange(len(other)) :]
            case 4:  # a msgpack type byte that announces much
                data[position : position + 5] = random_.choice((b"\xdd", b"\xdf", b"\xdb", b"\xc6")) + b"\xff" * 4
            case _ if data:
                data[position % len(data)] = random_.randrange(256)
    return bytes(data)
