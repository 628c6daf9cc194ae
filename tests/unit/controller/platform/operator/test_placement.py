"""Which node each stage is on."""

from __future__ import annotations

from typing import Any

import pytest

from controller.platform.llm_pipeline import InvalidPipeline, LLMPipeline
from controller.platform.operator.facts import ClusterNode
from controller.platform.operator.placement import Unplaced, layout_text, place, workloads

NODES = [
    ClusterNode("edge-1", {"tier": "edge"}),
    ClusterNode("edge-2", {"tier": "edge"}),
    ClusterNode("edge-3", {"tier": "edge"}, serves=False),
    ClusterNode("cloud-1", {"tier": "cloud"}),
]
EDGE = {"nodeSelector": {"tier": "edge"}}


def pipeline(*stages: dict[str, Any], **spec: Any) -> LLMPipeline:
    listed = {"stages": [{"layers": 1, **stage} for stage in stages]} if stages else {}
    raw = {"apiVersion": "midstream.dev/v1alpha1", "kind": "LLMPipeline", "metadata": {"name": "llm"}}
    return LLMPipeline.parse({**raw, "spec": {**listed, **spec}})


@pytest.mark.parametrize(
    ("stages", "current", "places"),
    [
        ([{}], (), (None,)),
        ([{"node": "cloud-1"}], (), ("cloud-1",)),
        ([EDGE], (), ("edge-1",)),
        ([EDGE, EDGE], (), ("edge-1", "edge-2")),
        ([EDGE, {"node": "edge-1"}], (), ("edge-2", "edge-1")),
        ([EDGE], ("edge-2",), ("edge-2",)),  # it stays where it is
        ([EDGE], ("cloud-1",), ("edge-1",)),
        ([EDGE, EDGE, EDGE], (), ("edge-1", "edge-2", "edge-1")),  # a node that does not serve is the last choice
        ([{"resources": {}}, {}], (), ("llm-stage-0-0", None)),
        ([{**EDGE, "resources": {}}], (), ("llm-stage-0-0",)),  # Kubernetes places its pod
    ],
)
def test_places(stages: list[dict[str, Any]], current: tuple[str, ...], places: tuple[str | None, ...]) -> None:
    assert place(pipeline(*stages), NODES, current) == places


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"node": "edge-9"}, "kubectl label node edge-9 midstream.dev/node=true"),
        ({"nodeSelector": {"tier": "moon"}}, "no node that runs a node runtime has tier=moon"),
    ],
)
def test_a_stage_without_a_node(stage: dict[str, Any], message: str) -> None:
    with pytest.raises(Unplaced, match=r"spec\.stages\[0\]") as error:
        place(pipeline(stage), NODES)
    assert message in str(error.value)


def test_layouts() -> None:
    listed = pipeline({"node": "edge-1"}, {}, EDGE)
    assert layout_text(listed, place(listed, NODES), 3) == "1@edge-1,1,1@edge-2"
    assert layout_text(pipeline(auto={"stages": 3}), (), 7) == "3,2,2"
    with pytest.raises(InvalidPipeline, match="add up to 3"):
        layout_text(listed, place(listed, NODES), 4)


def test_workloads_are_the_stages_with_resources() -> None:
    assert list(workloads(pipeline({}, {"resources": {}}, {}))) == [1]
