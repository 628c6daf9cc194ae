"""The broker as a process, with real sockets: a subscriber, a dead letter sink, and the end."""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from controller.platform.broker.client import BrokerClient, BrokerError

DEADLINE_S = 30.0
EVENT = {"ce-specversion": "1.0", "ce-source": "/test", "ce-subject": "smollm", "content-type": "application/json"}


class Subscriber:
    """An HTTP server that keeps what comes; `answer` says what it answers."""

    def __init__(self) -> None:
        self.got: queue.Queue[tuple[dict[str, str], bytes]] = queue.Queue()
        self.answer: dict[str, object] = {"status": 200, "headers": {}, "body": b""}
        self.held = threading.Event()
        self.held.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.got.put(({name.lower(): text for name, text in self.headers.items()}, body))
                outer.held.wait(DEADLINE_S)
                sent = outer.answer
                self.send_response(int(str(sent["status"])))
                for name, text in dict(sent["headers"]).items():  # type: ignore[call-overload]
                    self.send_header(name, text)
                self.send_header("content-length", str(len(bytes(sent["body"]))))  # type: ignore[arg-type]
                self.end_headers()
                self.wfile.write(bytes(sent["body"]))  # type: ignore[arg-type]

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """Say nothing: a broker that ends leaves before it has its answer."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def next(self) -> tuple[dict[str, str], bytes]:
        return self.got.get(timeout=DEADLINE_S)

    def close(self) -> None:
        self.held.set()
        self.server.shutdown()
        self.thread.join(DEADLINE_S)
        self.server.server_close()


@pytest.fixture
def subscriber() -> Iterator[Subscriber]:
    found = Subscriber()
    yield found
    found.close()


@pytest.fixture
def sink() -> Iterator[Subscriber]:
    found = Subscriber()
    yield found
    found.close()


class Process:
    """The broker's process."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "controller.platform.broker", "--port", "0", *arguments]
        environment = {**os.environ, "http_proxy": "http://127.0.0.1:9"}
        environment.pop("MIDSTREAM_CONTROL_TOKEN", None)
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("broker ready at "):
            pytest.fail(f"the broker did not start: {self.process.communicate(timeout=DEADLINE_S)[1]}")
        self.address = line.removeprefix("broker ready at ").strip()
        self.port = int(self.address.rpartition(":")[2])

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait_until_closed(self) -> None:
        """Wait until it accepts no connection any more: it has heard the signal."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S).close()
            except OSError:
                return
        pytest.fail("the broker still accepts connections")

    def ended(self) -> tuple[int, str]:
        _, log = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, log


@contextmanager
def broker(*arguments: str) -> Iterator[tuple[Process, BrokerClient]]:
    process = Process(*arguments)
    try:
        with BrokerClient(process.address) as client:
            yield process, client
    finally:
        if process.process.poll() is None:
            process.process.kill()
        process.process.communicate()


def triggers(folder: Path, sink: str, **delivery: object) -> str:
    file = folder / "triggers.yaml"
    manifest = {
        "apiVersion": "eventing.knative.dev/v1",
        "kind": "Trigger",
        "metadata": {"name": "echo"},
        "spec": {
            "broker": "default",
            "filter": {"attributes": {"type": "asked"}},
            "subscriber": {"ref": {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": "echo"}},
            "delivery": {"retry": 0, "deadLetterSink": {"uri": sink}, **delivery},
        },
    }
    file.write_text(json.dumps(manifest))  # which is YAML
    return str(file)


def send(client: BrokerClient, name: str, data: object = None) -> int:
    return client.send({**EVENT, "ce-id": name, "ce-type": "asked"}, json.dumps(data).encode())


def test_an_event_goes_its_way_and_so_do_its_answer_and_its_dead_letter(
    tmp_path: Path, subscriber: Subscriber, sink: Subscriber
):
    with broker("--triggers", triggers(tmp_path, sink.address), "--service", f"echo={subscriber.address}") as (
        process,
        client,
    ):
        subscriber.answer = {"status": 200, "headers": {**EVENT, "ce-id": "a1", "ce-type": "answered"}, "body": b"[2]"}
        number = send(client, "1", {"layers": "8,12,10"})
        headers, body = subscriber.next()
        assert (headers["ce-id"], headers["prefer"], json.loads(body)) == ("1", "reply", {"layers": "8,12,10"})
        answered = next(client.watch(number, DEADLINE_S, type="answered"))
        assert (answered.event["id"], answered.event["data"]) == ("a1", [2])

        subscriber.answer = {"status": 422, "headers": {}, "body": b"no such layer"}
        number = send(client, "2")
        headers, _ = sink.next()
        assert (headers["ce-id"], headers["ce-knativeerrorcode"]) == ("2", "422")
        assert headers["ce-knativeerrordest"] == subscriber.address
        given_up = next(client.watch(number, DEADLINE_S))
        assert given_up.undelivered is not None
        assert given_up.undelivered.message == "no such layer"

        process.signal()
        code, log = process.ended()
        assert (code, "was not taken by" in log) == (0, True)


def test_told_to_stop_it_delivers_what_it_has_and_accepts_nothing_more(
    tmp_path: Path, subscriber: Subscriber, sink: Subscriber
):
    with broker("--triggers", triggers(tmp_path, sink.address), "--service", f"echo={subscriber.address}") as (
        process,
        client,
    ):
        subscriber.held.clear()
        send(client, "1")
        send(client, "2")
        subscriber.next()
        process.signal()
        process.wait_until_closed()
        subscriber.held.set()
        assert subscriber.next()[0]["ce-id"] == "2"
        assert process.ended()[0] == 0
        with pytest.raises(BrokerError, match="cannot reach the broker"):
            send(client, "3")


@pytest.mark.parametrize("again", [False, True], ids=["when its time is over", "when it is told again"])
def test_what_was_not_delivered_is_said(tmp_path: Path, subscriber: Subscriber, sink: Subscriber, again: bool):
    file = triggers(tmp_path, sink.address)
    within = "600" if again else "0.1"
    with broker("--triggers", file, "--service", f"echo={subscriber.address}", "--drain-seconds", within) as (
        process,
        client,
    ):
        subscriber.held.clear()
        send(client, "1")
        send(client, "2")
        subscriber.next()
        process.signal()
        if again:
            process.wait_until_closed()
            process.signal()
        code, log = process.ended()
        assert code == 3
        assert "trigger echo: asked /test#1 was not delivered" in log
        assert "trigger echo: asked /test#2 was not delivered" in log


def test_a_watcher_is_answered_when_it_ends():
    with broker("--drain-seconds", "1") as (process, _):
        both = b"".join(
            f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode() for path in ("/healthz", "/events?wait=60")
        )
        with socket.create_connection(("127.0.0.1", process.port), timeout=DEADLINE_S) as connection:
            connection.sendall(both)
            answers = connection.recv(1 << 16)
            while b'{"status":"ok"}' not in answers:  # then it has the second request too
                answers += connection.recv(1 << 16)
            process.signal(signal.SIGINT)
            while part := connection.recv(1 << 16):
                answers += part
        assert b'{"events":[],"next":0,"missed":false}' in answers
        assert process.ended()[0] == 0


def test_a_wrong_file_and_a_port_that_is_taken_are_said(tmp_path: Path):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "controller.platform.broker", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)

    wrong = run("--port", "0", "--triggers", triggers(tmp_path, "http://127.0.0.1:9"))
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("midstream: ")
    assert "no Service 'echo' runs here" in wrong.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused = run("--port", str(taken.getsockname()[1]))
    assert (refused.returncode, "Address already in use" in refused.stderr) == (1, True)
    assert run("--service", "echo").returncode == 2
