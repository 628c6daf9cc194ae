"""What the wire is searched for, and that it would be found: frames made by hand around real messages."""

import os
import struct

import msgspec
import pytest

from loadgen.benchmarks.wire import Recording, compressed_to, judge, plaintext, put_together, search
from loadgen.errors import MeasurementError
from runtime.transport.frames import Hidden, TensorMeta, pack
from tests.unit.loadgen.streams import stream

NEAR, FAR = bytes([10, 213, 77, 1]), bytes([10, 213, 77, 2])
PROMPTS = {"s": "water room mother area money story fact month lot right study book"}
IDS = list(range(300, 340))


def segment(payload: bytes, sequence: int, *, syn: bool = False, source: bytes = NEAR, target: bytes = FAR) -> bytes:
    """An Ethernet frame with TCP in it, padded as a network card may do."""
    tcp = struct.pack(">HHIIBBHHH", 5000, 6000, sequence % 2**32, 0, 5 << 4, 0x02 if syn else 0x10, 0, 0, 0) + payload
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0) + source + target
    return bytes(12) + b"\x08\x00" + ip + tcp + b"\x00\x00"


def recording(*frames: bytes) -> Recording:
    made = Recording("none")
    made.frames.extend(frames)
    return made


def patterns() -> dict[str, list[bytes]]:
    return plaintext([stream(range(40), ids=IDS)], PROMPTS)


class TestPuttingTogether:
    def only(self, *frames: bytes) -> tuple[bytes, int]:
        wire = put_together(frames)
        (payload,) = wire.payloads.values()
        return payload, wire.missing

    def test_segments_stand_in_the_order_of_their_numbers(self):
        assert self.only(segment(b"one", 10), segment(b"three", 16), segment(b"two", 13)) == (b"onetwothree", 0)

    def test_what_was_sent_twice_stands_once(self):
        assert self.only(segment(b"one", 10), segment(b"two", 13), segment(b"netwo+", 11)) == (b"onetwo+", 0)

    def test_what_was_not_recorded_is_counted(self):
        assert self.only(segment(b"one", 10), segment(b"two", 20)) == (b"onetwo", 7)

    def test_numbers_wrap(self):
        assert self.only(segment(b"one", 2**32 - 2), segment(b"two", 1)) == (b"onetwo", 0)

    def test_the_number_of_a_connections_first_byte_is_one_more_than_that_of_its_start(self):
        assert self.only(segment(b"a", 10, syn=True), segment(b"b", 12)) == (b"ab", 0)

    def test_directions_are_apart_and_other_protocols_are_kept(self):
        arp = bytes(12) + b"\x08\x06" + b"who has"
        wire = put_together([segment(b"there", 1), segment(b"back", 1, source=FAR, target=NEAR), arp])
        assert sorted(wire.payloads.values()) == [b"back", b"there"]
        assert list(wire.other) == [arp]


class TestSearch:
    def test_a_prompt_is_found_across_two_segments(self):
        text = PROMPTS["s"].encode()
        wire = put_together([segment(text[:20], 1), segment(text[20:], 21)])
        assert [found.partition(":")[0] for found in search(wire, patterns())] == ["prompt text"] * 3

    @pytest.mark.parametrize(
        "written",
        [
            struct.pack("<40i", *IDS),
            struct.pack("<40q", *IDS),
            msgspec.msgpack.encode(IDS),
            msgspec.json.encode(IDS),
            str(IDS).encode(),
        ],
    )
    def test_token_ids_are_found_however_they_are_written(self, written):
        assert len(search(put_together([segment(written, 1)]), patterns())) == 1

    def test_a_frame_of_the_pipeline_is_found_by_its_words(self):
        frame = Hidden(epoch=1, sequence=7, tensors=(TensorMeta("hidden_states", "float32", (1, 576)),))
        message = b"".join(map(bytes, pack(frame, [bytes(2304)])))
        found = {text.partition(": ")[2] for text in search(put_together([segment(message, 1)]), patterns())}
        assert found == {"b'hidden'", "b'hidden_states'", "b'float32'", "b'epoch'", "b'sequence'"}

    def test_frames_of_other_protocols_are_searched_too(self):
        assert search(put_together([PROMPTS["s"].encode()]), patterns())

    def test_noise_contains_nothing(self):
        wire = put_together([segment(os.urandom(1 << 14), n << 14) for n in range(64)])
        assert search(wire, patterns()) == []
        assert compressed_to(wire) > 0.999


def test_numbers_compress_better_than_noise():
    floats = struct.pack("<20000f", *(0.001 * n for n in range(20_000)))
    assert compressed_to(put_together([segment(floats[n : n + 1000], n) for n in range(0, len(floats), 1000)])) < 0.95


def test_a_small_stream_is_not_judged_by_how_it_compresses():
    assert compressed_to(put_together([segment(b"hello", 1)])) is None


class TestJudge:
    plain = segment(PROMPTS["s"].encode() + msgspec.json.encode(IDS), 1)

    def test_a_clean_wire_beside_a_control_that_finds_all(self):
        result = judge(recording(segment(b"\x8f\x03\xaa", 1)), recording(self.plain), patterns())
        assert (result["plaintext_found"], result["bytes"], result["frames_dropped"]) == ([], 14 + 40 + 3 + 2, 0)
        assert result["control"]["patterns_found"] == 4

    def test_plaintext_is_reported(self):
        result = judge(recording(self.plain), recording(self.plain), patterns())
        assert len(result["plaintext_found"]) == 4

    def test_a_search_that_finds_nothing_in_plain_http_is_worth_nothing(self):
        with pytest.raises(MeasurementError, match="no prompt text found in plain HTTP"):
            judge(recording(segment(b"x", 1)), recording(segment(b"y", 1)), patterns())

    def test_a_wire_on_which_nothing_was_carried_proves_nothing(self):
        with pytest.raises(MeasurementError, match="nothing was carried"):
            judge(recording(), recording(self.plain), patterns())
