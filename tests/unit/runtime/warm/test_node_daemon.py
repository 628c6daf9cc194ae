"""A real node runtime (`tiny_node`, in a process of its own), and heads that give it orders over real links."""

from __future__ import annotations

import contextlib
import os
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import psutil
import pytest

from runtime.transport.channel import ChannelError
from runtime.transport.frames import Batch, Call, Ended, Frame, Result
from runtime.transport.gateway import NODE
from runtime.transport.identity import Enrolment, Identity
from runtime.warm.node import NodeError
from tests.unit.runtime.transport.hosts import DEADLINE_S, eventually
from tests.unit.runtime.warm.node_hosts import MIB, TINY, Daemon, Head, is_alive, opened, start
from tests.unit.runtime.warm.tiny_node import SHAPE, engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.warm.remote_node import RemoteNode


class NothingWarm:
    """The warm state of a node runtime that has just begun, as far as it is looked at."""

    models: ClassVar[dict[bytes, Any]] = {}
    pools: ClassVar[list[Any]] = []
    last_number = 0


class TestAPipeline:
    def test_a_model_is_loaded_once_and_is_warm_for_the_next_pipeline(self, daemon, head):
        edge = daemon()
        boss = head(edge)
        first = boss.node(edge, "p1").open([], TINY, None, DEADLINE_S)
        second = boss.node(edge, "p2").open([], TINY, None, DEADLINE_S)
        other = boss.node(edge, "p3").open([], engine("other"), None, DEADLINE_S)
        assert [facts["was_warm"] for facts in (first, second, other)] == [False, True, False]
        assert first["zygote"] == second["zygote"] != other["zygote"]
        assert (first["layers"], first["model"], other["model"]) == (SHAPE.layers, "tiny", "other")
        assert edge.state()["models"] == 2

    def test_a_stage_computes_for_its_head(self, daemon, head):
        edge = daemon()
        boss = head(edge)
        node = opened(boss, edge)
        pid = start(boss, node)
        assert psutil.Process(pid).ppid() in {child.pid for child in edge.processes()}
        for number in range(20):
            boss.gateway.send("edge-1", "p1/stage-1", Batch(3, number, 2), [b"hidden", bytes(1 << 16)])
        answers = [boss.results.get(timeout=DEADLINE_S) for _ in range(20)]
        assert [frame for frame, _ in answers] == [Result(3, number, 2) for number in range(20)]
        assert answers[0][1] == [b"hidden", bytes(1 << 16)]
        assert edge.state()["pipelines"]["p1"]["stages"] == ["stage-1"]

    def test_stages_of_one_pipeline_share_its_kv(self, daemon, head):
        edge = daemon()
        boss = head(edge)
        node = opened(boss, edge)
        start(boss, node, "stage-1")
        start(boss, node, "stage-2")
        boss.tell(edge, "stage-1", "write", blocks=[1, 2])
        assert boss.tell(edge, "stage-2", "look")["tokens"] == [2 * SHAPE.block_tokens] * SHAPE.layers
        node.scrub([0, 3])
        seen = boss.tell(edge, "stage-2", "look")
        assert [tokens > 0 for tokens in seen["tokens"]] == [False, True, True, False]
        assert [count > 0 for count in seen["bytes"]] == [False, True, True, False]

    @pytest.mark.parametrize("status", [0, 7])
    def test_a_stage_that_ends_is_reported_with_its_status(self, daemon, head, status: int):
        edge = daemon()
        boss = head(edge)
        node = opened(boss, edge)
        start(boss, node)
        boss.gateway.send("edge-1", "p1/stage-1", Call(0, "exit"), [msgspec.msgpack.encode({"status": status})])
        assert boss.next() == Ended("stage-1", status)
        state = edge.state()
        assert (state["pipelines"]["p1"]["stages"], state["admitted"]) == ([], [])

    def test_a_stage_that_is_killed_is_reported_and_its_name_is_free_again(self, daemon, head):
        edge = daemon()
        boss = head(edge)
        node = opened(boss, edge)
        pid = start(boss, node)
        node.kill("stage-1")
        node.kill("nobody")
        assert boss.next() == Ended("stage-1", -signal.SIGKILL)
        assert not is_alive(pid)
        start(boss, node)
        assert boss.tell(edge, "stage-1", "look")["pid"] != pid

    def test_a_stage_that_ends_as_soon_as_it_is_started_is_reported(self, daemon, head):
        edge = daemon()
        boss = head(edge)
        start(boss, opened(boss, edge), exit=3)
        assert boss.next() == Ended("stage-1", 3)

    def test_pipelines_of_one_model_do_not_touch_each_others_stages_of_the_same_name(self, daemon, head):
        edge = daemon()
        boss = head(edge)
        one, two = opened(boss, edge, "p1"), opened(boss, edge, "p2")
        pids = [start(boss, node) for node in (one, two)]
        boss.tell(edge, "stage-1", "write", "p1", blocks=[1])
        assert boss.tell(edge, "stage-1", "look", "p2")["tokens"] == [0] * SHAPE.layers
        one.kill("stage-1")
        assert boss.next() == Ended("stage-1", -signal.SIGKILL)
        assert [is_alive(pid) for pid in pids] == [False, True]
        assert {name: p["stages"] for name, p in edge.state()["pipelines"].items()} == {"p1": [], "p2": ["stage-1"]}

    def test_opening_a_pipeline_anew_replaces_it(self, daemon, head):
        edge = daemon()
        boss = head(edge)
        node = opened(boss, edge)
        old = start(boss, node)
        boss.tell(edge, "stage-1", "write", blocks=[1])
        again = opened(boss, edge)
        assert eventually(lambda: not is_alive(old))
        new = start(boss, again)
        seen = boss.tell(edge, "stage-1", "look")
        assert (seen["pid"], seen["tokens"]) == (new, [0] * SHAPE.layers)
        boss.tell(edge, "stage-1", "look")
        assert boss.results.empty(), "the end of a stage that was replaced is nobody's business"

    def test_what_is_being_closed_can_be_opened_again_at_once(self, daemon, head):
        edge = daemon()
        boss = head(edge)
        for _ in range(100):
            node = opened(boss, edge)
            start(boss, node)
            node.close()

    def test_closing_a_pipeline_ends_its_stages_and_keeps_its_model(self, daemon, head):
        edge = daemon()
        boss = head(edge)
        node = opened(boss, edge)
        pids = [start(boss, node, f"stage-{number}") for number in range(3)]
        node.call("close")
        assert eventually(lambda: not any(map(is_alive, pids)))
        state = edge.state()
        assert (state["pipelines"], state["models"], state["admitted"]) == ({}, 1, [])
        with pytest.raises(NodeError, match="head has no pipeline 'p1' here"):
            start(boss, node)
        assert boss.node(edge).open([], TINY, None, DEADLINE_S)["was_warm"]


