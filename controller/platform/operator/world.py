"""What is there of a pipeline on the cluster, and what has to be there: read, made, and pruned.

Objects that another field manager has taken over are taken back, and an Event says from whom: two that write the same
field cannot both be right, and these objects are the operator's. Fields that the operator does not set are let be.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from controller.platform.operator.apply import (
    BROKER,
    FUNCTION,
    POD,
    SERVICE,
    STATEFUL_SET,
    TRIGGER,
    Contended,
)
from controller.platform.operator.facts import (
    BROKER_NAME,
    PIPELINE_LABEL,
    ROLE_LABEL,
    STARTED_WITH_ANNOTATION,
    PodFacts,
    Start,
    workload_node,
)
from controller.platform.operator.placement import layout_text, workloads
from controller.platform.operator.render import Rendering, render, start_spec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from controller.platform.llm_pipeline import LLMPipeline
    from controller.platform.operator.apply import Cluster
    from controller.platform.operator.facts import ClusterNode
    from controller.platform.operator.placement import Places
    from controller.platform.operator.trust import Trust

Object = dict[str, Any]
Key = tuple[str, str, str]

OURS = (STATEFUL_SET, SERVICE, FUNCTION, TRIGGER)


@dataclass(frozen=True, slots=True)
class Note:
    """An Event of Kubernetes: what users see in `kubectl describe`."""

    reason: str
    message: str
    warning: bool = False


class NotYet(RuntimeError):
    """Something has to be there first, and will be without anybody's edit; `reason` is a word for programs."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class World:
    """What is there of a pipeline: its objects, pods of its head, and the nodes that were opted in."""

    owned: Mapping[Key, Object]
    head_pods: Sequence[PodFacts]
    stage_pods: Sequence[PodFacts]
    nodes: Sequence[ClusterNode]

    @classmethod
    def observe(cls, cluster: Cluster, trust: Trust, name: str, uid: str) -> World:
        """Read it."""
        label = f"{PIPELINE_LABEL}={name}"
        objects = [obj for resource in OURS for obj in cluster.list(resource, label)]
        pods = {role: cluster.list(POD, f"{label},{ROLE_LABEL}={role}") for role in ("head", "stage")}
        return cls(
            {key_of(obj): obj for obj in objects if belongs_to(obj, uid)},
            [PodFacts.of(pod) for pod in pods["head"]],
            [PodFacts.of(pod) for pod in pods["stage"]],
            trust.nodes(),
        )

    @property
    def head_pod(self) -> PodFacts | None:
        """The head's pod, if there is one that is not about to end."""
        return next((pod for pod in self.head_pods if not pod.deleting), None)

    @property
    def serving_nodes(self) -> set[str]:
        """The names of node runtimes that are ready."""
        own = {pod.name for pod in self.stage_pods if pod.ready and not pod.deleting}
        return {node.name for node in self.nodes if node.serves} | own

    def started_with(self, pipeline: str) -> Start | None:
        """Return what the head was started with; None if it was not."""
        head = self.owned.get((STATEFUL_SET.api_version, STATEFUL_SET.kind, f"{pipeline}-head"))
        annotations = (head or {}).get("metadata", {}).get("annotations") or {}
        try:
            return msgspec.json.decode(annotations.get(STARTED_WITH_ANNOTATION, ""), type=Start)
        except msgspec.DecodeError:
            return None

    def stage_functions(self, pipeline: str) -> int:
        """Return how many stages have a function."""
        prefix = f"{pipeline}-stage-"
        return sum(1 for version, _, name in self.owned if version == FUNCTION.api_version and name.startswith(prefix))


@dataclass(slots=True)
class Made:
    """What has to be there, and what was done for it."""

    start: Start
    token: str
    objects: list[Object] = field(default_factory=list)

    @property
    def head(self) -> Object | None:
        """The head's StatefulSet."""
        return next(
            (o for o in self.objects if o["kind"] == STATEFUL_SET.kind and o["metadata"]["name"].endswith("-head")),
            None,
        )


