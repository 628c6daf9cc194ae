"""The operator as a process, against a real API server and a head that judges changes as the real one does."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from runtime.transport.identity import Enrolment, Identity
from tests.integration.operator.cluster import DEADLINE_S, Namespace, until
from tests.integration.operator.head import ClusterHead
from tests.unit.runtime.migration import fake_effects

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from runtime.transport.identity import Peer
    from tests.integration.operator.cluster import Broker, OperatorProcess

    Start = Callable[..., OperatorProcess]

TWO_STAGES = [{"layers": 2}, {"layers": 2}]
THREE_STAGES = [{"layers": 1}, {"layers": 2}, {"layers": 1}]


def create(namespace: Namespace, name: str = "llm", **spec: Any) -> dict[str, Any]:
    return namespace.create("LLMPipeline", {"metadata": {"name": name}, "spec": {"stages": TWO_STAGES, **spec}})


def template(namespace: Namespace, name: str = "llm") -> dict[str, Any]:
    head = namespace.get("StatefulSet", f"{name}-head")
    assert head is not None
    found: dict[str, Any] = head["spec"]["template"]
    return found


def test_a_pipeline_comes_up(namespace: Namespace, broker: Broker, start_operator: Start) -> None:
    create(namespace)
    start_operator()
    with namespace.booted("llm"):
        status = namespace.wait_for("llm", "True", "Serving")
        assert status["phase"] == "Serving"
        assert status["layout"] == "2,2"
        assert status["stages"] == [
            {"index": 0, "layers": "0-1", "node": "local"},
            {"index": 1, "layers": "2-3", "node": "local"},
        ]
        assert {c["type"]: c["status"] for c in status["conditions"]} == dict.fromkeys(
            ("Ready", "Applied", "Available", "Reconfigured"), "True"
        )
        assert namespace.names("Service") == ["llm", "llm-head"]
        assert namespace.names("StatefulSet") == ["llm-head"]
        assert (
            namespace.names("Function")
            == namespace.names("Trigger")
            == ["llm-reconfigure", "llm-stage-0", "llm-stage-1"]
        )
        assert "--layers=2,2" in template(namespace)["spec"]["containers"][0]["args"]
        until(lambda: namespace.events("Serving"), "an Event tells that it serves")
        assert broker.events == []


def test_an_edit_of_the_stages_is_a_live_change(namespace: Namespace, broker: Broker, start_operator: Start) -> None:
    made = create(namespace)
    start_operator()
    with namespace.booted("llm") as broker.head:
        namespace.wait_for("llm", "True", "Serving")
        before = template(namespace)
        namespace.edit("llm", stages=THREE_STAGES, migration={"method": "stop_and_copy"})
        status = namespace.wait_for("llm", "True", "Serving")
        assert broker.head.layers == status["layout"] == "1,2,1"
        assert status["stageCount"] == 3
        assert status["lastChange"]["state"] == "committed"
        assert status["lastPauseMs"] >= 0
        assert status["epoch"] > 1
        event = broker.events[0]
        assert event.data == {
            "pipeline": "llm",
            "layers": "1,2,1",
            "method": "stop_and_copy",
            "fallback": "abort",
            "generation": 2,
        }
        assert event.key == f"/midstream/operator#{made['metadata']['uid']}/2"
        assert template(namespace) == before
        # A stage that is new has its function once it serves.
        until(lambda: "llm-stage-2" in namespace.names("Function"), "the new stage has a function")
        until(lambda: namespace.events("Requested"), "an Event tells of the request")
        namespace.edit("llm", stages=TWO_STAGES)
        namespace.wait_for("llm", "True", "Serving")
        until(lambda: "llm-stage-2" not in namespace.names("Function"), "the function goes after its stage")
        assert template(namespace) == before


def test_without_a_broker_the_head_is_asked(namespace: Namespace, start_operator: Start) -> None:
    create(namespace)
    start_operator()
    with namespace.booted("llm") as head:
        namespace.wait_for("llm", "True", "Serving")
        namespace.edit("llm", stages=THREE_STAGES)
        namespace.wait_for("llm", "True", "Serving")
        assert head.layers == "1,2,1"
        until(lambda: "there is no Broker" in str(namespace.events("EventNotSent")), "an Event tells why")


def test_a_layout_that_does_not_fit_is_told_and_left(
    namespace: Namespace, broker: Broker, start_operator: Start
) -> None:
    create(namespace)
    start_operator()
    with namespace.booted("llm") as broker.head:
        namespace.wait_for("llm", "True", "Serving")
        namespace.edit("llm", stages=[{"layers": 2}, {"layers": 3}])
        namespace.wait_for("llm", "False", "Impossible")
        told = namespace.condition("llm", "Reconfigured")["message"]
        assert "the layers 2,3 add up to 5, but the model has 4; 2,2 would work" in told
        assert namespace.condition("llm", "Available")["status"] == "True"
        assert namespace.status("llm")["phase"] == "Serving"
        assert broker.events == []
        assert broker.head.changes == 0
        namespace.edit("llm", stages=THREE_STAGES)
        namespace.wait_for("llm", "True", "Serving")


def test_an_aborted_change_is_told_and_not_tried_again(
    namespace: Namespace, broker: Broker, start_operator: Start
) -> None:
    create(namespace)
    start_operator()
    with namespace.booted("llm") as broker.head:
        namespace.wait_for("llm", "True", "Serving")
        broker.head.effects.fail("prepare", RuntimeError("no memory for another stage"))
        namespace.edit("llm", stages=THREE_STAGES)
        status = namespace.wait_for("llm", "False", "Aborted")
        assert "no memory for another stage" in namespace.condition("llm", "Reconfigured")["message"]
        assert status["layout"] == "2,2"
        looks = len(broker.head.asked)
        until(lambda: len(broker.head.asked) > looks, "the operator looks again")
        assert broker.head.changes == 1
        assert len(broker.events) == 1
        assert namespace.names("Function") == ["llm-reconfigure", "llm-stage-0", "llm-stage-1"]


def test_other_fields_restart_the_head_and_it_says_so(
    namespace: Namespace, broker: Broker, start_operator: Start
) -> None:
    create(namespace)
    start_operator()
    with namespace.booted("llm") as broker.head:
        namespace.wait_for("llm", "True", "Serving")
        namespace.edit("llm", model={"maxLength": 512})
        status = namespace.wait_for("llm", "False", "Restarting")
        assert status["phase"] == "Starting"
        assert "--max-model-len=512" in template(namespace)["spec"]["containers"][0]["args"]
        until(lambda: "spec.model.maxLength" in str(namespace.events("Restarting")), "an Event names the field")
        namespace.delete("Pod", "llm-head-0")
        head_set = namespace.get("StatefulSet", "llm-head")
        assert head_set is not None
        namespace.add_head_pod("llm", head_set, broker.head.port)
        namespace.wait_for("llm", "True", "Serving")


def test_a_head_that_was_started_again_gets_its_layout_back(
    namespace: Namespace, broker: Broker, start_operator: Start
) -> None:
    create(namespace)
    start_operator()
    with namespace.booted("llm") as broker.head:
        namespace.wait_for("llm", "True", "Serving")
        namespace.edit("llm", stages=THREE_STAGES)
        namespace.wait_for("llm", "True", "Serving")
    status = namespace.wait_for("llm", "False", "HeadUnreachable")
    assert status["phase"] == "Failed"
    assert status["layout"] == "1,2,1"  # as it was seen last
    with ClusterHead(broker.head.port, namespace.token("llm")).running() as again:
        broker.head = again
        assert again.layers == "2,2"
        namespace.wait_for("llm", "True", "Serving")
        assert again.layers == "1,2,1"
        assert broker.events[0].key == broker.events[1].key


def test_a_deleted_pipeline_ends_in_order(namespace: Namespace, broker: Broker, start_operator: Start) -> None:
    create(namespace)
    create(namespace, "other")
    labels = {"midstream.dev/pipeline": "llm"}
    namespace.create("Service", {"metadata": {"name": "somebodys", "labels": labels}})
    start_operator()
    with namespace.booted("llm") as broker.head:
        namespace.wait_for("llm", "True", "Serving")
        until(lambda: len(namespace.names("Trigger")) == 6, "both pipelines are there")
        namespace.delete("LLMPipeline", "llm")
        until(lambda: namespace.status("llm").get("phase") == "Terminating", "it is told")
        until(lambda: namespace.names("StatefulSet") == ["other-head"], "the head goes")
        assert all(name.startswith("other-") for name in namespace.names("Trigger"))
        until(lambda: "pod llm-head-0 to end" in namespace.condition("llm")["message"], "its pod is waited for")
        assert "llm-stage-0" in namespace.names("Function")
        namespace.delete("Pod", "llm-head-0")
    until(lambda: namespace.get("LLMPipeline", "llm") is None, "it is gone")
    assert namespace.names("Function") == namespace.names("Trigger")
    assert [name for name in namespace.names("Function") if name.startswith("llm")] == []
    assert namespace.names("Service") == ["other", "other-head", "somebodys"]
    assert [name for name in namespace.names("Secret") if name.startswith("llm")] == []
    assert "Head.llm" not in str(namespace.get("ConfigMap", "midstream-peers"))


def test_a_pipeline_that_was_deleted_while_no_operator_ran_ends(
    namespace: Namespace, broker: Broker, start_operator: Start
) -> None:
    create(namespace)
    operator = start_operator()
    until(lambda: namespace.get("StatefulSet", "llm-head"), "there is a head")
    operator.kill()
    namespace.delete("LLMPipeline", "llm")
    assert namespace.get("LLMPipeline", "llm") is not None
    start_operator("another")
    until(lambda: namespace.get("LLMPipeline", "llm") is None, "it is gone")
    assert namespace.names("StatefulSet") == namespace.names("Service") == []


def test_what_somebody_else_has_taken_over_is_taken_back(
    namespace: Namespace, broker: Broker, start_operator: Start
) -> None:
    create(namespace)
    start_operator()
    with namespace.booted("llm") as broker.head:
        namespace.wait_for("llm", "True", "Serving")
        namespace.merge("StatefulSet", "llm-head", {"spec": {"replicas": 3}, "metadata": {"annotations": {"a": "b"}}})
        until(lambda: namespace.get("StatefulSet", "llm-head")["spec"]["replicas"] == 1, "one head is one head")
        (told,) = until(lambda: namespace.events("Contended"), "an Event tells of it")
        assert 'conflict with "somebody"' in told
        assert ".spec.replicas" in told
        head_set = namespace.get("StatefulSet", "llm-head")
        assert head_set is not None
        assert head_set["metadata"]["annotations"]["a"] == "b"
        managers = {entry["manager"] for entry in head_set["metadata"]["managedFields"]}
        assert managers == {"midstream-operator", "somebody"}


def test_a_restarted_operator_goes_on_with_the_change(
    namespace: Namespace, broker: Broker, start_operator: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The place of the one that was killed is free when its entry in the peering is too old.
    monkeypatch.setattr(fake_effects, "DEADLINE_S", DEADLINE_S)
    create(namespace)
    operator = start_operator()
    with namespace.booted("llm") as broker.head:
        namespace.wait_for("llm", "True", "Serving")
        gate = broker.head.effects.block("prepare")
        namespace.edit("llm", stages=THREE_STAGES)
        gate.wait_until_entered()
        operator.kill()
        start_operator("another")
        namespace.wait_for("llm", "Unknown", "Changing")
        assert namespace.status("llm")["phase"] == "Changing"
        gate.open()
        namespace.wait_for("llm", "True", "Serving")
        assert broker.head.layers == "1,2,1"
        assert broker.head.changes == 1
        assert len(broker.events) == 1


def test_of_two_replicas_one_works_and_the_other_takes_over(
    namespace: Namespace, broker: Broker, start_operator: Start
) -> None:
    replicas = {name: start_operator(name) for name in ("first", "second")}
    peering = until(
        lambda: [p for p in namespace.list("KopfPeering") if len(p.get("status") or {}) == 2], "both know each other"
    )
    priorities = {name: told["priority"] for name, told in peering[0]["status"].items()}
    chosen, spare = sorted(priorities, key=priorities.__getitem__, reverse=True)
    # The one that came second has not begun to work, or the one that came first stops.
    until(lambda: paused(replicas[spare]), "one pauses")
    create(namespace)
    with namespace.booted("llm") as broker.head:
        namespace.wait_for("llm", "True", "Serving")
        assert namespace.writers() == {chosen}
        replicas[chosen].kill()
        namespace.edit("llm", stages=THREE_STAGES)
        namespace.wait_for("llm", "True", "Serving")
        assert broker.head.layers == "1,2,1"
        assert namespace.writers() == {chosen, spare}


def paused(replica: OperatorProcess) -> bool:
    said = replica.said
    return said.rfind("Pausing operations") >= said.rfind("Resuming operations")


def test_nodes_and_heads_know_each_other(
    namespace: Namespace, broker: Broker, start_operator: Start, tmp_path: Path
) -> None:
    stages = [{"layers": 2}, {"layers": 2, "nodeSelector": {"tier": namespace.name}}]
    create(namespace, stages=stages)
    start_operator()
    namespace.wait_for("llm", "False", "Unplaced")
    assert namespace.names("StatefulSet") == []
    node = f"edge-{namespace.name}"
    namespace.add_node(node, {"tier": namespace.name})
    try:
        until(lambda: namespace.get("StatefulSet", "llm-head"), "there is a head", lambda: namespace.status("llm"))
        arguments = template(namespace)["spec"]["containers"][0]["args"]
        assert f"--layers=2,2@{node}" in arguments
        assert f"--node={node}" in arguments
        with namespace.booted("llm"):
            peers = until(lambda: reached(namespace, tmp_path), "the head has an address")
            assert peers[node].address == "10.0.0.7:7100"
            assert peers["Head.llm"].address == "127.0.0.1:7100"
            assert {name for name, peer in peers.items() if peer.controls} == {"Head.llm"}
            for secret, name in (("midstream-node-identity", node), ("llm-identity", "Head.llm")):
                check_identity(namespace, secret, name, peers, tmp_path)
    finally:
        namespace.delete("Node", node)


def reached(namespace: Namespace, folder: Path) -> dict[str, Peer]:
    """Read the list of peers as the runtime does; empty while the head has no address in it."""
    listed = namespace.get("ConfigMap", "midstream-peers")
    assert listed is not None
    (folder / "peers.json").write_text(listed["data"]["peers.json"], encoding="utf-8")
    peers = Enrolment(folder).peers()
    return peers if "Head.llm" in peers and peers["Head.llm"].address else {}


def check_identity(namespace: Namespace, secret: str, name: str, peers: dict[str, Peer], folder: Path) -> None:
    """A runtime takes what is in the Secret for its identity, and it is the one that others know."""
    found = namespace.get("Secret", secret)
    assert found is not None
    own = folder / name
    own.mkdir(mode=0o700)
    for file in ("key.pem", "cert.pem"):
        (own / file).write_bytes(base64.b64decode(found["data"][f"{name}.{file}"]))
        (own / file).chmod(0o600)
    assert Identity.load_or_create(own, name).fingerprint == peers[name].fingerprint
