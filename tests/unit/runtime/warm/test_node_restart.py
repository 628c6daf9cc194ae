"""A node runtime dies; the next one of its folder takes over weights and KV, or says what does not fit."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import msgspec
import psutil
import pytest

from runtime.transport.frames import Batch, Result
from runtime.transport.identity import Peer
from runtime.warm.adoption import pool_name
from runtime.warm.keeper import Keeper, KeeperError, KeptItem, close_all
from runtime.warm.kv_pool import KVPool
from tests.unit.runtime.transport.hosts import DEADLINE_S, Host, eventually
from tests.unit.runtime.warm.node_hosts import TINY, Daemon, Head, is_alive, opened, start
from tests.unit.runtime.warm.tiny_node import SHAPE, engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from runtime.warm.remote_node import RemoteNode

ALL = list(range(SHAPE.layers))
KEEP_S = 30.0
BLOCK = SHAPE.block_tokens


@pytest.fixture
def edge(daemon: Callable[..., Daemon]) -> Daemon:
    return daemon(keep_s=KEEP_S)


@pytest.fixture
def again(daemon: Callable[..., Daemon]) -> Callable[[Daemon], Daemon]:
    """Kill a node runtime and start it again: same folder, same address."""

    def restart(before: Daemon, **options: Any) -> Daemon:
        kill(before)
        return daemon(listen=before.address, **{"keep_s": KEEP_S, **options})

    return restart


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """Whatever a test left is ended: the keeper would do it, in its own time."""
    yield
    for folder in tmp_path.iterdir():
        if (folder / "keeper").exists():
            end(folder)


def kill(edge: Daemon) -> None:
    edge.process.kill()
    edge.process.wait(DEADLINE_S)


def attached(folder: Path) -> Keeper:
    """Attach to the keeper that there is, as another process of this user could."""

    def forbidden(*_: object) -> bytes:
        raise AssertionError("there is no keeper")

    return Keeper.attach(folder, forbidden, forbidden, forbidden, 0.0)  # type: ignore[arg-type]


def end(folder: Path) -> None:
    keeper = attached(folder)
    close_all(keeper.items)
    keeper.end()


def kept(folder: Path) -> dict[str, KeptItem]:
    """Look at what is kept; the descriptors are the caller's."""
    keeper = attached(folder)
    keeper.leave()
    return {item.name: item for item in keeper.items}


def tamper(folder: Path, name: str, record: bytes) -> None:
    """Damage a record."""
    keeper = attached(folder)
    item = next(item for item in keeper.items if item.name == name)
    keeper.keep(name, record, item.descriptor)
    close_all(keeper.items)
    keeper.leave()


def resume(node: RemoteNode, model: bytes = TINY, layers: list[int] = ALL, **changed: Any) -> dict[str, Any]:
    """Ask as a head does that reaches the node again."""
    node.wait_reachable(DEADLINE_S)
    return node.resume([], model, None, msgspec.structs.replace(SHAPE, **changed), layers, DEADLINE_S)


def with_kv(boss: Head, edge: Daemon, *blocks: int) -> tuple[RemoteNode, int]:
    """A pipeline with a stage that has written some blocks; returns its node and the stage's pid."""
    node = opened(boss, edge)
    pid = start(boss, node)
    boss.tell(edge, "stage-1", "write", blocks=list(blocks))
    return node, pid


