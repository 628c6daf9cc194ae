"""A network of Open vSwitch switches and hosts, made with Mininet, driven by lines of JSON.

Started by `tests.support.mininet_network` with Debian's Python (Mininet is a Debian package) as process 1 of its own
network, mount and process namespaces: interfaces and daemons have no other to collide with, and all of it is gone with
this process. It reads a command a line from standard input, writes an answer a line, and ends at the end of its input.

Every frame at every port of every switch is listened to. A probe carries a mark in its payload, so the order of the
switches at which the mark came in is the way that it took.
"""

import json
import os
import re
import select
import socket
import subprocess
import sys
import threading
import time

from mininet.net import Mininet
from mininet.node import OVSSwitch

MARK = re.compile(rb"mark-[0-9a-f]{8}")
FENCE = b"fence-of-the-listener"
OUTGOING = 4  # PACKET_OUTGOING of linux/if_packet.h
SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"

RECEIVE = """
import select, socket, sys
udp, tcp = socket.socket(type=socket.SOCK_DGRAM), socket.create_server(("", 9))
udp.bind(("", 9))
print("ready", flush=True)
while True:
    for each in select.select([udp, tcp], [], [])[0]:
        if each is udp:
            print(udp.recv(100).decode(), flush=True)
        else:
            peer, _ = tcp.accept()
            with peer:
                peer.settimeout(2)
                data = peer.recv(100)
                print(data.decode(), flush=True)
                peer.sendall(data)
"""
SEND_UDP = """
import json, socket, sys
for source, target, mark in json.loads(sys.argv[1]):
    with socket.socket(type=socket.SOCK_DGRAM) as s:
        s.bind((source, 0))
        s.sendto(mark.encode(), (target, 9))
"""
SEND_TCP = """
import socket, sys
with socket.create_connection((sys.argv[2], 9), timeout=float(sys.argv[4]), source_address=(sys.argv[1], 0)) as s:
    s.sendall(sys.argv[3].encode())
    sys.exit(s.recv(100) != sys.argv[3].encode())
"""


class Listener(threading.Thread):
    """Takes down at which interfaces each mark came in."""

    def __init__(self):
        super().__init__(daemon=True)
        self.fences = threading.Semaphore(0)
        self.seen = {}
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)

    def run(self):
        while True:
            frame, (interface, _, kind, *_) = self.socket.recvfrom(65535)
            if interface == "lo" and kind != OUTGOING and FENCE in frame:
                self.fences.release()
            found = MARK.search(frame)
            if found and kind != OUTGOING and "-eth" in interface:
                self.seen.setdefault(found.group().decode(), []).append(interface.partition("-")[0])

    def path(self, mark):
        """Return the switches that a mark came to, when everything that was sent before now has been taken down."""
        with socket.socket(type=socket.SOCK_DGRAM) as sender:
            sender.sendto(FENCE, ("127.0.0.1", 9))
        if not self.fences.acquire(timeout=10):
            raise RuntimeError("the listener does not keep up")
        return list(self.seen.get(mark, []))


