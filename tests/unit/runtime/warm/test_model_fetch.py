"""A model's files on their way from a head to a node: real links, real stores."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from runtime.migration.kv_transfer import KVExchange, answer, read_arguments
from runtime.transport.calls import CallError
from runtime.transport.frames import Call
from runtime.transport.gateway import NODE
from runtime.warm.model_fetch import METHOD, ModelFetch, ModelOrder, ModelSource
from runtime.warm.model_files import ModelStoreError
from runtime.warm.model_store import ModelStore
from tests.unit.runtime.transport.hosts import Host, introduce

WEIGHTS = bytes(range(256)) * 12_000  # three chunks
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "again.safetensors": WEIGHTS, "empty.txt": b""}


class Side(Host):
    """A host that takes answers, and with a source serves files."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder, name)
        self.store = ModelStore(folder / f"{name}-models", None)
        self.exchange = KVExchange(name)
        self.exchange.gateway = self.gateway
        self.source: ModelSource | None = None
        self.asked: list[dict[str, Any]] = []
        self.react = self.take

    def take(self, peer: Any, frame: Any, buffers: Any) -> None:
        source = self.source
        if isinstance(frame, Call) and frame.method == METHOD and source is not None:
            arguments = read_arguments(frame, buffers[0])
            self.asked.append(arguments)
            answer(self.gateway, self.name, peer.name, NODE, frame, lambda: source.read(peer.name, arguments))
        elif not self.exchange.on_frame(peer.name, frame, buffers):
            self._keep(peer, frame, buffers)


@pytest.fixture
def sides(tmp_path: Path) -> Iterator[tuple[Side, Side]]:
    with ExitStack() as stack:
        head, edge = Side(tmp_path, "head"), Side(tmp_path, "edge-1")
        for side in (head, edge):
            stack.callback(side.close)
        introduce(head, edge)
        yield head, edge


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "the-model"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


def offer(head: Side, model: Path, *readers: str) -> ModelOrder:
    order = ModelOrder(head.store.describe(model, "the-model"), str(model))
    head.source = ModelSource(head.store, order, frozenset(readers))
    return order


def elsewhere(order: ModelOrder, model: Path) -> ModelOrder:
    """The order as a node on another machine understands it: that folder is not there."""
    return ModelOrder(order.files, str(model) + "-on-the-head")


def fetch(edge: Side) -> ModelFetch:
    return ModelFetch(edge.store, edge.gateway, edge.exchange.calls)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_node_without_the_files_gets_each_content_once(sides: tuple[Side, Side], model: Path):
    head, edge = sides
    order = elsewhere(offer(head, model, "edge-1"), model)
    folder, fetched = fetch(edge).folder("head", order, "model-1")
    assert contents(folder) == FILES
    assert fetched == len(WEIGHTS) + 2
    assert fetch(edge).folder("head", order, "model-2")[1] == 0


def test_a_node_with_the_same_folder_uses_it_as_it_is(sides: tuple[Side, Side], model: Path):
    head, edge = sides
    assert fetch(edge).folder("head", offer(head, model, "edge-1"), "model-1") == (model, 0)
    assert head.asked == []
    assert edge.store.used_bytes() == 0


def test_of_a_folder_with_other_files_only_the_same_ones_are_used(
    sides: tuple[Side, Side], model: Path, tmp_path: Path
):
    head, edge = sides
    order = offer(head, model, "edge-1")
    here = tmp_path / "here"
    here.mkdir()
    (here / "config.json").write_bytes(b"{}")
    (here / "model.safetensors").write_bytes(b"another revision")
    folder, fetched = fetch(edge).folder("head", ModelOrder(order.files, str(here)), "model-1")
    assert contents(folder) == FILES
    assert fetched == len(WEIGHTS)
    assert (here / "model.safetensors").read_bytes() == b"another revision"


def test_what_arrived_before_the_way_broke_is_not_fetched_again(sides: tuple[Side, Side], model: Path):
    head, edge = sides
    order = elsewhere(offer(head, model, "edge-1"), model)
    source = head.source
    assert source is not None
    read, served = source.read, []

    def fail_after_two(peer: str, arguments: dict[str, Any]) -> bytes:
        served.append(arguments)
        if len(served) == 3:
            raise ModelStoreError("the disk is gone")
        return read(peer, arguments)

    source.read = fail_after_two  # type: ignore[method-assign]
    with pytest.raises(CallError, match="the disk is gone"):
        fetch(edge).folder("head", order, "model-1")
    folder, fetched = fetch(edge).folder("head", order, "model-1")
    assert contents(folder) == FILES
    assert 0 < fetched < len(WEIGHTS)


def test_i8_bytes_that_are_not_what_was_described_are_not_kept(sides: tuple[Side, Side], model: Path):
    head, edge = sides
    order = elsewhere(offer(head, model, "edge-1"), model)
    assert head.source is not None
    head.source.read = lambda _, asked: b"x" * asked["length"]  # type: ignore[method-assign]
    with pytest.raises(ModelStoreError):
        fetch(edge).folder("head", order, "model-1")
    assert edge.store.missing(order.files) == order.files.distinct()


def test_i8_a_host_that_is_no_node_of_the_pipeline_gets_nothing_and_is_cut_off(sides: tuple[Side, Side], model: Path):
    head, edge = sides
    order = elsewhere(offer(head, model, "edge-2"), model)
    edge.on_loss = edge.exchange.calls.fail
    with pytest.raises(CallError):
        fetch(edge).folder("head", order, "model-1")
    assert "edge-1 is no node of this pipeline" in head.told("link_down")


@pytest.mark.parametrize(
    "asked",
    [
        {"sha256": "0" * 64, "offset": 0, "length": 10},
        {"sha256": "../../etc/passwd", "offset": 0, "length": 10},
    ],
)
def test_i8_only_described_files_can_be_read(sides: tuple[Side, Side], model: Path, asked: dict[str, Any]):
    head, _ = sides
    offer(head, model, "edge-1")
    assert head.source is not None
    with pytest.raises(ModelStoreError):
        head.source.read("edge-1", asked)
