"""The API server, as far as the operator needs it: read, apply, delete, and nothing that guesses.

Problem: kopf watches, but is no client. Protocol: the official `kubernetes` client brings what is hard (credentials of
a pod or of a kubeconfig, their renewal, TLS), kopf logs in through it as well, and objects go over the wire as the
plain data that `render` makes. Everything is written by server-side apply with one field manager, so what the operator
no longer says disappears and what others say stays. Where another manager has taken one of the operator's fields,
`apply` raises `Contended`, which names it; with `force` the field is taken back.

Caveats: calls block; handlers make them on threads. ::

    ClusterError            the API server cannot be reached, or refuses for a reason that may pass
    ├── Contended           another field manager has the field
    ├── AlreadyThere        an object of that name is there
    ├── Outdated            the object has changed since it was read
    └── Rejected            the object is invalid; the same object will be so again
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kubernetes.client import ApiClient

FIELD_MANAGER = "midstream-operator"
Object = dict[str, Any]

_TIMEOUT_S = 20.0
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"


class ClusterError(RuntimeError):
    """The API server cannot be reached, or refused; the message says what it said."""


class Contended(ClusterError):
    """Fields of the object belong to another manager."""


class AlreadyThere(ClusterError):
    """An object of that name is there."""


class Outdated(ClusterError):
    """The object has changed since it was read."""


class Rejected(ClusterError):
    """The API server takes no such object."""


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object, and where the API server has it."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True


PIPELINE = Resource("midstream.dev/v1alpha1", "LLMPipeline", "llmpipelines")
STATEFUL_SET = Resource("apps/v1", "StatefulSet", "statefulsets")
SERVICE = Resource("v1", "Service", "services")
FUNCTION = Resource("serving.knative.dev/v1", "Service", "services")
TRIGGER = Resource("eventing.knative.dev/v1", "Trigger", "triggers")
BROKER = Resource("eventing.knative.dev/v1", "Broker", "brokers")
SECRET = Resource("v1", "Secret", "secrets")
CONFIG_MAP = Resource("v1", "ConfigMap", "configmaps")
POD = Resource("v1", "Pod", "pods")
NODE = Resource("v1", "Node", "nodes", namespaced=False)
_BY_KIND = {
    (resource.api_version, resource.kind): resource
    for resource in (PIPELINE, STATEFUL_SET, SERVICE, FUNCTION, TRIGGER, BROKER, SECRET, CONFIG_MAP, POD, NODE)
}


def resource_of(obj: Mapping[str, Any]) -> Resource:
    """Return the kind of an object."""
    return _BY_KIND[obj["apiVersion"], obj["kind"]]


class Cluster:
    """One namespace of a cluster, and its nodes. Thread-safe."""

    def __init__(self, client: ApiClient, namespace: str) -> None:
        self._client = client
        self.namespace = namespace

    def get(self, resource: Resource, name: str) -> Object | None:
        """Return an object; None if there is none of that name."""
        return self._call("GET", self._path(resource, name), missing_ok=True)

    def list(self, resource: Resource, labels: str = "") -> list[Object]:
        """Return the objects with these labels (a label selector)."""
        query = {"labelSelector": labels} if labels else {}
        answer = self._call("GET", self._path(resource), query=query) or {}
        # Items of a list do not say what they are.
        return [
            {**item, "apiVersion": resource.api_version, "kind": resource.kind} for item in answer.get("items") or ()
        ]

    def apply(self, obj: Object, *, force: bool = False, subresource: str = "") -> Object:
        """Make the server have what the object says, and return what it has then.

        Raises:
            Contended: another manager has one of its fields, and `force` is not set.
            Outdated: it says a resource version, which is not the current one.

        """
        path = self._path(resource_of(obj), obj["metadata"]["name"], subresource)
        query = {"fieldManager": FIELD_MANAGER, "force": str(force).lower()}
        try:
            return self._call("PATCH", path, query=query, body=obj, content_type=_APPLY) or {}
        except Outdated as error:
            if "conflict" in str(error).lower() and "resourceVersion" not in obj["metadata"]:
                raise Contended(str(error)) from error
            raise

    def create(self, obj: Object) -> Object:
        """Create an object.

        Raises:
            AlreadyThere: there is one of that name.

        """
        return self._call("POST", self._path(resource_of(obj)), query={"fieldManager": FIELD_MANAGER}, body=obj) or {}

    def merge(self, resource: Resource, name: str, patch: Object) -> Object | None:
        """Change fields of an object; None if it is gone. With a resource version in it: only if that is current.

        Raises:
            Outdated: it is not.

        """
        query = {"fieldManager": FIELD_MANAGER}
        return self._call(
            "PATCH", self._path(resource, name), query=query, body=patch, content_type=_MERGE, missing_ok=True
        )

    def delete(self, obj: Mapping[str, Any]) -> None:
        """Delete this very object (not another of its name) and, in the background, what belongs to it."""
        options = {"propagationPolicy": "Background", "preconditions": {"uid": obj["metadata"]["uid"]}}
        self._call(
            "DELETE", self._path(resource_of(obj), obj["metadata"]["name"]), body=options, missing_ok=True, gone_ok=True
        )

    def _path(self, resource: Resource, name: str = "", subresource: str = "") -> str:
        root = "/apis" if "/" in resource.api_version else "/api"
        space = f"/namespaces/{self.namespace}" if resource.namespaced else ""
        parts = "".join(f"/{part}" for part in (name, subresource) if part)
        return f"{root}/{resource.api_version}{space}/{resource.plural}{parts}"

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
        missing_ok: bool = False,
        gone_ok: bool = False,
    ) -> Object | None:
        headers = {"Accept": "application/json", **({"Content-Type": content_type} if body is not None else {})}
        # Pairs, as the client's own generated code has them.
        request = self._client.param_serialize(
            method=method,
            resource_path=path,
            query_params=list((query or {}).items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            response = self._client.call_api(*request, _request_timeout=_TIMEOUT_S)
            text = response.read()  # type: ignore[no-untyped-call]
        except (ApiException, HTTPError, OSError) as error:
            raise ClusterError(f"cannot reach the API server: {error}") from error
        try:
            answer = json.loads(text)
        except ValueError:
            answer = {"message": bytes(text)[:200].decode("utf-8", "replace")}
        if 200 <= response.status < 300:
            found: Object = answer
            return found
        if response.status == 404 and missing_ok:
            return None
        if response.status == 409 and gone_ok:  # another object has the name by now
            return None
        raise _error(response.status, answer, f"{method} {path}")


def _error(status: int, answer: Mapping[str, Any], what: str) -> ClusterError:
    message = str(answer.get("message") or f"HTTP {status}")
    if status == 409:
        return (AlreadyThere if answer.get("reason") == "AlreadyExists" else Outdated)(message)
    if status in {400, 422}:
        return Rejected(message)
    return ClusterError(f"{what}: {message}")