class TestCopies:
    @pytest.fixture
    def copying(self, daemon, head) -> tuple[Head, Daemon, Daemon, RemoteNode, RemoteNode]:
        """Two nodes of one pipeline; the first has some KV in all layers."""
        here, there = daemon("edge-1"), daemon("cloud-1")
        boss = head(here, there)
        here.trust(there)
        there.trust(here)
        nodes = opened(boss, here), opened(boss, there)
        for node, where in zip(nodes, (here, there), strict=True):
            start(boss, node, f"stage-at-{where.name}")
            boss.tell(where, f"stage-at-{where.name}", "look")  # lays tokens out
        boss.tell(here, "stage-at-edge-1", "write", blocks=[1, 2, 3])
        return boss, here, there, *nodes

    def test_layers_move_to_another_node(self, copying):
        boss, here, there, source, target = copying
        target.allow_copy("p1.1.0", "edge-1")
        copy = source.copy_to(target, "p1.1.0", [1, 2])
        stale = copy.stale_bytes()
        assert stale == 2 * 3 * SHAPE.block_bytes
        copied = copy.round()
        assert (copied.sent_bytes, copied.stale_bytes) == (stale, 0)
        boss.tell(here, "stage-at-edge-1", "write", blocks=[5])
        assert copy.stale_bytes() == 2 * SHAPE.block_bytes
        assert copy.finish() == (2 * SHAPE.block_bytes, {})
        copy.end()
        target.forget_copy("p1.1.0")
        before, after = (boss.tell(where, f"stage-at-{where.name}", "look") for where in (here, there))
        assert after["bytes"] == [0, *before["bytes"][1:3], 0]
        assert after["tokens"] == [0, *before["tokens"][1:3], 0]

    def test_i8_a_copy_that_was_not_allowed_is_refused(self, copying):
        _, here, there, source, target = copying
        with pytest.raises(NodeError, match=r"edge-1: CallError: .* broke"):
            source.copy_to(target, "p1.1.0", [1])
        assert there.told("link_down", "nobody told this host to expect copy 'p1.1.0' from edge-1")
        assert here.state()["pipelines"]["p1"]["stages"] == ["stage-at-edge-1"]

    def test_a_copy_that_was_stopped_copies_no_more(self, copying):
        _, _, _, source, target = copying
        target.allow_copy("p1.1.0", "edge-1")
        copy = source.copy_to(target, "p1.1.0", [1])
        copy.stop()
        with pytest.raises(NodeError, match=r"copy 'p1\.1\.0' was stopped"):
            copy.round()
        copy.end()

    def test_a_round_on_a_slow_link_is_stopped_at_once(self, daemon, head):
        """All threads that carry out orders are busy with rounds: who stops them must not wait for one."""
        here, there = daemon("edge-1", rate=1000.0), daemon("cloud-1")
        boss = head(here, there)
        here.trust(there)
        there.trust(here)
        source, target = opened(boss, here), opened(boss, there)
        for node, where in ((source, here), (target, there)):
            start(boss, node, f"stage-at-{where.name}")
            boss.tell(where, f"stage-at-{where.name}", "look")
        copies = []
        for number in range(SHAPE.layers):
            target.allow_copy(f"p1.1.{number}", "edge-1")
            copies.append(source.copy_to(target, f"p1.1.{number}", [number]))
        boss.tell(here, "stage-at-edge-1", "write", blocks=list(range(1, 16)))
        rounds = [
            boss.calls.send("edge-1", order(boss), "copy_round", {"pipeline": "p1", "copy": f"p1.1.{number}"})
            for number in range(SHAPE.layers)
        ]
        for copy in copies:
            copy.stop()
        for _, future in rounds:
            with pytest.raises(RuntimeError, match="was stopped"):
                future.result(DEADLINE_S)

    @pytest.mark.parametrize("pace", [0, -1.0, float("inf"), float("nan"), "fast"])
    def test_a_pace_that_makes_no_sense_is_refused(self, copying, pace):
        _, _, _, source, target = copying
        target.allow_copy("p1.1.0", "edge-1")
        source.copy_to(target, "p1.1.0", [1])
        with pytest.raises(NodeError, match=r"bytes per second|malformed"):
            source.call("copy_pace", copy="p1.1.0", bytes_per_second=pace)

    def test_a_copy_is_paced_while_it_runs(self, copying):
        boss, here, _, source, target = copying
        target.allow_copy("p1.1.0", "edge-1")
        copy = source.copy_to(target, "p1.1.0", [1])
        boss.tell(here, "stage-at-edge-1", "write", blocks=list(range(1, 16)))
        copy.pace(1e6)
        assert copy.round().stale_bytes == 0

    def test_a_copy_that_nobody_began_is_named(self, copying):
        _, _, _, source, _ = copying
        for method in ("copy_round", "copy_stale", "copy_finish", "copy_stop", "copy_pace"):
            with pytest.raises(NodeError, match=r"no copy 'p1\.9' was begun"):
                source.call(method, copy="p1.9")

    def test_a_pipeline_that_is_closed_takes_no_copy_any_more(self, copying):
        _, _, there, source, target = copying
        target.allow_copy("p1.1.0", "edge-1")
        copy = source.copy_to(target, "p1.1.0", [1])
        target.call("close")
        assert there.state()["copies"] == []
        with pytest.raises(NodeError, match="broke"):
            copy.round()

    def test_layers_that_the_model_does_not_have_are_refused(self, copying):
        _, here, _, source, target = copying
        for layers in ([-1], [SHAPE.layers]):
            with pytest.raises(NodeError, match=r"are not all among the 4 of this pipeline"):
                source.scrub(layers)
            with pytest.raises(NodeError, match=r"are not all among the 4 of this pipeline"):
                source.copy_to(target, "p1.1.0", layers)
        assert here.logged("link_down") == []


