"""The loop of a stage with a stand-in for the worker: no model, no vLLM worker, real sockets."""

import os
import pickle
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, ClassVar

import msgspec
import pytest
import torch
import zmq

from runtime.engine import stage_process
from runtime.engine.messages import BatchOutput, ScheduledBatch, decode_output, encode
from runtime.engine.role import Role
from runtime.engine.stage_process import PoolBinding, RouteOrder, StageProcess, StageStart
from runtime.layout import LayerRange
from runtime.transport.address import Address, Neighbourhood
from runtime.transport.channel import Inbox, Outbox
from runtime.transport.frames import Batch, Call, Hidden, Rejected, Reply, Result, TensorMeta, pack, unpack
from runtime.warm.kv_pool import KVPool, KVPoolShape
from tests.unit.runtime.engine.batches import batch, new, output
from tests.unit.runtime.engine.waiting import DEADLINE_S

Tensors = dict[str, torch.Tensor]
HIDDEN = {
    "hidden_states": torch.arange(6, dtype=torch.float32).view(2, 3),
    "residual": torch.ones(2, dtype=torch.bfloat16),
}
SHAPE = KVPoolShape(layers=2, blocks=4, block_tokens=4, layer_bytes=4096)
BINDING = msgspec.to_builtins(PoolBinding(2, 4, 4, 4096, layout_name="NHD", batch_tokens=4))
ROUTE = msgspec.to_builtins(RouteOrder(1, Role(0, (1, 1)), Address("here", "next"), batch_tokens=4))


class FakeWorker:
    """Does as the test says: `answer` makes the output of a batch from its hidden states."""

    def __init__(self) -> None:
        self.seen: list[tuple[ScheduledBatch, Tensors | None]] = []
        self.answer: Callable[[Tensors | None], Tensors | BatchOutput] = lambda _: HIDDEN
        self.bound: tuple[KVPoolShape, str] | None = None
        self.inherited = True
        self.roles: list[Role] = []
        self.forgotten = 0
        self.rehearsed: list[tuple[int, int]] = []
        self.prepared = threading.Event()

    def take_role(self, role: Role) -> None:
        self.roles.append(role)

    def map_kv(self) -> None:
        """Nothing to map."""

    def forget_requests(self) -> None:
        self.forgotten += 1

    def compute(
        self, role: Role, scheduled: ScheduledBatch, fetch_hidden: Callable[[], Tensors]
    ) -> Tensors | BatchOutput:
        self.prepared.set()
        hidden = None if role.is_first else fetch_hidden()
        self.seen.append((scheduled, hidden))
        return self.answer(hidden)

    def bind_kv(self, pool: KVPool, layout_name: str) -> None:
        self.bound = pool.shape, layout_name

    def compile_or_warm_up_model(self) -> None:
        """Nothing to compile."""

    def rehearse(self, tokens: int) -> None:
        self.rehearsed.append((tokens, os.sched_getscheduler(threading.get_native_id())))

    def get_kv_cache_spec(self) -> dict[str, Any]:
        return {}

    def get_supported_kv_cache_layouts(self) -> list[str]:
        return ["NHD"]

    def add(self, first: int, second: int) -> int:
        return first + second

    def make_set(self) -> object:
        return object()


class FakeThreads:
    """Stands in for `ComputeThreads`: a test process has threads of its own."""

    ranks: ClassVar[list[int]] = []

    def spread(self, rank: int) -> None:
        self.ranks.append(rank)


class StageBench:
    """A stage in a thread, its head and the next stage as inboxes."""

    def __init__(self, folder: str, rank: int, worker: FakeWorker) -> None:
        self.worker = worker
        self.context = zmq.Context()
        self.head = Inbox(self.context, f"ipc://{folder}/head")
        self.following = Inbox(self.context, f"ipc://{folder}/next")
        self.descriptor = KVPool.new_descriptor("stage-test")
        KVPool.reserve(self.descriptor, SHAPE)
        self.role = Role(rank, (1, 1))
        home = Neighbourhood("here", "p1", folder)
        start = StageStart("stage-7", Address("here", "head"), threads=0)
        self.stage = StageProcess(start, home, self.descriptor, None, None)
        inbox = home.inbox("stage-7")
        self.outbox = Outbox(self.context, inbox)
        self._raw = self.context.socket(zmq.PUSH)
        self._raw.connect(inbox)
        self._calls = 0
        self.thread = threading.Thread(target=self.stage.serve, daemon=True)
        self.thread.start()

    def call(self, method: str, arguments: object = None) -> Reply:
        self._calls += 1
        self.outbox.send(Call(self._calls, method), [msgspec.msgpack.encode(arguments or {})])
        reply, self.value = self.heard()
        assert (reply.stage, reply.call) == ("stage-7", self._calls)
        return reply

    def send_raw(self, *parts: bytes) -> None:
        self._raw.send_multipart(parts)

    def heard(self) -> tuple[Any, Any]:
        """Return what the stage told its head."""
        return _received(self.head)

    def passed_on(self) -> tuple[Any, list[bytes]]:
        """Return what the stage sent to the next."""
        return _received(self.following)

    def serve(self, epoch: int, batch_tokens: int = 1) -> None:
        order = RouteOrder(epoch, self.role, Address("here", "next"), batch_tokens)
        assert self.call("route", msgspec.to_builtins(order)).error is None

    def close(self) -> None:
        if self.thread.is_alive():
            self.call("release")
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive()
        self._raw.close()
        for socket in (self.outbox, self.head, self.following):
            socket.close()
        self.context.destroy(linger=0)
        os.close(self.descriptor)