class TestTakingOver:
    def test_weights_and_kv_are_still_there_and_a_new_stage_computes_with_them(self, edge, head, again):
        boss = head(edge)
        node, old_stage = with_kv(boss, edge, 1, 2, 5)
        before = boss.tell(edge, "stage-1", "look")
        zygotes = {process.pid for process in psutil.Process(old_stage).parents()} & {
            process.pid for process in edge.processes()
        }
        edge = again(edge)
        assert resume(node) == {
            "boot": node.boot,
            "kept_tokens": 3 * BLOCK * SHAPE.layers,
            "refused": None,
            "restarted": True,
        }
        assert not psutil.pid_exists(old_stage)
        new_stage = start(boss, node, "stage-2")
        after = boss.tell(edge, "stage-2", "look")
        assert (after["tokens"], after["bytes"]) == (before["tokens"], before["bytes"])
        parents = {process.pid for process in psutil.Process(new_stage).parents()}
        assert zygotes <= parents  # the very process that loaded the weights, and its keeper
        boss.gateway.send("edge-1", "p1/stage-2", Batch(3, 1, 1), [b"hidden"])
        assert boss.next() == Result(3, 1, 1)
        assert edge.state()["models"] == 1

    def test_a_model_that_was_adopted_is_warm_for_the_next_pipeline_too(self, edge, head, again):
        boss = head(edge)
        first = boss.node(edge).open([], TINY, None, DEADLINE_S)
        edge = again(edge)
        other = boss.node(edge, "p2")
        other.wait_reachable(DEADLINE_S)
        second = other.open([], TINY, None, DEADLINE_S)
        assert (second["was_warm"], second["zygote"]) == (True, first["zygote"])
        third = boss.node(edge, "p3").open([], engine("other"), None, DEADLINE_S)
        assert not third["was_warm"]  # and has a name of its own among the children of the seed
        assert edge.state()["models"] == 2

    def test_budget_and_pipelines_are_as_before(self, edge, head, again):
        boss = head(edge)
        opened(boss, edge)
        before = edge.state()["pipelines"]
        assert again(edge).state()["pipelines"] == before

    def test_only_the_layers_that_are_asked_for_keep_their_kv(self, edge, head, again):
        """Layers that were being copied here, or had moved away, must not be taken for valid later."""
        boss = head(edge)
        node, _ = with_kv(boss, edge, 1, 2)
        again(edge)
        assert resume(node, layers=[1, 2])["kept_tokens"] == 2 * 2 * BLOCK
        start(boss, node, "stage-2")
        seen = boss.tell(edge, "stage-2", "look")
        assert [tokens > 0 for tokens in seen["tokens"]] == [False, True, True, False]
        assert [count > 0 for count in seen["bytes"]] == [False, True, True, False]

    def test_it_can_be_killed_again_and_again(self, edge, head, again):
        boss = head(edge)
        node, _ = with_kv(boss, edge, 1, 2, 3)
        for number in range(5):
            edge = again(edge)
            assert resume(node)["kept_tokens"] == 3 * BLOCK * SHAPE.layers
            start(boss, node, f"stage-{number + 2}")
        assert len(edge.processes()) == 0  # none is its child any more
        edge.end()
        assert eventually(lambda: not (edge.folder / "keeper").exists())

    def test_two_deaths_before_the_head_is_back_lose_nothing(self, edge, head, again):
        boss = head(edge)
        node, _ = with_kv(boss, edge, 4)
        again(again(edge))
        assert resume(node)["kept_tokens"] == BLOCK * SHAPE.layers

    def test_only_the_link_was_away_the_stages_of_before_are_ended_all_the_same(self, edge, head):
        boss = head(edge)
        node, stage = with_kv(boss, edge, 1)
        assert resume(node) == {
            "boot": node.boot,
            "kept_tokens": BLOCK * SHAPE.layers,
            "refused": None,
            "restarted": False,
        }
        assert not is_alive(stage)
        assert edge.state()["pipelines"]["p1"]["stages"] == []
        start(boss, node, "stage-2")
        assert boss.tell(edge, "stage-2", "look")["tokens"] == [BLOCK] * SHAPE.layers

    def test_kv_of_a_head_that_does_not_come_back_goes_when_its_lease_ends(self, edge, head, again):
        boss = head(edge)
        with_kv(boss, edge, 1)
        boss.gateway.close()
        edge = again(edge, lease_s=0.2)
        assert edge.told("pipeline closed", "was not heard of")
        assert eventually(lambda: pool_name("p1") not in left_by(edge))


def left_by(edge: Daemon) -> set[str]:
    """What the keeper holds once the node runtime is gone."""
    kill(edge)
    items = kept(edge.folder)
    close_all(list(items.values()))
    return set(items)


class TestNoZombieWrites:
    def test_a_stage_that_was_stopped_and_wakes_up_later_is_gone_before_the_head_is_answered(self, edge, head, again):
        boss = head(edge)
        node, stage = with_kv(boss, edge, 1)
        os.kill(stage, signal.SIGSTOP)
        again(edge)
        assert not psutil.pid_exists(stage)
        assert resume(node)["refused"] is None

    def test_a_stage_that_is_forked_while_its_node_runtime_dies_is_gone(self, edge, head, again):
        """The order was read by nobody who could tell of its answer."""
        boss = head(edge)
        node, stage = with_kv(boss, edge, 1)
        model = psutil.Process(stage).parent()
        assert model is not None
        model.suspend()
        boss.calls.send(
            "edge-1",
            lambda frame, buffers: boss.gateway.send("edge-1", "node", frame, buffers),
            "start",
            {
                "pipeline": "p1",
                "stage": "stage-9",
                "orders": msgspec.msgpack.encode({"stage": "stage-9", "head": "head"}),
            },
        )
        assert eventually(lambda: "stage-9" in edge.state()["pipelines"]["p1"]["stages"])
        kill(edge)
        model.resume()
        assert eventually(lambda: len(model.children()) == 2)
        edge = again(edge)
        assert model.children() == []
        assert resume(node)["kept_tokens"] == BLOCK * SHAPE.layers