def order(head: Head, host: str = "edge-1") -> Callable[..., None]:
    return lambda frame, buffers: head.gateway.send(host, NODE, frame, buffers)


def _complained(edge: Daemon, other: Any, frame: Frame, buffers: list[bytes], why: str) -> bool:
    """Send it once more: what is sent while the link is being cut off for what came before is lost."""
    with contextlib.suppress(ChannelError):
        other.gateway.send("edge-1", NODE, frame, buffers)
    return edge.has_told("link_down", why)


class TestWhoMayDoWhat:
    def test_a_peer_that_does_not_control_this_node_is_cut_off(self, daemon, head):
        edge = daemon()
        boss, peer = head(edge), head(edge, name="cloud-1", controls=False)
        node = opened(boss, edge)
        with pytest.raises(NodeError, match=r"^edge-1: it ended without a goodbye|^edge-1: it closed"):
            peer.node(edge, "p1").open([], TINY, None, DEADLINE_S)
        assert edge.told("link_down", "cloud-1 may not control this node; enrol it with --controls if it should")
        start(boss, node)

    def test_another_head_cannot_touch_a_pipeline(self, daemon, head):
        edge = daemon()
        boss, other = head(edge), head(edge, name="other")
        node = opened(boss, edge)
        pid = start(boss, node)
        stranger = other.node(edge, "p1")
        with pytest.raises(NodeError, match="pipeline 'p1' belongs to head"):
            stranger.open([], TINY, None, DEADLINE_S)
        for method in ("reserve", "start", "kill", "scrub", "copy_begin", "copy_allow", "close"):
            with pytest.raises(NodeError, match="other has no pipeline 'p1' here"):
                stranger.call(method, stage="stage-1", layers=[0], copy="p1.1.0", host="other")
        assert is_alive(pid)
        own = opened(other, edge, "p2")
        for method in ("copy_allow", "copy_begin"):
            with pytest.raises(NodeError, match=r"copy 'p1\.1\.0' is none of pipeline p2"):
                own.call(method, copy="p1.1.0", host="other", layers=[0])
        node.allow_copy("p1.1.0", "cloud-1")
        own.forget_copy("p1.1.0")
        own.kill("stage-1")
        assert edge.state()["copies"] == ["p1.1.0"]
        assert is_alive(pid)

    def test_nobody_but_the_hosts_of_a_pipeline_sends_to_its_stages(self, daemon, head):
        edge = daemon()
        boss, other = head(edge), head(edge, name="other")
        start(boss, opened(boss, edge))
        other.node(edge, "p9")
        other.gateway.send("edge-1", "p1/stage-1", Call(0, "exit"), [msgspec.msgpack.encode({"status": 1})])
        assert edge.told("link_down", "other has no part in the pipeline of p1/stage-1")
        assert boss.tell(edge, "stage-1", "look")

    @pytest.mark.parametrize("name", ["", "../p", "p/q", "é", "p" * 100, None, 7], ids=repr)
    def test_i8_a_name_that_is_none_cuts_its_sender_off(self, daemon, head, name: object):
        edge = daemon()
        boss = head(edge)
        boss.node(edge)
        boss.gateway.send("edge-1", NODE, Call(1, "open"), [msgspec.msgpack.encode({"pipeline": name})])
        assert edge.told("link_down", "is no name for a pipeline")

    @pytest.mark.parametrize("stage", ["", "../../x", "a/b", "s" * 100, "é"], ids=repr)
    def test_i8_a_stage_has_a_plain_name(self, daemon, head, stage: str):
        edge = daemon()
        boss = head(edge)
        node = opened(boss, edge)
        with pytest.raises(NodeError, match="is no name for a stage"):
            start(boss, node, stage)

    def test_i8_what_is_no_order_cuts_its_sender_off_and_is_named_in_the_log(self, daemon, head):
        edge = daemon()
        boss, other = head(edge), head(edge, name="other")
        node = opened(boss, edge)
        other.node(edge)
        for frame, buffers, why in (
            (Result(1, 1, 0), [], "a node runtime does not take Result"),
            (Call(1, "start"), [b"\xc1"], "unreadable arguments of 'start'"),
        ):
            assert eventually(partial(_complained, edge, other, frame, buffers, why))
        start(boss, node)
        boss.gateway.send("edge-1", NODE, Call(1, "explode"), [msgspec.msgpack.encode({"pipeline": "p1"})])
        assert edge.told("link_down", "unknown order 'explode'")

    def test_malformed_orders_are_told_to_who_gave_them(self, daemon, head):
        edge = daemon()
        boss = head(edge)
        node = opened(boss, edge)
        with pytest.raises(NodeError, match="malformed OpenOrder"):
            node.call("open", hosts=7)
        with pytest.raises(NodeError, match="malformed ReserveOrder"):
            node.call("reserve", layers="all")
        with pytest.raises(NodeError, match="room for 9 of 4 layers cannot be made"):
            node.reserve(SHAPE, 9)
        with pytest.raises(NodeError, match="malformed StartOrder"):
            node.call("start", stage="stage-1")
        with pytest.raises(NodeError, match="stage must be text, not None"):
            node.call("kill")
        with pytest.raises(NodeError, match="malformed list"):
            node.call("scrub")
        start(boss, node)
        with pytest.raises(NodeError, match="stage-1 runs already"):
            start(boss, node)

    def test_an_order_that_is_too_long_for_a_zygote_ends_nobody(self, daemon, head):
        edge = daemon()
        boss = head(edge)
        node = opened(boss, edge)
        pid = start(boss, node)
        with pytest.raises(
            NodeError, match=r"cannot start process .*stage-2.*its order has [0-9]+ bytes, not 65536 at most"
        ):
            start(boss, node, "stage-2", padding=bytes(1 << 17))
        with pytest.raises(NodeError, match=r"its order has [0-9]+ bytes, not 65536 at most"):
            boss.node(edge, "p2").open([], engine("huge", padding=bytes(1 << 17)), None, DEADLINE_S)
        assert is_alive(pid)
        assert edge.state()["admitted"] == ["p1/stage-1"]


