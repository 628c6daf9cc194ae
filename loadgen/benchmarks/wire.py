"""What can be read on the wire: all bytes of a network device during some work, searched for what must not be there.

Problem: prompts, tokens, hidden states and KV travel between machines, and whoever listens in between must see noise.

Protocol: packet sockets record every frame of the device that joins the machines, and of the loopback device beside
it, on which the client's plain HTTP runs. TCP is put together again, since what is looked for may lie across two
segments. The same search over the loopback device is the control: if it does not find the prompts and token ids
there, the search is worth nothing, and that is an error. Tensors cannot be searched for, their values being unknown.
But they compress, and what is encrypted well does not: `compressed_to` is the size of what a stream carried after
compression over its size before, of the stream that compressed best. Float32 activations give about 0.9, noise 1.0.

Caveats: needs root and Linux. Recording takes processor time from the pipeline: never measure in the same pass.
`frames_dropped` counts frames that the kernel could not hand over in time, `bytes_missing` the holes that they left.
"""

import socket
import struct
import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

import msgspec

from loadgen.errors import LinkError, MeasurementError
from loadgen.records import StreamRecord

Flow = tuple[bytes, bytes]
"""Who sends to whom: address and port of either, as they stand in the packets."""

_ALL_PROTOCOLS = 0x0003
_SO_RCVBUFFORCE = 33
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_RECEIVE_BUFFER_BYTES = 256 << 20
_LARGEST_FRAME = 1 << 18
_TICK_S = 0.1
_ETHERNET, _IPV4, _TCP, _SYN = 14, 0x0800, 6, 0x02
_PIECE_CHARACTERS, _IDS_IN_A_ROW = 32, 8
_LEAST_COMPRESSED_BYTES = 1 << 16  # a smaller stream is mostly handshake

# What frames between head, nodes and stages say in the clear: their kinds, and names of fields and tensors
# (runtime.transport.frames, runtime.engine.messages). None is shorter than five bytes, so that 100 MB of noise contain
# one by chance once in 10,000 times.
_WORDS = (
    *("batch", "hidden", "result", "rejected", "reply", "epoch", "sequence"),
    *("hidden_states", "residual", "float32", "scheduled_tokens", "sampled_token_ids", "computed_tokens"),
)


