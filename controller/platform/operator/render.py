"""What a pipeline is made of on a cluster: a pure function from the object and a few facts to plain objects.

For each pipeline, as in manifests/samples/by-hand::

    Service <name>                     for users
    Service <name>-head                for nodes and functions: a name that leads to the head's pod
    StatefulSet <name>-head            the head
    StatefulSet <name>-stage-<i>       the node runtime of a stage that has resources of its own
    Service <name>-reconfigure         a Knative function, and its Trigger
    Service <name>-stage-<i>           a Knative function for each stage, and its Trigger

All belong to the pipeline (owner references) and have its label. NetworkPolicies, PodDisruptionBudgets, accounts and
the node runtimes of opted in nodes are the namespace's, and in manifests/base.

Caveats: a change of a template replaces its pods. What a live change alters is therefore in no template: the head's
`--layers` and `--node` are those of its start (`Start`), and stages are pods only where they have resources.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from controller.platform.operator import pods
from controller.platform.operator.facts import (
    BROKER_NAME,
    DATA_PORT,
    DATA_PORT_LABEL,
    PIPELINE_LABEL,
    ROLE_LABEL,
    START_ANNOTATION,
    STARTED_WITH_ANNOTATION,
    head_node_name,
    workload_name,
    workload_node,
)
from controller.platform.operator.placement import workloads
from controller.platform.serve_flags import serve_flags
from runtime.events.catalogue import Type

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from controller.platform.llm_pipeline import LLMPipeline, Stage
    from controller.platform.operator.facts import Start

Object = dict[str, Any]

_HTTP_PORT = 8000
_FUNCTION_S = 300  # longer than any change; also how long a function's pod may take to end
_TYPES = {
    "reconfigure": (Type.RECONFIGURATION_REQUESTED,),
    "stage": (Type.STAGE_PREPARE, Type.STAGE_RELEASE),
}


@dataclass(frozen=True, slots=True)
class Rendering:
    """What the objects of a pipeline are rendered from.

    `functions` is the number of stages that have a function: that of the layout that serves, which follows the spec
    only when the change has been made. `with_head` is false while nodes that the head needs are not there.
    """

    pipeline: LLMPipeline
    namespace: str
    uid: str
    start: Start
    functions: int
    with_head: bool = True


def control_secret(pipeline: str) -> str:
    """Return the name of the Secret with the control API's token."""
    return f"{pipeline}-control"


def identity_secret(pipeline: str) -> str:
    """Return the name of the Secret with the keys of the head and of stages in pods of their own."""
    return f"{pipeline}-identity"


