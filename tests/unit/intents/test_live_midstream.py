"""An inventory with a running pipeline in it: where its stages are, and what the file says of them."""

from typing import Any

import httpx
import pytest
import yaml

from intents.errors import InventoryError
from intents.live_midstream import PIPELINE, MidstreamSource, RunningPipeline, merged, read_running
from intents.model.inventory import Inventory, parse_inventory

STATUS: dict[str, Any] = {
    "model": "m",
    "epoch": 3,
    "phase": "serving",
    "layers": "15@edge-1,15@edge-2",
    "stages": [
        {"index": 1, "name": "stage-2", "node": "edge-2", "pid": 2},
        {"index": 0, "name": "stage-1", "node": "edge-1", "pid": 1},
    ],
}


def inventory(*workloads: dict[str, Any]) -> Inventory:
    document = {
        "kind": "Inventory",
        "version": "7",
        "nodes": [{"name": "edge-1", "switch": "s1"}, {"name": "edge-2"}, {"name": "head"}],
        "switches": [{"name": "s1"}],
        "workloads": list(workloads),
    }
    return parse_inventory(yaml.safe_dump(document))


def source(answer: Any, here: str | None = None, told: list[httpx.Request] | None = None) -> MidstreamSource:
    def respond(request: httpx.Request) -> httpx.Response:
        if told is not None:
            told.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)

    return MidstreamSource(
        "http://127.0.0.1:8000/v1", "smollm", here, token="s3cret", transport=httpx.MockTransport(respond)
    )


class TestReading:
    def test_a_head_is_asked_with_its_token(self):
        told: list[httpx.Request] = []
        assert source(STATUS, told=told).read() == RunningPipeline("smollm", ("edge-1", "edge-2"), 3)
        assert str(told[0].url) == "http://127.0.0.1:8000/midstream/v1/status"
        assert told[0].headers["authorization"] == "Bearer s3cret"

    def test_a_pipeline_that_sleeps_is_where_it_will_wake(self):
        asleep = STATUS | {"stages": [], "layers": "10@edge-2, 10 , 10@edge-1"}
        assert source(asleep, "head").read() == RunningPipeline("smollm", ("edge-2", "head", "edge-1"), 3, awake=False)

    def test_stages_beside_the_head_need_the_name_of_its_machine(self):
        beside = STATUS | {"stages": [{"index": 0, "node": "local"}]}
        assert source(beside, "head").read().nodes == ("head",)
        with pytest.raises(InventoryError, match="say which node of the inventory that is"):
            source(beside).read()

    @pytest.mark.parametrize(
        ("answer", "says"),
        [
            (httpx.ConnectError("Connection refused"), "cannot be reached: Connection refused"),
            (httpx.ReadTimeout(""), "cannot be reached: ReadTimeout"),
            (httpx.Response(401, json={}), "MIDSTREAM_CONTROL_TOKEN"),
            (httpx.Response(404, json={}), "has no control API"),
            (httpx.Response(503, json={}), "HTTP 503"),
            (httpx.Response(200, text="hello"), "makes no sense"),
            ({"epoch": 3}, "makes no sense: layers"),
            (STATUS | {"stages": [{"index": 0}]}, r"makes no sense: stages\.0\.node"),
        ],
    )
    def test_errors_say_what_and_where(self, answer: Any, says: str):
        with pytest.raises(InventoryError, match=says) as error:
            source(answer).read()
        assert "s3cret" not in str(error.value)

    def test_what_is_no_name_or_address_is_refused(self):
        with pytest.raises(InventoryError, match="no name of a pipeline"):
            MidstreamSource("http://127.0.0.1:8000", "Smol LM")
        with pytest.raises(InventoryError, match="is no address"):
            MidstreamSource("http://127.0.0.1:x", "smollm")


class TestMerging:
    def test_stages_are_workloads_where_they_run(self):
        read = read_running(inventory({"name": "billing", "node": "edge-1"}), [source(STATUS)])
        assert {each.name: (each.node, each.labels) for each in read.workloads} == {
            "billing": ("edge-1", {}),
            "smollm-stage-0": ("edge-1", {PIPELINE: "smollm"}),
            "smollm-stage-1": ("edge-2", {PIPELINE: "smollm"}),
        }
        assert read.workload["smollm-stage-1"].node == "edge-2"
        assert (read.switches, read.version) == (inventory().switches, "7+smollm.3")

    def test_what_the_file_says_of_the_pipeline_holds_for_its_stages(self):
        whole = {"name": "smollm", "labels": {"midstream.dev/data": "health", "team": "a"}, "namespace": "clinic"}
        stage = {"name": "smollm-stage-1", "node": "edge-1", "labels": {"team": "b"}, "ip": "10.1.2.3"}
        read = merged(inventory(whole, stage), [RunningPipeline("smollm", ("edge-1", "edge-2"), 1)])
        assert sorted(read.workload) == ["smollm-stage-0", "smollm-stage-1"]
        first, second = read.workload["smollm-stage-0"], read.workload["smollm-stage-1"]
        assert first.labels == {"midstream.dev/data": "health", "team": "a", PIPELINE: "smollm"}
        assert second.labels == {"midstream.dev/data": "health", "team": "b", PIPELINE: "smollm"}
        assert (first.namespace, second.node, second.ip) == ("clinic", "edge-2", "10.1.2.3")

    def test_stages_that_are_gone_run_nowhere(self):
        stages = [{"name": f"smollm-stage-{i}", "node": "edge-1"} for i in range(3)]
        read = merged(inventory(*stages), [RunningPipeline("smollm", ("edge-2",), 1)])
        assert [(each.node, each.replicas) for each in read.workloads] == [("edge-2", 1), (None, 0), (None, 0)]

    def test_a_pipeline_that_sleeps_has_no_replicas(self):
        read = merged(inventory(), [RunningPipeline("smollm", ("edge-1",), 1, awake=False)])
        assert read.workload["smollm-stage-0"].replicas == 0

    def test_lookups_of_the_old_inventory_are_not_kept(self):
        before = inventory({"name": "smollm-stage-0", "node": "edge-1"})
        assert before.workload["smollm-stage-0"].node == "edge-1"
        read = merged(before, [RunningPipeline("smollm", ("edge-2",), 1)])
        assert read.workload["smollm-stage-0"].node == "edge-2"

    def test_a_node_that_the_file_does_not_know_is_an_error(self):
        with pytest.raises(InventoryError, match=r"stage 1 of smollm runs on node 'edge-9'.*edge-1, edge-2, head"):
            merged(inventory(), [RunningPipeline("smollm", ("edge-1", "edge-9"), 1)])

    def test_two_pipelines_of_one_name_are_an_error(self):
        with pytest.raises(InventoryError, match="two running pipelines are named 'smollm'"):
            merged(inventory(), [RunningPipeline("smollm", ("edge-1",), 1)] * 2)
