"""What a cluster does besides storing objects, done by tests: pods that boot and end, a Broker that delivers."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx

from runtime.events.envelope import Event, read_http
from tests.integration.functions.head import free_port
from tests.integration.operator.head import ClusterHead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.api_proxy import ApiProxy

DEADLINE_S = 60.0
_POLL_S = 0.05
_OPERATOR = "import typer; from controller.platform.operator_commands import operator; typer.run(operator)"
_PLURALS = {
    "LLMPipeline": ("apis/midstream.dev/v1alpha1", "llmpipelines"),
    "KopfPeering": ("apis/kopf.dev/v1", "kopfpeerings"),
    "StatefulSet": ("apis/apps/v1", "statefulsets"),
    "Service": ("api/v1", "services"),
    "Secret": ("api/v1", "secrets"),
    "ConfigMap": ("api/v1", "configmaps"),
    "Pod": ("api/v1", "pods"),
    "Event": ("api/v1", "events"),
    "Node": ("api/v1", "nodes"),
    "Function": ("apis/serving.knative.dev/v1", "services"),
    "Trigger": ("apis/eventing.knative.dev/v1", "triggers"),
    "Broker": ("apis/eventing.knative.dev/v1", "brokers"),
}


def until(condition: Callable[[], Any], what: str, explain: Callable[[], Any] = lambda: "") -> Any:
    """Return what `condition` returns once that is true."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"it did not come to it that {what}: {explain()}"
        time.sleep(_POLL_S)
    return found


