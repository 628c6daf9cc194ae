"""Two machines on one: network namespaces joined by a veth pair that is shaped to the rate of a real link.

::

    near namespace (this process, head, first node)            far namespace (second node)
    10.213.77.1  ms-near  ====== tbf ======= veth ======= tbf ======  ms-far  10.213.77.2

The process itself goes into the near namespace: what it starts from then on is there too, and only what it starts with
`Link.far_command` is at the far end. A socket stays in the namespace it was made in, which is how the link is measured
without another process: this one makes a socket at the far end and comes back.

Shaping is a token bucket at each end, since a sender is shaped on its way out. Its burst is what passes at once after
a quiet moment, faster than any real link would carry it. The last round of a migration is not much larger than usual
bursts of some hundred KB, so the bursts here are as small as still gave the full rate (about 1 ms of it). Segments stay
joined on their way through the kernel (tso, gso, gro), as with any network card of such a rate: else the processors of
both ends would pay for what such a card does (measured: 9 ms for a MB, of which 6 for taking it apart).

A link can be cut (`Link.cuts`) in two ways that the ends notice differently: pulled, so that the near end loses its
carrier, or silent, where both ends send to an address that nobody has and neither is told.

Caveats: needs root, `ip` and `tc`, and Linux' veth and tbf. `setns` is a thread's own, so this must be used on the
main thread, before others are started that should see the link. There is no delay on the link beyond its queue (20 ms
at most). A process that is killed with SIGKILL leaves its namespaces, whose names carry its id, behind.
"""

import ctypes
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from loadgen.clock import now_ns
from loadgen.errors import LinkError

LOOPBACK = "loopback"

_NEAR_ADDRESS, _FAR_ADDRESS = "10.213.77.1", "10.213.77.2"
_NEAR_DEVICE, _FAR_DEVICE = "ms-near", "ms-far"
_NOBODY = "02:00:00:00:00:01"  # a hardware address that no end of the link has
_MEASURED_S = 0.5
_MEASURE_DEADLINE_S = 30.0
_SYSTEM_FOLDERS = "/usr/sbin:/sbin"  # Debian keeps ip and tc there, outside a user's path
_CLONE_NEWNET = 0x40000000
_SIOCETHTOOL = 0x8946
_OFFLOADS = {"tso": 0x1F, "gso": 0x24, "gro": 0x2C}  # ETHTOOL_STSO, _SGSO, _SGRO


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate as `tc` takes it, the same in bits per second, and the burst of the bucket."""

    tc: str
    bits_per_second: float
    burst: str


RATES = {"1gbit": Rate("1gbit", 1e9, "128kb"), "100mbit": Rate("100mbit", 1e8, "16kb")}
KINDS = (*RATES, LOOPBACK)


Command = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """A way to cut a link so that nothing passes in either direction: what cuts it, and what heals it."""

    cut: tuple[Command, ...]
    heal: tuple[Command, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """A link that is up.

    Attributes:
        near, far: Addresses of its ends.
        far_command: What to put before a command so that it runs at the far end.
        device: Network device of the near end that carries all of it; None where it is shared with others.
        facts: What is to be reported of it.
        cuts: Ways to cut it, by name; none where others use it too.
    """

    near: str
    far: str
    far_command: tuple[str, ...]
    device: str | None
    facts: dict[str, Any]
    cuts: Mapping[str, Cut] = field(default_factory=dict)


def cuts(near: str, far: str, ip: str = "ip") -> dict[str, Cut]:
    """Return the ways to cut the link between the namespaces `near` and `far`.

    The near end stays up when the link is pulled: its own address would go with it, which others there use.
    """
    ends = ((near, _FAR_ADDRESS, _NEAR_DEVICE), (far, _NEAR_ADDRESS, _FAR_DEVICE))
    return {
        "pulled": Cut(
            ((ip, "-n", far, "link", "set", _FAR_DEVICE, "down"),), ((ip, "-n", far, "link", "set", _FAR_DEVICE, "up"),)
        ),
        "silent": Cut(
            tuple(
                (ip, "-n", space, "neigh", "replace", peer, "lladdr", _NOBODY, "dev", device, "nud", "permanent")
                for space, peer, device in ends
            ),
            tuple((ip, "-n", space, "neigh", "del", peer, "dev", device) for space, peer, device in ends),
        ),
    }


def carry_out(commands: tuple[Command, ...]) -> None:
    """Run the commands that cut or heal a link, in their order.

    Raises:
        LinkError: one of them failed.
    """
    for command in commands:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise LinkError(f"`{' '.join(command)}` says {done.stderr.strip()!r}")


def setup_commands(near: str, far: str, rate: Rate, ip: str = "ip", tc: str = "tc") -> list[tuple[str, ...]]:
    """Return the commands that make the namespaces `near` and `far` and the link between them."""
    ends = ((near, _NEAR_DEVICE, _NEAR_ADDRESS), (far, _FAR_DEVICE, _FAR_ADDRESS))
    shape = ("root", "tbf", "rate", rate.tc, "burst", rate.burst, "latency", "20ms")
    return [
        (ip, "netns", "add", near),
        (ip, "netns", "add", far),
        (ip, "link", "add", _NEAR_DEVICE, "netns", near, "type", "veth", "peer", "name", _FAR_DEVICE, "netns", far),
        *((ip, "-n", space, "addr", "add", f"{address}/30", "dev", device) for space, device, address in ends),
        *((tc, "-n", space, "qdisc", "add", "dev", device, *shape) for space, device, _ in ends),
        *((ip, "-n", space, "link", "set", device, "up") for space, device, _ in ends for device in ("lo", device)),
    ]


def missing(rate: str, *, root: bool, ip: str | None, tc: str | None) -> str | None:
    """Return why a link of that rate cannot be made here; None if nothing is missing."""
    lacks = [text for text, there in (("root", root), ("the command ip", ip), ("the command tc", tc)) if not there]
    if not lacks:
        return None
    install = "" if ip and tc else " (ip and tc come with the package iproute2)"
    return f"a link of {rate} needs {' and '.join(lacks)}{install}; --link {LOOPBACK} works without"


@contextmanager
def joined(kind: str) -> Iterator[Link]:
    """Make the link `kind` (one of `KINDS`), and go to its near end; undo both in the end, whatever happens.

    Raises:
        LinkError: it cannot be made here, or does not carry anything.
    """
    if kind == LOOPBACK:
        yield Link("127.0.0.1", "127.0.0.1", (), None, {"kind": kind, "rate_mbit_per_s": None, "burst": None})
        return
    path = f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_FOLDERS}"
    ip, tc = shutil.which("ip", path=path), shutil.which("tc", path=path)
    lacking = missing(kind, root=os.geteuid() == 0, ip=ip, tc=tc)
    if lacking or ip is None or tc is None:
        raise LinkError(str(lacking))
    rate, near, far = RATES[kind], f"ms-{os.getpid()}-near", f"ms-{os.getpid()}-far"
    with open("/proc/thread-self/ns/net", "rb") as home:
        try:
            for command in setup_commands(near, far, rate, ip, tc):
                _do(command, kind)
            _enter(far)
            far_offloads = _switch_on_offloads(_FAR_DEVICE)
            _enter(near)
            offloads = {"near": _switch_on_offloads(_NEAR_DEVICE), "far": far_offloads}
            facts = {
                "kind": kind,
                "rate_mbit_per_s": rate.bits_per_second / 1e6,
                "burst": rate.burst,
                "measured_mbit_per_s": _measured(near, far, rate),
                "offloads": offloads,
            }
            yield Link(
                _NEAR_ADDRESS, _FAR_ADDRESS, (ip, "netns", "exec", far), _NEAR_DEVICE, facts, cuts(near, far, ip)
            )
        finally:
            _set_namespace(home.fileno())
            # The device first: a namespace lives on while some thread of this process is in it.
            for command in (
                (ip, "-n", near, "link", "del", _NEAR_DEVICE),
                (ip, "netns", "del", near),
                (ip, "netns", "del", far),
            ):
                subprocess.run(command, check=False, capture_output=True)  # what was not made cannot be removed


def _do(command: tuple[str, ...], kind: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise LinkError(
            f"a link of {kind} cannot be made here: `{' '.join(command)}` says {done.stderr.strip()!r}; "
            f"--link {LOOPBACK} works without"
        )


def _enter(namespace: str) -> None:
    with open(f"/run/netns/{namespace}", "rb") as file:
        _set_namespace(file.fileno())


def _set_namespace(descriptor: int) -> None:
    """Move this thread to another network namespace (`os.setns` is there from Python 3.12 on)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise LinkError(f"cannot enter a network namespace: {os.strerror(code)}")