class Maker:
    """Has the objects of pipelines there. Remembers what it has applied, to leave what did not change alone."""

    def __init__(self, cluster: Cluster, trust: Trust, image: str) -> None:
        self._cluster = cluster
        self._trust = trust
        self._image = image
        self._applied: dict[Key, tuple[Object, str]] = {}

    def make(
        self,
        pipeline: LLMPipeline,
        uid: str,
        places: Places | None,
        functions: int,
        world: World,
        status: Mapping[str, Any],
        notes: list[Note],
    ) -> Made:
        """Have everything there that the pipeline needs, and nothing else of it.

        Args:
            pipeline: what is wanted.
            uid: of its object.
            places: the nodes of its stages; None if there is no place for one of them: what serves stays then.
            functions: how many stages have a function.
            world: what is there.
            status: as the object has it; a stage that serves is not deleted.
            notes: is added to.

        Raises:
            NotYet: something else has to be there first.
            Rejected: the API server takes one of the objects for invalid.
            ClusterError: it cannot be reached, or refuses.

        """
        started = world.started_with(pipeline.name)
        start = self._start(pipeline, places, world, started)
        missing = sorted(set(start.nodes) - world.serving_nodes)
        made = Made(start, self._trust.token(pipeline, uid))
        if start.nodes:
            self._trust.enrol(pipeline, uid, (workload_node(pipeline.name, index) for index in workloads(pipeline)))
        self._trust.sync()
        with_head = started is not None or not missing
        made.objects = render(Rendering(pipeline, self._cluster.namespace, uid, start, functions, with_head))
        self._apply(made.objects, world, notes)
        self._prune(made.objects, world, {stage.get("node") for stage in status.get("stages") or ()}, notes)
        if not with_head:
            raise NotYet("NodesNotReady", f"waiting for the node runtimes of {', '.join(missing)}")
        return made

    def _start(self, pipeline: LLMPipeline, places: Places | None, world: World, started: Start | None) -> Start:
        """Return what the head is started with: as it was, unless it has to be started again anyway."""
        needed = {node for node in places or () if node}
        if started is not None and started.spec == start_spec(pipeline):
            booted = world.head_pod is not None and world.head_pod.started
            own = {workload_node(pipeline.name, index) for index in workloads(pipeline)}
            usable = needed <= set(started.nodes) <= world.serving_nodes | own
            if booted or usable or places is None:
                return started
        layers = None
        if pipeline.known_layers is not None and places is not None:
            layers = layout_text(pipeline, places, pipeline.known_layers)
        return Start(
            layers=layers,
            nodes=tuple(sorted({node.name for node in world.nodes if node.serves} | needed)),
            image=self._image,
            sink=broker_address(self._cluster),
            spec=start_spec(pipeline),
        )

    def _apply(self, objects: Iterable[Object], world: World, notes: list[Note]) -> None:
        for obj in objects:
            key = key_of(obj)
            there = world.owned.get(key)
            if there and self._applied.get(key) == (obj, there["metadata"]["resourceVersion"]):
                continue
            try:
                made = self._cluster.apply(obj)
            except Contended as error:
                made = self._cluster.apply(obj, force=True)
                told = f"{name_of(obj)}: what the operator sets was taken back: {error}"
                notes.append(Note("Contended", told, warning=True))
            self._applied[key] = (obj, made["metadata"]["resourceVersion"])
            if there is None:
                notes.append(Note("Created", f"{name_of(obj)} was made"))
            elif made["metadata"].get("generation") != there["metadata"].get("generation"):
                notes.append(Note("Updated", f"{name_of(obj)} was changed"))

    def _prune(self, objects: Iterable[Object], world: World, serving: set[str | None], notes: list[Note]) -> None:
        """Delete what the pipeline no longer has, but no stage that still has layers."""
        wanted = {key_of(obj) for obj in objects}
        for key, obj in world.owned.items():
            workload_serves = obj["kind"] == STATEFUL_SET.kind and f"{key[2]}-0" in serving
            is_head = key[2].endswith("-head")
            if key in wanted or workload_serves or is_head or "deletionTimestamp" in obj["metadata"]:
                continue
            self._cluster.delete(obj)
            self._applied.pop(key, None)
            notes.append(Note("Deleted", f"{name_of(obj)} is no longer needed"))


def broker_address(cluster: Cluster) -> str | None:
    """Return the Broker's address; None if there is no Broker.

    Raises:
        NotYet: it has no address yet.

    """
    broker = cluster.get(BROKER, BROKER_NAME)
    if broker is None:
        return None
    url = ((broker.get("status") or {}).get("address") or {}).get("url")
    if not url:
        raise NotYet("BrokerNotReady", f"Broker {BROKER_NAME} has no address yet")
    return str(url)


def belongs_to(obj: Mapping[str, Any], uid: str) -> bool:
    """Whether an object was made for the pipeline with this uid, by the operator."""
    owners = obj["metadata"].get("ownerReferences") or ()
    return any(owner.get("uid") == uid and owner.get("controller") for owner in owners)


def key_of(obj: Mapping[str, Any]) -> Key:
    """Return what tells an object from all others of the namespace."""
    return obj["apiVersion"], obj["kind"], obj["metadata"]["name"]


def name_of(obj: Mapping[str, Any]) -> str:
    """Return an object's kind and name, for people."""
    kind = "function" if obj["apiVersion"] == FUNCTION.api_version else obj["kind"]
    return f"{kind} {obj['metadata']['name']}"
