import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
import zmq

from runtime.transport.channel import ChannelError, Inbox, Outbox
from runtime.transport.frames import Batch, FrameError, Result, unpack

DEADLINE_MS = 10_000
BIG = 1 << 20


@pytest.fixture
def context() -> Iterator[zmq.Context]:
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def address() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="m-") as folder:  # short: a unix socket's path has 107 characters at most
        yield f"ipc://{folder}/inbox"


@pytest.fixture
def inbox(context: zmq.Context, address: str) -> Iterator[Inbox]:
    with closing(Inbox(context, address)) as inbox:
        yield inbox


@pytest.fixture
def outbox(context: zmq.Context, address: str) -> Iterator[Outbox]:
    with closing(Outbox(context, address, timeout_s=DEADLINE_MS / 1000)) as outbox:
        yield outbox


def receive(inbox: Inbox) -> tuple[object, list[bytes]]:
    parts = inbox.receive(DEADLINE_MS)
    assert parts is not None, "nothing came"
    frame, buffers = unpack(parts)
    return frame, [bytes(buffer) for buffer in buffers]


def send_until_full(outbox: Outbox, frame: Result, buffers: list[bytes]) -> None:
    for _ in range(1_000_000):
        outbox.send(frame, buffers)


def test_what_is_sent_arrives_with_its_buffers(inbox: Inbox, outbox: Outbox):
    outbox.send(Result(3, 7, 2), [b"one", b""])
    assert receive(inbox) == (Result(3, 7, 2), [b"one", b""])


def test_messages_keep_their_order_whatever_their_size(inbox: Inbox, outbox: Outbox):
    sizes = [0, BIG, 1, 1 << 16, 10, BIG] * 10
    sender = threading.Thread(
        target=lambda: [outbox.send(Result(1, number, 1), [bytes(size)]) for number, size in enumerate(sizes)]
    )
    sender.start()
    received = [receive(inbox) for _ in sizes]
    sender.join()
    assert [(frame.sequence, len(buffers[0])) for frame, buffers in received] == list(enumerate(sizes))


def test_many_threads_may_send_and_no_message_is_torn(inbox: Inbox, outbox: Outbox):
    def send(thread: int) -> None:
        for number in range(50):
            outbox.send(Batch(thread, number, 2), [bytes([thread]) * 10, bytes([thread]) * (1 << 16)])

    threads = [threading.Thread(target=send, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    seen: dict[int, list[int]] = {thread: [] for thread in range(4)}
    for _ in range(200):
        frame, (small, large) = receive(inbox)
        assert set(small) == set(large) == {frame.epoch}
        seen[frame.epoch].append(frame.sequence)
    for thread in threads:
        thread.join()
    assert all(numbers == list(range(50)) for numbers in seen.values())


def test_a_message_sent_before_its_reader_exists_waits_for_it(context: zmq.Context, address: str, outbox: Outbox):
    outbox.send(Result(1, 1, 0))
    with closing(Inbox(context, address)) as inbox:
        assert receive(inbox) == (Result(1, 1, 0), [])


def test_waiting_for_a_message_ends_with_the_timeout(inbox: Inbox):
    assert inbox.receive(timeout_ms=1) is None


@pytest.mark.parametrize("size", [10, BIG], ids=["small", "large"])
def test_a_peer_that_never_reads_becomes_an_error_with_its_name(context: zmq.Context, inbox: Inbox, size: int):
    frame, buffer = Result(1, 1, 1), bytes(size)
    told = rf"{inbox.address} takes no messages; is its process stuck\?"
    with closing(Outbox(context, inbox.address, timeout_s=0.05)) as outbox, pytest.raises(ChannelError, match=told):
        send_until_full(outbox, frame, [buffer])


def test_a_peer_that_was_never_there_becomes_an_error_too(context: zmq.Context, address: str):
    with (
        closing(Outbox(context, address, timeout_s=0.01)) as outbox,
        pytest.raises(ChannelError, match="takes no messages"),
    ):
        send_until_full(outbox, Result(1, 1, 0), [])


def test_an_address_that_cannot_be_bound_is_an_error_with_its_name(context: zmq.Context, address: str):
    with pytest.raises(ChannelError, match=r"cannot listen on ipc://.*/no/such/folder"):
        Inbox(context, f"{address}/no/such/folder")


def test_an_address_that_is_none_is_an_error_with_its_name(context: zmq.Context):
    with pytest.raises(ChannelError, match="cannot connect to no address"):
        Outbox(context, "no address")


def test_a_closed_outbox_sends_nothing_more(inbox: Inbox, outbox: Outbox):
    outbox.close()
    with pytest.raises(ChannelError, match=f"cannot send to {inbox.address}"):
        outbox.send(Result(1, 1, 0))


def test_a_closed_inbox_has_nothing_to_read(inbox: Inbox):
    inbox.close()
    assert inbox.receive(timeout_ms=1) is None


def test_a_reader_returns_when_the_context_goes(address: str):
    context = zmq.Context()
    inbox, received = Inbox(context, address), []

    def read() -> None:
        received.append(inbox.receive())
        inbox.close()

    reader = threading.Thread(target=read)
    reader.start()
    context.term()
    reader.join(DEADLINE_MS / 1000)
    assert received == [None]


def test_a_miscounted_message_is_not_sent(inbox: Inbox, outbox: Outbox):
    with pytest.raises(FrameError):
        outbox.send(Result(1, 1, 2), [b"one"])
    outbox.send(Result(1, 2, 0))
    assert receive(inbox) == (Result(1, 2, 0), [])
