"""Parts of pods that head, stages and functions share: how little they may do, and how they get their identity."""

from __future__ import annotations

from typing import Any

from controller.platform.operator.facts import DATA_PORT

Object = dict[str, Any]

USER = 65532
STATE = "/var/lib/midstream"
CACHE = "/var/cache/midstream"
PEERS_CONFIG_MAP = "midstream-peers"

LOCKED_DOWN: Object = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
POD_SECURITY: Object = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def plain(name: str, value: str) -> Object:
    """Return a variable."""
    return {"name": name, "value": value}


def token(secret: str) -> Object:
    """Return the variable with the control API's token."""
    reference = {"name": secret, "key": "token"}
    return {"name": "MIDSTREAM_CONTROL_TOKEN", "valueFrom": {"secretKeyRef": reference}}


def guard_token() -> Object:
    """Return the variable with the token of the privacy intents' guard, for those that have one."""
    reference = {"name": "midstream-guard", "key": "token", "optional": True}
    return {"name": "MIDSTREAM_GUARD_TOKEN", "valueFrom": {"secretKeyRef": reference}}


def scratch(name: str, size: str, *, memory: bool = False) -> Object:
    """Return an empty volume."""
    return {"name": name, "emptyDir": {**({"medium": "Memory"} if memory else {}), "sizeLimit": size}}


def identity_containers(image: str, node_name: str) -> list[Object]:
    """Return what puts a node's key and the list of its peers where the runtime looks for them.

    The runtime refuses a key that others may read, and a Secret's files belong to root: hence a copy, in memory. The
    peers are read anew whenever one connects, so a link leads to the list as it is then.
    """
    quota = {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}}
    state = {"name": "state", "mountPath": STATE}
    keys = [
        {"name": "identity", "mountPath": f"/identity/{file}", "subPath": f"{node_name}.{file}", "readOnly": True}
        for file in ("key.pem", "cert.pem")
    ]
    copy = ["install", "--mode=0600", f"--target-directory={STATE}", "/identity/key.pem", "/identity/cert.pem"]
    link = ["ln", "--symbolic", "--force", "/peers/peers.json", f"{STATE}/peers.json"]
    return [
        {
            "name": name,
            "image": image,
            "command": command,
            "securityContext": LOCKED_DOWN,
            "resources": quota,
            "volumeMounts": [state, *mounts],
        }
        for name, command, mounts in (("identity", copy, keys), ("peers", link, []))
    ]


def identity_mounts() -> list[Object]:
    """Return where the runtime finds its identity and its peers."""
    return [{"name": "state", "mountPath": STATE}, {"name": "peers", "mountPath": "/peers", "readOnly": True}]


def identity_volumes(secret: str) -> list[Object]:
    """Return the volumes of `identity_containers` and `identity_mounts`."""
    return [
        scratch("state", "8Mi", memory=True),
        {"name": "identity", "secret": {"secretName": secret, "defaultMode": 0o440}},
        {"name": "peers", "configMap": {"name": PEERS_CONFIG_MAP}},
    ]


def data_port() -> Object:
    """Return the port that tensors go through."""
    return {"name": "data", "containerPort": DATA_PORT}