def owned(pipeline: LLMPipeline, namespace: str, uid: str) -> Object:
    """Return the metadata that every object of a pipeline has, without a name."""
    owner = {
        "apiVersion": pipeline.api_version,
        "kind": pipeline.kind,
        "name": pipeline.name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {"namespace": namespace, "labels": {PIPELINE_LABEL: pipeline.name}, "ownerReferences": [owner]}


def start_spec(pipeline: LLMPipeline) -> dict[str, Any]:
    """Return those fields of the spec that only a start of the head changes, by path."""
    spec = pipeline.spec
    fields: dict[str, Any] = {}
    for part in (spec.model, spec.capacity, spec.scaling, spec.privacy):
        name = type(part).__name__.lower()
        for path, value in part.model_dump(by_alias=True, exclude_none=True, mode="json").items():
            fields[f"spec.{name}.{path}"] = value
    fields.pop("spec.model.layers", None)  # it is checked, but changes nothing
    return {**fields, **({"spec.engineArgs": list(spec.engine_args)} if spec.engine_args else {})}


def render(wanted: Rendering) -> list[Object]:
    """Return all objects but Secrets, in the order in which they are to be made."""
    return [
        *_services(wanted),
        *(
            _workload(wanted, index, stage)
            for index, stage in workloads(wanted.pipeline).items()
            if workload_node(wanted.pipeline.name, index) in wanted.start.nodes
        ),
        *([_head(wanted), *_functions(wanted)] if wanted.with_head else []),
    ]


# -- the head ----------------------------------------------------------------------------------------------------------


def _services(wanted: Rendering) -> Iterator[Object]:
    name = wanted.pipeline.name
    selector = {PIPELINE_LABEL: name, ROLE_LABEL: "head"}
    users = {"selector": selector, "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}]}
    ports = [
        {"name": "http", "port": _HTTP_PORT, "targetPort": "http", "protocol": "TCP"},
        {"name": "tls-data", "port": DATA_PORT, "targetPort": "data", "protocol": "TCP"},
    ]
    itself = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": selector, "ports": ports}
    yield {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(wanted, name, "head"), "spec": users}
    yield {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(wanted, f"{name}-head"), "spec": itself}


def head_arguments(pipeline: LLMPipeline, start: Start) -> list[str]:
    """Return the flags of `midstream serve`."""
    layers = [] if start.layers is None else [f"--layers={start.layers}"]  # without: the head's own default
    arguments = ["--host=0.0.0.0", f"--port={_HTTP_PORT}", *layers, *serve_flags(pipeline.spec)]
    if start.nodes:
        arguments += [f"--node={node}" for node in start.nodes]
        arguments += [f"--name={head_node_name(pipeline.name)}", f"--listen=0.0.0.0:{DATA_PORT}"]
        arguments += [f"--state={pods.STATE}"]
    return [*arguments, *pipeline.spec.engine_args]


def _head(wanted: Rendering) -> Object:
    """One head at a time, also while a node does not answer: what a StatefulSet promises and a Deployment does not."""
    pipeline, start = wanted.pipeline, wanted.start
    name = pipeline.name
    labels = {PIPELINE_LABEL: name, ROLE_LABEL: "head"}
    probe = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 5}
    environment = [
        pods.token(control_secret(name)),
        pods.plain("MIDSTREAM_PIPELINE", name),
        *([pods.plain("K_SINK", start.sink)] if start.sink else []),
        *([pods.guard_token()] if pipeline.spec.privacy.guard else []),
        pods.plain("HOME", pods.CACHE),
        pods.plain("MIDSTREAM_CACHE", pods.CACHE),
    ]
    container = {
        "name": "head",
        "image": start.image,
        "command": ["midstream", "serve"],
        "args": head_arguments(pipeline, start),
        "env": environment,
        "ports": [{"name": "http", "containerPort": _HTTP_PORT}, pods.data_port()],
        "startupProbe": {**probe, "failureThreshold": 120},
        "readinessProbe": probe,
        "securityContext": pods.LOCKED_DOWN,
        "resources": {"requests": {"cpu": "2", "memory": "6Gi"}, "limits": {"memory": "6Gi"}},
        "volumeMounts": [
            {"name": "cache", "mountPath": pods.CACHE},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - in the container
            {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108
            *(pods.identity_mounts() if start.nodes else []),
        ],
    }
    volumes = [
        pods.scratch("cache", "4Gi"),
        pods.scratch("tmp", "1Gi"),
        pods.scratch("shared-memory", "1Gi", memory=True),
        *(pods.identity_volumes(identity_secret(name)) if start.nodes else []),
    ]
    spec = _pod("midstream-head", container, volumes)
    if start.nodes:
        spec["initContainers"] = pods.identity_containers(start.image, head_node_name(name))
    template = {"metadata": {"labels": {**labels, DATA_PORT_LABEL: "true"}}, "spec": spec}
    template["metadata"]["annotations"] = {START_ANNOTATION: _digest(template)}
    metadata = _metadata(wanted, f"{name}-head", "head")
    metadata["annotations"] = {STARTED_WITH_ANNOTATION: msgspec.json.encode(start).decode()}
    return _stateful_set(metadata, labels, template, f"{name}-head")


def start_of(head: Mapping[str, Any]) -> str:
    """Return which start the pods of a head's StatefulSet are of."""
    return str(head["spec"]["template"]["metadata"]["annotations"][START_ANNOTATION])


# -- stages ------------------------------------------------------------------------------------------------------------


def _workload(wanted: Rendering, index: int, stage: Stage) -> Object:
    """The node runtime of one stage, with what the stage asks for."""
    pipeline, image = wanted.pipeline, wanted.start.image
    name = workload_name(pipeline.name, index)
    labels = {PIPELINE_LABEL: pipeline.name, ROLE_LABEL: "stage", "midstream.dev/stage": str(index)}
    reachable = {"tcpSocket": {"port": "data"}}
    node_name = workload_node(pipeline.name, index)
    asked = stage.resources.model_dump(exclude_none=True) if stage.resources else {}
    container = {
        "name": "node",
        "image": image,
        "command": ["midstream", "node", "run"],
        "args": [f"--name={node_name}", f"--listen=0.0.0.0:{DATA_PORT}", f"--state={pods.STATE}"],
        "env": [pods.plain("HOME", pods.CACHE), pods.plain("MIDSTREAM_CACHE", pods.CACHE)],
        "ports": [pods.data_port()],
        # The engine is imported first, which takes a minute on a slow disk.
        "startupProbe": {**reachable, "periodSeconds": 5, "failureThreshold": 60},
        "readinessProbe": {**reachable, "periodSeconds": 10},
        "securityContext": pods.LOCKED_DOWN,
        "resources": asked,
        "volumeMounts": [
            *pods.identity_mounts(),
            {"name": "models", "mountPath": f"{pods.STATE}/models"},
            {"name": "cache", "mountPath": pods.CACHE},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - in the container
            {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108
        ],
    }
    volumes = [
        *pods.identity_volumes(identity_secret(pipeline.name)),
        {"name": "models", "emptyDir": {}},
        pods.scratch("cache", "2Gi"),
        pods.scratch("tmp", "1Gi"),
        pods.scratch("shared-memory", "1Gi", memory=True),
    ]
    spec = _pod("midstream-node", container, volumes)
    spec["initContainers"] = pods.identity_containers(image, node_name)
    selector = {"kubernetes.io/hostname": stage.node} if stage.node else stage.node_selector
    if selector:
        spec["affinity"] = _affinity(selector)
    if any(key.startswith("nvidia.com/") for key in asked.get("limits", {})):
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    template = {"metadata": {"labels": {**labels, DATA_PORT_LABEL: "true"}}, "spec": spec}
    workload = _stateful_set(_metadata(wanted, name, "stage"), labels, template, f"{pipeline.name}-head")
    # A new pod starts without weights and KV: it is for people to move the layers away and delete the old one.
    workload["spec"]["updateStrategy"] = {"type": "OnDelete"}
    return workload


def _affinity(selector: Mapping[str, str]) -> Object:
    terms = [{"key": key, "operator": "In", "values": [value]} for key, value in selector.items()]
    required = {"nodeSelectorTerms": [{"matchExpressions": terms}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}


# -- functions ---------------------------------------------------------------------------------------------------------


def _functions(wanted: Rendering) -> Iterator[Object]:
    names = [("reconfigure", None), *(("stage", index) for index in range(wanted.functions))]
    for folder, index in names:
        name = f"{wanted.pipeline.name}-{folder}" + ("" if index is None else f"-{index}")
        yield _function(wanted, name, folder, index)
        yield _trigger(wanted, name, folder)


def _function(wanted: Rendering, name: str, folder: str, index: int | None) -> Object:
    pipeline = wanted.pipeline.name
    variables = {
        "LISTEN_ADDRESS": "0.0.0.0:8080",
        "MIDSTREAM_ENDPOINT": f"http://{pipeline}-head:{_HTTP_PORT}",
        "MIDSTREAM_PIPELINE": pipeline,
        **({} if index is None else {"MIDSTREAM_STAGE": str(index)}),
        "HOME": "/tmp",  # noqa: S108 - in the container
    }
    security = {
        **pods.LOCKED_DOWN,
        "runAsNonRoot": True,
        "runAsUser": pods.USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {
        "image": wanted.start.image,
        "command": ["python", "-m", "controller.platform.serve_function"],
        "args": [f"functions/{folder}"],
        "env": [*(pods.plain(*pair) for pair in variables.items()), pods.token(control_secret(pipeline))],
        "ports": [{"containerPort": 8080}],
        "livenessProbe": {"httpGet": {"path": "/health/liveness"}},
        "readinessProbe": {"httpGet": {"path": "/health/readiness"}},
        "securityContext": security,
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
    }
    # The function of a stage stays: that it ends means that the stage goes.
    scale = {"min-scale": "0" if index is None else "1", "max-scale": "1"}
    template = {
        "metadata": {
            "labels": {PIPELINE_LABEL: pipeline, ROLE_LABEL: "function"},
            "annotations": {f"autoscaling.knative.dev/{key}": value for key, value in scale.items()},
        },
        "spec": {
            "serviceAccountName": "midstream-functions",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "timeoutSeconds": _FUNCTION_S,
            "containerConcurrency": 0,
            "containers": [container],
            "volumes": [pods.scratch("tmp", "64Mi")],
        },
    }
    metadata = _metadata(wanted, name)
    metadata["labels"]["networking.knative.dev/visibility"] = "cluster-local"
    return {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"template": template},
    }


def _trigger(wanted: Rendering, name: str, folder: str) -> Object:
    types: list[Object] = [{"exact": {"type": str(kind)}} for kind in _TYPES[folder]]
    service = {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": name}
    spec = {
        "broker": BROKER_NAME,
        "filters": [{"exact": {"subject": wanted.pipeline.name}}, types[0] if len(types) == 1 else {"any": types}],
        "subscriber": {"ref": service},
        "delivery": {
            "timeout": f"PT{_FUNCTION_S}S",
            "retry": 6,
            "backoffPolicy": "exponential",
            "backoffDelay": "PT0.5S",
        },
    }
    return {
        "apiVersion": "eventing.knative.dev/v1",
        "kind": "Trigger",
        "metadata": _metadata(wanted, name),
        "spec": spec,
    }


# -- parts -------------------------------------------------------------------------------------------------------------


def _metadata(wanted: Rendering, name: str, role: str | None = None) -> Object:
    metadata = owned(wanted.pipeline, wanted.namespace, wanted.uid)
    return {
        "name": name,
        **metadata,
        "labels": {**metadata["labels"], **({ROLE_LABEL: role} if role else {})},
    }


def _pod(account: str, container: Object, volumes: list[Object]) -> Object:
    return {
        "serviceAccountName": account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 60,
        "securityContext": pods.POD_SECURITY,
        "containers": [container],
        "volumes": volumes,
    }


def _stateful_set(metadata: Object, labels: Object, template: Object, service: str) -> Object:
    spec = {
        "replicas": 1,
        "serviceName": service,
        # Of one pod. With the other policy, a pod that never got ready would not be replaced by a better one.
        "podManagementPolicy": "Parallel",
        "selector": {"matchLabels": labels},
        "template": template,
    }
    return {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata, "spec": spec}


def _digest(value: object) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()[:16]