class TestModels:
    def test_a_model_that_cannot_be_loaded_says_why_and_leaves_nothing(self, daemon, head):
        edge = daemon()
        boss = head(edge)
        boss.node(edge, "p0").open([], TINY, None, DEADLINE_S)
        before = edge.state()
        for _ in range(3):
            with pytest.raises(NodeError, match="cannot preload: RuntimeError: no such file 🔥"):
                boss.node(edge).open([], engine("bad", failure="no such file 🔥", times=10_000), None, DEADLINE_S)
        assert eventually(lambda: edge.state() == before)

    def test_a_host_that_is_not_enrolled_is_named(self, daemon, head):
        edge = daemon()
        boss = head(edge)
        with pytest.raises(NodeError, match="host 'cloud-9' is not enrolled; run: midstream node trust cloud-9"):
            boss.node(edge).open(["edge-1", "cloud-9"], TINY, None, DEADLINE_S)
        assert edge.state()["pipelines"] == {}

    def test_weights_that_do_not_fit_are_refused_with_what_is_missing(self, daemon, head):
        edge = daemon(memory_bytes=24 * MIB)
        boss = head(edge)
        with pytest.raises(NodeError, match=r"node edge-1 may take 24 MiB and lacks [0-9]+ MiB for weights and KV"):
            boss.node(edge).open([], engine("big", mib=64), None, DEADLINE_S)
        assert eventually(lambda: (edge.state()["models"], edge.state()["children"]) == (0, 2))

    def test_kv_that_does_not_fit_is_refused_with_what_is_missing(self, daemon, head):
        edge = daemon(memory_bytes=200 * MIB)
        boss = head(edge)
        node = boss.node(edge)
        used = node.open([], TINY, None, DEADLINE_S)["memory_bytes"]
        large = msgspec.structs.replace(SHAPE, layer_bytes=100 * MIB)
        missing = round((used + 4 * 100 * MIB - 200 * MIB) / MIB)
        with pytest.raises(NodeError, match=rf"may take 200 MiB and lacks {missing} MiB"):
            node.reserve(large, 4)
        assert edge.state()["pipelines"]["p1"]["kv_bytes"] == 0
        node.reserve(large, 1)
        assert edge.state()["pipelines"]["p1"]["kv_bytes"] == 100 * MIB

    def test_what_was_used_least_recently_is_let_go_when_memory_is_needed(self, daemon, head):
        edge = daemon(memory_bytes=340 * MIB)
        boss = head(edge)
        zygotes = {
            name: boss.node(edge, name).open([], engine(name, mib=120), None, DEADLINE_S)["zygote"] for name in "ab"
        }
        boss.node(edge, "b").call("close")
        boss.node(edge, "a").call("close")  # used last
        boss.node(edge, "c").open([], engine("c", mib=120), None, DEADLINE_S)
        assert [entry["key"] for entry in edge.logged("model let go")] == ["model-3"]
        assert eventually(lambda: not is_alive(zygotes["b"]))
        assert is_alive(zygotes["a"])

    def test_a_model_in_use_is_not_let_go(self, daemon, head):
        edge = daemon(memory_bytes=150 * MIB)
        boss = head(edge)
        first = boss.node(edge, "a").open([], engine("a", mib=60), None, DEADLINE_S)
        with pytest.raises(NodeError, match="lacks"):
            boss.node(edge, "b").open([], engine("b", mib=100), None, DEADLINE_S)
        assert is_alive(first["zygote"])
        boss.node(edge, "a").call("close")
        boss.node(edge, "b").open([], engine("b", mib=100), None, DEADLINE_S)
        assert eventually(lambda: not is_alive(first["zygote"]))

    def test_when_a_model_zygote_dies_its_stages_are_reported_and_it_is_loaded_anew(self, daemon, head):
        edge = daemon()
        boss = head(edge)
        node = boss.node(edge)
        zygote = node.open([], TINY, None, DEADLINE_S)["zygote"]
        node.reserve(SHAPE, SHAPE.layers)
        start(boss, node, "stage-1")
        start(boss, node, "stage-2")
        os.kill(zygote, signal.SIGKILL)
        ended = {boss.next() for _ in range(2)}
        assert ended == {Ended("stage-1", -signal.SIGKILL), Ended("stage-2", -signal.SIGKILL)}
        assert edge.told("model zygote ended", "model-1")
        facts = boss.node(edge).open([], TINY, None, DEADLINE_S)
        assert (facts["was_warm"], facts["zygote"] == zygote) == (False, False)
        start(boss, node)


