"""Manifests enforced on a cluster, and what is needed to fail closed: cordon a node, evict a pod.

Protocol: the official `kubernetes` client brings credentials and TLS; objects go over the wire as the compiler made
them, by server-side apply with one field manager and strict field validation. What another manager has taken is never
forced: the error names it, and nothing holds by accident. A Deployment here is a fragment (labels and affinity) of one
that somebody else owns, so it is only ever applied to one that is there.

Caveat: a `Deployment` takes its pods through a rolling update; until that is over, pods of the old template run on.
`read_cluster` sees them, so the checker does.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from intents.errors import EnforcementError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kubernetes.client import ApiClient

FIELD_MANAGER = "midstream-intents"

_TIMEOUT_S = 20.0
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_JSON = "application/json"
_PAGE = 500
_CONFLICT = 409
_PLURALS = {  # and whether objects have a namespace
    ("networking.k8s.io/v1", "NetworkPolicy"): ("networkpolicies", True),
    ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy"): ("validatingadmissionpolicies", False),
    ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding"): (
        "validatingadmissionpolicybindings",
        False,
    ),
    ("apps/v1", "Deployment"): ("deployments", True),
}


class Cluster:
    """A cluster, as far as intents go. Calls block."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    def apply(self, manifests: Sequence[Mapping[str, Any]]) -> None:
        """Make the cluster have what these manifests say: policies first, then what lets pods move.

        Raises:
            EnforcementError: one is refused, a field belongs to somebody else, or a Deployment is not there.
        """
        fragments = [each for each in manifests if each["kind"] == "Deployment"]
        missing = [_name(each) for each in fragments if self._call("GET", _path(each), missing_ok=True) is None]
        if missing:
            raise EnforcementError(f"no Deployment {', '.join(missing)}: deploy it first; nothing was applied")
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        for manifest in [*(each for each in manifests if each["kind"] != "Deployment"), *fragments]:
            self._call("PATCH", _path(manifest), query, manifest, _APPLY)

    def delete(self, manifests: Sequence[Mapping[str, Any]]) -> None:
        """Take these back: delete the objects, and of Deployments take away the fields that were applied."""
        for manifest in manifests:
            if manifest["kind"] != "Deployment":
                self._call("DELETE", _path(manifest), missing_ok=True)
            elif self._call("GET", _path(manifest), missing_ok=True) is not None:
                metadata = {
                    key: manifest["metadata"][key] for key in ("name", "namespace") if key in manifest["metadata"]
                }
                nothing = {"apiVersion": manifest["apiVersion"], "kind": "Deployment", "metadata": metadata}
                self._call("PATCH", _path(manifest), {"fieldManager": FIELD_MANAGER}, nothing, _APPLY)

    def installed(self) -> list[dict[str, Any]]:
        """Return the NetworkPolicies of all namespaces, whoever made them."""
        items, _ = self.list("/apis/networking.k8s.io/v1/networkpolicies")
        return [{**item, "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"} for item in items]

    def list(self, path: str) -> tuple[list[dict[str, Any]], str]:
        """Return all objects of a kind, page by page, and the version of the first page."""
        items: list[dict[str, Any]] = []
        query = {"limit": str(_PAGE)}
        version = ""
        while True:
            page = self._call("GET", path, query) or {}
            items += page.get("items") or []
            version = version or str(page["metadata"]["resourceVersion"])
            if not page["metadata"].get("continue"):
                return items, version
            query = {"limit": str(_PAGE), "continue": page["metadata"]["continue"]}

    def cordon(self, node: str) -> None:
        """Keep new pods away from a node."""
        self._call("PATCH", f"/api/v1/nodes/{node}", {}, {"spec": {"unschedulable": True}}, _MERGE)

    def evict(self, namespace: str, pod: str) -> None:
        """Make a pod leave its node, as far as its disruption budget lets it.

        Raises:
            EnforcementError: it may not leave now.
        """
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
        self._call("POST", path, {}, body, _JSON, missing_ok=True)

    def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = _JSON,
        *,
        missing_ok: bool = False,
    ) -> dict[str, Any] | None:
        from kubernetes.client.exceptions import ApiException  # the client takes long to import
        from urllib3.exceptions import HTTPError

        headers = {"Accept": _JSON, **({"Content-Type": content_type} if body is not None else {})}
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
            raise EnforcementError(f"the API server cannot be reached: {error}") from error
        try:
            answer: dict[str, Any] = json.loads(text)
        except ValueError:
            answer = {"message": bytes(text)[:200].decode("utf-8", "replace")}
        if 200 <= response.status < 300:
            return answer
        if response.status == 404 and missing_ok:
            return None
        message = answer.get("message") or f"HTTP {response.status}"
        if response.status == _CONFLICT:
            raise EnforcementError(f"{method} {path}: somebody else has it: {message}")
        raise EnforcementError(f"{method} {path}: {message}")


def _name(manifest: Mapping[str, Any]) -> str:
    return f"{manifest['metadata'].get('namespace', 'default')}/{manifest['metadata']['name']}"


def _path(manifest: Mapping[str, Any]) -> str:
    api_version, kind = manifest["apiVersion"], manifest["kind"]
    if (api_version, kind) not in _PLURALS:
        raise EnforcementError(f"{kind} of {api_version} is nothing that intents are enforced with")
    plural, namespaced = _PLURALS[api_version, kind]
    space = f"/namespaces/{manifest['metadata'].get('namespace', 'default')}" if namespaced else ""
    return f"/apis/{api_version}{space}/{plural}/{manifest['metadata']['name']}"
