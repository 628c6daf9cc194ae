"""What runs for an object: commands, triggers, trust; and what is refused on one machine."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from controller.platform.broker.trigger import read_triggers
from controller.platform.llm_pipeline import InvalidPipeline, LLMPipeline, UnsupportedHere
from controller.platform.local import model_layers, plan
from controller.platform.local.plan import HEAD_NAME, LocalPlan
from controller.platform.local.processes import PlatformError
from controller.platform.local.state import PlatformFolder
from runtime.transport.identity import Enrolment
from tests.unit.controller.platform.small_platform import pipeline

if TYPE_CHECKING:
    from pathlib import Path

NODES = [{"layers": 15, "node": "edge-1"}, {"layers": 15, "node": "edge-2"}]


def local_plan(root: Path, wanted: LLMPipeline) -> LocalPlan:
    folder = PlatformFolder("small", root)
    folder.prepare()
    return LocalPlan(folder, wanted, 30, 8123, "/tmp/midstream-x")  # noqa: S108


def test_nodes_come_first_then_the_broker_the_head_and_the_functions(tmp_path: Path):
    assert local_plan(tmp_path, pipeline(stages=NODES)).phases(2) == [
        ["node-edge-1", "node-edge-2"],
        ["broker"],
        ["head"],
        ["reconfigure", "stage-0", "stage-1"],
    ]


def test_the_head_is_started_as_the_object_says(tmp_path: Path):
    wanted = pipeline(
        model={"id": "a/b", "revision": "main", "dtype": "float32", "maxLength": 512},
        capacity={"kvBlocks": 100, "maxRequests": 8, "maxBatchTokens": 256},
        scaling={"sleepAfterSeconds": 60, "holdRequests": 3, "holdSeconds": 2, "spareStages": 0},
        privacy={"guard": "http://127.0.0.1:7180"},
        engineArgs=["--seed=1"],
    )
    made = local_plan(tmp_path, wanted)
    command = made.command("head", wanted)
    flags = command.argv[command.argv.index("serve") + 1 :]
    assert flags == (
        *("--layers", "15,15", "--host", "127.0.0.1", "--port", "8123"),
        *("--model=a/b", "--sleep-after=60.0", "--hold-requests=3", "--hold-seconds=2.0", "--spare-stages=0"),
        "--guard=http://127.0.0.1:7180",
        *("--revision=main", "--dtype=float32", "--max-model-len=512"),
        *("--num-gpu-blocks-override=100", "--max-num-seqs=8", "--max-num-batched-tokens=256", "--seed=1"),
    )
    assert command.environment["K_SINK"] == f"http://{made.address('broker')}"
    assert command.environment["MIDSTREAM_PIPELINE"] == "small"


def test_a_head_that_starts_again_serves_the_object_that_was_applied_last(tmp_path: Path):
    made = local_plan(tmp_path, pipeline())
    assert "10,10,10" in made.command("head", pipeline(auto={"stages": 3})).argv


def test_functions_know_their_stage_their_head_and_their_port(tmp_path: Path):
    made = local_plan(tmp_path, pipeline())
    command = made.command("stage-1", pipeline())
    assert command.argv[-1].endswith("functions/stage")
    assert command.environment["MIDSTREAM_STAGE"] == "1"
    assert command.environment["MIDSTREAM_ENDPOINT"] == "http://127.0.0.1:8123"
    assert command.environment["LISTEN_ADDRESS"] == made.address("stage-1")
    assert len({made.address(child) for child in ("stage-0", "stage-1", "reconfigure", "broker", "head")}) == 5


def test_the_broker_can_read_the_triggers(tmp_path: Path):
    made = local_plan(tmp_path, pipeline())
    made.prepare(2)
    triggers = read_triggers(tmp_path / "small" / "triggers.yaml", {})
    assert [trigger.name for trigger in triggers] == ["reconfigure", "stage-0", "stage-1"]
    assert triggers[1].subscriber.rstrip("/") == f"http://{made.address('stage-0')}"
    requested = {"type": "dev.midstream.reconfiguration.requested"}
    assert [trigger.filter.matches(requested) for trigger in triggers] == [True, False, False]


def test_head_and_nodes_know_each_other_and_only_the_head_controls(tmp_path: Path):
    made = local_plan(tmp_path, pipeline(stages=NODES))
    made.prepare(2)
    peers = Enrolment(tmp_path / "small" / "nodes" / "edge-1").peers()
    assert {name: peer.controls for name, peer in peers.items()} == {HEAD_NAME: True, "edge-2": False}
    assert peers["edge-2"].address == made.address("node-edge-2")
    assert set(Enrolment(tmp_path / "small" / "nodes" / HEAD_NAME).peers()) == {"edge-1", "edge-2"}


def test_what_only_a_cluster_has_is_refused_all_at_once():
    wanted = LLMPipeline.parse(
        {
            **pipeline(stages=[{"layers": 1, "nodeSelector": {"a": "b"}, "resources": {}}]).to_object(),
            "metadata": {"name": "x", "namespace": "y"},
        }
    )
    with pytest.raises(UnsupportedHere) as refusal:
        plan.refuse_what_only_a_cluster_has(wanted)
    places = [line.split(":")[0] for line in str(refusal.value).splitlines()]
    assert places == ["metadata.namespace", "spec.stages[0].nodeSelector", "spec.stages[0].resources"]


def test_a_node_that_does_not_run_is_refused_by_name():
    plan.refuse_unknown_nodes(pipeline(stages=NODES), ["edge-1", "edge-2"])
    with pytest.raises(InvalidPipeline, match=r"spec.stages\[1\].node: 'edge-2' does not run \(edge-1 does\)"):
        plan.refuse_unknown_nodes(pipeline(stages=NODES), ["edge-1"])


def test_a_port_in_use_is_told_before_anything_starts():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PlatformError, match=f"port {port} cannot be used; .* give another with --port"):
            plan.check_free(port)


class TestLayers:
    @pytest.mark.parametrize(
        "configuration", [{"num_hidden_layers": 7}, {"n_layer": 7}, {"text_config": {"num_layers": 7}}]
    )
    def test_of_a_folder_are_read(self, tmp_path: Path, configuration: dict[str, Any]):
        (tmp_path / "config.json").write_text(json.dumps(configuration))
        assert model_layers.count_layers(pipeline(model={"path": str(tmp_path)})) == 7

    @pytest.mark.parametrize("text", ["{}", "{", None])
    def test_that_nobody_knows_are_asked_for(self, tmp_path: Path, text: str | None):
        if text is not None:
            (tmp_path / "config.json").write_text(text)
        with pytest.raises(InvalidPipeline, match=r"spec.model.path: "):
            model_layers.count_layers(pipeline(model={"path": str(tmp_path)}))

    def test_of_a_hub_model_are_looked_up_only_if_the_object_does_not_say_them(self, monkeypatch: pytest.MonkeyPatch):
        def unreachable(model: str, revision: str | None) -> Path:
            raise OSError(f"cannot fetch {model}")

        monkeypatch.setattr(model_layers, "_hub_file", unreachable)
        assert model_layers.count_layers(pipeline(model={"id": "a/b", "layers": 12})) == 12
        assert model_layers.count_layers(pipeline(model={"id": "a/b"}, stages=[{"layers": 5}])) == 5
        with pytest.raises(InvalidPipeline, match=r"spec.model.layers: cannot fetch a/b; .* so say it here"):
            model_layers.count_layers(pipeline(model={"id": "a/b"}))