def _switch_on_offloads(device: str) -> dict[str, str]:
    """Switch on what joins segments, as `ethtool -K` does; return what became of each."""
    became = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for name, command in _OFFLOADS.items():
            value = ctypes.create_string_buffer(struct.pack("II", command, 1))
            try:
                fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("16sP16x", device.encode(), ctypes.addressof(value)))
                became[name] = "on"
            except OSError as error:
                became[name] = f"unchanged: {error.strerror}"
    return became


def _measured(near: str, far: str, rate: Rate) -> dict[str, float]:
    """Return what a plain TCP transfer gets in each direction, in Mbit/s. Ends in the near namespace."""
    size = int(rate.bits_per_second / 8 * _MEASURED_S)
    result = {}
    for direction, sender, receiver, address in (
        ("near_to_far", near, far, _FAR_ADDRESS),
        ("far_to_near", far, near, _NEAR_ADDRESS),
    ):
        try:
            _enter(receiver)
            with socket.create_server((address, 0)) as server:
                server.settimeout(_MEASURE_DEADLINE_S)
                _enter(sender)
                with socket.create_connection(server.getsockname()[:2], _MEASURE_DEADLINE_S) as out:
                    taken, _ = server.accept()
                    with taken:
                        taken.settimeout(_MEASURE_DEADLINE_S)
                        result[direction] = round(_transfer(out, taken, size), 1)
        except OSError as error:
            raise LinkError(f"the link of {rate.tc} carries nothing {direction.replace('_', ' ')}: {error}") from error
        finally:
            _enter(near)
    return result


def _transfer(out: socket.socket, taken: socket.socket, size: int) -> float:
    """Send `size` bytes from one socket to the other; return Mbit/s from the first byte's arrival to the last's."""

    def send() -> None:
        data = bytes(1 << 16)
        try:
            for _ in range(-(-size // len(data))):
                out.sendall(data)
            out.shutdown(socket.SHUT_WR)
        except OSError:
            out.close()  # the receiver sees it, and says so

    sender = threading.Thread(target=send, name="link-measurement")
    sender.start()
    try:
        got, room = taken.recv_into(bytearray(1)), bytearray(1 << 18)
        started = now_ns()
        while count := taken.recv_into(room):
            got += count
        seconds = (now_ns() - started) / 1e9
    finally:
        taken.close()
        sender.join()
    if got < size:
        raise OSError(f"{got} of {size} bytes arrived")
    return got * 8 / seconds / 1e6
