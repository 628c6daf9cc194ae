"""Run one replica of the operator.

Of several replicas one works: kopf's peering pauses those whose priority is not the highest. Equal priorities would
pause all of them, so each takes a random one. While two see each other for the first time both may work for a moment;
that is harmless, since all that the operator does can be done twice.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from dataclasses import dataclass

import kopf
from kubernetes import config
from kubernetes.client import ApiClient
from kubernetes.config import ConfigException

from controller.platform.operator.apply import POD, Cluster, ClusterError
from controller.platform.operator.facts import image_of
from controller.platform.operator.handlers import Handlers
from controller.platform.operator.trust import Trust

POD_VARIABLE = "POD_NAME"
_PEER_LIFETIME_S = 15  # a replica that was killed is replaced after so long
_PREFIX = "midstream.dev"


class OperatorError(RuntimeError):
    """The operator cannot start; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class OperatorOptions:
    """What `midstream operator` was asked for. `image` None: that of the pod this runs in."""

    namespace: str
    peering: str
    liveness: str | None = None
    image: str | None = None


def run(options: OperatorOptions) -> None:
    """Work until SIGTERM or SIGINT.

    Raises:
        OperatorError: there are no credentials, or nobody says which image to run.

    """
    try:
        config.load_incluster_config()  # type: ignore[no-untyped-call]
    except ConfigException:
        try:
            config.load_kube_config()  # type: ignore[no-untyped-call]
        except (ConfigException, OSError) as error:
            raise OperatorError(
                f"there is no cluster to work in: this is no pod of one, and no kubeconfig can be used ({error})"
            ) from error
    replica = os.environ.get(POD_VARIABLE) or f"{socket.gethostname()}-{secrets.token_hex(4)}"
    client = ApiClient()
    client.user_agent = f"midstream-operator/{replica}"  # for audits: which replica it was
    cluster = Cluster(client, options.namespace)
    handlers = Handlers(cluster, Trust(cluster), options.image or _own_image(cluster))
    kopf.configure(log_format=kopf.LogFormat.FULL)
    for chatty in ("aiohttp.access", "httpx"):  # one line for each probe, and for each look at a head
        logging.getLogger(chatty).setLevel(logging.WARNING)
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry, id="login")(kopf.login_via_client)
    handlers.register(registry)
    # kopf's own way to be told this replica's name among replicas.
    os.environ["POD_ID"] = replica
    kopf.run(
        registry=registry,
        settings=settings(),
        priority=secrets.randbelow(2**31),
        peering_name=options.peering,
        namespaces=[options.namespace],
        liveness_endpoint=options.liveness,
    )


def settings() -> kopf.OperatorSettings:
    """Return how kopf is to work here."""
    chosen = kopf.OperatorSettings()
    chosen.peering.mandatory = True
    chosen.peering.namespaced = True
    chosen.peering.lifetime = _PEER_LIFETIME_S
    # It may neither watch CRDs nor namespaces.
    chosen.scanning.disabled = True
    # The CRD has no room for kopf's own notes in the status.
    chosen.persistence.finalizer = f"{_PREFIX}/operator"
    chosen.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=_PREFIX)
    chosen.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=_PREFIX)
    chosen.posting.reporting_component = "midstream-operator"
    chosen.posting.event_name_prefix = "midstream-"
    return chosen


def _own_image(cluster: Cluster) -> str:
    name = os.environ.get(POD_VARIABLE)
    hint = "say which image to run with --image"
    if not name:
        raise OperatorError(f"{POD_VARIABLE} is not set, so this is not the operator's Deployment; {hint}")
    try:
        pod = cluster.get(POD, name)
    except ClusterError as error:
        raise OperatorError(f"the image of pod {name} cannot be read: {error}; {hint}") from error
    if pod is None:
        raise OperatorError(f"there is no pod {name} in namespace {cluster.namespace}; {hint}")
    return image_of(pod)