def _received(inbox: Inbox) -> tuple[Any, Any]:
    parts = inbox.receive(int(1000 * DEADLINE_S))
    assert parts is not None, "nothing came"
    frame, buffers = unpack(parts)
    raw = [bytes(buffer) for buffer in buffers]
    if isinstance(frame, Reply):
        return frame, msgspec.msgpack.decode(raw[0]) if raw else None
    return frame, raw


def _bench(rank: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[StageBench]:
    worker = FakeWorker()
    monkeypatch.setattr(stage_process, "_load_worker", lambda *_: worker)
    monkeypatch.setattr(stage_process, "ComputeThreads", FakeThreads)
    monkeypatch.setattr(FakeThreads, "ranks", [])
    with tempfile.TemporaryDirectory(prefix="m-") as folder, closing(StageBench(folder, rank, worker)) as bench:
        yield bench


@pytest.fixture
def unprepared(monkeypatch: pytest.MonkeyPatch) -> Iterator[StageBench]:
    yield from _bench(0, monkeypatch)


@pytest.fixture
def first(unprepared: StageBench) -> StageBench:
    """The first stage of two, prepared."""
    assert unprepared.call("prepare").error is None
    return unprepared


@pytest.fixture
def last(monkeypatch: pytest.MonkeyPatch) -> Iterator[StageBench]:
    """The last stage of two, prepared."""
    for bench in _bench(1, monkeypatch):
        assert bench.call("prepare").error is None
        bench.worker.answer = lambda _: output(a=41)
        yield bench


def payload() -> list[bytes]:
    return [bytes(buffer) for buffer in encode(batch(new("a", 2, [1]), tokens=2))]


def frame(epoch: int, sequence: int) -> Batch:
    return Batch(epoch, sequence, len(payload()))


def still_serves(bench: StageBench) -> bool:
    """Whether the next batch is computed as if nothing had happened."""
    bench.serve(9)
    bench.outbox.send(frame(9, 99), payload())
    if not bench.role.is_first:
        bench.outbox.send(Hidden(9, 99))
    answer, _ = bench.passed_on()
    return (answer.epoch, answer.sequence) == (9, 99)


# -- batches -----------------------------------------------------------------------------------------------------------


def test_what_a_stage_computes_goes_on_to_the_next(first: StageBench):
    first.serve(1)
    first.outbox.send(frame(1, 5), payload())
    passed, buffers = first.passed_on()
    assert (passed.epoch, passed.sequence) == (1, 5)
    assert passed.tensors == (TensorMeta("hidden_states", "float32", (2, 3)), TensorMeta("residual", "bfloat16", (2,)))
    assert len(buffers) == 2
    assert [span.stage for span in passed.spans] == ["stage-7"]
    assert 0 < passed.spans[0].start_ns <= passed.spans[0].end_ns


def test_hidden_states_arrive_as_they_were_sent(first: StageBench, last: StageBench):
    first.serve(1)
    first.outbox.send(frame(1, 5), payload())
    passed, buffers = first.passed_on()
    last.serve(1)
    last.outbox.send(frame(1, 5), payload())
    last.outbox.send(passed, buffers)
    result, _ = last.passed_on()
    assert result.spans[0] == passed.spans[0]
    assert result.spans[1].start_ns >= passed.spans[0].end_ns
    ((scheduled, hidden),) = last.worker.seen
    assert scheduled.scheduled_tokens == {"a": 2}
    assert hidden is not None
    assert hidden.keys() == HIDDEN.keys()
    for name, tensor in HIDDEN.items():
        assert hidden[name].dtype == tensor.dtype
        assert torch.equal(hidden[name], tensor)


def test_the_last_stage_answers_the_head_with_what_it_sampled(last: StageBench):
    last.serve(1)
    last.outbox.send(frame(1, 5), payload())
    last.outbox.send(Hidden(1, 5))
    result, buffers = last.passed_on()
    assert isinstance(result, Result)
    assert (result.epoch, result.sequence, result.buffers) == (1, 5, len(buffers))
    assert decode_output(buffers).sampled_token_ids == [[41]]


@pytest.mark.parametrize("role", [Role(0, (1, 1)), Role(1, (1, 1))], ids=["first", "last"])
def test_a_probe_passes_through_without_being_computed(first: StageBench, role: Role):
    first.role = role
    first.serve(1)
    first.outbox.send(Batch(1, 0, 0))
    if not role.is_first:
        first.outbox.send(Hidden(1, 0))
    assert first.passed_on() == (Hidden(1, 0) if role.is_first else Result(1, 0, 0), [])
    assert first.worker.seen == []


def test_a_batch_is_prepared_before_its_hidden_states_come(last: StageBench):
    last.serve(1)
    last.outbox.send(frame(1, 5), payload())
    assert last.worker.prepared.wait(DEADLINE_S)
    last.outbox.send(Hidden(1, 5))
    assert last.passed_on()[0].sequence == 5


def test_hidden_states_may_come_before_their_batch_and_out_of_order(last: StageBench):
    last.serve(1)
    last.serve(2)
    last.outbox.send(Hidden(2, 6))
    last.outbox.send(frame(1, 5), payload())
    last.outbox.send(frame(2, 6), payload())
    last.outbox.send(Hidden(1, 5))
    assert [last.passed_on()[0].sequence for _ in range(2)] == [5, 6]


def test_a_wait_for_hidden_states_ends_when_the_epoch_is_taken_away(last: StageBench):
    """The stage before has gone: the head takes the epoch away and replays the batch in another."""
    last.serve(1)
    last.outbox.send(frame(1, 5), payload())
    assert last.worker.prepared.wait(DEADLINE_S)
    assert last.call("unroute", {"epoch": 1}).error is None
    assert last.worker.seen == []
    assert still_serves(last)


def test_a_waiting_stage_takes_routes_and_probes_and_lets_everything_else_wait(last: StageBench):
    last.serve(1)
    last.outbox.send(frame(1, 5), payload())
    assert last.worker.prepared.wait(DEADLINE_S)
    last.serve(2)
    last.outbox.send(Hidden(2, 0))
    assert last.passed_on()[0] == Result(2, 0, 0)
    last.outbox.send(Call(70, "worker"), [msgspec.msgpack.encode({"method": "add", "args": [1, 1], "kwargs": {}})])
    last.outbox.send(Hidden(1, 5))
    assert last.passed_on()[0].sequence == 5
    assert last.heard()[0].call == 70


def test_a_stage_that_waits_for_hidden_states_can_be_released(last: StageBench):
    last.serve(1)
    last.outbox.send(frame(1, 5), payload())
    assert last.worker.prepared.wait(DEADLINE_S)
    assert last.call("release").error is None
    last.thread.join(DEADLINE_S)
    assert not last.thread.is_alive()


def test_a_stage_without_any_epoch_forgets_its_requests_and_can_take_another_role(first: StageBench):
    first.serve(1)
    first.serve(2)
    first.call("unroute", {"epoch": 1})
    assert first.worker.forgotten == 0
    first.call("unroute", {"epoch": 2})
    assert first.worker.forgotten == 1
    first.role = Role(1, (1, 1))
    first.serve(3)
    assert first.worker.roles == [Role(0, (1, 1)), Role(1, (1, 1))]


# -- I1 ----------------------------------------------------------------------------------------------------------------


def test_i1_a_batch_of_an_epoch_without_a_route_is_rejected_and_not_computed(first: StageBench):
    first.serve(1)
    first.outbox.send(frame(2, 5), payload())
    rejected, _ = first.heard()
    assert rejected == Rejected("stage-7", 2, 5, "epoch 2 is not served by stage stage-7, which serves [1]")
    assert first.worker.seen == []
    assert still_serves(first)


def test_i1_an_epoch_that_was_taken_away_is_rejected_and_the_other_is_not(first: StageBench):
    first.serve(1)
    first.serve(2)
    assert first.call("unroute", {"epoch": 1}).error is None
    first.outbox.send(frame(1, 5), payload())
    first.outbox.send(frame(2, 6), payload())
    assert first.heard()[0].epoch == 1
    assert first.passed_on()[0].epoch == 2


def test_i1_a_probe_of_another_epoch_is_rejected_too(first: StageBench):
    first.outbox.send(Batch(3, 0, 0))
    assert first.heard()[0].epoch == 3


def test_i1_hidden_states_of_an_epoch_without_a_route_are_rejected(last: StageBench):
    last.serve(1)
    last.outbox.send(Hidden(2, 5))
    assert last.heard()[0] == Rejected("stage-7", 2, 5, "epoch 2 is not served by stage stage-7, which serves [1]")
    assert still_serves(last)


# -- I8 and failures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        [b""],
        [b"\xc1"],
        [b"GET / HTTP/1.1\r\n"],
        [b"\x81\xa4type\xa5batch"],
        [bytes(pack(Batch(1, 1, 0))[0]), b"one buffer too many"],
        [msgspec.msgpack.encode({"type": "call", "call": 1, "method": "release", "buffers": 0})],
        [pickle.dumps({"type": "call"})],
    ],
    ids=str,
)
def test_i8_a_malformed_message_is_rejected_and_the_loop_goes_on(first: StageBench, parts: list[bytes]):
    first.send_raw(*parts)
    rejected, _ = first.heard()
    assert (rejected.stage, rejected.epoch, rejected.sequence) == ("stage-7", -1, -1)
    assert still_serves(first)