class Namespace:
    """One namespace, empty at first but for what manifests/base puts there that the operator needs."""

    def __init__(self, proxy: ApiProxy, name: str) -> None:
        self.proxy = proxy
        self.name = name
        self.create("KopfPeering", {"metadata": {"name": "midstream"}})
        self.create("Secret", {"metadata": {"name": "midstream-node-identity"}, "type": "Opaque"})
        self.create("ConfigMap", {"metadata": {"name": "midstream-peers"}})

    def path(self, kind: str, name: str = "") -> str:
        root, plural = _PLURALS[kind]
        space = "" if kind == "Node" else f"/namespaces/{self.name}"
        return f"/{root}{space}/{plural}" + (f"/{name}" if name else "")

    def create(self, kind: str, obj: dict[str, Any]) -> dict[str, Any]:
        root, _ = _PLURALS[kind]
        full = {"apiVersion": root.partition("/")[2], "kind": "Service" if kind == "Function" else kind, **obj}
        answer = self.proxy.http.post(self.path(kind), json=full)
        assert answer.is_success, answer.text
        made: dict[str, Any] = answer.json()
        return made

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        answer = self.proxy.http.get(self.path(kind, name))
        return answer.json() if answer.is_success else None

    def names(self, kind: str) -> list[str]:
        return sorted(item["metadata"]["name"] for item in self.list(kind))

    def list(self, kind: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.proxy.http.get(self.path(kind)).json()["items"]
        return items

    def merge(self, kind: str, name: str, patch: dict[str, Any], subresource: str = "") -> dict[str, Any]:
        answer = self.proxy.http.patch(
            self.path(kind, name) + (f"/{subresource}" if subresource else ""),
            json=patch,
            params={"fieldManager": "somebody"},
            headers={"Content-Type": "application/merge-patch+json"},
        )
        assert answer.is_success, answer.text
        made: dict[str, Any] = answer.json()
        return made

    def delete(self, kind: str, name: str) -> None:
        assert self.proxy.http.delete(self.path(kind, name)).is_success

    def edit(self, name: str, **spec: Any) -> None:
        self.merge("LLMPipeline", name, {"spec": spec})

    def events(self, reason: str) -> list[str]:
        return [event["message"] for event in self.list("Event") if event["reason"] == reason]

    def status(self, name: str) -> dict[str, Any]:
        return (self.get("LLMPipeline", name) or {}).get("status") or {}

    def condition(self, name: str, kind: str = "Ready") -> dict[str, Any]:
        conditions = self.status(name).get("conditions") or ()
        return next((condition for condition in conditions if condition["type"] == kind), {})

    def wait_for(self, name: str, status: str, reason: str, kind: str = "Ready") -> dict[str, Any]:
        """Wait for a condition of the current generation; return the status."""

        def there() -> bool:
            body = self.get("LLMPipeline", name) or {}
            told = self.condition(name, kind)
            current = told.get("observedGeneration") == body["metadata"]["generation"]
            return current and (told["status"], told["reason"]) == (status, reason)

        until(there, f"{kind} is {status} for {reason}", lambda: self.status(name))
        return self.status(name)

    def writers(self) -> set[str]:
        """Return the replicas that have written anything but peerings here."""
        return {
            agent.partition("/")[2]
            for agent, method, path in self.proxy.asked
            if agent.startswith("midstream-operator/") and method != "GET" and f"/namespaces/{self.name}/" in path
        }

    # -- what a cluster does -------------------------------------------------------------------------------------------

    def add_broker(self, url: str) -> None:
        self.create("Broker", {"metadata": {"name": "midstream"}, "spec": {}})
        conditions = {"conditions": [{"type": "Ready", "status": "True"}], "address": {"url": url}}
        self.merge("Broker", "midstream", {"status": conditions}, "status")

    @contextlib.contextmanager
    def booted(self, name: str) -> Iterator[ClusterHead]:
        """Run the pod that the head's StatefulSet asks for."""
        head_set = until(lambda: self.get("StatefulSet", f"{name}-head"), "there is a head", lambda: self.status(name))
        head = ClusterHead(free_port(), self.token(name))
        with head.running():
            self.add_head_pod(name, head_set, head.port)
            yield head

    def token(self, name: str) -> str:
        secret = self.get("Secret", f"{name}-control")
        assert secret is not None
        return base64.b64decode(secret["data"]["token"]).decode()

    def add_head_pod(self, name: str, head_set: dict[str, Any], port: int) -> None:
        template = head_set["spec"]["template"]
        container = {"name": "head", "ports": [{"name": "http", "containerPort": port}]}
        self.create(
            "Pod",
            {
                "metadata": {"name": f"{name}-head-0", **template["metadata"]},
                "spec": {"containers": [container]},
                "status": {"podIP": "127.0.0.1", "containerStatuses": [{"started": True, "ready": True}]},
            },
        )

    def add_node(self, name: str, labels: dict[str, str] | None = None) -> None:
        """Opt a node in, whose node runtime is ready. Nodes are the cluster's: tests have their own names."""
        self.create("Node", {"metadata": {"name": name, "labels": {"midstream.dev/node": "true", **(labels or {})}}})
        role = {"midstream.dev/role": "node", "midstream.dev/data-port": "true"}
        self.create(
            "Pod",
            {
                "metadata": {"name": f"midstream-node-{name}", "labels": role},
                "spec": {"nodeName": name, "containers": [{"name": "node"}]},
                "status": {"podIP": "10.0.0.7", "containerStatuses": [{"started": True, "ready": True}]},
            },
        )


class Broker:
    """Takes events, and gives requests for changes to a head as the function `reconfigure` does. `loses` drops them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.head: ClusterHead | None = None
        self.loses = False

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        broker = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                event = read_http(dict(self.headers), self.rfile.read(int(self.headers["content-length"])))
                broker.events.append(event)
                broker.deliver(event)
                self.send_response(202)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}/"
            finally:
                server.shutdown()
                thread.join()

    def deliver(self, event: Event) -> None:
        if self.loses or self.head is None:
            return
        data = {key: value for key, value in event.data.items() if key != "pipeline"}
        httpx.post(
            f"http://127.0.0.1:{self.head.port}/midstream/v1/reconfigurations",
            json=data,
            headers={"Idempotency-Key": event.key, "Authorization": f"Bearer {self.head.token}"},
            trust_env=False,
        )


class OperatorProcess:
    """One replica."""

    def __init__(self, namespace: Namespace, log: Path, name: str = "operator") -> None:
        self.name = name
        self._log = log
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            self.probe = f"http://127.0.0.1:{taken.getsockname()[1]}/healthz"
        arguments = [
            "--namespace",
            namespace.name,
            "--image",
            "registry.example.com/midstream:1",
            "--liveness",
            self.probe,
        ]
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("MIDSTREAM_")},
            "KUBECONFIG": str(namespace.proxy.kubeconfig),
            "POD_NAME": name,
            "PYTHONUNBUFFERED": "1",
        }
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _OPERATOR, *arguments], env=environment, stdout=output, stderr=subprocess.STDOUT
            )

    @property
    def said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def alive(self) -> bool:
        assert self._process.poll() is None, self.said
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(self.probe, trust_env=False).is_success
        return False

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.kill()
        return self._process.returncode