class Driver:
    """The network and what is done with it."""

    def __init__(self, folder):
        self.folder = folder
        self.children = []
        self.arrived = set()
        self.changed = threading.Condition()
        self.count = 0

    def start(self, switches, hosts, links, controller):
        """Start Open vSwitch, the controller, switches, hosts and links; hosts know each other's addresses."""
        os.environ.update(OVS_RUNDIR=self.folder, OVS_DBDIR=self.folder, OVS_LOGDIR=self.folder)
        run("ip", "link", "set", "lo", "up")
        database = f"unix:{self.folder}/db.sock"
        run("ovsdb-tool", "create", f"{self.folder}/conf.db", SCHEMA)
        self.spawn("ovsdb-server", f"{self.folder}/conf.db", f"--remote=p{database}")
        until(lambda: os.path.exists(f"{self.folder}/db.sock"))
        run("ovs-vsctl", "--no-wait", "init")
        self.spawn("ovs-vswitchd", database, f"--unixctl={self.folder}/vswitchd.ctl")
        child = self.spawn(*controller, stdout=subprocess.PIPE)
        port = json.loads(child.stdout.readline())["port"]
        self.net = Mininet(switch=OVSSwitch, controller=None, build=False)
        for name, device in switches.items():
            settings = {"datapath": "user", "protocols": "OpenFlow13", "failMode": "secure"}
            self.net.addSwitch(name, dpid=device.removeprefix("of:"), **settings)
        for name, host in hosts.items():
            self.net.addHost(name, ip=f"{host['addresses'][0]}/8")
            self.net.addLink(name, host["switch"], port1=0, port2=host["port"])
        for link in links:
            self.net.addLink(link["a"], link["b"], port1=link["a_port"], port2=link["b_port"])
        self.net.build()
        self.net.start()
        self.listener = Listener()
        self.listener.start()
        for name, host in hosts.items():
            mininet = self.net.get(name)
            mininet.cmd(f"ethtool -K {name}-eth0 tx off rx off tso off gso off gro off")
            mininet.cmd("sysctl -w net.ipv6.conf.all.disable_ipv6=1")
            for address in host["addresses"]:
                self.place(address, name)
            receiver = mininet.popen(["/usr/bin/python3", "-c", RECEIVE], stdout=subprocess.PIPE)
            assert receiver.stdout.readline() == b"ready\n"
            threading.Thread(target=self.receive, args=(receiver.stdout,), daemon=True).start()
        for name in switches:
            run(
                "ovs-vsctl",
                "set-controller",
                name,
                f"tcp:127.0.0.1:{port}",
                "--",
                "set",
                "controller",
                name,
                "max_backoff=1000",
            )
        return {"port": port}

    def place(self, address, host):
        """Give an address to a host, and take it from every other."""
        mac = self.net.get(host).intf(f"{host}-eth0").MAC()
        for each in self.net.hosts:
            interface = f"{each.name}-eth0"
            if each.name == host:
                each.cmd(f"ip neigh del {address} dev {interface}")
                each.cmd(f"ip addr replace {address}/8 dev {interface}")
            else:
                each.cmd(f"ip addr del {address}/8 dev {interface}")
                each.cmd(f"ip neigh replace {address} lladdr {mac} dev {interface} nud permanent")
        return {}

    def receive(self, stream):
        for line in stream:
            with self.changed:
                self.arrived.add(line.decode().strip())
                self.changed.notify_all()

    def mark(self):
        self.count += 1
        return f"mark-{self.count:08x}"

    def datagrams(self, packets, grace_s):
        """Send packets (source, its host, target, whether it is expected to arrive), and see what becomes of them.

        Those that are expected are waited for; the others have a grace to prove the expectation wrong.
        """
        self.settle()
        marks = [self.mark() for _ in packets]
        for host in {packet[1] for packet in packets}:
            mine = [(each[0], each[2], mark) for each, mark in zip(packets, marks, strict=True) if each[1] == host]
            self.net.get(host).popen(["/usr/bin/python3", "-c", SEND_UDP, json.dumps(mine)]).wait()
        expected = {mark for packet, mark in zip(packets, marks, strict=True) if packet[3]}
        with self.changed:
            self.changed.wait_for(lambda: expected <= self.arrived, 5)
            self.changed.wait_for(lambda: set(marks) <= self.arrived, grace_s)
            return {"probes": [{"arrived": mark in self.arrived, "path": self.listener.path(mark)} for mark in marks]}

    def settle(self):
        """Wait until Open vSwitch has checked the ways that it cached against its tables.

        It answers a barrier when the tables have changed; what it cached follows a moment later.
        """
        run("ovs-appctl", "-t", f"{self.folder}/vswitchd.ctl", "revalidator/wait")

    def exchange(self, source, host, target, protocol, wait_s):
        """Send a packet that is answered if it arrives."""
        self.settle()
        mark = self.mark()
        sender = self.net.get(host)
        if protocol == "icmp":
            command = [
                "ping",
                "-c",
                "1",
                "-W",
                str(wait_s),
                "-I",
                source,
                "-p",
                mark.encode().hex(),
                "-s",
                "64",
                target,
            ]
        else:
            command = ["/usr/bin/python3", "-c", SEND_TCP, source, target, mark, str(wait_s)]
        answered = sender.popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).wait() == 0
        return {"arrived": answered, "path": self.listener.path(mark)}

    def link(self, a, a_port, b, b_port, up):
        """Take a link down, or bring it up again."""
        for end, port in ((a, a_port), (b, b_port)):
            run("ip", "link", "set", f"{end}-eth{port}", "up" if up else "down")
        return {}

    def unrule(self, switch):
        """Delete all rules of a switch behind the controller's back."""
        run("ovs-ofctl", "-O", "OpenFlow13", "del-flows", switch)
        return {}

    def rule(self, switch, rule):
        """Add a rule behind the controller's back."""
        run("ovs-ofctl", "-O", "OpenFlow13", "add-flow", switch, rule)
        return {}

    def spawn(self, *command, **settings):
        log = open(f"{self.folder}/{os.path.basename(command[0])}.log", "wb")  # noqa: SIM115 - for the child's life
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, **({"stdout": log, "stderr": log} | settings))
        self.children.append(child)
        return child


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("waited 20 s in vain")
        select.select([], [], [], 0.01)


def main():
    driver = Driver(sys.argv[1])
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(driver, command.pop("do"))(**command)
        except Exception as error:  # noqa: BLE001 - whoever asked is told
            answer = {"error": repr(error)}
        print(json.dumps(answer), flush=True)  # noqa: T201 - the protocol


main()
