import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.experiments.sampling import busy, gauges, stage_spans

SECOND = 1_000_000_000

METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 1.0
vllm:e2e_request_latency_seconds_bucket{le="0.3",model_name="m"} 0.0
# TYPE midstream_epoch gauge
midstream_epoch 2.0
midstream_stage_layers{node="local",stage="0"} 8.0
midstream_stage_layers{node="local",stage="1"} 22.0
midstream_pause_seconds_bucket{le="0.001"} 0.0
"""


def test_of_a_servers_metrics_only_some_become_samples():
    assert gauges(METRICS) == {
        "server.requests_running": 3.0,
        "server.requests_waiting": 1.0,
        "server.epoch": 2.0,
        "stage.0.layers": 8.0,
        "stage.1.layers": 22.0,
    }


@pytest.mark.parametrize("text", ["", "<html>", "midstream_epoch NaN\n", "midstream_epoch what\n"])
def test_somebody_elses_metrics_have_no_samples(text: str):
    assert gauges(text) == {}


def test_a_stage_is_known_by_its_place_in_the_chain_whatever_it_is_called():
    events = [
        {"name": "batch 1", "pid": "epoch 1", "tid": "stage-1", "ts": 1000.0, "dur": 5.0},
        {"name": "batch 1", "pid": "epoch 1", "tid": "stage-2", "ts": 1006.0, "dur": 7.0},
        {"name": "batch 2", "pid": "epoch 2", "tid": "stage-9", "ts": 1020.0, "dur": 1.0},
    ]
    zero = 1_000_000
    assert stage_spans(events, zero) == {0: [(0, 5_000), (20_000, 21_000)], 1: [(6_000, 13_000)]}


def test_a_share_is_of_its_second_and_the_last_may_be_shorter():
    spans = {0: [(0, SECOND // 2), (2 * SECOND, 2 * SECOND + SECOND // 4)]}
    assert busy(spans, 0, 2 * SECOND + SECOND // 2) == [
        ("stage.0.busy", SECOND, 0.5),
        ("stage.0.busy", 2 * SECOND, 0.0),
        ("stage.0.busy", 2 * SECOND + SECOND // 2, 0.5),
    ]


def test_what_the_trace_no_longer_holds_has_no_samples():
    assert [at for _, at, _ in busy({0: [(5 * SECOND, 5 * SECOND + 1)]}, 0, 7 * SECOND)] == [6 * SECOND, 7 * SECOND]
    assert busy({}, 0, SECOND) == []


@given(
    st.lists(st.tuples(st.integers(1, 10**9), st.integers(1, 3 * 10**9)), min_size=1, max_size=20),
    st.integers(1, 10 * 10**9),
)
def test_no_time_is_counted_twice_or_lost(steps: list[tuple[int, int]], until: int):
    spans, at = [], 0
    for pause, length in steps:
        spans.append((at + pause, at + pause + length))
        at += pause + length
    rows = busy({0: spans}, 0, until)
    expected = sum(max(0, min(end, until) - max(start, 0)) for start, end in spans)
    edges = [moment for _, moment, _ in rows]
    begin = (spans[0][0] // SECOND) * SECOND
    befores = [begin, *edges][: len(edges)]
    counted = sum(share * (edge - before) for (_, edge, share), before in zip(rows, befores, strict=True))
    assert counted == pytest.approx(expected, abs=len(rows) + 1)
    assert all(0 <= share <= 1 for _, _, share in rows)
