"""Gateways with real identities, real links on the loopback and real unix sockets."""

import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import zmq

from runtime.transport.address import Address, Neighbourhood
from runtime.transport.channel import ChannelError, Inbox, Outbox
from runtime.transport.frames import Call, FrameError, KVTokens, Result, unpack
from runtime.transport.gateway import NODE
from runtime.transport.identity import IdentityError, Peer
from runtime.transport.link_sender import LinkSender
from tests.unit.runtime.transport.hosts import DEADLINE_S, Host, eventually, in_background, introduce

DEADLINE_MS = int(1000 * DEADLINE_S)
ORDER = Call(1, "start")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Callable[..., Host]]:
    hosts: list[Host] = []

    def make(name: str, **options: object) -> Host:
        hosts.append(Host(tmp_path, name, **options))
        return hosts[-1]

    yield make
    for one in hosts:
        one.close()


@pytest.fixture
def pair(host: Callable[..., Host]) -> tuple[Host, Host]:
    """An edge and a cloud that know each other."""
    edge, cloud = host("edge-1"), host("cloud-1")
    introduce(edge, cloud)
    return edge, cloud


class Process:
    """A process of pipeline `p` on a host, with an inbox of its own."""

    def __init__(self, host: Host, name: str, *, peers: frozenset[str] | None = None) -> None:
        self.host, self.name = host, name
        self.home = Neighbourhood(host.name, "p", host.sockets, host.sockets)
        self.context = zmq.Context()
        self.outboxes: list[Outbox] = []
        self.inbox = Inbox(self.context, self.home.inbox(name))
        host.gateway.admit("p", name, self.inbox.address, peers)

    def receive(self) -> tuple[object, list[bytes]]:
        parts = self.inbox.receive(DEADLINE_MS)
        assert parts is not None, "nothing came"
        frame, buffers = unpack(parts)
        return frame, [bytes(buffer) for buffer in buffers]

    def send_to(self, host: Host, name: str, *frames: Result) -> None:
        self.host.gateway.reach(host.name)
        self.outboxes.append(self.home.outbox(self.context, Address(host.name, name)))
        for frame in frames:
            self.outboxes[-1].send(frame, [b"x"] * frame.buffers)

    def close(self) -> None:
        self.context.destroy(linger=0)


