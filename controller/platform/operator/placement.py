"""On which node each stage is: a pure function of the pipeline, the nodes, and where its stages are now.

========================  ==============================================================================================
a stage with              is
========================  ==============================================================================================
`resources`               in a pod of its own, which has the name ``<pipeline>-stage-<index>-0`` among nodes; Kubernetes
                          puts that pod where `node` or `nodeSelector` say
`node`                    on the node runtime of that node
`nodeSelector`            on one whose labels fit: where the stage is already, else where fewest stages are
none of them              beside the head
========================  ==============================================================================================
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from controller.platform.operator.facts import NODE_LABEL, workload_node
from runtime.layout import LOCAL_NODE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from controller.platform.llm_pipeline import LLMPipeline, Stage
    from controller.platform.operator.facts import ClusterNode

Places = tuple[str | None, ...]
"""The node of each stage of `spec.stages`, None for beside the head; empty when the spec lists no stages."""


class Unplaced(ValueError):
    """A stage has no node to be on; the message says what to do."""


def place(pipeline: LLMPipeline, nodes: Sequence[ClusterNode], current: Sequence[str] = ()) -> Places:
    """Say where each stage is to be.

    Args:
        pipeline: with or without listed stages.
        nodes: those that were opted in.
        current: where the stages are now, in order.

    Raises:
        Unplaced: there is no such node.

    """
    stages = pipeline.spec.stages or ()
    used = Counter(stage.node for stage in stages if stage.node and not stage.resources)
    return tuple(
        _place(pipeline.name, index, stage, nodes, current[index] if index < len(current) else None, used)
        for index, stage in enumerate(stages)
    )


def layout_text(pipeline: LLMPipeline, places: Places, total_layers: int) -> str:
    """Return the layout that is wanted, as the runtime reads it, such as ``15@edge-1,15``.

    Raises:
        InvalidPipeline: the stages do not fit a model of so many layers.

    """
    plain = pipeline.layout_text(total_layers)
    if not pipeline.spec.stages:
        return plain
    pairs = zip(pipeline.spec.stages, places, strict=True)
    return ",".join(f"{stage.layers}@{place}" if place else str(stage.layers) for stage, place in pairs)


def workloads(pipeline: LLMPipeline) -> Mapping[int, Stage]:
    """Return the stages that have a pod of their own, by index."""
    return {index: stage for index, stage in enumerate(pipeline.spec.stages or ()) if stage.resources}


def _place(
    pipeline: str,
    index: int,
    stage: Stage,
    nodes: Sequence[ClusterNode],
    current: str | None,
    used: Counter[str],
) -> str | None:
    where = f"spec.stages[{index}]"
    if stage.resources:
        return workload_node(pipeline, index)
    if stage.node:
        if all(node.name != stage.node for node in nodes):
            raise Unplaced(
                f"{where}.node: {stage.node} runs no node runtime; opt it in with "
                f"`kubectl label node {stage.node} {NODE_LABEL}=true`, or name one of: {_names(nodes)}"
            )
        return stage.node
    if not stage.node_selector:
        return None
    fitting = [node for node in nodes if _fits(node.labels, stage.node_selector)]
    if not fitting:
        labels = ",".join(f"{key}={value}" for key, value in stage.node_selector.items())
        raise Unplaced(
            f"{where}.nodeSelector: no node that runs a node runtime has {labels}; label one, and opt it in with "
            f"{NODE_LABEL}=true"
        )
    chosen = min(fitting, key=lambda node: (node.name != current, not node.serves, used[node.name], node.name)).name
    used[chosen] += 1
    return chosen


def _fits(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.items())


def _names(nodes: Sequence[ClusterNode]) -> str:
    return ", ".join(sorted(node.name for node in nodes)) or f"none yet ({LOCAL_NODE} stages need no node)"