class Recording:
    """Records all frames of a network device from entry to exit; must be entered in the device's namespace."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._record, name=f"recording-{device}")
        self.frames: list[bytes] = []
        self.dropped = 0

    def __enter__(self) -> Self:
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
            self._socket.bind((self._device, 0))
        except OSError as error:
            raise LinkError(f"cannot record the device {self._device}: {error}") from error
        self._socket.settimeout(_TICK_S)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        _, self.dropped = struct.unpack("II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        self._socket.close()

    def _record(self) -> None:
        while True:
            try:
                self.frames.append(self._socket.recv(_LARGEST_FRAME))
            except TimeoutError:
                if self._ended.is_set():  # and nothing is left to be read
                    return


@dataclass(frozen=True, slots=True)
class Wire:
    """What a device carried.

    Attributes:
        payloads: What each direction of each TCP connection carried, in order; holes are closed up.
        other: Frames of other protocols.
        missing: Bytes of TCP that were not recorded.
    """

    payloads: Mapping[Flow, bytes]
    other: Sequence[bytes]
    missing: int


def put_together(frames: Sequence[bytes]) -> Wire:
    """Take Ethernet frames apart into what TCP carried (IPv4) and the rest."""
    segments: dict[Flow, list[tuple[int, bytes]]] = {}
    other = []
    for frame in frames:
        segment = _tcp_segment(frame)
        if segment is None:
            other.append(frame)
            continue
        flow, sequence, payload = segment
        if payload:
            segments.setdefault(flow, []).append((sequence, payload))
    payloads, missing = {}, 0
    for flow, parts in segments.items():
        payloads[flow], holes = _in_order(parts)
        missing += holes
    return Wire(payloads, other, missing)


def _tcp_segment(frame: bytes) -> tuple[Flow, int, bytes] | None:
    packet = frame[_ETHERNET:]
    if len(packet) < 20 or frame[12:14] != _IPV4.to_bytes(2, "big") or packet[9] != _TCP:
        return None
    header = 4 * (packet[0] & 0x0F)
    length = int.from_bytes(packet[2:4], "big") or len(packet)  # 0: larger than the field can say
    tcp = packet[header:length]
    if len(tcp) < 20:
        return None
    flow = (packet[12:16] + tcp[0:2], packet[16:20] + tcp[2:4])
    sequence = int.from_bytes(tcp[4:8], "big") + bool(tcp[13] & _SYN)
    return flow, sequence, tcp[4 * (tcp[12] >> 4) :]


def _in_order(parts: Sequence[tuple[int, bytes]]) -> tuple[bytes, int]:
    """Return the payload of one direction in order of its sequence numbers, and how many bytes of it are missing."""
    placed, position = [], 0
    for (sequence, payload), (following, _) in pairwise([*parts, parts[-1]]):
        placed.append((position, payload))
        position += (following - sequence + (1 << 31)) % (1 << 32) - (1 << 31)  # numbers wrap
    placed.sort(key=lambda part: part[0])
    joined, end, missing = bytearray(), placed[0][0], 0
    for start, payload in placed:
        missing += max(0, start - end)
        joined += payload[max(0, end - start) :]
        end = max(end, start + len(payload))
    return bytes(joined), missing


def plaintext(records: Sequence[StreamRecord], prompts: Mapping[str, str]) -> dict[str, list[bytes]]:
    """Return what must not be readable, by kind: pieces of the prompts and of the answers, token ids, frame words.

    Args:
        records: Streams, for their token ids.
        prompts: The text of each stream's prompt, by the stream's name.
    """
    found: dict[str, list[bytes]] = {"prompt text": [], "token ids": [], "frame words": [w.encode() for w in _WORDS]}
    for text in prompts.values():
        for start in (0, len(text) // 2, max(0, len(text) - _PIECE_CHARACTERS)):
            found["prompt text"].append(text[start : start + _PIECE_CHARACTERS].encode())
    for record in records:
        for ids in (record.prompt_token_ids, record.token_ids):
            middle = ids[len(ids) // 2 :][:_IDS_IN_A_ROW]
            if len(middle) == _IDS_IN_A_ROW:
                found["token ids"] += _written(middle)
    return {kind: sorted(set(patterns)) for kind, patterns in found.items()}


def _written(ids: Sequence[int]) -> list[bytes]:
    """Return the ways in which token ids may be written in a row."""
    numbers = [struct.pack(f"{order}{len(ids)}{kind}", *ids) for order in "<>" for kind in "iq"]
    texts = [separator.join(map(str, ids)).encode() for separator in (",", ", ")]
    return [*numbers, *texts, b"".join(map(msgspec.msgpack.encode, ids))]


def search(wire: Wire, patterns: Mapping[str, Sequence[bytes]]) -> list[str]:
    """Return what of the patterns stands on the wire, as "kind: the pattern"."""
    carried = [*wire.payloads.values(), *wire.other]
    return [
        f"{kind}: {pattern!r}"
        for kind, wanted in patterns.items()
        for pattern in wanted
        if any(pattern in payload for payload in carried)
    ]


def compressed_to(wire: Wire) -> float | None:
    """Return the size after compression over the size before, of the stream that compresses best; None without one."""
    large = [payload for payload in wire.payloads.values() if len(payload) >= _LEAST_COMPRESSED_BYTES]
    return min((len(zlib.compress(payload, 1)) / len(payload) for payload in large), default=None)


def judge(link: Recording, control: Recording, patterns: Mapping[str, Sequence[bytes]]) -> dict[str, Any]:
    """Return what was found on the link, and on the control device, where the same search has to find something.

    Raises:
        MeasurementError: nothing was carried, or the control shows that the search finds nothing.
    """
    wire, plain = put_together(link.frames), put_together(control.frames)
    found_plain = search(plain, patterns)
    for kind in ("prompt text", "token ids"):
        if not any(found.startswith(kind) for found in found_plain):
            raise MeasurementError(f"the search for plaintext is worth nothing: no {kind} found in plain HTTP")
    if not wire.payloads:
        raise MeasurementError("nothing was carried between the machines while the wire was watched")
    ratio = compressed_to(wire)
    return {
        "bytes": sum(map(len, link.frames)),
        "frames": len(link.frames),
        "frames_dropped": link.dropped,
        "bytes_missing": wire.missing,
        "plaintext_found": search(wire, patterns),
        "compressed_to": None if ratio is None else round(ratio, 4),
        "patterns_sought": sum(map(len, patterns.values())),
        "control": {
            "bytes": sum(map(len, control.frames)),
            "frames_dropped": control.dropped,
            "patterns_found": len(found_plain),
        },
    }
