"""An inventory with a running pipeline in it: where its stages are, and what the file says of them."""

import json
from typing import Any

import httpx
import pytest
import yaml

from intents.errors import InventoryError
from intents.live_midstream import (
    PIPELINE,
    Change,
    HeadAway,
    LayoutRefused,
    MidstreamSource,
    RunningPipeline,
    merged,
    read_running,
    with_stages,
)
from intents.model.inventory import Inventory, parse_inventory
from intents.proof.observed import Observed
from intents.relocation import Placed

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
        read = source(STATUS, told=told).read()
        assert read == RunningPipeline("smollm", ("edge-1", "edge-2"), 3, layers=(15, 15))
        assert str(told[0].url) == "http://127.0.0.1:8000/midstream/v1/status"
        assert told[0].headers["authorization"] == "Bearer s3cret"

    def test_a_pipeline_that_sleeps_is_where_it_will_wake(self):
        asleep = STATUS | {"stages": [], "layers": "10@edge-2, 10 , 10@edge-1"}
        read = source(asleep, "head").read()
        assert (read.nodes, read.layers, read.awake) == (("edge-2", "head", "edge-1"), (10, 10, 10), False)

    def test_stages_beside_the_head_need_the_name_of_its_machine(self):
        beside = STATUS | {"layers": "30", "stages": [{"index": 0, "node": "local"}]}
        read = source(beside, "head").read()
        assert (read.nodes, read.beside) == (("head",), "head")
        assert read.written([Placed(10, "head"), Placed(20, "edge-1")]) == "10,20@edge-1"
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
            (STATUS | {"layers": "10@edge-1,10@edge-2,10@edge-1"}, "makes no sense: layers"),
            (STATUS | {"layers": "half,half"}, "makes no sense: layers"),
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

    def test_the_nodes_that_the_head_has_are_known_also_without_stages(self):
        spares = STATUS | {"spare_stages": {"edge-1": 2, "edge-3": 0, "local": 1}, "boot": "b7"}
        assert source(spares, "head").read().there == {"edge-1", "edge-3", "head"}
        assert source(spares).read().there == {"edge-1", "edge-3"}
        assert source(spares).read().boot == "b7"


REPORT = {"id": "change-1", "state": "committed", "reason": None, "total_ms": 367.0, "pause_ms": None, "rounds": 0}


class TestAsking:
    def test_a_layout_is_asked_for_with_a_key_and_all_kv_computed_again(self):
        told: list[httpx.Request] = []
        assert source(REPORT, told=told).ask_for("30@edge-1", "/me#1") == Change(
            id="change-1", state="committed", total_ms=367.0
        )
        assert json.loads(told[0].content) == {"layers": "30@edge-1", "method": "recompute"}
        assert (told[0].headers["idempotency-key"], told[0].headers["authorization"]) == ("/me#1", "Bearer s3cret")

    def test_the_end_of_a_change_is_waited_for(self):
        told: list[httpx.Request] = []
        assert source(REPORT, told=told).await_end("change-1").state == "committed"
        assert str(told[0].url) == "http://127.0.0.1:8000/midstream/v1/reconfigurations/change-1?wait=30.0"

    @pytest.mark.parametrize(
        ("kind", "passing"),
        [("busy", True), ("guard_silent", True), ("asleep", True), ("forbidden", False), ("unchanged", False)],
    )
    def test_a_refusal_has_its_reason_and_says_whether_it_passes(self, kind: str, passing: bool):
        refusal = httpx.Response(409, json={"error": {"type": kind, "message": "so it is"}})
        with pytest.raises(LayoutRefused, match="so it is") as refused:
            source(refusal).ask_for("30", "/me#1")
        assert (refused.value.kind, refused.value.passing) == (kind, passing)

    @pytest.mark.parametrize(
        ("answer", "error", "says"),
        [
            (httpx.ReadTimeout(""), HeadAway, "cannot be reached: ReadTimeout"),
            (httpx.Response(502, text="gateway"), HeadAway, "HTTP 502"),
            (httpx.Response(401, json={"error": {"type": "access_denied", "message": "no"}}), InventoryError, "TOKEN"),
            (REPORT | {"state": "odd"}, InventoryError, "its report makes no sense: state"),
            (httpx.Response(200, text="hello"), InventoryError, "its report makes no sense"),
        ],
    )
    def test_errors_say_what(self, answer: Any, error: type[Exception], says: str):
        with pytest.raises(error, match=says) as raised:
            source(answer).ask_for("30", "/me#1")
        assert "s3cret" not in str(raised.value)


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


class TestObserving:
    """Who reads a cluster sees pods; stages stand beside them where the head says."""

    def test_stages_are_added_to_what_a_cluster_has(self):
        running = RunningPipeline("smollm", ("edge-1", "edge-2"), 1)
        file = merged(inventory({"name": "smollm", "labels": {"midstream.dev/data": "health"}}), [running])
        cluster = inventory({"name": "billing", "node": "edge-2"})
        seen = with_stages(Observed({"billing": ("edge-2",)}, (), cluster, cluster.version), file, running)
        assert seen.placement == {
            "billing": ("edge-2",),
            "smollm-stage-0": ("edge-1",),
            "smollm-stage-1": ("edge-2",),
        }
        assert seen.inventory.workload["smollm-stage-1"].labels["midstream.dev/data"] == "health"
        assert (seen.version, seen.inventory.version) == ("7+7+smollm.1", "7+7+smollm.1")

    def test_without_a_pipeline_nothing_is_added(self):
        seen = Observed({}, (), inventory(), "7")
        assert with_stages(seen, inventory(), None) is seen

    def test_a_stage_on_a_node_that_the_cluster_has_not_proves_nothing(self):
        running = RunningPipeline("smollm", ("edge-1",), 1)
        gone = Inventory(version="8")
        with pytest.raises(InventoryError, match="a stage on node edge-1, which is not there any more"):
            with_stages(Observed({}, (), gone, "8"), merged(inventory(), [running]), running)
