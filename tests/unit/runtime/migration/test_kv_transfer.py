"""KV from pool to pool over real links: two gateways on the loopback, real identities, real memory files."""

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from runtime.migration import kv_transfer
from runtime.migration.kv_transfer import KVExchange, KVReceiver, KVSender
from runtime.transport.calls import CallError
from runtime.transport.frames import Call, FrameError, KVTokens, Result
from runtime.transport.gateway import NODE
from runtime.transport.identity import Peer
from runtime.warm.kv_pool import KVPool, KVPoolShape, TokenMap
from tests.support.token_maps import tokens_in_a_row
from tests.unit.runtime.transport.hosts import DEADLINE_S, Host, eventually, in_background, introduce

SHAPE = KVPoolShape(layers=4, blocks=64, block_tokens=4, layer_bytes=64 * 512)
TOKENS_IN_A_ROW = tokens_in_a_row(SHAPE)
SHUFFLED = TokenMap(TOKENS_IN_A_ROW.element_bytes, TOKENS_IN_A_ROW.offsets[::-1].copy())
MOVING = [1, 2]


class Node(Host):
    """A host with one KV pool and both sides of copies."""

    def __init__(self, folder: Path, name: str, **options: Any) -> None:
        super().__init__(folder, name, **options)
        self.exchange = KVExchange(name)
        self.exchange.gateway = self.gateway
        self.descriptor = KVPool.new_descriptor(name)
        self.pool = KVPool.reserve(self.descriptor, SHAPE)
        self.pool.token_map = TOKENS_IN_A_ROW
        self.react = self.take
        self.on_loss = self.exchange.calls.fail

    def take(self, peer: Any, frame: Any, buffers: Any) -> None:
        if not self.exchange.on_frame(peer.name, frame, buffers):
            self._keep(peer, frame, buffers)

    def send_to(self, other: "Node", copy: str = "c", layers: list[int] = MOVING) -> KVSender:
        return KVSender(copy, self.pool, layers, self.gateway, other.name, self.exchange.calls)

    def allow(self, other: "Node", copy: str = "c") -> None:
        self.exchange.receiver.allow(copy, other.name, self.pool)

    def close(self) -> None:
        super().close()
        os.close(self.descriptor)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Callable[..., list[Node]]]:
    with ExitStack() as stack:

        def make(*names: str, **options: Any) -> list[Node]:
            made = [Node(tmp_path, name, **options) for name in names]
            for node in made:
                stack.callback(node.close)
            introduce(*made)
            return made

        yield make


@pytest.fixture
def pair(nodes: Callable[..., list[Node]]) -> list[Node]:
    return nodes("edge-1", "cloud-1")


def write(pool: KVPool, block: int, first: int, stop: int, value: int) -> None:
    """Compute tokens of a block in all layers, as a stage does: the bytes first, then the record."""
    layout = pool.token_map
    assert layout is not None
    elements = pool.elements(layout.element_bytes)
    for slot in range(first, stop):
        elements[:, block * layout.offsets.size + layout.offsets[slot]] = value
    pool.record_written(range(SHAPE.layers), [block], [first], [stop])


def fill(pool: KVPool, value: int = 7) -> None:
    for block in range(1, SHAPE.blocks):
        write(pool, block, 0, SHAPE.block_tokens, value + block)


def held_alike(source: KVPool, target: KVPool, layers: list[int] = MOVING) -> bool:
    """Whether the target has every valid token of these layers, byte by byte."""
    return all(
        np.array_equal(source.watermark[layer], target.watermark[layer])
        and bytes(source.layer_memory(layer)) == bytes(target.layer_memory(layer))
        for layer in layers
    )


def held_alike_tokens(source: KVPool, target: KVPool) -> bool:
    """Whether the target has the valid tokens of the moving layers; what else lies in a block is nobody's."""
    layout = source.token_map
    assert layout is not None
    for layer in MOVING:
        if not np.array_equal(source.watermark[layer], target.watermark[layer]):
            return False
        here, there = (pool.elements(layout.element_bytes)[layer] for pool in (source, target))
        for block in range(SHAPE.blocks):
            for slot in range(source.watermark[layer, block]):
                place = block * layout.offsets.size + layout.offsets[slot]
                if not np.array_equal(here[place], there[place]):
                    return False
    return True