class TestLease:
    @pytest.fixture
    def clock(self, head) -> Callable[[Daemon], None]:
        """Waits until a lease that begins now is over: a head is lost, and then its pipeline."""

        def wait(edge: Daemon) -> None:
            ticking = head(edge, name="clock")
            opened(ticking, edge, "clock")
            ticking.gateway.close()
            assert edge.told("pipeline closed", "clock")

        return wait

    def test_a_head_that_is_gone_loses_its_pipelines_and_no_others(self, daemon, head):
        edge = daemon(lease_s=0.3)
        boss, other = head(edge), head(edge, name="other")
        mine, others = opened(boss, edge, "p1"), opened(other, edge, "p2")
        pids = start(boss, mine), start(other, others)
        boss.gateway.close()
        assert edge.told("pipeline closed", "was not heard of for 0.3 s")
        assert eventually(lambda: not is_alive(pids[0]))
        assert is_alive(pids[1])
        state = edge.state()
        assert (list(state["pipelines"]), state["models"]) == (["p2"], 1)

    def test_a_head_that_comes_back_in_time_keeps_its_pipeline_and_its_kv(self, daemon, head, clock):
        edge = daemon(lease_s=2.0)
        boss = head(edge)
        pid = start(boss, opened(boss, edge))
        boss.tell(edge, "stage-1", "write", blocks=[1])
        address = boss.gateway.address
        boss.close()
        assert edge.told("host lost", "head")
        back = head(edge, address=address)
        back.node(edge).scrub([])
        clock(edge)
        assert is_alive(pid)
        assert back.tell(edge, "stage-1", "look")["tokens"] == [SHAPE.block_tokens] * SHAPE.layers

    def test_a_head_that_comes_back_as_somebody_else_does_not_keep_what_it_forgot(self, daemon, head):
        edge = daemon(lease_s=0.5)
        boss = head(edge)
        pid = start(boss, opened(boss, edge, "before"))
        address = boss.gateway.address
        boss.close()
        assert edge.told("host lost", "head")
        back = head(edge, address=address)
        opened(back, edge, "after")
        assert eventually(lambda: not is_alive(pid))
        assert list(edge.state()["pipelines"]) == ["after"]

    def test_a_head_that_went_while_its_model_was_loaded_loses_its_pipeline_too(self, daemon, head, tmp_path):
        edge = daemon(lease_s=0.2)
        boss = head(edge)
        gate = tmp_path / "gate"
        boss.node(edge)
        arguments = {"pipeline": "p1", "hosts": [], "engine": engine("slow", gate=str(gate))}
        boss.calls.send("edge-1", order(boss), "open", arguments)
        assert eventually(lambda: edge.state()["children"] == 3)
        boss.gateway.close()
        assert edge.told("host lost", "head")
        gate.touch()
        assert edge.told("pipeline closed", "was not heard of")
        assert edge.state()["pipelines"] == {}

    def test_a_batch_is_a_sign_of_life(self, daemon, head, clock):
        """Only the way back was lost, and found again: the head may have nothing to say to the node runtime."""
        edge = daemon(lease_s=2.0)
        boss = head(edge)
        pid = start(boss, opened(boss, edge))
        boss.gateway._listener.drop("edge-1")
        assert edge.told("host lost", "head")
        boss.gateway.send("edge-1", "p1/stage-1", Batch(1, 1, 0))
        assert boss.next() == Result(1, 1, 0)
        clock(edge)
        assert is_alive(pid)

    def test_a_head_that_is_there_after_all_hears_of_the_end_of_its_stages(self, daemon, head):
        """It heard of nothing, and would wait for their answers for good."""
        edge = daemon(lease_s=0.2)
        boss = head(edge)
        start(boss, opened(boss, edge))
        boss.gateway._listener.drop("edge-1")
        assert edge.told("pipeline closed", "was not heard of")
        assert boss.next() == Ended("stage-1", -signal.SIGKILL)


