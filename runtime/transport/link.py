"""The channel between machines: messages over mutual TLS, from nodes that were enrolled and nobody else.

Problem: stages on several nodes exchange hidden states, KV blocks and control frames over a network that is not ours.
Who is not enrolled must not get a byte read (`runtime.transport.identity`), a peer that sends nonsense must hurt only
its own connection, and a peer that is slow or gone must become an error with its name, soon, never memory that grows.

Protocol: links are simplex. The dialler only sends and the accepter only receives; the way back is a connection of
its own. So one thread owns each TLS socket, which Python's are made for, and neither direction waits for the other. ::

    dialler                                    accepter
    LinkSender                                 LinkListener
      | ---- TCP, TLS 1.3, both certificates ---> |  fingerprint enrolled? else closed, nothing was read
      | <------------- greeting ----------------- |  "you are in": only now is the link up
      | ---- hello: version, number of the link > |  an older connection of this link is ended first
      | ---- record 0, record 1, heartbeat, ... > |  on_message(peer, destination, parts), in order
      |                                           |  nothing for `silence_s`: closed, on_gone(peer)

What a record is, `runtime.transport.record` says.

Within a connection messages arrive in order and exactly once. When it breaks, what was queued or under way is lost:
the sender is told (`on_down`, `flush`) and nothing is sent again. The next connection is read only when nothing of
the broken one is handled any more. So a message of a link may get lost, but is never doubled or overtaken.

Caveats:

- TCP_USER_TIMEOUT would end the link of a receiver that is merely slow (Linux counts a closed window as silence), and
  keepalive is off while data is under way. So the sender reads TCP_INFO: a link is cut when data stays unacknowledged,
  or probes of a closed window stay unanswered, for `unacknowledged_s`. A heartbeat sees to it that there is data.
- AES-GCM keys wear out after about 350 GiB on one connection (RFC 8446, 5.5), and OpenSSL does not renew them by
  itself. The margin behind that number is large, but a link that copies for days should be closed and opened again.
- A peer whose process hangs, but whose machine answers, is noticed by a full queue, not by a break.
- A process forked from one with links holds them too: the peer would not hear of the parent's death at once.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

HELLO = struct.Struct(">3sB16s")  # magic, version, random number of the link
GREETING = b"midstream link 1"


def read_exactly(link: ssl.SSLSocket, count: int) -> bytes:
    """Read `count` bytes; raises ConnectionAbortedError when the other side closes before."""
    data = b""
    while len(data) < count:
        if not (more := link.recv(count - len(data))):
            raise ConnectionAbortedError("it closed the connection before the link was up")
        data += more
    return data