def test_a_frame_that_is_not_for_stages_is_rejected(first: StageBench):
    first.outbox.send(Result(1, 1, 0))
    rejected, _ = first.heard()
    assert (rejected.epoch, rejected.reason) == (-1, "a stage does not take Result")
    assert still_serves(first)


@pytest.mark.parametrize(
    ("meta", "data", "reason"),
    [
        (TensorMeta("x", "float32", (2, 3)), bytes(23), "came with 23 bytes"),
        (TensorMeta("x", "float32", (2, 3)), bytes(25), "came with 25 bytes"),
        (TensorMeta("x", "float32", (2, 3)), b"", "came with 0 bytes"),
        (TensorMeta("x", "float32", (-2, -3)), bytes(24), "came with 24 bytes"),
        (TensorMeta("x", "float32", (-1,)), bytes(4), "came with 4 bytes"),
        (TensorMeta("x", "float32", (2**62, 2**62)), bytes(8), "came with 8 bytes"),
        (TensorMeta("x", "float32", (0, 2**62)), b"", ""),
        (TensorMeta("x", "float33", (1,)), bytes(4), "unknown type 'float33'"),
        (TensorMeta("x", "load", (1,)), bytes(4), "unknown type 'load'"),
        (TensorMeta("x", "__class__", (1,)), bytes(4), "unknown type '__class__'"),
        (TensorMeta("x", "", (1,)), bytes(4), "unknown type ''"),
    ],
    ids=str,
)
def test_i8_a_hostile_description_of_a_tensor_rejects_the_batch(
    last: StageBench, meta: TensorMeta, data: bytes, reason: str
):
    last.serve(1)
    last.outbox.send(frame(1, 5), payload())
    last.outbox.send(Hidden(1, 5, (meta,)), [data])
    rejected, _ = last.heard()
    assert (rejected.epoch, rejected.sequence) == (1, 5)
    assert reason in rejected.reason
    assert last.worker.seen == []
    assert still_serves(last)


