"""The end of a pipeline, in order: what an object that is being deleted is taken apart into.

1. the Triggers: no event starts anything any more;
2. the head, and its pod: users' requests end with it, within its grace period;
3. the functions: before, the end of a stage's function would have moved its layers away;
4. the stages in pods of their own, whose loss the head would have recovered from;
5. the Services and the Secrets; the other nodes forget the head.

Each step waits for the one before. A pod on a node that does not answer is waited for `PATIENCE_S`, no longer.
"""

from __future__ import annotations

import datetime as dt
import time
from typing import TYPE_CHECKING, Any

from controller.platform.operator.apply import FUNCTION, SECRET, SERVICE, STATEFUL_SET, TRIGGER
from controller.platform.operator.render import control_secret, identity_secret
from controller.platform.operator.world import World, belongs_to, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from controller.platform.operator.apply import Cluster
    from controller.platform.operator.trust import Trust

Object = dict[str, Any]

PATIENCE_S = 180.0

_STEPS: tuple[Callable[[Mapping[str, Any]], bool], ...] = (
    lambda obj: bool(obj["apiVersion"] == TRIGGER.api_version),
    lambda obj: bool(obj["kind"] == STATEFUL_SET.kind and obj["metadata"]["name"].endswith("-head")),
    lambda obj: bool(obj["apiVersion"] == FUNCTION.api_version),
    lambda obj: bool(obj["kind"] == STATEFUL_SET.kind),
    lambda obj: bool(obj["apiVersion"] == SERVICE.api_version),
)


def end(cluster: Cluster, trust: Trust, body: Object) -> str | None:
    """Go one step on; return what is waited for, None when nothing is left.

    Raises:
        ClusterError: the API server cannot be reached, or refuses.

    """
    metadata = body["metadata"]
    name, uid = metadata["name"], metadata["uid"]
    world = World.observe(cluster, trust, name, uid)
    for step in _STEPS:
        left = [obj for obj in world.owned.values() if step(obj)]
        for obj in left:
            if "deletionTimestamp" not in obj["metadata"]:
                cluster.delete(obj)
        if left:
            return f"{', '.join(map(name_of, left))} to be deleted"
        if step is _STEPS[1] and world.head_pods and not _overdue(metadata):
            return f"pod {world.head_pods[0].name} to end"
    for secret in (control_secret(name), identity_secret(name)):
        found = cluster.get(SECRET, secret)
        if found is not None and belongs_to(found, uid):
            cluster.delete(found)
    trust.sync()
    return None


def _overdue(metadata: Mapping[str, Any]) -> bool:
    since = dt.datetime.fromisoformat(metadata["deletionTimestamp"])
    return time.time() - since.timestamp() > PATIENCE_S
