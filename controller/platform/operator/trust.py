"""Who is enrolled at whom: the keys of nodes and heads, and the one list of peers that all of them read.

Problem: node runtimes and heads accept exactly the certificates that were enrolled with them, and nobody shall carry
those by hand on a cluster. Protocol: the operator makes an identity for each node that was opted in (Secret
``midstream-node-identity``) and for each pipeline's head and stages in pods of their own (its own Secret), and lists
all certificates with the addresses that the pods have now (ConfigMap ``midstream-peers``). A key is made once and never
replaced: Secrets are changed only as they were read, so of two replicas that make one at a time, one starts again.

Caveats: the namespace is the boundary of trust. All heads in it control all nodes in it. Who may read its Secrets can
be any of them.
"""

from __future__ import annotations

import base64
import secrets
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from controller.platform.operator.apply import (
    CONFIG_MAP,
    NODE,
    PIPELINE,
    POD,
    SECRET,
    AlreadyThere,
    Cluster,
    Outdated,
)
from controller.platform.operator.facts import (
    DATA_PORT,
    DATA_PORT_LABEL,
    NODE_LABEL,
    PIPELINE_LABEL,
    ROLE_LABEL,
    ClusterNode,
    PodFacts,
    head_node_name,
)
from controller.platform.operator.pods import PEERS_CONFIG_MAP
from controller.platform.operator.render import control_secret, identity_secret, owned
from runtime.transport.identity import Identity, Peer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from controller.platform.llm_pipeline import LLMPipeline

NODE_SECRET = "midstream-node-identity"  # noqa: S105 - its name
_ATTEMPTS = 5


class Trust:
    """Keeps identities and peers of one namespace. Thread-safe."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._lock = threading.Lock()

    def nodes(self) -> list[ClusterNode]:
        """Return the nodes that were opted in, each with whether its node runtime is ready."""
        serving = {facts.node for facts in map(PodFacts.of, self._pods("node")) if facts.ready and not facts.deleting}
        return [
            ClusterNode(
                node["metadata"]["name"],
                node["metadata"].get("labels") or {},
                serves=node["metadata"]["name"] in serving,
            )
            for node in self._cluster.list(NODE, f"{NODE_LABEL}=true")
        ]

    def token(self, pipeline: LLMPipeline, uid: str) -> str:
        """Return the token of a pipeline's control API, made now if there is none."""
        name = control_secret(pipeline.name)
        found = self._cluster.get(SECRET, name)
        if found is None:
            data = {"token": _encoded(secrets.token_hex(32))}
            found = self._create_secret(name, owned(pipeline, self._cluster.namespace, uid), data)
        return base64.b64decode(found["data"]["token"]).decode()

    def enrol(self, pipeline: LLMPipeline, uid: str, names: Iterable[str]) -> None:
        """Give identities to a pipeline's head and to its stages in pods of their own."""
        metadata = owned(pipeline, self._cluster.namespace, uid)
        self._keep_identities(identity_secret(pipeline.name), [head_node_name(pipeline.name), *names], metadata)

    def sync(self) -> None:
        """Give identities to opted in nodes, and write down who is where."""
        with self._lock:  # several pipelines' threads come here
            nodes = [node["metadata"]["name"] for node in self._cluster.list(NODE, f"{NODE_LABEL}=true")]
            held = dict(self._keep_identities(NODE_SECRET, nodes, {"namespace": self._cluster.namespace}))
            certificates = {name: pem for name, pem in held.items() if name in nodes}
            for pipeline in self._cluster.list(PIPELINE):
                if "deletionTimestamp" not in pipeline["metadata"]:
                    found = self._cluster.get(SECRET, identity_secret(pipeline["metadata"]["name"]))
                    certificates.update(_certificates((found or {}).get("data") or {}))
            self._tell(peers_text(certificates, self._addresses()))

    def _addresses(self) -> dict[str, str]:
        """Return where each node, head and stage in a pod of its own can be reached now."""
        addresses = {}
        for pod in self._pods():
            facts, labels = PodFacts.of(pod), pod["metadata"].get("labels") or {}
            names = {
                "node": facts.node,
                "head": head_node_name(labels.get(PIPELINE_LABEL, "")),
                "stage": facts.name,
            }
            name = names.get(labels.get(ROLE_LABEL, ""))
            if name and facts.ip and not facts.deleting:
                host = f"[{facts.ip}]" if ":" in facts.ip else facts.ip
                addresses[name] = f"{host}:{DATA_PORT}"
        return addresses

    def _pods(self, role: str | None = None) -> list[dict[str, Any]]:
        return self._cluster.list(POD, f"{DATA_PORT_LABEL}=true" + (f",{ROLE_LABEL}={role}" if role else ""))

    def _tell(self, text: str) -> None:
        found = self._cluster.get(CONFIG_MAP, PEERS_CONFIG_MAP)
        if found is not None and (found.get("data") or {}).get("peers.json") == text:
            return
        metadata = {"name": PEERS_CONFIG_MAP, "namespace": self._cluster.namespace}
        # Nobody else may say who is trusted.
        self._cluster.apply(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"peers.json": text}}, force=True
        )

    def _keep_identities(self, secret: str, names: Iterable[str], metadata: Mapping[str, Any]) -> dict[str, str]:
        """Have a Secret hold an identity for each name; return all its certificates by name."""
        names = list(names)
        for attempt in range(_ATTEMPTS):
            found = self._cluster.get(SECRET, secret) or self._create_secret(secret, metadata, {})
            data = found.get("data") or {}
            missing = [name for name in names if f"{name}.cert.pem" not in data]
            if not missing:
                return _certificates(data)
            made = {key: _encoded(text) for name in missing for key, text in _new_identity(name).items()}
            version = {"resourceVersion": found["metadata"]["resourceVersion"]}
            try:
                self._cluster.merge(SECRET, secret, {"metadata": version, "data": made})
            except Outdated:
                if attempt == _ATTEMPTS - 1:
                    raise
        return self._keep_identities(secret, (), metadata)

    def _create_secret(self, name: str, metadata: Mapping[str, Any], data: Mapping[str, str]) -> dict[str, Any]:
        secret = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": {"name": name, **metadata}}
        try:
            return self._cluster.create({**secret, "data": dict(data)})
        except AlreadyThere:
            return self._cluster.get(SECRET, name) or {}


def peers_text(certificates: Mapping[str, str], addresses: Mapping[str, str]) -> str:
    """Return the list of peers as `runtime.transport.identity.Enrolment` reads it.

    Args:
        certificates: by name among nodes.
        addresses: ``host:port`` by name, of those that have one now.

    """
    peers = [
        Peer(name=name, certificate_pem=pem, address=addresses.get(name), controls=name.startswith(head_node_name("")))
        for name, pem in sorted(certificates.items())
    ]
    return msgspec.json.format(msgspec.json.encode(peers), indent=2).decode()


def _new_identity(name: str) -> dict[str, str]:
    with tempfile.TemporaryDirectory(prefix="midstream-") as folder:
        identity = Identity.load_or_create(Path(folder, name), name)
        key = Path(identity.folder, "key.pem").read_text(encoding="ascii")
    return {f"{name}.key.pem": key, f"{name}.cert.pem": identity.certificate_pem}


def _certificates(data: Mapping[str, str]) -> dict[str, str]:
    ending = ".cert.pem"
    return {
        key.removesuffix(ending): base64.b64decode(text).decode() for key, text in data.items() if key.endswith(ending)
    }


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
