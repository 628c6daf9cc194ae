"""What the operator knows of the cluster when it decides: values, read before and passed in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

BROKER_NAME = "midstream"
DATA_PORT = 7100
NODE_LABEL = "midstream.dev/node"
PIPELINE_LABEL = "midstream.dev/pipeline"
ROLE_LABEL = "midstream.dev/role"
DATA_PORT_LABEL = "midstream.dev/data-port"
START_ANNOTATION = "midstream.dev/start"
"""On the head's pods: which start they are of. A head with another one is about to be replaced."""

STARTED_WITH_ANNOTATION = "midstream.dev/started-with"
"""On the head's StatefulSet: what its pods were started with, see `Start`."""

_CRASHES = {"CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull", "InvalidImageName", "CreateContainerError"}


def head_node_name(pipeline: str) -> str:
    """Return a head's name among nodes, whose own names have no capital letters."""
    return f"Head.{pipeline}"


def workload_name(pipeline: str, stage: int) -> str:
    """Return the name of the StatefulSet of a stage that has resources of its own."""
    return f"{pipeline}-stage-{stage}"


def workload_node(pipeline: str, stage: int) -> str:
    """Return the name among nodes of a stage that has resources of its own: that of its only pod."""
    return f"{workload_name(pipeline, stage)}-0"


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """What a head is started with besides its spec. It stays as it is while the head runs, so that nothing restarts it.

    layers: the layout; None for the head's own default.
    nodes: the nodes that layouts may use.
    image: of head, stages and functions.
    sink: where the head sends events; None for nowhere.
    spec: those fields of the spec that only a start changes, by path.
    """

    layers: str | None
    nodes: tuple[str, ...]
    image: str
    sink: str | None
    spec: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """A node of the cluster that was opted in; `serves` says that its node runtime is ready."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    serves: bool = True


@dataclass(frozen=True, slots=True)
class PodFacts:
    """A pod with one container that matters: `started` once that is up, `trouble` when it cannot come up."""

    name: str
    ip: str | None = None
    node: str | None = None
    http_port: int = 8000
    started: bool = False
    ready: bool = False
    trouble: str | None = None
    start: str | None = None
    deleting: bool = False

    @classmethod
    def of(cls, pod: Mapping[str, Any]) -> PodFacts:
        """Read a Pod object."""
        metadata, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
        ports = [port for container in spec.get("containers", ()) for port in container.get("ports", ())]
        states = status.get("containerStatuses") or ()
        waiting = [((state.get("state") or {}).get("waiting") or {}) for state in states]
        trouble = next((w for w in waiting if w.get("reason") in _CRASHES), None)
        return cls(
            name=metadata["name"],
            ip=status.get("podIP"),
            node=spec.get("nodeName"),
            http_port=next((port["containerPort"] for port in ports if port.get("name") == "http"), 8000),
            started=bool(states) and all(state.get("started") for state in states),
            ready=bool(states) and all(state.get("ready") for state in states),
            trouble=": ".join(filter(None, (trouble["reason"], trouble.get("message")))) if trouble else None,
            start=(metadata.get("annotations") or {}).get(START_ANNOTATION),
            deleting="deletionTimestamp" in metadata,
        )


def image_of(pod: Mapping[str, Any]) -> str:
    """Return the image of a pod's first container: the operator's own, which all that it starts runs too."""
    return str(pod["spec"]["containers"][0]["image"])
