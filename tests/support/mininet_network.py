"""A real network for an inventory: Open vSwitch in user space, driven by our OpenFlow controller, made with Mininet.

Everything runs in network, mount and process namespaces of its own (`mininet_driver.py` says more): nothing on this
machine is touched, and all of it ends when this object is closed or the test run dies. Each node of the inventory is a
host, with its own address and those of the workloads that run on it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intents.enforcement.openflow_service import OpenFlowStore
from intents.model.addressing import addressing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from intents.model.inventory import Inventory

_DRIVER = Path(__file__).with_name("mininet_driver.py")
_PYTHON = "/usr/bin/python3"
_PROGRAMS = ("unshare", "ip", "ovs-vsctl", "ovs-vswitchd", "ovsdb-server", "mnexec", "ethtool", "ifconfig", "ping")
_CONNECT_S = 30.0


class NetworkUnavailable(RuntimeError):
    """There is nothing to make a network with; the message says what is missing."""


@dataclass(frozen=True)
class Probe:
    """What became of a packet.

    Attributes:
        arrived: Whether it arrived; for TCP and ICMP, whether it was answered.
        path: Switches that it came to, in order; for TCP and ICMP also those of the answer.
    """

    arrived: bool
    path: tuple[str, ...]


def require() -> None:
    """Check that a network can be made here.

    Raises:
        NetworkUnavailable: it cannot.
    """
    if os.geteuid() != 0:
        raise NetworkUnavailable("making a network needs root")
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing or subprocess.run([_PYTHON, "-c", "import mininet"], capture_output=True, check=False).returncode:
        missing = missing or ["mininet"]
        raise NetworkUnavailable(f"missing: {', '.join(missing)}; tests/support/install_network_tools.sh installs them")


class MininetNetwork:
    """The running network; `store` is the controller that its switches are connected to."""

    def __init__(self, inventory: Inventory, process: subprocess.Popen[str], store: OpenFlowStore) -> None:
        self.store = store
        self._inventory = inventory
        self._addresses = addressing(inventory)
        self._process = process
        self._where = {each.name: each.node for each in inventory.workloads if each.node is not None}

    def datagrams(self, pairs: Mapping[tuple[str, str], bool], grace_s: float = 0.2) -> dict[tuple[str, str], Probe]:
        """Send a UDP packet for each pair of names.

        Args:
            pairs: Whether its packet is expected to arrive, by sender and receiver (workloads or nodes).
            grace_s: How long those that are not expected have to arrive all the same.
        """
        packets = [
            (self._address(source), self._where.get(source, source), self._address(target), expected)
            for (source, target), expected in pairs.items()
        ]
        answer = self.tell("datagrams", packets=packets, grace_s=grace_s)["probes"]
        found = [Probe(each["arrived"], tuple(each["path"])) for each in answer]
        return dict(zip(pairs, found, strict=True))

    def datagram(self, source: str, target: str, *, expected: bool) -> Probe:
        """Send one UDP packet."""
        return self.datagrams({(source, target): expected})[source, target]

    def exchange(self, source: str, target: str, protocol: str, wait_s: float) -> Probe:
        """Send a packet over `tcp` or `icmp`, and wait that long for the answer."""
        source_ip, target_ip = self._address(source), self._address(target)
        host = self._where.get(source, source)
        said = self.tell("exchange", source=source_ip, host=host, target=target_ip, protocol=protocol, wait_s=wait_s)
        return Probe(said["arrived"], tuple(said["path"]))

    def move(self, workload: str, node: str) -> None:
        """Let a workload run on another node: its address moves."""
        self._where[workload] = node
        self.tell("place", address=self._address(workload), host=node)

    def link(self, index: int, *, up: bool) -> None:
        """Take a link down, or bring it up again, and wait until the controller was told."""
        link, (a_port, b_port) = self._inventory.links[index], self._addresses.link_ports[index]
        ends = [(self._addresses.device[link.a], a_port), (self._addresses.device[link.b], b_port)]
        self.tell("link", a=link.a, a_port=a_port, b=link.b, b_port=b_port, up=up)
        until(lambda: all(self.store.switches()[device][port] == up for device, port in ends), "the port's state")

    def tell(self, do: str, **what: Any) -> dict[str, Any]:
        """Have the driver do something."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **what}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the network ended while it was told to {do}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"the network could not {do}: {answer['error']}")
        return answer

    def _address(self, name: str) -> str:
        return self._addresses.workload_ip.get(name) or self._addresses.node_ip[name]


@contextlib.contextmanager
def running_network(inventory: Inventory) -> Iterator[MininetNetwork]:
    """Run a network until the block is left.

    Raises:
        NetworkUnavailable: it cannot be made here.
    """
    require()
    with tempfile.TemporaryDirectory(prefix="midstream-net-") as folder, contextlib.ExitStack() as stack:
        namespaces = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
        with open(f"{folder}/driver.log", "wb") as log:
            process = stack.enter_context(
                subprocess.Popen(
                    [*namespaces, _PYTHON, "-I", str(_DRIVER), folder],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
            )
        stack.callback(process.kill)  # and with it everything in its namespaces
        store = stack.enter_context(OpenFlowStore(f"{folder}/openflow.sock"))
        network = MininetNetwork(inventory, process, store)
        try:
            network.tell("start", **_plan(inventory, f"{folder}/openflow.sock"))
            devices = set(addressing(inventory).device.values())
            until(lambda: set(store.switches()) == devices, "every switch to connect", _CONNECT_S)
            yield network
        except Exception as error:
            error.add_note(_logs(folder))
            raise


def _plan(inventory: Inventory, socket_path: str) -> Mapping[str, Any]:
    given = addressing(inventory)
    addresses = {node.name: [given.node_ip[node.name]] for node in inventory.nodes}
    for workload in inventory.workloads:
        if workload.node is not None:
            addresses[workload.node].append(given.workload_ip[workload.name])
    service = ["-m", "intents.enforcement.openflow_service", "--socket", socket_path, "--port", "0"]
    return {
        "switches": {name: given.device[name] for name in inventory.switch},
        "hosts": {
            node.name: {"switch": node.switch, "port": given.node_port[node.name], "addresses": addresses[node.name]}
            for node in inventory.nodes
        },
        "links": [
            {"a": link.a, "b": link.b, "a_port": ports[0], "b_port": ports[1]}
            for link, ports in zip(inventory.links, given.link_ports, strict=True)
        ],
        "controller": [sys.executable, "-W", "error", *service],
    }


def _logs(folder: str) -> str:
    tails = [f"{log.name}:\n{log.read_text(errors='replace')[-1500:]}" for log in sorted(Path(folder).glob("*.log"))]
    return "\n".join(tails)


def until(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: it did not come true in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.02)