class TestRefusals:
    @pytest.mark.parametrize(
        ("changed", "reason"),
        [
            ({"model": engine("another")}, "is of another model or on others"),
            ({"blocks": SHAPE.blocks - 1}, "has another shape"),
            ({"layers": [0, SHAPE.layers]}, "are not all among the 4"),
        ],
        ids=["model", "shape", "layers"],
    )
    def test_what_the_head_does_not_mean_is_refused_and_stays_as_it_is(self, edge, head, again, changed, reason):
        boss = head(edge)
        node, _ = with_kv(boss, edge, 1)
        again(edge)
        arguments = {"model": TINY, "layers": ALL, **changed}
        shape = {name: arguments.pop(name) for name in ("blocks",) if name in arguments}
        assert reason in resume(node, **arguments, **shape)["refused"]
        assert resume(node)["kept_tokens"] == BLOCK * SHAPE.layers

    def test_another_head_gets_nothing(self, edge, head, again):
        boss, thief = head(edge), head(edge, name="thief")
        with_kv(boss, edge, 1)
        edge = again(edge)
        assert "has nothing left of pipeline 'p1'" in resume(thief.node(edge))["refused"]

    def test_kv_is_not_given_to_a_head_with_another_key(self, edge, head, again, tmp_path):
        boss = head(edge)
        with_kv(boss, edge, 1)
        kill(edge)
        edge.enrolment.remove("head")
        impostor = Host(tmp_path / "elsewhere", "head")
        pem = impostor.identity.certificate_pem
        edge.enrolment.add(Peer(name="head", certificate_pem=pem, address=impostor.gateway.address, controls=True))
        edge = again(edge)
        assert edge.told("not adopted", "is not enrolled any more, or is another one")
        assert edge.state()["pipelines"] == {}
        assert edge.state()["models"] == 1
        impostor.close()

    def test_a_pool_with_impossible_tables_is_refused(self, edge, head, again):
        boss = head(edge)
        node, _ = with_kv(boss, edge, 1)
        kill(edge)
        items = kept(edge.folder)
        descriptor = items[pool_name("p1")].descriptor
        assert descriptor is not None
        KVPool(descriptor, SHAPE).watermark[2, 3] = SHAPE.block_tokens + 1
        close_all(list(items.values()))
        edge = again(edge)
        assert edge.told("not adopted", "watermarks that are not within 0 and 4 tokens")
        assert "has nothing left" in resume(node)["refused"]
        assert node.open([], TINY, None, DEADLINE_S)["was_warm"]

    @pytest.mark.parametrize("record", [b"", b"\x00", os.urandom(40), msgspec.msgpack.encode({"head": "head"})])
    def test_a_damaged_record_costs_what_it_is_about_and_nothing_else(self, edge, head, again, record: bytes):
        boss = head(edge)
        node, _ = with_kv(boss, edge, 1)
        kill(edge)
        tamper(edge.folder, pool_name("p1"), record)
        edge = again(edge)
        assert edge.told("not adopted", "its record is damaged")
        assert "has nothing left" in resume(node)["refused"]
        assert node.open([], TINY, None, DEADLINE_S)["was_warm"]

    def test_a_record_that_names_another_process_adopts_nobody(self, edge, head, again):
        """A process id that was given to somebody else since must not be believed, let alone killed."""
        boss = head(edge)
        with_kv(boss, edge, 1)
        kill(edge)
        name, item = next((name, item) for name, item in kept(edge.folder).items() if name.startswith("model-"))
        fields = msgspec.msgpack.decode(item.record)
        tamper(edge.folder, name, msgspec.msgpack.encode({**fields, "pid": os.getpid()}))
        edge = again(edge)
        assert edge.told("not adopted", "its process is gone")
        assert edge.state()["models"] == 0

    def test_a_model_whose_process_has_ended_takes_its_kv_with_it(self, edge, head, again):
        boss = head(edge)
        node, stage = with_kv(boss, edge, 1)
        model = psutil.Process(stage).parent()
        assert model is not None
        kill(edge)
        model.kill()
        edge = again(edge)
        assert edge.told("not adopted", "model")
        assert "has nothing left" in resume(node)["refused"]
        assert not node.open([], TINY, None, DEADLINE_S)["was_warm"]

    def test_a_pool_that_is_no_memory_file_is_refused(self, edge, head, again):
        boss = head(edge)
        with_kv(boss, edge, 1)
        kill(edge)
        keeper = attached(edge.folder)
        record = next(item.record for item in keeper.items if item.name == pool_name("p1"))
        here, there = socket.socketpair()
        keeper.keep(pool_name("p1"), record, here.fileno())
        keeper.leave()
        close_all(keeper.items)
        here.close()
        there.close()
        assert again(edge).told("not adopted", "it is no memory file")

    def test_what_is_kept_by_a_node_of_other_software_is_ended(self, edge, head, daemon):
        boss = head(edge)
        _, stage = with_kv(boss, edge, 1)
        processes = edge.processes()
        kill(edge)
        items = kept(edge.folder)
        fields = msgspec.msgpack.decode(items["node"].record)
        close_all(list(items.values()))
        tamper(edge.folder, "node", msgspec.msgpack.encode({**fields, "software": "tomorrow's"}))
        with pytest.raises(AssertionError, match="the node runtime has ended"):
            daemon(keep_s=KEEP_S)
        end(edge.folder)  # as `midstream node run` does before it begins anew
        assert eventually(lambda: not any(process.is_running() for process in processes))
        assert not is_alive(stage)