class TestCopying:
    def test_tokens_of_the_moving_layers_arrive_as_they_were(self, pair):
        source, target = pair
        fill(source.pool)
        target.allow(source)
        sender = source.send_to(target)
        stale = sender.stale_bytes()
        copied = sender.round()
        assert (copied.sent_bytes, copied.stale_bytes) == (stale, 0)
        assert stale == len(MOVING) * (SHAPE.blocks - 1) * SHAPE.block_bytes
        assert sender.mismatches() == {}
        assert held_alike(source.pool, target.pool)
        assert target.pool.watermark[[0, 3]].sum() == 0, "layers that stay were touched"
        sender.end()
        assert target.exchange.receiver._copies == {}

    def test_a_round_sends_only_what_the_rounds_before_did_not(self, pair):
        source, target = pair
        fill(source.pool)
        target.allow(source)
        sender = source.send_to(target)
        sender.round()
        assert sender.round().sent_bytes == 0
        write(source.pool, 5, 0, 2, 99)
        assert sender.round().sent_bytes == 2 * len(MOVING) * SHAPE.token_bytes
        assert held_alike_tokens(source.pool, target.pool)

    def test_i2_rounds_beside_a_writer_end_with_equal_pools(self, pair):
        source, target = pair
        fill(source.pool)
        target.allow(source)
        sender = source.send_to(target)
        written, end = threading.Event(), threading.Event()

        def keep_writing() -> None:
            value = 0
            while not end.is_set():
                value += 1
                block = 1 + value % (SHAPE.blocks - 1)
                for token in range(SHAPE.block_tokens):
                    write(source.pool, block, token, token + 1, value)
                written.set()

        writer = threading.Thread(target=keep_writing)
        writer.start()
        for _ in range(8):
            written.clear()
            assert sender.round().sent_bytes > 0
            assert (target.pool.watermark <= SHAPE.block_tokens).all()
            assert written.wait(DEADLINE_S)
        end.set()
        writer.join()
        assert sender.mismatches() != {}
        last = sender.round()
        assert last.stale_bytes == 0
        assert sender.mismatches() == {}
        assert held_alike_tokens(source.pool, target.pool)

    def test_a_copy_is_finished_on_the_link_of_batches_and_compared(self, nodes):
        """The bulk link has no room for a byte: nothing of the last round may take it."""
        source, target = nodes("edge-1", "cloud-1")
        target.allow(source)
        sender = source.send_to(target)
        fill(source.pool)
        source.gateway.send_bulk = lambda *_: pytest.fail("this is the way of bulk")  # type: ignore[method-assign]
        sent, mismatches = sender.finish()
        assert (sent, mismatches) == (len(MOVING) * (SHAPE.blocks - 1) * SHAPE.block_bytes, {})
        assert held_alike(source.pool, target.pool)
        sender.end()
        assert target.exchange.receiver._copies == {}

    def test_i2_what_gets_lost_on_the_last_way_is_found_by_the_comparison(self, pair):
        source, target = pair
        fill(source.pool)
        target.allow(source)
        sender = source.send_to(target)
        sender.round()
        write(source.pool, 5, 0, 2, 99)
        target.exchange.receiver.on_tokens = lambda *_: None
        sent, mismatches = sender.finish()
        assert sent > 0
        assert mismatches == {1: 1, 2: 1}

    def test_without_a_token_map_whole_blocks_travel(self, nodes):
        source, target = nodes("edge-1", "cloud-1")
        fill(source.pool)
        for node in (source, target):
            node.pool._map_table[0] = 0
        target.allow(source)
        sender = source.send_to(target)
        assert sender.round().sent_bytes == len(MOVING) * (SHAPE.blocks - 1) * SHAPE.block_bytes
        assert held_alike(source.pool, target.pool)

    def test_both_directions_at_once(self, pair):
        here, there = pair
        for node, other, value in ((here, there, 3), (there, here, 130)):
            fill(node.pool, value)
            other.exchange.receiver.allow(f"from-{node.name}", node.name, other.pool)
        before = {node.name: bytes(node.pool.layer_memory(layer)) for node, layer in ((here, 0), (there, 3))}
        forth, back = here.send_to(there, "from-edge-1", [0]), there.send_to(here, "from-cloud-1", [3])
        rounds = [in_background(sender.round) for sender in (forth, back)]
        copied = [outcome.get(timeout=DEADLINE_S) for outcome in rounds]
        assert [round_.stale_bytes for round_ in copied] == [0, 0]
        assert (forth.mismatches(), back.mismatches()) == ({}, {})
        assert bytes(there.pool.layer_memory(0)) == before["edge-1"]
        assert bytes(here.pool.layer_memory(3)) == before["cloud-1"]

    def test_several_copies_share_a_link(self, pair):
        source, target = pair
        fill(source.pool)
        for layer in range(SHAPE.layers):
            target.allow(source, f"c.{layer}")
        senders = [source.send_to(target, f"c.{layer}", [layer]) for layer in range(SHAPE.layers)]
        for outcome in [in_background(sender.round) for sender in senders]:
            assert outcome.get(timeout=DEADLINE_S).stale_bytes == 0
        assert [sender.mismatches() for sender in senders] == [{}] * SHAPE.layers
        assert held_alike(source.pool, target.pool, list(range(SHAPE.layers)))

    def test_i2_a_target_that_was_scrubbed_differs(self, pair):
        source, target = pair
        fill(source.pool)
        target.allow(source)
        sender = source.send_to(target)
        sender.round()
        target.pool.scrub(range(2, 3))
        assert sender.mismatches() == {2: SHAPE.blocks - 1}