_opened: list[str] = []


class Trap:
    """Says so when somebody unpickles it."""

    def __reduce__(self) -> tuple[object, ...]:
        return _opened.append, ("somebody unpickled it",)


@pytest.mark.parametrize("extension", [None, 1, 2, 3])
def test_i8_a_batch_that_holds_a_pickle_is_rejected_and_the_pickle_never_opened(
    first: StageBench, extension: int | None
):
    trap = pickle.dumps(Trap())
    if extension is not None:
        trap = msgspec.msgpack.encode({"new": msgspec.msgpack.Ext(extension, trap)})
    first.serve(1)
    first.outbox.send(Batch(1, 5, 1), [trap])
    assert first.heard()[0].sequence == 5
    assert _opened == []
    assert still_serves(first)


def test_a_batch_that_cannot_be_computed_is_rejected_with_the_reason_and_the_next_is_computed(first: StageBench):
    def fail(_: Tensors | None) -> Tensors:
        raise ValueError("layer 3, block 5 is valid for 2 tokens only")

    first.serve(1)
    first.worker.answer = fail
    first.outbox.send(frame(1, 5), payload())
    assert first.heard()[0] == Rejected("stage-7", 1, 5, "ValueError: layer 3, block 5 is valid for 2 tokens only")
    first.worker.answer = lambda _: HIDDEN
    assert still_serves(first)