class TestEnds:
    def test_a_node_runtime_that_never_comes_back_leaves_nothing_after_its_time(self, daemon, head):
        edge = daemon(keep_s=1.0)
        boss = head(edge)
        with_kv(boss, edge, 1)
        processes = edge.processes()
        assert len(processes) == 4  # keeper, seed, model, stage
        kill(edge)
        assert all(process.is_running() for process in processes)
        assert eventually(lambda: not any(is_alive(process.pid) for process in processes))
        assert not (edge.folder / "keeper").exists()
        assert not os.path.exists(edge.hello["folder"])

    def test_without_time_to_keep_nothing_outlives_it(self, daemon, head):
        edge = daemon(keep_s=0.0)
        with_kv(head(edge), edge, 1)
        processes = edge.processes()
        kill(edge)
        assert eventually(lambda: not any(is_alive(process.pid) for process in processes))

    def test_the_keeper_ends_when_it_is_told_to_and_nobody_needs_it(self, edge, head):
        with_kv(head(edge), edge, 1)
        processes = edge.processes()
        keeper = next(process for process in processes if process.ppid() == edge.process.pid)
        keeper.terminate()
        assert edge.state()["models"] == 1  # it is needed
        kill(edge)
        assert eventually(lambda: not any(is_alive(process.pid) for process in processes))

    def test_a_keeper_that_is_killed_takes_all_with_it_and_the_next_node_runtime_begins_anew(self, edge, head, daemon):
        boss = head(edge)
        node, _ = with_kv(boss, edge, 1)
        processes = edge.processes()
        kill(edge)
        keeper = min(processes, key=lambda process: process.create_time())
        keeper.kill()
        assert eventually(lambda: not any(is_alive(process.pid) for process in processes))
        edge = daemon(keep_s=KEEP_S, listen=edge.address)
        assert "has nothing left" in resume(node)["refused"]
        assert not node.open([], TINY, None, DEADLINE_S)["was_warm"]

    def test_a_pipeline_that_was_closed_is_not_kept(self, edge, head):
        boss = head(edge)
        node, _ = with_kv(boss, edge, 1)
        node.call("close")
        assert left_by(edge) == {"node", "seed", "model-1"}


class TestOnlyOne:
    def test_a_second_node_runtime_of_the_folder_is_refused_by_name(self, edge, daemon):
        with pytest.raises(AssertionError, match="has ended"):
            daemon(keep_s=KEEP_S)
        with pytest.raises(KeeperError, match=f"runs already, as process {edge.process.pid}"):
            attached(edge.folder)

    def test_one_that_hangs_is_still_the_only_one(self, edge):
        os.kill(edge.process.pid, signal.SIGSTOP)
        with pytest.raises(KeeperError, match="runs already"):
            attached(edge.folder)
        os.kill(edge.process.pid, signal.SIGCONT)
        assert edge.state()["models"] == 0

    def test_nobody_else_can_open_the_socket(self, edge):
        assert (edge.folder / "keeper").stat().st_mode & 0o777 == 0o600
        assert edge.folder.stat().st_mode & 0o777 == 0o700

    def test_garbage_on_the_socket_ends_the_connection_and_nothing_else(self, edge, head, again):
        boss = head(edge)
        node, _ = with_kv(boss, edge, 1)
        kill(edge)
        for garbage in (b"\xc1", os.urandom(1 << 12), msgspec.msgpack.encode({"type": "keep"})):
            keeper = attached(edge.folder)
            keeper._connection.send(garbage)
            assert keeper._connection.recv(1) == b""
            keeper.leave()
            close_all(keeper.items)
        again(edge)
        assert resume(node)["kept_tokens"] == BLOCK * SHAPE.layers