class TestRefusals:
    """What a target was not told to expect cuts the sender off, with the reason in the log; other links go on."""

    def cut_off(self, source: Node, target: Node, why: str) -> None:
        assert why in target.told("link_down"), target.logged
        source.gateway.send(target.name, NODE, Call(9, "start"), [b"{}"])
        assert target.next_frame()[1] == Call(9, "start"), "the link for orders must go on"

    def test_i8_a_copy_that_nobody_announced(self, pair):
        source, target = pair
        fill(source.pool)
        with pytest.raises(CallError, match="the bulk link to cloud-1 broke"):
            source.send_to(target)
        self.cut_off(source, target, "nobody told this host to expect copy 'c' from edge-1")
        assert target.pool.watermark.sum() == 0

    def test_i8_a_copy_that_somebody_else_may_send(self, nodes):
        source, target, other = nodes("edge-1", "cloud-1", "edge-2")
        target.allow(other)
        with pytest.raises(CallError):
            source.send_to(target)
        self.cut_off(source, target, "nobody told this host to expect copy 'c' from edge-1")
        fill(other.pool)
        assert other.send_to(target).round().stale_bytes == 0

    def test_i8_tokens_that_come_before_their_announcement(self, pair):
        source, target = pair
        target.allow(source)
        source.gateway.send_bulk("cloud-1", KVTokens("c"), [bytes(20), b""])
        self.cut_off(source, target, "came before it was announced")

    @pytest.mark.parametrize("method", ["kv_applied", "kv_compare"])
    def test_i8_questions_that_come_before_the_announcement(self, pair, method: str):
        source, target = pair
        target.allow(source)
        source.gateway.send_bulk("cloud-1", Call(1, method), [msgspec.msgpack.encode({"copy": "c"})])
        self.cut_off(source, target, f"{method} of copy 'c' came before it was announced")

    @pytest.mark.parametrize("layers", [[], [-1], [SHAPE.layers], [1, 1], [2**40]], ids=str)
    def test_i8_layers_that_the_pool_does_not_have(self, pair, layers: list[int]):
        source, target = pair
        target.allow(source)
        announcement = {"copy": "c", "layers": layers, "layout": b""}
        source.gateway.send_bulk("cloud-1", Call(1, "kv_expect"), [msgspec.msgpack.encode(announcement)])
        self.cut_off(source, target, "copy 'c' is for layers")

    @pytest.mark.parametrize(
        ("entries", "payload", "why"),
        [
            ([3, 1, 1, 0, 1], SHAPE.token_bytes, "expected are (1, 2)"),
            ([1, SHAPE.blocks, 1, 0, 1], SHAPE.token_bytes, "but the pool has"),
            ([1, -1, 1, 0, 1], SHAPE.token_bytes, "but the pool has"),
            ([1, 1, 1, 0, SHAPE.block_tokens + 1], SHAPE.token_bytes, "does not have"),
            ([1, 1, 1, 2, 1], SHAPE.token_bytes, "does not have"),
            ([1, 1, 1, 2, 3], SHAPE.token_bytes, "of which the tokens before never came"),
            ([1, 1, 1, 0, 1], SHAPE.token_bytes - 1, "bytes, not"),
            ([1, 1, 1, 0, 1], 0, "bytes, not"),
            ([1, 1, 1, 0], SHAPE.token_bytes, "copy 'c'"),
            ([], 0, "copy 'c'"),
        ],
        ids=["layer", "block", "negative block", "token", "backwards", "gap", "short", "empty", "torn", "nothing"],
    )
    def test_i8_tokens_that_do_not_fit(self, pair, entries: list[int], payload: int, why: str):
        source, target = pair
        target.allow(source)
        source.send_to(target)
        source.gateway.send_bulk("cloud-1", KVTokens("c"), [np.asarray(entries, np.int32).tobytes(), b"\xff" * payload])
        self.cut_off(source, target, why)
        assert not any(target.pool.layer_memory(1)), "something was written"
        assert target.pool.watermark.sum() == 0

    @pytest.mark.parametrize("tables", [b"", b"\x00" * 12, "text", 7, None, [1]], ids=repr)
    def test_i8_tables_that_are_none(self, pair, tables: object):
        source, target = pair
        target.allow(source)
        source.send_to(target)
        question = msgspec.msgpack.encode({"copy": "c", "tables": tables})
        source.gateway.send_bulk("cloud-1", Call(77, "kv_compare"), [question])
        self.cut_off(source, target, "the tables of copy 'c' are not")

    @pytest.mark.parametrize("raw", [b"", b"\xc1", b"\x93\x01\x02\x03", b"\x91" * 5000], ids=len)
    def test_i8_arguments_that_cannot_be_read(self, pair, raw: bytes):
        source, target = pair
        source.gateway.send_bulk("cloud-1", Call(1, "kv_expect"), [raw])
        self.cut_off(source, target, "unreadable arguments of 'kv_expect'")

    @pytest.mark.parametrize("name", [None, 7, ["c"], {"c": 1}], ids=repr)
    def test_i8_a_copy_without_a_name(self, pair, name: object):
        source, target = pair
        target.allow(source)
        source.gateway.send_bulk("cloud-1", Call(1, "kv_applied"), [msgspec.msgpack.encode({"copy": name})])
        self.cut_off(source, target, "nobody told this host to expect copy")

    def test_nodes_whose_kernels_lay_tokens_out_differently_are_told_so_and_keep_their_link(self, pair):
        source, target = pair
        target.pool.token_map = SHUFFLED
        target.allow(source)
        with pytest.raises(CallError, match="cloud-1: KVPoolError: the kernels of the two nodes lay tokens out differ"):
            source.send_to(target)
        assert target.reasons("link_down") == []

    def test_a_target_that_does_not_know_its_layout_yet_says_so(self, pair):
        source, target = pair
        target.pool._map_table[0] = 0
        target.allow(source)
        with pytest.raises(CallError, match="does not know yet how tokens lie"):
            source.send_to(target)

    def test_the_first_error_of_a_target_is_its_answer_from_then_on(self, pair):
        source, target = pair
        target.allow(source)
        sender = source.send_to(target)
        source.gateway.send_bulk("cloud-1", KVTokens("c"), [bytes(20), b""])
        assert source.bulk_lost.get(timeout=DEADLINE_S)[0] == "cloud-1"
        with pytest.raises(CallError, match="cloud-1: KVPoolError: a KV delta is for"):
            sender._call("kv_applied")
        sender.end()
        assert target.exchange.receiver._copies == {}

    def test_what_is_not_about_a_copy_is_left_to_others(self):
        exchange = KVExchange("edge-1")
        assert not exchange.on_frame("cloud-1", Result(1, 1, 0), [])
        assert not exchange.on_frame("cloud-1", Call(1, "start"), [b"\x80"])

    def test_i8_nobody_answers_for_another_host(self, nodes):
        source, target, liar = nodes("edge-1", "cloud-1", "liar")
        fill(source.pool)
        target.allow(source)
        sender = source.send_to(target)
        asked = threading.Event()
        answered: list[object] = []

        def hold(peer: Any, frame: Any, buffers: Any) -> None:
            if isinstance(frame, Call) and frame.method == "kv_compare":
                for name in ("cloud-1", "liar"):
                    reply = kv_transfer.Reply(name, frame.call)
                    liar.gateway.send("edge-1", NODE, reply, [msgspec.msgpack.encode({})])
                liar.gateway.send("edge-1", NODE, Call(5, "start"), [b"\x80"])  # after its lies on the same link
                source.next_frame()
                asked.set()
            target.take(peer, frame, buffers)

        target.react = hold
        answered.append(sender.mismatches())
        assert asked.is_set()
        assert answered == [{1: SHAPE.blocks - 1, 2: SHAPE.blocks - 1}], "the liar's answer was believed"


