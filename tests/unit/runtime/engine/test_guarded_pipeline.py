"""I5 at the start and the waking of a pipeline: without permission no process is started and no node is asked."""

import json
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from runtime.engine import pipeline as pipeline_module
from runtime.engine.assembly import Assembly
from runtime.engine.errors import EngineError
from runtime.engine.executor import GuardSettings, PipelineSettings
from runtime.engine.mending import Mender
from runtime.engine.pipeline import Pipeline
from runtime.head.serve import ServeOptions, vllm_arguments
from runtime.layout import Layout
from runtime.migration.errors import ChangeForbidden, GuardSilent
from runtime.migration.guard import Permission
from runtime.warm.node import NodeError
from tests.unit.runtime.migration.fake_guard import FakeGuard


class Touched(AssertionError):
    """Something was started."""


def touch(*_: Any, **__: Any) -> None:
    raise Touched


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> FakeGuard:
    monkeypatch.setattr(pipeline_module, "_GUARD_S", 0.0)
    return FakeGuard()


@pytest.fixture
def pipeline(guard: FakeGuard) -> Any:
    """A pipeline whose every effect is `touch`."""
    pipeline: Any = Pipeline.__new__(Pipeline)
    pipeline._permission = Permission(guard, "smollm", "head")
    pipeline.serving = SimpleNamespace(assembly=Assembly(Layout.parse("2@edge-1,2@edge-2", 4), []))
    pipeline.fleet = SimpleNamespace(load=touch)
    pipeline.nodes = SimpleNamespace(open=touch, placed=lambda layout: layout, kv_gone=dict)
    pipeline.assembler = SimpleNamespace(start=touch)
    pipeline.mender = Mender(
        pipeline.serving,
        touch,
        pipeline.fleet,
        pipeline.nodes,
        touch,
        pipeline.assembler,
        touch,
        8,
        touch,
        lambda: None,
    )
    return pipeline


def test_a_forbidden_layout_does_not_begin(pipeline: Any, guard: FakeGuard):
    guard.nodes.add("edge-2")
    with pytest.raises(ChangeForbidden, match="edge-2 is in the US"):
        pipeline.start()
    guard.known = False
    with pytest.raises(GuardSilent, match="it is away"):
        pipeline.start()


def test_a_pipeline_that_may_be_nowhere_does_not_wake(pipeline: Any):
    def nowhere(_: Layout) -> Layout:
        raise NodeError("edge-2 is in the US")

    pipeline.nodes.placed = nowhere
    with pytest.raises(NodeError, match="edge-2 is in the US"):
        pipeline.mender.bring_stages_back()


def test_an_allowed_layout_begins(pipeline: Any):
    with pytest.raises(Touched):
        pipeline.start()
    with pytest.raises(Touched):
        pipeline.mender.bring_stages_back()


def test_what_serve_is_told_arrives_at_the_pipeline():
    model: Any = SimpleNamespace(path="/m", served_name="m", origin="folder")
    guard = {"url": "http://127.0.0.1:7180", "here": "edge-0"}
    for given, arrives in ((guard, GuardSettings("http://127.0.0.1:7180", "edge-0")), (None, None)):
        arguments = vllm_arguments(model, ServeOptions(guard=given), on_cpu=True)
        told = json.loads(arguments[arguments.index("--additional-config") + 1])["midstream"]
        assert msgspec.convert(told, PipelineSettings).guard == arrives


def test_the_address_of_the_guard_is_checked_before_the_start():
    with pytest.raises(EngineError, match="is none such as"):
        GuardSettings("edge-1:7180", "head").permission("smollm", {})