@pytest.fixture
def process() -> Iterator[Callable[..., Process]]:
    made: list[Process] = []

    def make(host: Host, name: str, **options: object) -> Process:
        made.append(Process(host, name, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


class TestWhatGetsThrough:
    def test_a_process_reaches_another_one_on_another_host_in_order(self, pair, process):
        edge, cloud = pair
        stage, head = process(edge, "stage-1"), process(cloud, "head")
        stage.send_to(cloud, "head", *(Result(1, number, 1) for number in range(200)))
        assert [head.receive() for _ in range(200)] == [(Result(1, number, 1), [b"x"]) for number in range(200)]

    def test_both_ways_at_once(self, pair, process):
        edge, cloud = pair
        stage, head = process(edge, "stage-1"), process(cloud, "head")
        sending = [
            in_background(lambda: stage.send_to(cloud, "head", *(Result(1, n, 1) for n in range(100)))),
            in_background(lambda: head.send_to(edge, "stage-1", *(Result(2, n, 1) for n in range(100)))),
        ]
        assert [head.receive()[0] for _ in range(100)] == [Result(1, n, 1) for n in range(100)]
        assert [stage.receive()[0] for _ in range(100)] == [Result(2, n, 1) for n in range(100)]
        assert [outcome.get(timeout=DEADLINE_S) for outcome in sending] == [None, None]

    def test_a_node_runtime_gets_what_is_for_it_and_hears_from_whom(self, pair):
        edge, cloud = pair
        cloud.gateway.send("edge-1", NODE, ORDER, [b"{}"])
        assert edge.next_frame() == ("cloud-1", ORDER, [b"{}"])

    def test_bulk_goes_beside_the_batches(self, pair):
        edge, cloud = pair
        cloud.gateway.send_bulk("edge-1", KVTokens("c"), [b"entries", bytes(1 << 20)])
        sender, frame, buffers = edge.next_frame()
        assert (sender, frame, [len(buffer) for buffer in buffers]) == ("cloud-1", KVTokens("c"), [7, 1 << 20])

    def test_a_greeting_opens_the_link_and_says_nothing(self, pair):
        edge, cloud = pair
        cloud.gateway.greet("edge-1")
        assert eventually(lambda: "link_up" in [event for event, _ in edge.logged])

    def test_the_last_words_before_a_gateway_closes_are_heard(self, pair):
        edge, cloud = pair
        cloud.gateway.send("edge-1", NODE, ORDER, [bytes(1 << 20)])
        cloud.gateway.close()
        assert edge.next_frame()[1] == ORDER


class TestWhatDoesNot:
    def test_nothing_is_sent_to_a_host_that_is_not_enrolled(self, host):
        edge = host("edge-1")
        for attempt in (edge.gateway.reach, edge.gateway.greet):
            with pytest.raises(
                ChannelError, match=r"host 'cloud-9' is not enrolled; run: midstream node trust cloud-9"
            ):
                attempt("cloud-9")
        with pytest.raises(ChannelError, match="is not enrolled"):
            edge.gateway.send_bulk("cloud-9", KVTokens("c"), [b"", b""])

    def test_nor_to_one_without_an_address(self, host):
        edge, cloud = host("edge-1"), host("cloud-1")
        edge.enrolment.add(Peer(name="cloud-1", certificate_pem=cloud.identity.certificate_pem))
        with pytest.raises(ChannelError, match="host 'cloud-1' has no address"):
            edge.gateway.reach("cloud-1")

    def test_an_enrolment_that_was_damaged_is_an_error_of_the_way(self, pair):
        edge, _ = pair
        (edge.enrolment.folder / "peers.json").write_text("{")
        with pytest.raises(ChannelError, match=r"peers\.json is damaged"):
            edge.gateway.reach("cloud-1")

    def test_a_host_that_is_not_there_is_told_to_who_sends(self, pair):
        edge, cloud = pair
        cloud.close()
        with pytest.raises(ChannelError, match="cloud-1"):
            edge.gateway.greet("cloud-1")

    def test_a_message_that_no_link_can_hold_is_told_to_who_sends(self, pair):
        _, cloud = pair
        with pytest.raises(ChannelError, match=r"edge-1 cannot be sent this: .* bytes of destination"):
            cloud.gateway.send("edge-1", "x" * 1000, ORDER, [b"{}"])
        with pytest.raises(ChannelError, match="cannot be sent this"):
            cloud.gateway.send_bulk("edge-1", KVTokens("c"), [b"", bytes(513 << 20)])

    def test_a_process_that_sends_what_no_link_can_hold_does_not_stop_the_others(self, pair, process):
        edge, cloud = pair
        stage, head = process(edge, "stage-1"), process(cloud, "head")
        stage.send_to(cloud, "x" * 1000, Result(1, 1, 1))
        assert "bytes of destination" in edge.told("not forwarded")
        stage.send_to(cloud, "head", Result(1, 2, 1))
        assert head.receive()[0] == Result(1, 2, 1)

    def test_a_process_that_was_not_admitted_gets_nothing_and_the_link_goes_on(self, pair, process):
        edge, cloud = pair
        head = process(cloud, "head")
        edge.gateway.send("cloud-1", "p/nobody", Result(1, 1, 0))
        edge.gateway.send("cloud-1", "p/head", Result(1, 2, 0))
        assert head.receive()[0] == Result(1, 2, 0)
        assert cloud.reasons("not delivered") == ["there is no such process here"]

    def test_a_process_that_was_dismissed_gets_nothing_more(self, pair, process):
        edge, cloud = pair
        head, other = process(cloud, "head"), process(cloud, "other")
        cloud.gateway.dismiss("p", "head")
        cloud.gateway.dismiss("p", "head")
        edge.gateway.send("cloud-1", "p/head", Result(1, 1, 0))
        edge.gateway.send("cloud-1", "p/other", Result(1, 2, 0))
        assert other.receive()[0] == Result(1, 2, 0)
        assert head.inbox.receive(0) is None

    def test_a_peer_that_has_no_part_in_a_pipeline_is_cut_off(self, host, process):
        edge, cloud, stranger = host("edge-1"), host("cloud-1"), host("stranger")
        introduce(edge, cloud, stranger)
        stage = process(edge, "stage-1", peers=frozenset({"cloud-1"}))
        stranger.gateway.send("edge-1", "p/stage-1", Result(1, 13, 0))
        assert "stranger has no part in the pipeline of p/stage-1" in edge.told("link_down")
        cloud.gateway.send("edge-1", "p/stage-1", Result(1, 1, 0))
        assert stage.receive()[0] == Result(1, 1, 0)

    def test_i8_what_is_no_frame_cuts_its_sender_off_and_nobody_else(self, host, process):
        edge, cloud, rude = host("edge-1"), host("cloud-1"), host("rude")
        introduce(edge, cloud, rude)
        stage = process(edge, "stage-1")
        link = LinkSender(rude.identity, rude.enrolment.peers()["edge-1"])
        try:
            link.send("p/stage-1", [b"\x80\x04}\x94."])
            assert "not a frame" in edge.told("link_down")
            cloud.gateway.send("edge-1", "p/stage-1", Result(1, 1, 0))
            assert stage.receive()[0] == Result(1, 1, 0)
        finally:
            link.close()

    def test_a_node_runtime_may_cut_its_peer_off(self, pair):
        edge, cloud = pair

        def refuse(*_: object) -> None:
            raise FrameError("you may not")

        edge.react = refuse
        cloud.gateway.send("edge-1", NODE, ORDER, [b"{}"])
        assert edge.told("link_down") == "not a frame for this node: you may not"
        assert cloud.next_loss()[0] == "edge-1"

    def test_a_stage_that_takes_nothing_is_told_in_the_log(self, pair, monkeypatch):
        edge, cloud = pair
        monkeypatch.setattr("runtime.transport.channel._HIGH_WATER_MARK", 1)
        monkeypatch.setattr("runtime.transport.gateway._DELIVER_S", 0.05)
        cloud.gateway.admit("p", "stuck", f"ipc://{cloud.sockets}/stuck")
        for number in range(10):
            edge.gateway.send("cloud-1", "p/stuck", Result(1, number, 0))
        assert "takes no messages" in cloud.told("not delivered")


class TestLosses:
    def test_a_host_that_ends_is_told_to_those_it_has_sent_to_and_to_those_that_send_to_it(self, pair):
        edge, cloud = pair
        edge.gateway.send("cloud-1", NODE, ORDER, [b"{}"])
        cloud.next_frame()
        edge.close()
        name, reason = cloud.next_loss()
        assert (name, reason) == ("edge-1", "edge-1: it is silent, or has closed its links")
        assert edge.lost.empty(), "a host that ends has lost nobody"

    def test_a_host_that_came_back_is_used_again_and_can_be_lost_again(self, pair):
        edge, cloud = pair
        address = cloud.gateway.address
        for _ in range(2):
            edge.gateway.send("cloud-1", NODE, ORDER, [b"{}"])
            assert cloud.next_frame()[1] == ORDER
            cloud.gateway.close()
            assert edge.next_loss()[0] == "cloud-1"
            cloud.listen(address)
            edge.lost.queue.clear()
            assert eventually(lambda: in_background(lambda: edge.gateway.greet("cloud-1")).get() is None)

    def test_a_host_that_was_enrolled_anew_is_reached_where_it_is_now(self, pair, host):
        edge, cloud = pair
        edge.gateway.send("cloud-1", NODE, ORDER, [b"{}"])
        cloud.next_frame()
        cloud.gateway.close()
        assert edge.next_loss()[0] == "cloud-1"
        cloud.listen("127.0.0.1:0")
        edge.trust(cloud)
        edge.gateway.send("cloud-1", NODE, ORDER, [b"{}"])
        edge.gateway.send_bulk("cloud-1", KVTokens("c"), [b"", b""])
        assert {type(cloud.next_frame()[1]) for _ in range(2)} == {Call, KVTokens}

    def test_a_message_that_cannot_be_forwarded_is_a_loss_too(self, pair, process):
        """Nobody else would tell whoever waits for it: the link was never up, so it cannot break."""
        edge, cloud = pair
        cloud.close()
        process(edge, "stage-1").send_to(cloud, "head", Result(1, 1, 1))
        name, reason = edge.next_loss()
        assert name == "cloud-1"
        assert reason.startswith("cloud-1: it does not get what is sent to it")

    def test_a_bulk_link_that_breaks_is_told_apart_and_the_batches_go_on(self, pair, process):
        edge, cloud = pair
        stage = process(edge, "stage-1")
        cloud.gateway.send("edge-1", "p/stage-1", Result(1, 1, 0))
        stage.receive()

        def refuse(*_: object) -> None:
            raise FrameError("nobody expects that")

        edge.react = refuse
        cloud.gateway.send_bulk("edge-1", KVTokens("c"), [b"", b""])
        name, reason = cloud.bulk_lost.get(timeout=DEADLINE_S)
        assert name == "edge-1"
        assert reason.startswith("the bulk link to edge-1 broke")
        assert cloud.gateway.bulk_breaks("edge-1") == 1
        cloud.gateway.send("edge-1", "p/stage-1", Result(1, 2, 0))
        assert stage.receive()[0] == Result(1, 2, 0)
        assert cloud.lost.empty()

    def test_a_reaction_that_fails_does_not_stop_the_link(self, pair):
        edge, cloud = pair
        edge.gateway.send("cloud-1", NODE, ORDER, [b"{}"])
        cloud.next_frame()
        edge.gateway._on_lost = lambda *_: 1 / 0
        address = cloud.gateway.address
        cloud.gateway.close()
        assert eventually(lambda: bool(edge.reasons("host lost")))
        cloud.listen(address)
        assert eventually(lambda: in_background(lambda: edge.gateway.greet("cloud-1")).get() is None)

    def test_when_a_process_was_last_heard_of_is_known_by_pipeline(self, pair, process):
        edge, cloud = pair
        head = process(cloud, "head")
        assert cloud.gateway.heard_at("p") == 0
        edge.gateway.send("cloud-1", "p/nobody", Result(1, 1, 0))
        edge.gateway.send("cloud-1", "p/head", Result(1, 1, 0))
        head.receive()
        heard = cloud.gateway.heard_at("p")
        assert heard > 0
        edge.gateway.send("cloud-1", "p/head", Result(1, 2, 0))
        head.receive()
        assert cloud.gateway.heard_at("p") > heard
        cloud.gateway.dismiss("p", "head")
        assert cloud.gateway.heard_at("p") == 0


class TestBeginningAndEnd:
    def test_an_address_that_cannot_be_listened_on_is_refused_and_leaves_nothing(self, host):
        edge = host("edge-1")
        descriptors = psutil.Process().num_fds()
        for address, error in ((edge.gateway.address, ChannelError), ("nowhere", IdentityError)):
            with pytest.raises(error, match=r"nowhere|cannot listen"):
                Host.listen(edge, address)
        assert psutil.Process().num_fds() == descriptors

    def test_a_way_that_cannot_be_opened_leaves_no_thread(self, pair):
        edge, _ = pair
        threads = threading.active_count()
        edge.gateway.folder = "/no/such/folder"
        with pytest.raises(ChannelError, match="cannot listen on ipc:///no/such/folder"):
            edge.gateway.reach("cloud-1")
        assert threading.active_count() == threads

    def test_a_closed_gateway_opens_no_way_and_can_be_closed_again(self, pair):
        edge, _ = pair
        for closing in [in_background(edge.gateway.close) for _ in range(3)]:
            assert closing.get(timeout=DEADLINE_S) is None
        edge.gateway.close()
        with pytest.raises(ChannelError, match="is closing its links"):
            edge.gateway.send("cloud-1", NODE, ORDER, [b"{}"])

    def test_closing_leaves_no_thread_no_descriptor_and_no_socket(self, tmp_path: Path):
        def live() -> Host:
            edge, cloud = Host(tmp_path, "edge-1"), Host(tmp_path, "cloud-1")
            introduce(edge, cloud)
            cloud.gateway.admit("p", "head", f"ipc://{cloud.sockets}/head")
            edge.gateway.send("cloud-1", NODE, ORDER, [b"{}"])
            cloud.gateway.send_bulk("edge-1", KVTokens("c"), [b"", b""])
            cloud.next_frame()
            edge.next_frame()
            edge.gateway.close()
            cloud.gateway.close()
            assert os.listdir(edge.sockets) == os.listdir(cloud.sockets) == []
            return edge

        live().close()
        gc.collect()
        descriptors, threads = psutil.Process().num_fds(), threading.active_count()
        for _ in range(5):
            live().close()
        gc.collect()
        assert eventually(lambda: psutil.Process().num_fds() <= descriptors)
        assert eventually(lambda: threading.active_count() <= threads)


def test_a_slow_link_is_slow_for_bulk_alone(host):
    """What bounds the rate of copies must not touch batches."""
    edge, cloud = host("edge-1"), host("cloud-1", bulk_bytes_per_second=1 << 20)
    introduce(edge, cloud)
    cloud.gateway.send_bulk("edge-1", KVTokens("c"), [b"", b""])
    cloud.gateway.send("edge-1", NODE, ORDER, [b""])
    rates = [links["edge-1"]._pace.bytes_per_second for links in (cloud.gateway._bulk, cloud.gateway._links)]
    assert rates == [1 << 20, None]


def test_the_slowest_pace_counts_and_none_is_above_the_limit_of_the_host(host):
    edge, cloud = host("edge-1"), host("cloud-1", bulk_bytes_per_second=1 << 20)
    introduce(edge, cloud)

    def paced() -> float | None:
        return cloud.gateway._bulk["edge-1"]._pace.bytes_per_second

    cloud.gateway.pace_bulk("edge-1", "c", 4096.0)  # before there is a link
    cloud.gateway.send_bulk("edge-1", KVTokens("c"), [b"", b""])
    assert paced() == 4096
    cloud.gateway.pace_bulk("edge-1", "d", 8192.0)
    assert paced() == 4096
    cloud.gateway.pace_bulk("edge-1", "c", None)
    assert paced() == 8192
    cloud.gateway.pace_bulk("edge-1", "d", 1 << 30)
    assert paced() == 1 << 20
    cloud.gateway.pace_bulk("edge-1", "d", None)
    assert paced() == 1 << 20
