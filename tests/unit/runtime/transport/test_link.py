import contextlib
import datetime as dt
import fcntl
import gc
import os
import queue
import resource
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from runtime.transport import link, link_listener
from runtime.transport.channel import ChannelError
from runtime.transport.frames import FrameError
from runtime.transport.identity import Enrolment, Identity, IdentityError, Peer, client_context, parse_address
from runtime.transport.link_listener import LinkListener, LogLimit
from runtime.transport.link_sender import LinkSender
from runtime.transport.record import Limits, OutgoingRecord, RecordError

DEADLINE_S = 20.0
BIG = 20 << 20
ALONE = ("unshare", "--user", "--map-root-user", "--net")  # a command in a network of its own
HELLO = b"MSL\x02" + b"number of a link"
IMPATIENT = Limits(handshake_s=0.3, silence_s=0.5, heartbeat_s=0.1, unacknowledged_s=0.3)


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether `condition` comes true before the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


class Receiver:
    """A node named `name` that listens, and keeps what it was told."""

    def __init__(self, folder: Path, name: str = "cloud-1", identity: Identity | None = None) -> None:
        self.identity = identity or Identity.load_or_create(folder / name, name)
        self.enrolment = Enrolment(folder / name)
        self.messages: queue.Queue[tuple[str, str, list[bytes]]] = queue.Queue()
        self.gone: queue.Queue[str] = queue.Queue()
        self.logged: list[tuple[str, dict[str, str]]] = []
        self.react: Callable[[str], None] = lambda destination: None
        self.listener: LinkListener

    def listen(self, address: str = "127.0.0.1:0", limits: Limits | None = None) -> str:
        self.listener = LinkListener(
            self.identity,
            self.enrolment,
            address,
            self._on_message,
            self._log,
            limits=limits,
            on_gone=lambda peer: self.gone.put(peer.name),
        )
        return self.listener.address

    def _on_message(self, peer: Peer, destination: str, parts: list[memoryview]) -> None:
        self.messages.put((peer.name, destination, [bytes(part) for part in parts]))
        self.react(destination)

    def _log(self, event: str, **details: str) -> None:
        self.logged.append((event, details))

    def enrol(self, identity: Identity) -> None:
        self.enrolment.add(Peer(name=identity.name, certificate_pem=identity.certificate_pem))

    def as_peer(self, address: str | None = None) -> Peer:
        address = address or self.listener.address
        return Peer(name=self.identity.name, certificate_pem=self.identity.certificate_pem, address=address)

    def next_message(self) -> tuple[str, str, list[bytes]]:
        return self.messages.get(timeout=DEADLINE_S)

    def reasons(self, event: str) -> list[str]:
        return [details["reason"] for logged, details in self.logged if logged == event]

    def refused_because(self) -> str:
        assert eventually(lambda: bool(self.reasons("link_refused"))), self.logged
        return self.reasons("link_refused")[0]


class Sent:
    """Every sender that a test made, to close them, and what they were told."""

    def __init__(self) -> None:
        self.senders: list[LinkSender] = []
        self.down: queue.Queue[str] = queue.Queue()

    def __call__(self, identity: Identity, peer: Peer, **options: object) -> LinkSender:
        sender = LinkSender(identity, peer, **{"on_down": self.down.put, **options})
        self.senders.append(sender)
        return sender


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    receiver = Receiver(tmp_path)
    receiver.listen()
    yield receiver
    receiver.listener.close()


@pytest.fixture
def edge(tmp_path: Path) -> Identity:
    return Identity.load_or_create(tmp_path / "edge-1", "edge-1")


@pytest.fixture
def dial() -> Iterator[Sent]:
    sent = Sent()
    yield sent
    for sender in sent.senders:
        sender.close()


@pytest.fixture
def sender(receiver: Receiver, edge: Identity, dial: Sent) -> LinkSender:
    receiver.enrol(edge)
    return dial(edge, receiver.as_peer())


