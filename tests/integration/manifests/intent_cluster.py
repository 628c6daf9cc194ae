"""A cluster for the function of samples/intents: who may do what there, and the function as its manifest starts it.

The function is a process of this machine. Its variables are the manifest's; only addresses differ, and the folders that
are mounted in a pod are folders of the test. The API server is a real one (`tests.support.api_proxy`) that writes down
what the function needs a right for. Nobody refuses what a role does not allow: a test compares.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.integration.functions.head import free_port
from tests.integration.functions.process import FunctionProcess
from tests.support.api_proxy import ApiProxy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from starlette.requests import Request
    from starlette.responses import Response

    from tests.integration.manifests.conftest import Objects
    from tests.support.api_server import ApiServer

NAME = "midstream-intent"
WORKLOADS = ("records", "website")
_TESTS = "the-tests"
_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/v1(?:/namespaces/(?P<namespace>[^/]+))?/(?P<resource>[^/]+)"
    r"(?:/(?P<name>[^/]+)(?P<below>/[^/]+)?)?"
)


class Right(NamedTuple):
    """One thing that may be done; without a namespace in the whole cluster."""

    verb: str
    group: str
    resource: str
    namespace: str | None


def rights_for(method: str, path: str, *, created: bool = False) -> set[Right]:
    """Return what the API server asks its authorizer for such a request."""
    found = _PATH.fullmatch(path)
    assert found is not None, path
    verb = {"POST": "create", "PUT": "update"}.get(method, method.lower())
    if found["name"] is None:
        verb = {"get": "list", "delete": "deletecollection"}.get(verb, verb)
    resource = found["resource"] + (found["below"] or "")
    verbs = {verb, "create"} if created else {verb}
    return {Right(each, found["group"] or "", resource, found["namespace"]) for each in verbs}


def rights_of(account: str, objects: Objects) -> set[Right]:
    """Return what a service account of these objects may do."""
    roles = {(obj["kind"], obj["metadata"]["name"]): obj["rules"] for obj in objects if "rules" in obj}
    return {
        Right(verb, group, resource, None if obj["kind"] == "ClusterRoleBinding" else obj["metadata"]["namespace"])
        for obj in objects
        if obj["kind"] in {"RoleBinding", "ClusterRoleBinding"}
        and account in [subject["name"] for subject in obj["subjects"]]
        for rule in roles[obj["roleRef"]["kind"], obj["roleRef"]["name"]]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


class IntentCluster(ApiProxy):
    """The API server, with nodes and Deployments as the sample's inventory has them."""

    def __init__(self, server: ApiServer, folder: Path) -> None:
        super().__init__(server, folder)
        self.http.headers["user-agent"] = _TESTS
        self.used: set[Right] = set()
        self.looks = 0
        """How often the function has asked for the nodes, which it does first whenever it looks."""

    async def _forward(self, request: Request) -> Response:
        answer = await super()._forward(request)
        if request.headers.get("user-agent") != _TESTS:
            self.used |= rights_for(request.method, request.url.path, created=answer.status_code == 201)
            self.looks += request.url.path == "/api/v1/nodes"
        return answer

    def has(self, path: str, body: Mapping[str, Any]) -> None:
        """Make an object be there; `path` is that of its kind."""
        answer = self.http.patch(
            f"{path}/{body['metadata']['name']}",
            params={"fieldManager": "somebody", "force": "true"},
            json=body,
            headers={"content-type": "application/apply-patch+yaml"},
        )
        assert answer.is_success, answer.text

    def has_node(self, name: str, labels: Mapping[str, str]) -> None:
        """Make a node be there."""
        self.has("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})

    def has_deployment(self, name: str, node: str, labels: Mapping[str, str]) -> None:
        """Make a Deployment be there, and its pod on a node."""
        deployment = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name},
            "spec": {"replicas": 1},
        }
        self.has("/apis/apps/v1/namespaces/midstream/deployments", deployment)
        self.has_pod(f"{name}-1", node, {"midstream.dev/workload": name, **labels})

    def has_pod(self, name: str, node: str, labels: Mapping[str, str]) -> None:
        """Make a pod be there, on a node."""
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}}
        self.has("/api/v1/namespaces/midstream/pods", {**pod, "spec": {"nodeName": node}})

    def names(self, resource: str) -> set[str]:
        """Return the names of all objects of a kind, such as `networking.k8s.io/v1/networkpolicies`."""
        items = self.http.get(f"/apis/{resource}").json()["items"]
        return {item["metadata"]["name"] for item in items}


def container_of(objects: Objects) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the pod's spec and the container of the function."""
    (service,) = (o for o in objects if o["apiVersion"].startswith("serving") and o["metadata"]["name"] == NAME)
    pod = service["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


def mount(objects: Objects, folder: Path) -> dict[str, Path]:
    """Make the folders that the manifest mounts; returns them by the path in the pod."""
    pod, container = container_of(objects)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    config_maps = {obj["metadata"]["name"]: obj["data"] for obj in objects if obj["kind"] == "ConfigMap"}
    claims = {obj["metadata"]["name"] for obj in objects if obj["kind"] == "PersistentVolumeClaim"}
    mounted = {}
    for each in container["volumeMounts"]:
        volume, path = volumes[each["name"]], folder / each["name"]
        path.mkdir(exist_ok=True)
        if "configMap" in volume:
            for name, text in config_maps[volume["configMap"]["name"]].items():
                (path / name).write_text(text, encoding="utf-8")
        if "persistentVolumeClaim" in volume:
            assert volume["persistentVolumeClaim"]["claimName"] in claims
        mounted[each["mountPath"]] = path
    return mounted


def start(objects: Objects, mounted: Mapping[str, Path], **addresses: str) -> FunctionProcess:
    """Start the function as its manifest says, but for these variables."""
    _, container = container_of(objects)
    assert container["command"] == ["python", "-m", "controller.platform.serve_function"]
    (function,) = container["args"]
    told = {each["name"]: each.get("value", "s3cret") for each in container["env"] if each["name"] != "LISTEN_ADDRESS"}
    settings = {name: _in(mounted.items(), value) for name, value in told.items()}
    log = mounted["/tmp"].with_name("function.log")  # noqa: S108 - in the container
    return FunctionProcess.start(function.removeprefix("functions/"), free_port(), log, {**settings, **addresses})


def _in(mounted: Iterable[tuple[str, Path]], value: str) -> str:
    for path, folder in mounted:
        if value == path or value.startswith(f"{path}/"):
            return f"{folder}{value.removeprefix(path)}"
    return value
