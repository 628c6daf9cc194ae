"""The judgement of what a node runtime has left: by its records alone, whatever is in them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.warm.adoption import (
    NODE,
    PROTOCOL,
    Judgement,
    ModelRecord,
    NodeRecord,
    PoolRecord,
    SeedRecord,
    judge,
    new_seed,
    pool_name,
)
from runtime.warm.keeper import SEED, KeptItem
from runtime.warm.kv_pool import KVPoolShape

THIS = NodeRecord(PROTOCOL, "0.32.0 abc", "edge-1", "sha256:aa")
HEADS = {"head": "sha256:bb", "other": "sha256:cc"}
SHAPE = KVPoolShape(layers=4, blocks=8, block_tokens=4, layer_bytes=8 * 4096)
MODEL = ModelRecord(b"weights", 101, {"layers": 4}, 1 << 20)
POOL = PoolRecord("head", "sha256:bb", ("edge-1", "head"), b"weights", SHAPE, 4 * SHAPE.layer_stride)


def item(name: str, record: Any, descriptor: int | None = 7) -> KeptItem:
    raw = record if isinstance(record, bytes) else msgspec.msgpack.encode(record)
    return KeptItem(name, raw, None if name == NODE else descriptor)


def left(**changed: Any) -> list[KeptItem]:
    """What a node runtime leaves with one model and one pipeline; `changed` by name (None: not there)."""
    records = {NODE: THIS, SEED: SeedRecord(100, ready=True), "model-3": MODEL, pool_name("p1"): POOL, **changed}
    return [item(name, record) for name, record in records.items() if record is not None]


def test_what_this_node_left_is_adopted() -> None:
    assert judge(left(), THIS, HEADS) == Judgement(
        SeedRecord(100, ready=True), {"model-3": MODEL}, {"pool.p1": POOL}, {}
    )


def test_a_new_seed_is_a_seed() -> None:
    assert judge(left(seed=new_seed(100)), THIS, HEADS).seed == SeedRecord(100)


@pytest.mark.parametrize(
    ("field", "value"),
    [("protocol", PROTOCOL + 1), ("software", "0.33.0"), ("name", "edge-2"), ("fingerprint", "sha256:dd")],
)
def test_nothing_is_adopted_from_another_node_or_other_software(field: str, value: Any) -> None:
    other = msgspec.structs.replace(THIS, **{field: value})
    found = judge(left(node=other), THIS, HEADS)
    assert (found.seed, found.models, found.pools) == (None, {}, {})
    assert set(found.refused) == {SEED, "model-3", "pool.p1"}
    assert all(f"the {field} of the node that left it is {value!r}" in why for why in found.refused.values())


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"node": None}, "there is no record of the node"),
        ({"seed": None}, "there is no seed zygote"),
        ({"seed": SeedRecord(1)}, "there is no seed zygote"),
        ({"seed": b"\xc1"}, "there is no seed zygote"),
    ],
)
def test_without_its_roots_nothing_is_adopted(changed: dict[str, Any], reason: str) -> None:
    found = judge(left(**changed), THIS, HEADS)
    assert (found.seed, found.models, found.pools) == (None, {}, {})
    assert reason in found.refused[SEED]


@pytest.mark.parametrize(
    ("pool", "reason"),
    [
        ({"head": "nobody"}, "is not enrolled any more"),
        ({"fingerprint": "sha256:cc"}, "or is another one"),
        ({"model": b"others"}, "its model is not there"),
        ({"kv_bytes": -1}, "its shape makes no sense"),
        ({"kv_bytes": 1 << 60}, "its shape makes no sense"),
        *(
            ({"shape": msgspec.structs.replace(SHAPE, **{name: value})}, "its shape makes no sense")
            for name in ("layers", "blocks", "block_tokens", "layer_bytes")
            for value in (0, -1, 1 << 62)
        ),
    ],
)
def test_a_pool_that_does_not_fit_is_refused_and_nothing_else_is(pool: dict[str, Any], reason: str) -> None:
    found = judge(left(**{"pool.p1": msgspec.structs.replace(POOL, **pool)}), THIS, HEADS)
    assert found.models == {"model-3": MODEL}
    assert list(found.refused) == ["pool.p1"]
    assert reason in found.refused["pool.p1"]


def test_of_two_with_the_same_weights_or_process_one_is_adopted() -> None:
    twin = msgspec.structs.replace(MODEL, model=b"others")
    again = msgspec.structs.replace(MODEL, pid=102)
    found = judge(left(**{"model-4": twin, "model-5": again}), THIS, HEADS)
    assert found.models == {"model-3": MODEL}
    assert set(found.refused) == {"model-4", "model-5"}


@pytest.mark.parametrize(
    "name", ["model-", "model-x", "model-3 ", "pool.", "pool.a/b", "pool.." + "x" * 40, "", "else"]
)
def test_what_has_no_known_name_is_refused(name: str) -> None:
    assert judge([*left(), item(name, MODEL)], THIS, HEADS).refused == {name: "nobody knows what it is"}


def test_a_record_without_its_descriptor_adopts_nothing() -> None:
    items = [KeptItem(one.name, one.record, None) for one in left()]
    assert judge(items, THIS, HEADS).refused[SEED] == "there is no seed zygote"


class TestWhateverIsInTheRecords:
    """No bytes make the judgement fail, and what it adopts is always its own, whole and possible."""

    @staticmethod
    def check(found: Judgement, items: list[KeptItem]) -> None:
        kept = {one.name: one for one in items}
        assert not (found.models.keys() | found.pools.keys()) & found.refused.keys()
        if found.seed is None:
            assert (found.models, found.pools) == ({}, {})
            return
        assert msgspec.msgpack.decode(kept[NODE].record, type=NodeRecord) == THIS
        for name, model in found.models.items():
            assert msgspec.msgpack.decode(kept[name].record, type=ModelRecord) == model
            assert (model.pid > 1, kept[name].descriptor is not None) == (True, True)
        assert len({model.model for model in found.models.values()}) == len(found.models)
        for name, pool in found.pools.items():
            assert HEADS[pool.head] == pool.fingerprint
            assert pool.model in {model.model for model in found.models.values()}
            assert 0 < pool.shape.total_bytes < 1 << 51
            assert kept[name].descriptor is not None

    @given(st.data())
    def test_damaged_anywhere(self, data: st.DataObject) -> None:
        items = left(**{"model-4": msgspec.structs.replace(MODEL, model=b"more", pid=103), "pool.p2": POOL})
        for _ in range(data.draw(st.integers(1, 4))):
            index = data.draw(st.integers(0, len(items) - 1))
            one = items[index]
            raw = bytearray(one.record)
            how = data.draw(st.sampled_from(["cut", "flip", "grow", "lose", "rename"]))
            at = data.draw(st.integers(0, max(len(raw) - 1, 0)))
            if how == "cut":
                raw = raw[:at]
            elif how == "flip" and raw:
                raw[at] ^= 1 << data.draw(st.integers(0, 7))
            elif how == "grow":
                raw += data.draw(st.binary(max_size=20))
            descriptor = None if how == "lose" else one.descriptor
            name = data.draw(st.sampled_from([NODE, SEED, "model-9", "pool.p9"])) if how == "rename" else one.name
            items[index] = KeptItem(name, bytes(raw), descriptor)
        self.check(judge(items, THIS, HEADS), items)

    @given(
        st.lists(
            st.builds(
                KeptItem,
                st.sampled_from([NODE, SEED, "model-1", "model-2", "pool.p1", "pool.p2"]) | st.text(max_size=10),
                st.binary(max_size=200)
                | st.builds(msgspec.msgpack.encode, st.recursive(st.none() | st.integers(-9, 9) | st.text(), st.lists)),
                st.none() | st.integers(3, 9),
            )
        )
    )
    def test_arbitrary(self, items: list[KeptItem]) -> None:
        self.check(judge([*left(), *items], THIS, HEADS), [*left(), *items])

    @given(st.integers(), st.integers(), st.integers(), st.integers(), st.integers())
    def test_arbitrary_shapes(self, layers: int, blocks: int, tokens: int, size: int, kv_bytes: int) -> None:
        try:
            raw = msgspec.msgpack.encode(
                {**msgspec.to_builtins(POOL), "shape": [layers, blocks, tokens, size], "kv_bytes": kv_bytes}
            )
        except OverflowError:
            return
        shape = {"layers": layers, "blocks": blocks, "block_tokens": tokens, "layer_bytes": size}
        raw = msgspec.msgpack.encode(
            {**msgspec.to_builtins(POOL), "model": b"weights", "shape": shape, "kv_bytes": kv_bytes}
        )
        items = left(**{"pool.p1": raw})
        self.check(judge(items, THIS, HEADS), items)
