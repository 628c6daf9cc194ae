"""What Prometheus reads of a pipeline: figures come from the reports of changes and from its status."""

from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from runtime.engine.metrics import PipelineMetrics
from runtime.migration.journal import Journal

STATUS = {
    "epoch": 4,
    "kv_blocks": 32,
    "precision": "bfloat16",
    "weights_bytes": {"float32": 2048, "bfloat16": 1024},
    "stages": [
        {"index": 0, "node": "edge-1", "first_layer": 0, "last_layer": 7},
        {"index": 1, "node": "edge-2", "first_layer": 8, "last_layer": 29},
    ],
    "spare_stages": {"edge-1": 2},
}
REPORT = {
    "state": "committed",
    "steps_ms": {"plan": 0.5, "prepare": 800.0, "cutover": 60.0},
    "pause_ms": 12.0,
    "bytes_moved": 4096,
    "rounds": 3,
    "requests_carried": 2,
}


@pytest.fixture
def pipeline() -> Any:
    warm = {"edge-1": 1 << 20}
    return SimpleNamespace(
        journal=Journal(), status=lambda: STATUS, nodes=SimpleNamespace(warm_bytes=lambda: warm), warm=warm
    )


@pytest.fixture
def metrics(pipeline: Any) -> PipelineMetrics:
    return PipelineMetrics(pipeline)


def values(metrics: PipelineMetrics) -> dict[tuple[str, ...], float]:
    """Return every sample by its name and label values."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.as_text())
        for sample in family.samples
    }


def test_a_committed_change_is_counted_with_all_it_cost(metrics: PipelineMetrics, pipeline: Any):
    for _ in range(2):
        pipeline.journal.tell("change-1", "ended", **REPORT)
    read = values(metrics)
    assert read["midstream_changes_total", "committed"] == 2
    assert read["midstream_changes_total", "aborted"] == 0
    assert read["midstream_moved_bytes_total",] == 8192
    assert read["midstream_copy_rounds_total",] == 6
    assert read["midstream_carried_requests_total",] == 4
    assert read["midstream_change_seconds_sum", "prepare"] == pytest.approx(1.6)
    assert (read["midstream_pause_seconds_count",], read["midstream_pause_seconds_sum",]) == (2, pytest.approx(0.024))
    assert (read["midstream_pause_seconds_bucket", "0.01"], read["midstream_pause_seconds_bucket", "0.02"]) == (0, 2)


def test_a_change_without_requests_has_no_pause(metrics: PipelineMetrics, pipeline: Any):
    pipeline.journal.tell("change-1", "ended", **{**REPORT, "state": "aborted", "pause_ms": None})
    read = values(metrics)
    assert (read["midstream_changes_total", "aborted"], read["midstream_pause_seconds_count",]) == (1, 0)


def test_the_end_of_a_request_is_no_change(metrics: PipelineMetrics, pipeline: Any):
    pipeline.journal.tell("cmpl-1", "ended", epoch=3)
    assert values(metrics)["midstream_changes_total", "committed"] == 0


def test_losses_are_counted(metrics: PipelineMetrics, pipeline: Any):
    pipeline.journal.tell("recovery-1", "recovered", total_ms=40.0, replayed_batches=1)
    pipeline.journal.tell("pipeline", "node lost", node="edge-1", reason="silent")
    read = values(metrics)
    assert (read["midstream_recoveries_total",], read["midstream_lost_nodes_total",]) == (1, 1)


def test_what_is_there_now_is_read_anew_each_time(metrics: PipelineMetrics, pipeline: Any):
    read = values(metrics)
    assert (read["midstream_epoch",], read["midstream_kv_blocks",]) == (4, 32)
    assert (read["midstream_stage_layers", "edge-1", "0"], read["midstream_stage_layers", "edge-2", "1"]) == (8, 22)
    assert (read["midstream_spare_stages", "edge-1"], read["midstream_warm_bytes", "edge-1"]) == (2, 1 << 20)
    pipeline.status = lambda: {**STATUS, "epoch": 5, "stages": STATUS["stages"][:1], "spare_stages": {}}
    pipeline.warm.clear()
    read = values(metrics)
    assert read["midstream_epoch",] == 5
    assert not any(name.startswith(("midstream_spare", "midstream_warm")) for name, *_ in read)
    assert ("midstream_stage_layers", "edge-2", "1") not in read