# -- control -----------------------------------------------------------------------------------------------------------


def test_preparing_tells_what_the_head_needs_to_know(unprepared: StageBench):
    assert unprepared.call("prepare").error is None
    assert unprepared.value["kv_specs"] == {}
    assert unprepared.value["kv_layouts"] == ["NHD"]
    assert isinstance(unprepared.value["timings_ms"], dict)


def test_a_failed_preparation_is_answered_and_can_be_tried_again(unprepared: StageBench, monkeypatch):
    worker = unprepared.worker

    def fail(*_: object) -> None:
        raise MemoryError("no room for 12 layers")

    monkeypatch.setattr(stage_process, "_load_worker", fail)
    assert unprepared.call("prepare").error == "MemoryError: no room for 12 layers"
    monkeypatch.setattr(stage_process, "_load_worker", lambda *_: worker)
    assert unprepared.call("prepare").error is None


def test_binding_maps_the_pool_of_the_node(first: StageBench):
    assert first.call("bind", BINDING).error is None
    assert first.worker.bound == (SHAPE, "NHD")


def test_a_stage_rehearses_in_the_background_before_it_serves_and_never_while_it_does(first: StageBench):
    first.call("bind", {**BINDING, "batch_tokens": 4})
    first.serve(1, batch_tokens=8)
    first.serve(2, batch_tokens=16)  # serving already: nothing may get in the way of a batch
    assert first.worker.rehearsed == [(tokens, os.SCHED_IDLE) for tokens in (1, 4, 8)]


def test_a_stage_spreads_its_threads_before_it_serves(last: StageBench):
    last.serve(1)
    assert FakeThreads.ranks == []  # not bound to its pool yet: nothing has computed
    last.call("unroute", {"epoch": 1})
    last.call("bind", BINDING)
    last.serve(2)
    assert FakeThreads.ranks == [1]


def test_a_worker_method_is_called_with_plain_data(first: StageBench):
    assert first.call("worker", {"method": "add", "args": [2], "kwargs": {"second": 3}}).error is None
    assert first.value == 5


@pytest.mark.parametrize(
    ("method", "arguments", "error"),
    [
        ("explode", {}, "StageError: unknown call 'explode'"),
        ("route", {"epoch": 1}, "ValidationError: "),
        ("route", {**ROUTE, "next": "no address"}, "ValidationError: "),
        ("route", {**ROUTE, "next": {"host": "b", "name": "x"}}, "ChannelError: there is no way to x@b"),
        ("route", [1, 2], "ValidationError: "),
        ("bind", {"layers": 2}, "ValidationError: "),
        ("worker", {"method": "no_such", "args": [], "kwargs": {}}, "AttributeError: "),
        ("worker", {"method": "add", "args": [], "kwargs": {}}, "TypeError: "),
        ("worker", {"method": "make_set", "args": [], "kwargs": {}}, "TypeError: "),
    ],
)
def test_a_call_that_fails_is_answered_with_its_error_and_the_loop_goes_on(
    first: StageBench, method: str, arguments: object, error: str
):
    told = first.call(method, arguments).error
    assert told is not None
    assert told.startswith(error)
    assert still_serves(first)


@pytest.mark.parametrize("arguments", [b"", b"\xc1", b"\x91" * 100_000, pickle.dumps(Trap())], ids=len)
def test_i8_unreadable_arguments_are_answered_with_an_error(first: StageBench, arguments: bytes):
    first.outbox.send(Call(77, "route"), [arguments])
    reply, _ = first.heard()
    assert (reply.call, reply.error is not None) == (77, True)
    assert _opened == []
    assert still_serves(first)


@pytest.mark.parametrize("method", ["bind", "route", "worker"])
def test_what_needs_a_worker_is_refused_before_the_stage_is_prepared(unprepared: StageBench, method: str):
    arguments = {"bind": BINDING, "route": ROUTE, "worker": {"method": "add", "args": [1, 2], "kwargs": {}}}[method]
    assert unprepared.call(method, arguments).error == "StageError: stage stage-7 is not prepared yet"


def test_a_released_stage_answers_and_ends(first: StageBench):
    assert first.call("release").error is None
    first.thread.join(DEADLINE_S)
    assert not first.thread.is_alive()


def test_a_role_knows_its_layers_and_its_place():
    roles = [Role(rank, (8, 12, 10)) for rank in range(3)]
    assert [role.layers for role in roles] == [LayerRange(0, 8), LayerRange(8, 20), LayerRange(20, 30)]
    assert [role.is_first for role in roles] == [True, False, False]
    assert [role.is_last for role in roles] == [False, False, True]