def handcrafted(folder: Path, name: str, *, signed_by: Path | None = None, authority: bool = False, days: int = 1):
    """An identity that `load_or_create` would not make: expired, signed by another, or an authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer, issuer_key = name, key
    if signed_by is not None:
        issuer_key = serialization.load_pem_private_key((signed_by / "key.pem").read_bytes(), None)
        issuer = "authority"
    subject, signer = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, who)]) for who in (name, issuer))
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder(signer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=10))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )
    folder.mkdir(mode=0o700)
    pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
    (folder / "cert.pem").write_text(pem)
    plain = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    return Identity(folder, name, pem)


@contextlib.contextmanager
def raw_link(identity: Identity, peer: Peer, hello: bytes = HELLO) -> Iterator[ssl.SSLSocket]:
    """A TLS connection whose client sends what it likes after its hello."""
    assert peer.address is not None
    with socket.create_connection(parse_address(peer.address), DEADLINE_S) as raw:
        context = client_context(identity, peer)
        with context.wrap_socket(raw, suppress_ragged_eofs=False) as connection:
            connection.sendall(hello)
            yield connection


def record(destination: str = "stage-1", parts: list[bytes] | None = None, sequence: int = 0) -> bytes:
    return b"".join(OutgoingRecord(destination, parts or [], Limits()).pieces(sequence))


def expect_end(connection: ssl.SSLSocket) -> None:
    """Read until the peer ends the connection."""
    with contextlib.suppress(OSError):
        while connection.recv(1 << 16):
            pass


class TestMessages:
    @pytest.mark.parametrize(
        "sizes",
        [[], [0], [0, 0, 0], [1], [5, 0, 7], [1 << 14] * 3, [BIG], [3, 1 << 20, 0, 17, 1 << 16, 65537], [1] * 4096],
        ids=lambda sizes: f"{len(sizes)} parts, {sum(sizes)} bytes",
    )
    def test_a_message_arrives_as_it_was_sent(self, receiver: Receiver, sender: LinkSender, sizes: list[int]):
        noise = os.urandom(1 << 12)
        parts = [(noise * (size // len(noise) + 1))[:size] for size in sizes]
        sender.send("stage-3", parts)
        assert receiver.next_message() == ("edge-1", "stage-3", parts)

    def test_any_contiguous_memory_can_be_sent(self, receiver: Receiver, sender: LinkSender):
        words = memoryview(struct.pack("4I", 1, 2, 3, 4)).cast("I", (2, 2))
        empty = memoryview(bytearray()).cast("I")
        sender.send("head", [b"a", bytearray(b"bc"), words, empty])
        assert receiver.next_message()[2] == [b"a", b"bc", words.tobytes(), b""]

    def test_memory_with_gaps_is_refused(self, sender: LinkSender):
        with pytest.raises(RecordError, match="a part for head is not contiguous memory"):
            sender.send("head", [memoryview(b"abcd")[::2]])

    def test_messages_of_all_sizes_keep_their_order(self, receiver: Receiver, sender: LinkSender):
        sizes = [0, 1 << 20, 1, 1 << 16, 10, (1 << 14) - 30, 3 << 20] * 8
        for number, size in enumerate(sizes):
            sender.send(str(number), [bytes(size)])
        received = [receiver.next_message() for _ in sizes]
        assert [(int(where), len(parts[0])) for _, where, parts in received] == list(enumerate(sizes))

    def test_many_threads_may_send_and_each_keeps_its_order(self, receiver: Receiver, sender: LinkSender):
        def send(thread: int) -> None:
            for number in range(100):
                sender.send(f"{thread}", [b"%d" % number, bytes([thread]) * 40_000])

        threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        seen: dict[str, list[int]] = {}
        for _ in range(400):
            _, where, (number, noise) = receiver.next_message()
            assert set(noise) == {int(where)}
            seen.setdefault(where, []).append(int(number))
        for thread in threads:
            thread.join()
        assert all(numbers == list(range(100)) for numbers in seen.values())

    def test_received_memory_is_the_receivers_own(self, receiver: Receiver, sender: LinkSender):
        kept: list[memoryview] = []
        receiver.listener._on_message = lambda peer, destination, parts: kept.extend(parts)
        for number in range(3):
            sender.send("head", [b"message %d" % number])
        assert eventually(lambda: len(kept) == 3)
        assert [bytes(part) for part in kept] == [b"message 0", b"message 1", b"message 2"]
        assert not kept[0].readonly

    def test_flush_waits_until_everything_was_handed_over(self, receiver: Receiver, sender: LinkSender):
        for _ in range(5):
            sender.send("head", [bytes(BIG // 4)])
        sender.flush(DEADLINE_S)
        assert sender._queued_bytes == 0
        assert [len(receiver.next_message()[2][0]) for _ in range(5)] == [BIG // 4] * 5

    @pytest.mark.parametrize(
        ("destination", "parts", "told"),
        [
            ("", [b"x"], "a message needs a destination"),
            ("stäge", [], "must be a short ASCII name"),
            ("x" * 129, [], "129 bytes of destination, but a message on this link has 128 at most"),
            ("head", [b""] * 4097, "4097 parts, but a message on this link has 4096 at most"),
            ("head", [bytes(300 << 20), bytes(300 << 20)], "629145600 bytes, but a message on this link has 536870912"),
        ],
        ids=["nowhere", "not ascii", "long name", "many parts", "large"],
    )
    def test_what_no_record_can_hold_is_refused_and_the_link_goes_on(
        self, receiver: Receiver, sender: LinkSender, destination: str, parts: list[bytes], told: str
    ):
        with pytest.raises(RecordError, match=told):
            sender.send(destination, parts)
        sender.send("head", [b"next"])
        assert receiver.next_message() == ("edge-1", "head", [b"next"])


class TestWhoGetsIn:
    def test_i8_a_node_that_is_not_enrolled_is_refused_and_told_so(
        self, receiver: Receiver, edge: Identity, dial: Sent, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(link_listener, "RecordReader", lambda limits: pytest.fail("a stranger's bytes were parsed"))
        with pytest.raises(ChannelError, match=r"cloud-1 at 127\.0\.0\.1:\d+ is down: it refused this node's certif"):
            dial(edge, receiver.as_peer()).send("head", [b"let me in"])
        assert "its certificate is not enrolled here" in receiver.refused_because()
        assert receiver.messages.empty()

    def test_i8_a_stranger_that_sends_without_waiting_for_the_greeting_is_not_read(
        self, receiver: Receiver, edge: Identity, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(link_listener, "RecordReader", lambda limits: pytest.fail("a stranger's bytes were parsed"))
        with contextlib.suppress(OSError), raw_link(edge, receiver.as_peer()) as connection:
            connection.sendall(record())
            expect_end(connection)
        assert "not enrolled" in receiver.refused_because()
        assert receiver.messages.empty()

    def test_i8_an_enrolled_name_with_another_key_is_refused(
        self, receiver: Receiver, edge: Identity, dial: Sent, tmp_path: Path
    ):
        receiver.enrol(edge)
        impostor = Identity.load_or_create(tmp_path / "impostor", "edge-1")
        with pytest.raises(ChannelError, match="it refused this node's certificate"):
            dial(impostor, receiver.as_peer()).send("head", [])
        assert "not enrolled here" in receiver.refused_because()
        assert receiver.messages.empty()

    def test_an_enrolled_certificate_that_ran_out_is_refused(self, receiver: Receiver, dial: Sent, tmp_path: Path):
        expired = handcrafted(tmp_path / "old", "edge-1", days=-1)
        receiver.enrol(expired)
        with pytest.raises(ChannelError, match="it refused this node's certificate"):
            dial(expired, receiver.as_peer()).send("head", [])
        assert "certificate has expired" in receiver.refused_because()

    def test_i8_whom_an_enrolled_authority_signed_is_still_not_enrolled(
        self, receiver: Receiver, dial: Sent, tmp_path: Path
    ):
        receiver.enrol(handcrafted(tmp_path / "ca", "authority", authority=True))
        signed = handcrafted(tmp_path / "leaf", "edge-1", signed_by=tmp_path / "ca")
        with pytest.raises(ChannelError, match=r"is down: it (ended|closed)"):
            dial(signed, receiver.as_peer()).send("head", [b"let me in"])
        assert f"its certificate {signed.fingerprint} is not enrolled here" in receiver.refused_because()
        assert receiver.messages.empty()

    def test_a_dialler_refuses_whom_the_meant_node_signed(self, edge: Identity, dial: Sent, tmp_path: Path):
        meant = handcrafted(tmp_path / "ca", "authority", authority=True)
        other = Receiver(tmp_path, identity=handcrafted(tmp_path / "leaf", "x", signed_by=tmp_path / "ca"))
        other.enrol(edge)
        with contextlib.closing(_listening(other)) as listener:
            peer = Peer(name="authority", certificate_pem=meant.certificate_pem, address=listener.address)
            with pytest.raises(ChannelError, match=f"another node answers there: .*{other.identity.fingerprint}"):
                dial(edge, peer).send("head", [b"secret"])
        assert other.messages.empty()

    def test_a_dialler_refuses_another_node_at_the_address(
        self, receiver: Receiver, edge: Identity, dial: Sent, tmp_path: Path
    ):
        receiver.enrol(edge)
        meant = Identity.load_or_create(tmp_path / "cloud-2", "cloud-2")
        peer = Peer(name="cloud-2", certificate_pem=meant.certificate_pem, address=receiver.listener.address)
        with pytest.raises(ChannelError, match=r"cloud-2 at .* the node there cannot prove to be the enrolled one"):
            dial(edge, peer).send("head", [b"secret"])
        assert receiver.messages.empty()

    @pytest.mark.parametrize("what", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", bytes(1000), record()])
    def test_a_plaintext_client_is_refused(self, receiver: Receiver, sender: LinkSender, what: bytes):
        sender.send("head", [b"before"])
        with socket.create_connection(parse_address(receiver.listener.address), DEADLINE_S) as raw:
            raw.sendall(what)
            with contextlib.suppress(ConnectionError):
                while raw.recv(1000):
                    pass
        assert receiver.refused_because().startswith("no TLS handshake: ")
        sender.send("head", [b"after"])
        assert [receiver.next_message()[2] for _ in range(2)] == [[b"before"], [b"after"]]

    def test_tls_of_an_older_version_is_refused(self, receiver: Receiver, edge: Identity):
        receiver.enrol(edge)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(edge.folder / "cert.pem", edge.folder / "key.pem")
        with (
            socket.create_connection(parse_address(receiver.listener.address), DEADLINE_S) as raw,
            pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"),
        ):
            context.wrap_socket(raw)
        assert "protocol" in receiver.refused_because()

    def test_a_client_without_a_certificate_is_refused(self, receiver: Receiver):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection(parse_address(receiver.listener.address), DEADLINE_S) as raw,
            context.wrap_socket(raw) as connection,
        ):
            expect_end(connection)
        assert "peer did not return a certificate" in receiver.refused_because()

    def test_no_session_is_resumed(self, receiver: Receiver, edge: Identity):
        receiver.enrol(edge)
        with raw_link(edge, receiver.as_peer()) as connection:
            assert connection.recv(100) == link.GREETING
            assert connection.session is None or not connection.session.has_ticket

    def test_who_does_not_shake_hands_in_time_is_refused(self, receiver: Receiver, tmp_path: Path):
        patient = Receiver(tmp_path)
        with contextlib.closing(_listening(patient, IMPATIENT)) as listener:
            with socket.create_connection(parse_address(listener.address), DEADLINE_S) as raw:
                assert raw.recv(1) == b""
            assert patient.refused_because() == "no TLS handshake within 0.3 s"

    def test_who_is_enrolled_later_gets_in_without_a_restart(self, receiver: Receiver, edge: Identity, dial: Sent):
        with pytest.raises(ChannelError):
            dial(edge, receiver.as_peer()).send("head", [])
        Enrolment(receiver.enrolment.folder).add(Peer(name="edge-1", certificate_pem=edge.certificate_pem))
        dial(edge, receiver.as_peer()).send("head", [b"now"])
        assert receiver.next_message()[2] == [b"now"]

    def test_who_is_removed_and_dropped_is_cut_off_and_stays_out(
        self, receiver: Receiver, sender: LinkSender, edge: Identity, dial: Sent
    ):
        sender.send("head", [b"before"])
        receiver.next_message()
        receiver.enrolment.remove("edge-1")
        receiver.listener.drop("edge-1")
        assert dial.down.get(timeout=DEADLINE_S)
        assert receiver.gone.get(timeout=DEADLINE_S) == "edge-1"
        assert receiver.reasons("link_down") == ["dropped by this node"]
        with pytest.raises(ChannelError, match="it refused this node's certificate"):
            sender.send("head", [b"again"])
        assert receiver.messages.empty()

    def test_dropping_one_peer_leaves_the_others(
        self, receiver: Receiver, sender: LinkSender, dial: Sent, tmp_path: Path
    ):
        other = Identity.load_or_create(tmp_path / "edge-2", "edge-2")
        receiver.enrol(other)
        staying = dial(other, receiver.as_peer())
        for one in (sender, staying):
            one.send("head", [])
            receiver.next_message()
        receiver.listener.drop("edge-1")
        assert receiver.gone.get(timeout=DEADLINE_S) == "edge-1"
        staying.send("head", [b"still here"])
        assert receiver.next_message() == ("edge-2", "head", [b"still here"])

    def test_an_enrolment_that_was_damaged_lets_nobody_in_until_it_is_repaired(
        self, receiver: Receiver, edge: Identity, dial: Sent
    ):
        receiver.enrol(edge)
        file = receiver.enrolment.folder / "peers.json"
        whole = file.read_bytes()
        file.write_bytes(b"{")
        with pytest.raises(ChannelError):
            dial(edge, receiver.as_peer()).send("head", [])
        assert "peers.json is damaged" in receiver.refused_because()
        file.write_bytes(whole)
        dial(edge, receiver.as_peer()).send("head", [b"repaired"])
        assert receiver.next_message()[2] == [b"repaired"]


class TestBadRecords:
    """Whoever is enrolled and sends nonsense hurts only its own connection."""

    @pytest.fixture
    def other(self, receiver: Receiver, dial: Sent, tmp_path: Path) -> LinkSender:
        other = Identity.load_or_create(tmp_path / "edge-2", "edge-2")
        receiver.enrol(other)
        sender = dial(other, receiver.as_peer())
        sender.send("head", [])
        receiver.next_message()
        return sender

    def refused(self, receiver: Receiver, edge: Identity, other: LinkSender, sent: bytes) -> str:
        """Send bytes as `edge`; return why its link ended, having seen that the other link goes on."""
        receiver.enrol(edge)
        with contextlib.suppress(OSError), raw_link(edge, receiver.as_peer()) as connection:
            connection.sendall(sent)
            with contextlib.suppress(OSError):  # a goodbye, which the other end may not wait for
                connection.unwrap()
            expect_end(connection)
        assert eventually(lambda: bool(receiver.reasons("link_down")))
        assert receiver.gone.get(timeout=DEADLINE_S) == "edge-1"
        assert receiver.messages.empty()
        other.send("head", [b"still here"])
        assert receiver.next_message() == ("edge-2", "head", [b"still here"])
        return receiver.reasons("link_down")[0]

    def test_a_record_cut_short(self, receiver: Receiver, edge: Identity, other: LinkSender):
        assert "cut short in record 0" in self.refused(receiver, edge, other, record(parts=[bytes(100)])[:-40])

    @pytest.mark.parametrize("position", [-1, -17, 30], ids=["digest", "part", "destination"])
    def test_i8_a_flipped_bit(self, receiver: Receiver, edge: Identity, other: LinkSender, position: int):
        damaged = bytearray(record(parts=[bytes(100)]))
        damaged[position] ^= 4
        assert "digest of record 0 is wrong" in self.refused(receiver, edge, other, bytes(damaged))

    def test_a_repeated_record(self, receiver: Receiver, edge: Identity, other: LinkSender):
        heartbeat = record("")
        assert "has number 0, but 1 is next" in self.refused(receiver, edge, other, heartbeat + heartbeat)

    def test_another_protocol(self, receiver: Receiver, edge: Identity, other: LinkSender):
        reason = self.refused(receiver, edge, other, b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert "starts with b'POST', not as a record" in reason

    @pytest.mark.parametrize(
        ("lengths", "told"),
        [
            ((7, 1, 2**40), "1099511627776 bytes, but"),
            ((7, 2**32 - 1, 0), "4294967295 parts, but"),
            ((2**16 - 1, 1, 1), "65535 bytes of destination, but"),
            ((0, 1, 1), "has parts, but no destination"),
        ],
        ids=["bytes", "parts", "destination", "nowhere"],
    )
    def test_i8_a_hostile_length_takes_no_memory(
        self, receiver: Receiver, edge: Identity, other: LinkSender, lengths: tuple[int, int, int], told: str
    ):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        header = struct.pack(">3sBHIQQ", b"MSL", 2, *lengths, 0)
        assert told in self.refused(receiver, edge, other, header + bytes(1000))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB

    def test_a_frame_error_of_the_handler(self, receiver: Receiver, sender: LinkSender, other: LinkSender, dial: Sent):
        def react(destination: str) -> None:
            if destination == "stage-9":
                raise FrameError("no such stage")

        receiver.react = react
        sender.send("stage-9", [])
        assert dial.down.get(timeout=DEADLINE_S)
        assert receiver.gone.get(timeout=DEADLINE_S) == "edge-1"
        assert receiver.reasons("link_down") == ["not a frame for this node: no such stage"]
        assert receiver.next_message()[1] == "stage-9"
        other.send("head", [b"still here"])
        assert receiver.next_message() == ("edge-2", "head", [b"still here"])

    @pytest.mark.parametrize("bug", [KeyError("oops"), ChannelError("oops"), TimeoutError("oops"), RecordError("oops")])
    def test_a_bug_of_the_handler_is_logged_with_its_traceback(
        self, receiver: Receiver, sender: LinkSender, other: LinkSender, dial: Sent, bug: Exception
    ):
        def react(destination: str) -> None:
            if destination == "stage-9":
                raise bug

        receiver.react = react
        sender.send("stage-9", [])
        assert dial.down.get(timeout=DEADLINE_S)
        assert receiver.gone.get(timeout=DEADLINE_S) == "edge-1"
        [fault] = [details for event, details in receiver.logged if event == "link_fault"]
        assert fault["peer"] == "edge-1"
        assert "oops" in fault["reason"]
        assert "in react" in fault["traceback"]
        receiver.next_message()
        other.send("head", [b"still here"])
        assert receiver.next_message() == ("edge-2", "head", [b"still here"])


class TestBackPressure:
    @pytest.fixture
    def stuck(self, receiver: Receiver) -> Iterator[threading.Event]:
        """The receiver handles nothing until this is set."""
        going = threading.Event()
        receiver.react = lambda destination: going.wait(DEADLINE_S) and None
        yield going
        going.set()

    def fill(self, sender: LinkSender, timeout_s: float = 0.2, size: int = 1 << 20) -> int:
        """Send until the peer takes no more; return how many it took."""
        content = [bytes(size)]
        for number in range(2000):
            try:
                sender.send(str(number), content, timeout_s)
            except ChannelError as error:
                assert "cloud-1 takes no messages" in str(error)  # noqa: PT017 - the count is wanted
                return number
        pytest.fail("there is no end to what is taken")

    def test_a_receiver_that_is_stuck_becomes_an_error_with_its_name(
        self, receiver: Receiver, edge: Identity, dial: Sent, stuck: threading.Event
    ):
        receiver.enrol(edge)
        sender = dial(edge, receiver.as_peer(), queue_bytes=4 << 20)
        assert self.fill(sender) < 50
        assert sender._queued_bytes <= 4 << 20

    def test_tiny_messages_are_bounded_too(
        self, receiver: Receiver, edge: Identity, dial: Sent, stuck: threading.Event
    ):
        receiver.enrol(edge)
        sender = dial(edge, receiver.as_peer(), queue_bytes=1 << 20)
        self.fill(sender, size=100_000)
        assert self.fill(sender, size=1) < 1024
        assert 1 < len(sender._queue) <= 1024

    def test_a_slow_receiver_is_not_taken_for_a_cut_link(
        self, receiver: Receiver, edge: Identity, dial: Sent, stuck: threading.Event
    ):
        receiver.enrol(edge)
        sender = dial(edge, receiver.as_peer(), queue_bytes=4 << 20, limits=IMPATIENT)
        taken = self.fill(sender, timeout_s=2.0)  # waits for six times as long as a cut link would be borne
        stuck.set()
        assert [int(receiver.next_message()[1]) for _ in range(taken)] == list(range(taken))
        sender.flush(DEADLINE_S)
        assert dial.down.empty()

    def test_who_waits_for_room_goes_on_when_there_is_some(
        self, receiver: Receiver, edge: Identity, dial: Sent, stuck: threading.Event
    ):
        receiver.enrol(edge)
        sender = dial(edge, receiver.as_peer(), queue_bytes=4 << 20)
        taken = self.fill(sender)
        waiting = threading.Thread(target=sender.send, args=("last", [bytes(4 << 20)]))
        waiting.start()
        assert eventually(lambda: bool(sender._condition._waiters))
        stuck.set()
        waiting.join(DEADLINE_S)
        assert [receiver.next_message()[1] for _ in range(taken + 1)][-1] == "last"

    def test_a_message_larger_than_the_queue_goes_when_it_is_empty(
        self, receiver: Receiver, edge: Identity, dial: Sent
    ):
        receiver.enrol(edge)
        dial(edge, receiver.as_peer(), queue_bytes=1000).send("head", [bytes(BIG)])
        assert len(receiver.next_message()[2][0]) == BIG

    def test_who_waits_for_room_hears_of_a_break(
        self, receiver: Receiver, edge: Identity, dial: Sent, stuck: threading.Event
    ):
        receiver.enrol(edge)
        sender = dial(edge, receiver.as_peer(), queue_bytes=4 << 20)
        self.fill(sender)
        told: queue.Queue[str] = queue.Queue()

        def wait() -> None:
            with pytest.raises(ChannelError) as caught:
                sender.send("last", [bytes(4 << 20)])
            told.put(str(caught.value))

        waiting = threading.Thread(target=wait)
        waiting.start()
        assert eventually(lambda: bool(sender._condition._waiters))
        receiver.listener.drop("edge-1")
        assert "the link to cloud-1" in told.get(timeout=DEADLINE_S)
        waiting.join(DEADLINE_S)

    def test_a_flush_that_takes_too_long_says_how_much_is_left(
        self, receiver: Receiver, edge: Identity, dial: Sent, stuck: threading.Event
    ):
        receiver.enrol(edge)
        sender = dial(edge, receiver.as_peer(), queue_bytes=4 << 20)
        self.fill(sender)
        with pytest.raises(ChannelError, match=r"\d+ bytes for cloud-1 were not sent within 0.01 s"):
            sender.flush(0.01)

    def test_closing_does_not_wait_for_a_stuck_receiver(
        self, receiver: Receiver, edge: Identity, dial: Sent, stuck: threading.Event
    ):
        receiver.enrol(edge)
        sender = dial(edge, receiver.as_peer(), queue_bytes=4 << 20)
        self.fill(sender)
        sender.close()
        assert not sender._thread.is_alive()
        with pytest.raises(ChannelError, match="closed before they were sent"):
            sender.flush(1)

    def test_copying_at_a_limited_rate_is_much_slower_than_without(
        self, receiver: Receiver, edge: Identity, dial: Sent
    ):
        receiver.enrol(edge)
        seconds = []
        for rate in (None, 4e6):
            sender = dial(edge, receiver.as_peer(), bytes_per_second=rate)
            sender.send("head", [])
            sender.flush(DEADLINE_S)
            receiver.next_message()
            start = time.monotonic()
            for _ in range(4):
                sender.send("head", [bytes(1 << 20)])
            for _ in range(4):
                receiver.next_message()
            seconds.append(time.monotonic() - start)
        assert seconds[1] > 0.7  # 4 MiB at 4 MB/s, less a first burst
        assert seconds[1] > 3 * seconds[0]

    def test_a_new_pace_counts_also_for_what_is_under_way(self, receiver: Receiver, edge: Identity, dial: Sent):
        receiver.enrol(edge)
        sender = dial(edge, receiver.as_peer(), bytes_per_second=1.0)
        sender.send("head", [bytes(1 << 20)])
        assert receiver.messages.empty()
        sender.pace(None)  # else it would take twelve days
        assert len(receiver.next_message()[2][0]) == 1 << 20

    @pytest.mark.parametrize("rate", [0, -1.0])
    def test_a_rate_at_which_nothing_would_ever_be_sent_is_refused(
        self, receiver: Receiver, edge: Identity, rate: float
    ):
        with pytest.raises(ValueError, match="a link needs more than 0"):
            LinkSender(edge, receiver.as_peer(), bytes_per_second=rate)


class TestBreaks:
    def test_a_link_is_opened_by_its_first_message(self, receiver: Receiver, sender: LinkSender):
        assert not sender.up
        sender.send("head", [])
        assert sender.up

    def test_a_closed_listener_is_noticed_while_idle(self, receiver: Receiver, sender: LinkSender, dial: Sent):
        sender.send("head", [])
        receiver.next_message()
        receiver.listener.close()
        assert dial.down.get(timeout=DEADLINE_S).startswith("it ended without a goodbye")
        assert not sender.up
        assert receiver.gone.empty()  # whoever closes knows

    def test_the_death_of_the_peers_process_is_noticed_while_idle(self, tmp_path: Path, edge: Identity, dial: Sent):
        program = (
            "import sys, threading; from pathlib import Path\n"
            "from tests.unit.runtime.transport.test_link import Receiver\n"
            "from runtime.transport.identity import Identity\n"
            "receiver = Receiver(Path(sys.argv[1]))\n"
            "receiver.enrol(Identity.load_or_create(Path(sys.argv[1]) / 'edge-1', 'edge-1'))\n"
            "print(receiver.listen(), flush=True)\n"
            "threading.Event().wait()\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as peer:
            address = peer.stdout.readline().strip()
            sender = dial(edge, Receiver(tmp_path).as_peer(address))
            sender.send("head", [])
            sender.flush(DEADLINE_S)
            assert dial.down.empty()
            peer.kill()
            assert dial.down.get(timeout=DEADLINE_S)
        with pytest.raises(ChannelError, match="Connection refused"):
            sender.send("head", [])

    def test_a_cut_link_is_noticed(self, tmp_path: Path):
        """A network of its own, whose only device is taken down under the link: no packet passes, no end is told."""
        try:
            subprocess.run([*ALONE, "true"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"needs unshare(1) and user namespaces to cut a network of its own: {error}")
        program = "import sys; from tests.unit.runtime.transport.test_link import cut; cut(sys.argv[1])"
        command = [*ALONE, sys.executable, "-c", program, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        down, gone = done.stdout.splitlines()
        assert down.startswith("its machine has not answered for")
        assert gone == "silent for 0.5 s"

    def test_the_next_message_after_a_break_opens_a_new_link(self, receiver: Receiver, sender: LinkSender, dial: Sent):
        for number in range(3):
            sender.send("head", [b"%d" % number])
            assert receiver.next_message()[2] == [b"%d" % number]
            receiver.listener.drop("edge-1")
            dial.down.get(timeout=DEADLINE_S)
            assert receiver.gone.get(timeout=DEADLINE_S) == "edge-1"
        assert dial.down.empty()

    def test_across_breaks_messages_may_get_lost_but_are_never_doubled_or_overtaken(
        self, receiver: Receiver, sender: LinkSender, dial: Sent
    ):
        receiver.react = lambda where: receiver.listener.drop("edge-1") if where.endswith("50") else None
        for number in range(500):
            with contextlib.suppress(ChannelError):
                sender.send(str(number), [bytes(3000)])
        assert eventually(lambda: self.arrives(receiver, sender))
        numbers = [int(where) for _, where, _ in receiver.messages.queue if where != "last"]
        assert numbers == sorted(set(numbers))
        assert dial.down.get(timeout=DEADLINE_S)

    def arrives(self, receiver: Receiver, sender: LinkSender) -> bool:
        with contextlib.suppress(ChannelError):
            sender.send("last", [])
        return any(where == "last" for _, where, _ in receiver.messages.queue)

    def test_a_link_opened_anew_waits_for_the_last_message_of_the_broken_one_and_drops_the_rest(
        self, receiver: Receiver, edge: Identity
    ):
        receiver.enrol(edge)
        go_on = threading.Event()
        receiver.react = lambda destination: go_on.wait(DEADLINE_S) and None
        with raw_link(edge, receiver.as_peer()) as broken, raw_link(edge, receiver.as_peer(), b"") as anew:
            broken.sendall(record("under way") + record("still in the buffer", sequence=1))
            assert receiver.next_message()[1] == "under way"
            [before] = [one for one in receiver.listener._connections if one.link is not None]
            anew.sendall(HELLO + record("new"))
            assert eventually(lambda: before.ended_because is not None)
            assert receiver.messages.empty()
            go_on.set()
            assert receiver.next_message()[1] == "new"
        assert receiver.messages.empty()

    def test_a_peer_may_have_several_links(self, receiver: Receiver, sender: LinkSender, edge: Identity, dial: Sent):
        second = dial(edge, receiver.as_peer())
        for _ in range(3):
            for one in (sender, second):
                one.send("head", [])
                receiver.next_message()
        assert receiver.reasons("link_down") == []

    def test_a_peer_that_is_not_there_is_an_error_at_once_and_again(
        self, receiver: Receiver, sender: LinkSender, dial: Sent
    ):
        receiver.listener.close()
        for _ in range(3):
            with pytest.raises(ChannelError, match=r"the link to cloud-1 at 127.0.0.1:\d+ is down: .*refused"):
                sender.send("head", [])
        assert sender._attempts == 1  # what was found out within the last second is not asked again
        assert dial.down.empty()  # nothing was accepted

    def test_a_peer_that_accepts_and_says_nothing_is_an_error_in_time(
        self, receiver: Receiver, edge: Identity, dial: Sent
    ):
        with socket.create_server(("127.0.0.1", 0)) as mute:
            peer = receiver.as_peer(f"127.0.0.1:{mute.getsockname()[1]}")
            with pytest.raises(ChannelError, match="it did not answer in time"):
                dial(edge, peer, limits=IMPATIENT).send("head", [])

    def test_a_send_that_may_not_wait_for_the_link_says_so(self, receiver: Receiver, edge: Identity, dial: Sent):
        with socket.create_server(("127.0.0.1", 0)) as mute:
            sender = dial(edge, receiver.as_peer(f"127.0.0.1:{mute.getsockname()[1]}"), limits=IMPATIENT)
            with pytest.raises(ChannelError, match="is still being opened"):
                sender.send("head", [], timeout_s=0)

    def test_flush_tells_of_what_a_break_may_have_lost_once(self, receiver: Receiver, sender: LinkSender, dial: Sent):
        sender.send("head", [])
        receiver.next_message()
        receiver.listener.drop("edge-1")
        dial.down.get(timeout=DEADLINE_S)
        sender.send("head", [b"after"])
        with pytest.raises(ChannelError, match="messages to cloud-1 may be lost: it ended without a goodbye"):
            sender.flush(DEADLINE_S)
        sender.flush(DEADLINE_S)

    def test_on_down_is_over_before_a_new_link_is_opened(self, receiver: Receiver, edge: Identity, dial: Sent):
        receiver.enrol(edge)
        reacting, go_on, seen = threading.Event(), threading.Event(), []

        def on_down(reason: str) -> None:
            seen.append(reason)
            reacting.set()
            go_on.wait(DEADLINE_S)

        sender = dial(edge, receiver.as_peer(), on_down=on_down)
        sender.send("head", [b"before"])
        receiver.next_message()
        receiver.listener.drop("edge-1")
        assert reacting.wait(DEADLINE_S)
        next_one = threading.Thread(target=sender.send, args=("head", [b"after"]))
        next_one.start()
        assert eventually(lambda: sender._wanted)
        assert not sender.up
        go_on.set()
        next_one.join(DEADLINE_S)
        assert receiver.next_message()[2] == [b"after"]
        assert len(seen) == 1

    def test_sending_from_on_down_is_refused_instead_of_a_deadlock(
        self, receiver: Receiver, edge: Identity, dial: Sent
    ):
        receiver.enrol(edge)
        told: queue.Queue[str] = queue.Queue()

        def on_down(reason: str) -> None:
            with pytest.raises(ChannelError) as caught:
                sender.send("head", [])
            told.put(str(caught.value))

        sender = dial(edge, receiver.as_peer(), on_down=on_down)
        sender.send("head", [])
        receiver.next_message()
        receiver.listener.drop("edge-1")
        assert "on_down must not send to cloud-1" in told.get(timeout=DEADLINE_S)

    def test_an_idle_link_stays_up_by_its_heartbeats(self, edge: Identity, dial: Sent, tmp_path: Path):
        receiver = Receiver(tmp_path)
        receiver.enrol(edge)
        with contextlib.closing(_listening(receiver, IMPATIENT)):
            dial(edge, receiver.as_peer(), limits=IMPATIENT).send("head", [])
            receiver.next_message()
            with pytest.raises(queue.Empty):
                receiver.gone.get(timeout=3 * IMPATIENT.silence_s)
            assert receiver.messages.empty()
            assert dial.down.empty()

    def test_a_peer_that_falls_silent_is_gone(self, edge: Identity, tmp_path: Path):
        receiver = Receiver(tmp_path)
        receiver.enrol(edge)
        with (
            contextlib.closing(_listening(receiver, IMPATIENT)) as listener,
            raw_link(edge, receiver.as_peer(listener.address)) as connection,
        ):
            connection.sendall(record())
            assert receiver.gone.get(timeout=DEADLINE_S) == "edge-1"
            assert receiver.reasons("link_down") == ["silent for 0.5 s"]

    def test_a_peer_is_gone_when_its_last_link_ends(
        self, receiver: Receiver, sender: LinkSender, edge: Identity, dial: Sent
    ):
        second = dial(edge, receiver.as_peer())
        for one in (sender, second):
            one.send("head", [])
            receiver.next_message()
        sender.close()
        assert eventually(lambda: receiver.reasons("link_down") == ["closed by the peer"])
        second.send("head", [b"still here"])
        receiver.next_message()
        assert receiver.gone.empty()
        second.close()
        assert receiver.gone.get(timeout=DEADLINE_S) == "edge-1"
        assert dial.down.empty()  # whoever closes knows

    def test_a_receiver_that_answers_breaks_the_link(
        self, receiver: Receiver, sender: LinkSender, dial: Sent, monkeypatch: pytest.MonkeyPatch
    ):
        original = LinkListener._greet

        def talkative(self: LinkListener, connection: object) -> tuple[ssl.SSLSocket, Peer]:
            socket_, peer = original(self, connection)
            socket_.sendall(b"and another thing")
            return socket_, peer

        monkeypatch.setattr(LinkListener, "_greet", talkative)
        with contextlib.suppress(ChannelError):
            sender.send("head", [])
        assert dial.down.get(timeout=DEADLINE_S) == "it sent data on a link of one way"

    def test_a_peer_of_another_version_is_named(
        self, receiver: Receiver, sender: LinkSender, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(ssl.SSLSocket, "recv", lambda self, size: b"midstream link 2")
        with pytest.raises(ChannelError, match="it greets with b'midstream link 2', not b'midstream link 1'"):
            sender.send("head", [])


class TestFloods:
    def test_a_flood_of_strangers_does_not_flood_the_log(self, receiver: Receiver, sender: LinkSender):
        for _ in range(60):
            with socket.create_connection(parse_address(receiver.listener.address), DEADLINE_S) as raw:
                raw.sendall(b"nonsense\r\n\r\n")
                with contextlib.suppress(ConnectionError):
                    raw.recv(100)
        sender.send("head", [b"undisturbed"])
        assert receiver.next_message()[2] == [b"undisturbed"]
        assert 1 <= len(receiver.reasons("link_refused")) <= 10

    def test_strangers_that_take_all_places_make_room_for_who_is_enrolled(
        self, edge: Identity, dial: Sent, tmp_path: Path
    ):
        receiver = Receiver(tmp_path)
        receiver.enrol(edge)
        limits = Limits(connections=3, handshake_s=60)
        with contextlib.closing(_listening(receiver, limits)), contextlib.ExitStack() as open_:
            address = parse_address(receiver.listener.address)
            for _ in range(10):
                open_.enter_context(socket.create_connection(address, DEADLINE_S))
            dial(edge, receiver.as_peer()).send("head", [b"let through"])
            assert receiver.next_message()[2] == [b"let through"]
            assert eventually(lambda: len(receiver.listener._connections) <= 3)

    def test_peers_beyond_the_limit_are_refused(self, edge: Identity, dial: Sent, tmp_path: Path):
        receiver = Receiver(tmp_path)
        receiver.enrol(edge)
        with contextlib.closing(_listening(receiver, Limits(connections=2))):
            inside = [dial(edge, receiver.as_peer()) for _ in range(2)]
            for one in inside:
                one.send("head", [])
                receiver.next_message()
            with pytest.raises(ChannelError):
                dial(edge, receiver.as_peer()).send("head", [])
            assert receiver.refused_because() == "all 2 connections are in use by peers"
            inside[0].send("head", [b"still here"])
            assert receiver.next_message()[2] == [b"still here"]

    def test_lines_beyond_the_limit_are_counted(self):
        now, lines = [0.0], []
        log = LogLimit(lambda event, **details: lines.append((event, details)), 2, 10, lambda: now[0])
        for number in range(5):
            log("down", "edge-1", reason=number)
        log("down", None, reason="x")
        assert lines == [
            ("down", {"peer": "edge-1", "reason": 0}),
            ("down", {"peer": "edge-1", "reason": 1}),
            ("down", {"peer": "unknown", "reason": "x"}),
        ]
        now[0] = 10.0
        log("down", "edge-1", reason=9)
        log("down", None, reason="y")
        assert lines[3:] == [
            ("down", {"peer": "edge-1", "reason": 9, "left_out": 3}),
            ("down", {"peer": "unknown", "reason": "y"}),
        ]


class TestEnds:
    def test_nothing_is_left_after_closing(self, tmp_path: Path, edge: Identity):
        gc.collect()
        threads, descriptors = set(threading.enumerate()), set(os.listdir("/proc/self/fd"))
        receiver = Receiver(tmp_path)
        receiver.enrol(edge)
        receiver.listen()
        senders = [LinkSender(edge, receiver.as_peer()) for _ in range(3)]
        idle = LinkSender(edge, receiver.as_peer())
        for one in senders:
            one.send("head", [bytes(1 << 20)])
            receiver.next_message()
        with socket.create_connection(parse_address(receiver.listener.address)):  # not even a handshake
            assert eventually(lambda: len(receiver.listener._connections) == 4)
            senders[0].close()
            receiver.listener.close()
            for one in (*senders, idle):
                one.close()
        assert set(threading.enumerate()) == threads
        assert set(os.listdir("/proc/self/fd")) == descriptors

    def test_refused_links_leave_nothing(self, receiver: Receiver, edge: Identity, dial: Sent):
        descriptors = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            with pytest.raises(ChannelError):
                dial(edge, receiver.as_peer()).send("head", [])
            dial.senders[-1].close()
        assert eventually(lambda: not receiver.listener._connections)
        assert len(os.listdir("/proc/self/fd")) == descriptors

    def test_closing_twice_is_fine(self, receiver: Receiver, sender: LinkSender):
        sender.send("head", [])
        for _ in range(2):
            sender.close()
            receiver.listener.close()

    def test_a_closed_sender_sends_nothing_more(self, sender: LinkSender):
        sender.close()
        with pytest.raises(ChannelError, match=r"the link to cloud-1 at .* was closed by this node"):
            sender.send("head", [])

    def test_what_was_flushed_before_closing_arrives(self, receiver: Receiver, sender: LinkSender):
        for number in range(20):
            sender.send(str(number), [bytes(1 << 20)])
        sender.flush(DEADLINE_S)
        sender.close()
        assert [int(receiver.next_message()[1]) for _ in range(20)] == list(range(20))
        assert eventually(lambda: receiver.reasons("link_down") == ["closed by the peer"])

    def test_a_bug_in_on_down_ends_the_link_loudly(
        self, receiver: Receiver, edge: Identity, dial: Sent, monkeypatch: pytest.MonkeyPatch
    ):
        raised: queue.Queue[BaseException | None] = queue.Queue()
        monkeypatch.setattr(threading, "excepthook", lambda report: raised.put(report.exc_value))
        receiver.enrol(edge)
        sender = dial(edge, receiver.as_peer(), on_down=lambda reason: {}[reason])
        sender.send("head", [])
        receiver.next_message()
        receiver.listener.drop("edge-1")
        assert isinstance(raised.get(timeout=DEADLINE_S), KeyError)
        with pytest.raises(ChannelError, match="was closed by this node"):
            sender.send("head", [])


class TestAddresses:
    @pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
    def test_port_0_becomes_a_real_one(self, tmp_path: Path, edge: Identity, dial: Sent, host: str):
        receiver = Receiver(tmp_path)
        receiver.enrol(edge)
        with contextlib.closing(_listening(receiver, address=f"{host}:0")) as listener:
            assert parse_address(listener.address)[1] > 0
            dial(edge, receiver.as_peer()).send("head", [b"here"])
            assert receiver.next_message()[2] == [b"here"]

    def test_an_address_in_use_is_named(self, receiver: Receiver, tmp_path: Path):
        with pytest.raises(ChannelError, match=f"cannot listen on {receiver.listener.address}: .*in use"):
            Receiver(tmp_path).listen(receiver.listener.address)

    def test_an_address_that_is_none_is_named(self, tmp_path: Path):
        with pytest.raises(IdentityError, match="address 'nowhere' is not host:port"):
            Receiver(tmp_path).listen("nowhere")

    def test_a_peer_without_an_address_cannot_be_dialled(self, edge: Identity, receiver: Receiver):
        peer = Peer(name="cloud-1", certificate_pem=receiver.identity.certificate_pem)
        with pytest.raises(ChannelError, match="no address is known for cloud-1; enrol it again with host:port"):
            LinkSender(edge, peer)


def _listening(receiver: Receiver, limits: Limits | None = None, address: str = "127.0.0.1:0") -> LinkListener:
    receiver.listen(address, limits)
    return receiver.listener


def _set_loopback(*, up: bool) -> None:
    request = struct.pack("16sh14x", b"lo", 1 if up else 0)  # struct ifreq with IFF_UP or nothing
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8914, request)  # SIOCSIFFLAGS


def cut(folder: str) -> None:
    """In a network namespace of its own: print why a sender and a listener gave up a link that was cut."""
    _set_loopback(up=True)
    receiver, sent = Receiver(Path(folder)), Sent()
    edge = Identity.load_or_create(Path(folder) / "edge-1", "edge-1")
    receiver.enrol(edge)
    with contextlib.closing(_listening(receiver, IMPATIENT)):
        sender = sent(edge, receiver.as_peer(), limits=IMPATIENT)
        sender.send("head", [])
        receiver.next_message()
        _set_loopback(up=False)
        print(sent.down.get(timeout=DEADLINE_S))  # noqa: T201 - the answer to the test
        receiver.gone.get(timeout=DEADLINE_S)
        print(*receiver.reasons("link_down"))  # noqa: T201
        sender.close()
