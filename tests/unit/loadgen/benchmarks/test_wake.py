import os
from dataclasses import replace

import pytest

from loadgen.benchmarks.wake import Wake, WakeOptions, memory_bytes, render, summarise
from loadgen.records import StreamRecord
from tests.unit.loadgen.streams import stream

MACHINE = {"machine": {"cpus": 2, "python": "3.11"}, "log_dir": "-"}


def answer(first_token_ms: float) -> StreamRecord:
    return stream([first_token_ms, first_token_ms + 10])


def wake(woken_ms: float, cold_ms: float | None = 30_000.0) -> Wake:
    return Wake(answer(woken_ms), answer(50.0), hits=128, asleep_bytes=1 << 30, awake_bytes=2 << 30, cold_ms=cold_ms)


def test_the_result_has_the_median_of_each_figure_and_the_ratio_to_a_cold_start():
    result = summarise(WakeOptions(), "0.32.0", answer(0.0), [wake(1000.0), wake(1500.0), wake(9000.0)])
    assert result["wake_ttft_ms"] == 1500.0
    assert result["cold_ratio"] == 20.0
    assert result["each"]["wake_ttft_ms"] == [1000.0, 1500.0, 9000.0]
    assert (result["prefix_tokens_hit"], result["asleep_bytes"], result["outputs_identical"]) == (128, 1 << 30, True)
    assert render({**result, **MACHINE}).row_count == 8


def test_without_stock_there_is_no_ratio():
    result = summarise(WakeOptions(compare_stock=False), None, answer(0.0), [wake(1000.0, cold_ms=None)])
    assert (result["cold_stock_ttft_ms"], result["cold_ratio"]) == (None, None)
    assert render({**result, **MACHINE}).row_count == 8


@pytest.mark.parametrize("which", ["woken", "warm"])
def test_an_answer_that_differs_after_waking_is_seen(which: str):
    changed = replace(wake(1000.0), **{which: replace(answer(5.0), tokens=answer(5.0).tokens[:1])})
    assert summarise(WakeOptions(), None, answer(0.0), [changed])["outputs_identical"] is False


def test_the_server_is_told_when_to_sleep_and_asked_a_question_of_the_wanted_length():
    options = WakeOptions(sleep_after_s=2.5, prompt_words=30)
    assert options.midstream_argv(8001)[-2:] == ["--sleep-after", "2.5"]
    assert len(options.question().prompt.split()) == 30


def test_the_memory_of_a_process_that_is_gone_is_nothing():
    assert memory_bytes(os.getpid()) > 1 << 20
    assert memory_bytes(10_000_000) == 0
