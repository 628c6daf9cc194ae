"""Where the processes of a pipeline are, and how to reach one from another.

Every process has a name that is unique in its pipeline and lives on one host. Processes of one host meet on unix
sockets in a folder that only their owner can enter. Everything for another host goes through the host's gateway
(`runtime.transport.gateway`), in an envelope that names the receiver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from runtime.transport.channel import ChannelError, Outbox

if TYPE_CHECKING:
    import zmq


class Address(msgspec.Struct, frozen=True):
    """One process of a pipeline: its host and its name there."""

    host: str
    name: str

    def __str__(self) -> str:
        return f"{self.name}@{self.host}"


class Neighbourhood(msgspec.Struct, frozen=True):
    """The processes of one pipeline on one host.

    host: the host's name.
    pipeline: the pipeline's name, the same on all hosts.
    folder: where these processes have their sockets.
    gateway: where the host's gateway has its sockets; None on a host that knows no other.
    peers: the hosts that may send to these processes; None for all that are enrolled.
    """

    host: str
    pipeline: str
    folder: str
    gateway: str | None = None
    peers: frozenset[str] | None = None

    def inbox(self, name: str) -> str:
        """Return the socket on which process `name` of this neighbourhood listens."""
        return f"ipc://{self.folder}/{name}"

    def outbox(self, context: zmq.Context[zmq.Socket[bytes]], to: Address) -> Outbox:
        """Return an outbox to a process, here or on another host.

        Raises:
            ChannelError: it is on another host, and this one has no gateway.

        """
        if to.host == self.host:
            return Outbox(context, self.inbox(to.name))
        if self.gateway is None:
            raise ChannelError(f"there is no way to {to}: host {self.host} has no gateway")
        return Outbox(context, gateway_socket(self.gateway, to.host), envelope=f"{self.pipeline}/{to.name}")


def gateway_socket(folder: str, host: str) -> str:
    """Return the socket on which a gateway takes what is for another host."""
    return f"ipc://{folder}/to.{host}"