class TestEnds:
    def test_a_stopped_copy_sends_nothing_more_and_can_still_be_ended(self, pair):
        source, target = pair
        fill(source.pool)
        target.allow(source)
        sender = source.send_to(target)
        sender.stop()
        with pytest.raises(CallError, match="copy 'c' was stopped"):
            sender.round()
        assert target.pool.watermark.sum() == 0
        sender.end()
        assert target.exchange.receiver._copies == {}

    def test_a_round_that_waits_for_its_target_is_stopped_at_once(self, pair):
        source, target = pair
        fill(source.pool)
        target.allow(source)
        sender = source.send_to(target)
        arrived, go_on = threading.Event(), threading.Event()

        def hold(peer: Any, frame: Any, buffers: Any) -> None:
            if isinstance(frame, Call) and frame.method == "kv_applied":
                arrived.set()
                go_on.wait(DEADLINE_S)
            target.take(peer, frame, buffers)

        target.react = hold
        outcome = in_background(sender.round)
        assert arrived.wait(DEADLINE_S)
        sender.stop()
        error = outcome.get(timeout=DEADLINE_S)
        go_on.set()
        assert isinstance(error, CallError)
        assert str(error) == "copy 'c' was stopped"

    def test_a_round_keeps_to_a_pace_that_can_be_changed_while_it_runs(self, pair, monkeypatch):
        monkeypatch.setattr(kv_transfer, "_AT_ONCE_BYTES", 0)
        source, target = pair
        fill(source.pool)
        target.allow(source)
        sender = source.send_to(target)
        sender.pace(1.0)
        outcome = in_background(sender.round)
        with pytest.raises(queue.Empty):
            outcome.get(timeout=0.05)
        sender.pace(None)  # else it would take a day
        assert outcome.get(timeout=DEADLINE_S).stale_bytes == 0
        assert held_alike(source.pool, target.pool)

    @pytest.mark.parametrize("end", [KVSender.stop, KVSender.end])
    def test_a_copy_that_is_over_holds_nobody_back(self, pair, end):
        source, target = pair
        target.allow(source)
        sender = source.send_to(target)
        sender.pace(1.0)
        assert source.gateway._paces == {"cloud-1": {"c": 1.0}}
        end(sender)
        assert source.gateway._paces == {"cloud-1": {}}

    def test_a_little_is_sent_at_once_at_any_pace(self, pair):
        source, target = pair
        fill(source.pool)
        target.allow(source)
        sender = source.send_to(target)
        sender.pace(1.0)
        assert sender.round().seconds < DEADLINE_S

    def test_the_last_round_takes_the_way_of_batches_which_has_no_pace(self, pair, monkeypatch):
        monkeypatch.setattr(kv_transfer, "_AT_ONCE_BYTES", 0)
        source, target = pair
        fill(source.pool)
        target.allow(source)
        sender = source.send_to(target)
        sender.pace(1.0)
        sent, differing = sender.finish()
        assert sent > 0
        assert differing == {}

    def test_a_link_that_breaks_in_the_middle_of_a_round_ends_it_with_the_reason(self, pair, monkeypatch):
        source, target = pair
        monkeypatch.setattr("runtime.migration.precopy.DELTA_BYTES", SHAPE.block_bytes)
        fill(source.pool)
        target.allow(source)
        sender = source.send_to(target)
        seen = []

        def break_off(peer: Any, frame: Any, buffers: Any) -> None:
            seen.append(frame)
            if len(seen) == 5:
                raise FrameError("enough")
            target.take(peer, frame, buffers)

        target.react = break_off
        error = in_background(sender.round).get(timeout=DEADLINE_S)
        assert isinstance(error, CallError)
        assert "the bulk link to cloud-1 broke" in str(error)
        target.react = target.take
        for attempt in (sender.round, sender.mismatches):  # what counts as sent may be lost
            with pytest.raises(CallError, match="copy 'c' has failed: the bulk link to cloud-1 broke"):
                attempt()
        with contextlib.suppress(CallError):  # what was sent between the break and its discovery may break it again
            sender.end()
        target.allow(source)
        again = source.send_to(target)
        assert again.round().stale_bytes == 0
        assert again.mismatches() == {}
        assert held_alike(source.pool, target.pool)

    def test_a_host_that_ends_in_the_middle_of_a_round_ends_it(self, pair):
        source, target = pair
        fill(source.pool)
        target.allow(source)
        sender = source.send_to(target)
        arrived = threading.Event()
        target.react = lambda *_: arrived.set()
        outcome = in_background(sender.round)
        assert arrived.wait(DEADLINE_S)
        target.gateway.close()
        error = outcome.get(timeout=DEADLINE_S)
        assert isinstance(error, (CallError, ConnectionError)), error
        assert "cloud-1" in str(error)

    def test_a_target_that_does_not_answer_is_named(self, pair, monkeypatch):
        source, target = pair
        monkeypatch.setattr(kv_transfer, "_ANSWER_S", 0.05)
        target.react = lambda *_: None
        with pytest.raises(CallError, match=r"cloud-1 did not answer 'kv_expect' within 0\.05 s"):
            source.send_to(target)
        assert source.exchange.calls._waiting == {}

    def test_a_target_that_cannot_answer_says_so_in_its_log(self, pair, monkeypatch):
        source, target = pair
        monkeypatch.setattr(kv_transfer, "_ANSWER_S", 0.5)
        target.enrolment.add(Peer(name="edge-1", certificate_pem=source.identity.certificate_pem))
        target.allow(source)
        with pytest.raises(CallError, match="did not answer 'kv_expect'"):
            source.send_to(target)
        assert "host 'edge-1' has no address" in target.told("not answered")

    def test_a_forgotten_copy_takes_nothing_more(self, pair):
        source, target = pair
        fill(source.pool)
        target.allow(source)
        sender = source.send_to(target)
        target.exchange.receiver.forget("c")
        with pytest.raises(CallError):
            sender.round()
        assert eventually(lambda: "nobody told this host to expect" in "".join(target.reasons("link_down")))
        assert target.pool.watermark.sum() == 0

    def test_a_target_that_applied_less_than_was_sent_is_not_believed(self, pair):
        source, target = pair
        fill(source.pool)
        target.allow(source)
        sender = source.send_to(target)
        target.exchange.receiver.on_tokens = lambda *_: None
        with pytest.raises(CallError, match=r"cloud-1 has applied 0 of the \d+ bytes of 'c'"):
            sender.round()


def test_the_methods_of_a_receiver_are_those_that_it_answers():
    receiver = KVReceiver()
    assert receiver.on_call("edge-1", "kv_end", {"copy": "c"}) is None  # there is nothing left to end
    for method in KVReceiver.METHODS - {"kv_end"}:
        with pytest.raises(FrameError, match="nobody told this host to expect copy 'c' from edge-1"):
            receiver.on_call("edge-1", method, {"copy": "c"})
