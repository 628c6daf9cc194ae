import tempfile
from collections.abc import Iterator
from contextlib import closing

import msgspec
import pytest
import zmq

from runtime.transport.address import Address, Neighbourhood, gateway_socket
from runtime.transport.channel import ChannelError, Inbox
from runtime.transport.frames import Result, unpack

DEADLINE_MS = 10_000


@pytest.fixture
def context() -> Iterator[zmq.Context]:
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="m-") as folder:  # short: a unix socket's path has 107 characters at most
        yield folder


def test_an_address_is_written_as_the_process_at_its_host():
    assert str(Address("edge-1", "stage-3")) == "stage-3@edge-1"


def test_processes_of_one_host_meet_on_a_socket_of_their_folder(context: zmq.Context, folder: str):
    here = Neighbourhood("edge-1", "p", folder)
    with (
        closing(Inbox(context, here.inbox("stage-1"))) as inbox,
        closing(here.outbox(context, Address("edge-1", "stage-1"))) as outbox,
    ):
        outbox.send(Result(1, 2, 1), [b"x"])
        frame, buffers = unpack(inbox.receive(DEADLINE_MS) or [])
    assert (frame, [bytes(buffer) for buffer in buffers]) == (Result(1, 2, 1), [b"x"])


def test_what_is_for_another_host_goes_to_the_gateway_in_an_envelope_with_pipeline_and_name(
    context: zmq.Context, folder: str
):
    here = Neighbourhood("edge-1", "p7", f"{folder}/p7", gateway=folder)
    with (
        closing(Inbox(context, gateway_socket(folder, "cloud-1"))) as gateway,
        closing(here.outbox(context, Address("cloud-1", "stage-2"))) as outbox,
    ):
        outbox.send(Result(1, 2, 0))
        envelope, *message = gateway.receive(DEADLINE_MS) or []
    assert bytes(envelope) == b"p7/stage-2"
    assert unpack(message)[0] == Result(1, 2, 0)


def test_without_a_gateway_there_is_no_way_to_another_host(context: zmq.Context, folder: str):
    here = Neighbourhood("edge-1", "p", folder)
    with pytest.raises(ChannelError, match=r"no way to stage-2@cloud-1: host edge-1 has no gateway"):
        here.outbox(context, Address("cloud-1", "stage-2"))


@pytest.mark.parametrize("peers", [None, frozenset(), frozenset({"head", "cloud-1"})])
def test_a_neighbourhood_travels_to_a_forked_stage(peers: frozenset[str] | None):
    here = Neighbourhood("edge-1", "p", "/tmp/x", "/tmp", peers)  # noqa: S108 - nothing is made there
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(here), type=Neighbourhood) == here