class TestEnds:
    def test_closing_leaves_no_process_no_thread_and_no_file(self, daemon, head):
        edge = daemon()
        boss = head(edge)
        for pipeline in ("p1", "p2"):
            node = opened(boss, edge, pipeline, engine(pipeline))
            start(boss, node)
            start(boss, node, "stage-2")
        node.allow_copy("p2.1.0", "cloud-1")
        processes = edge.processes()
        assert len(processes) == 2 + 2 + 4
        left = edge.end()
        assert edge.process.returncode == 0
        assert (left["threads"], left["folder"], left["pipelines"], left["models"]) == ([], False, {}, 0)
        assert (left["copies"], left["admitted"]) == ([], [])
        assert eventually(lambda: not any(process.is_running() for process in processes))
        assert not os.path.exists(edge.hello["folder"])

    def test_a_node_that_is_killed_leaves_no_process(self, daemon, head):
        edge = daemon()
        boss = head(edge)
        start(boss, opened(boss, edge))
        processes = edge.processes()
        edge.process.kill()
        edge.process.wait(DEADLINE_S)
        assert eventually(lambda: not any(process.is_running() for process in processes))
        assert boss.next_loss()[0] == "edge-1"

    def test_fifty_pipelines_leave_nothing_behind(self, daemon, head):
        edge = daemon()
        boss = head(edge)

        def live() -> None:
            node = opened(boss, edge)
            start(boss, node, "stage-1")
            start(boss, node, "stage-2")
            node.allow_copy("p1.1.0", "cloud-1")
            node.kill("stage-1")
            assert boss.next() == Ended("stage-1", -signal.SIGKILL)
            node.call("close")

        def settled() -> dict[str, Any]:
            assert eventually(lambda: edge.state()["children"] == 3)
            return edge.state()

        live()
        before = settled()
        for _ in range(50):
            live()
        assert settled() == before

    def test_a_node_runtime_that_cannot_listen_leaves_nothing(self, daemon, tmp_path):
        from runtime.transport.channel import ChannelError
        from runtime.warm.node_daemon import NodeDaemon

        edge = daemon()
        identity = Identity.load_or_create(tmp_path / "cloud-1", "cloud-1")
        folders = set(Path(edge.hello["folder"]).parent.glob("midstream-node-*"))
        with pytest.raises(ChannelError, match="cannot listen"):
            NodeDaemon(identity, Enrolment(tmp_path), edge.address, NothingWarm(), None, 1.0, print)  # type: ignore[arg-type]
        assert set(Path(edge.hello["folder"]).parent.glob("midstream-node-*")) == folders


def test_a_node_that_is_lost_is_not_asked(head, daemon):
    edge = daemon()
    boss = head(edge)
    node = opened(boss, edge)
    node.lost = "it was unplugged"
    with pytest.raises(NodeError, match="node edge-1 is lost: it was unplugged"):
        start(boss, node)
    node.kill("stage-1")


def test_a_node_that_does_not_answer_is_named_and_waited_for_no_longer(head, daemon, tmp_path):
    edge = daemon()
    boss = head(edge)
    node = boss.node(edge)
    with pytest.raises(NodeError, match=r"node edge-1 did not answer 'open' within 0\.1 s"):
        node.open([], engine("slow", gate=str(tmp_path / "never")), None, 0.1)
    assert boss.calls._waiting == {}
