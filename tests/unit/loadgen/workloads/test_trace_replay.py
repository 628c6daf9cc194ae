"""Trace replay: moments, lengths, sharing, sampling, and what is said about rows that were not replayed."""

import gzip
import tracemalloc
from itertools import islice, pairwise

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadgen.errors import OptionsError
from loadgen.workloads import TokenIdSource, TraceError, parse_workload, requests_in_order

SOURCE = TokenIdSource(50_000)
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"


class WithSpecials(TokenIdSource):
    special_tokens = 2
    special_tokens_before = 1

    def prompt(self, words):
        prompt = super().prompt(words)
        return type(prompt)(prompt.tokens + 2, None, (-1, *prompt.token_ids, -2))


@pytest.fixture
def azure(tmp_path):
    def write(rows, **changes):
        path = tmp_path / "azure.csv"
        path.write_text("\n".join([HEADER, *rows]))
        return parse_workload({"kind": "trace", "format": "azure2023", "path": str(path)} | changes)

    return write


@pytest.fixture
def burstgpt(tmp_path):
    def write(rows, **changes):
        path = tmp_path / "burstgpt.csv"
        path.write_text("\n".join([BURSTGPT, *rows]))
        return parse_workload({"kind": "trace", "format": "burstgpt", "path": str(path)} | changes)

    return write


def mooncake(path, records, **changes):
    lines = [
        f'{{"timestamp": {at}, "input_length": {length}, "output_length": 1, "hash_ids": {hashes}}}'
        for at, length, hashes in records
    ]
    path.write_text("\n".join(lines))
    return parse_workload({"kind": "trace", "format": "mooncake", "path": str(path)} | changes)


def requests(workload, seed=1, source=SOURCE):
    return list(requests_in_order(workload.plan(seed, source)))


ROWS = ["2023-11-16 18:15:46.6805900,37,4", "2023-11-16 18:15:47.6805901,9,10", "2023-11-16 18:15:48.6805901,8,100"]


def test_the_first_row_is_due_at_once_and_the_others_at_their_distance(azure):
    found = requests(azure(ROWS))
    assert [request.due_ns for request in found] == [0, 1_000_000_100, 2_000_000_100]
    assert [(request.prompt.tokens, request.max_tokens) for request in found] == [(37, 4), (9, 10), (8, 100)]
    assert [(request.index, request.user) for request in found] == [(0, None), (1, None), (2, None)]


def test_time_can_be_stretched_and_lengths_cut(azure):
    found = requests(azure(ROWS, time_scale=0.5, max_input_tokens=9, max_output_tokens=10))
    assert [request.due_ns for request in found] == [0, 500_000_050, 1_000_000_050]
    assert [(request.prompt.tokens, request.max_tokens) for request in found] == [(9, 4), (9, 10), (8, 10)]


def test_a_replay_can_begin_later_and_end_earlier(azure):
    assert [r.due_ns for r in requests(azure(ROWS, from_s=0.5))] == [0, 1_000_000_000]
    assert [r.due_ns for r in requests(azure(ROWS, duration_s=1))] == [0]
    assert len(requests(azure(ROWS, requests=2))) == 2


def test_prompts_of_a_trace_without_hashes_share_nothing(azure):
    assert len({request.prompt.token_ids[0] for request in requests(azure(ROWS * 1))}) == 3


def test_rows_of_another_model_are_left_out_and_counted(burstgpt):
    rows = ["5,ChatGPT,4,1,5,API log", "7,GPT-4,5,1,6,API log", "9,GPT-4,6,0,6,API log", "11,GPT-4,7,1,8,API log"]
    plan = burstgpt(rows, model="GPT-4").plan(1, SOURCE)
    assert [(r.due_ns / 1e9, r.prompt.tokens) for r in requests_in_order(plan)] == [(0, 5), (4, 7)]
    assert plan.notes() == {"rows": 4, "rows_bad": 0, "rows_of_other_models": 1, "rows_without_tokens": 1}


def test_a_trace_of_which_nothing_is_left_is_one_error(burstgpt):
    with pytest.raises(TraceError, match=r"nothing to replay\. Of 2 rows 2 are of other models \(ChatGPT, GPT-4\)\."):
        requests(burstgpt(["5,ChatGPT,4,1,5,API log", "7,GPT-4,5,1,6,API log"], model="gpt4"))


def test_a_bad_row_ends_the_run_and_is_named(azure):
    rows = [ROWS[0], "2023-11-16 18:15:47,-1,4", ROWS[1]]
    with pytest.raises(TraceError, match=r"azure.csv, line 3: ContextTokens is '-1'.*on_bad_rows: count"):
        requests(azure(rows))


def test_bad_rows_can_be_left_out_and_the_first_are_named(azure):
    rows = [ROWS[0], *["2023-11-16 18:15:47,-1,4"] * 40, ROWS[1]]
    plan = azure(rows, on_bad_rows="count").plan(1, SOURCE)
    assert len(list(requests_in_order(plan))) == 2
    notes = plan.notes()
    assert (notes["rows"], notes["rows_bad"], len(notes["first_bad_rows"])) == (42, 40, 10)
    assert notes["first_bad_rows"][0].startswith("line 3: ContextTokens is '-1'")


def test_a_file_that_is_no_such_trace_is_refused_before_anything_is_sent(azure, tmp_path):
    workload = azure(ROWS)
    (tmp_path / "azure.csv").write_text("time,tokens\n1,2\n")
    with pytest.raises(TraceError, match="has no column 'TIMESTAMP'"):
        workload.plan(1, SOURCE)


def test_a_model_is_only_for_traces_that_say_it(azure):
    with pytest.raises(OptionsError, match="azure2023 traces do not say which model was asked"):
        azure(ROWS, model="GPT-4")


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_sampling_keeps_the_share_asked_for_and_the_moments(burstgpt, seed, share):
    count = 5000
    rows = [f"{second},GPT-4,{1 + second},1,2,API log" for second in range(count)]
    kept = requests(burstgpt(rows, sample=share, max_input_tokens=8), seed)
    assert len(kept) == pytest.approx(count * share, abs=5 * (count * share * (1 - share)) ** 0.5)
    assert all(request.due_ns % 1_000_000_000 == 0 for request in kept)
    assert [request.index for request in kept] == list(range(len(kept)))
    assert kept == requests(burstgpt(rows, sample=share, max_input_tokens=8), seed)
    more = requests(burstgpt(rows, sample=share + 0.2, max_input_tokens=8), seed)
    assert {request.due_ns for request in kept} <= {request.due_ns for request in more}


def test_a_row_that_breaks_does_not_change_which_others_are_kept(burstgpt):
    rows = [f"{second},GPT-4,3,1,2,API log" for second in range(200)]
    kept = {request.due_ns for request in requests(burstgpt(rows, sample=0.5))}
    broken = [*rows[:50], "50,GPT-4,three,1,2,API log", *rows[51:]]
    still = {request.due_ns for request in requests(burstgpt(broken, sample=0.5, on_bad_rows="count"))}
    assert still == kept - {50_000_000_000}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 6), min_size=1, max_size=4, unique=True), st.integers(1, 512)), min_size=2
    ),
    st.sampled_from([SOURCE, WithSpecials(5000)]),
)
def test_mooncake_prompts_share_exactly_the_blocks_whose_hashes_they_share(tmp_path, drawn, source):
    records = [(0, 512 * (len(hashes) - 1) + last, hashes) for hashes, last in drawn]
    # Beyond this a last block is too short to tell two hashes apart (and too short to be cached).
    long_enough = source.special_tokens + 3
    found = requests(mooncake(tmp_path / "mooncake.jsonl", records), source=source)
    for (_, length, _), request in zip(records, found, strict=True):
        assert request.prompt.tokens == max(length, source.special_tokens + 1)
    for (one, (_, long1, hashes1)), (two, (_, long2, hashes2)) in pairwise(zip(found, records, strict=True)):
        for block, (hash1, hash2) in enumerate(zip(hashes1, hashes2, strict=False)):
            end = min(512 * (block + 1), long1 - 1, long2 - 1)  # before the special token at the end
            part = slice(512 * block, end)
            if end - 512 * block >= long_enough:
                same = one.prompt.token_ids[part] == two.prompt.token_ids[part]
                assert same == (hash1 == hash2)


def test_a_cap_cuts_mooncake_prompts_at_the_end(tmp_path):
    whole, cut = (
        requests(mooncake(tmp_path / "t.jsonl", [(0, 1500, [4, 5, 6])], max_input_tokens=cap))[0] for cap in (None, 700)
    )
    assert cut.prompt.token_ids == whole.prompt.token_ids[:700]


def test_prompts_shorter_than_the_tokenizer_can_make_are_lengthened_and_counted(azure):
    plan = azure(["2023-11-16 18:15:46,1,4"]).plan(1, WithSpecials(5000))
    assert [request.prompt.tokens for request in requests_in_order(plan)] == [3]
    assert plan.notes()["prompts_lengthened"] == 1


def test_a_million_rows_stream_in_constant_memory(tmp_path):
    path = tmp_path / "million.csv.gz"
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.write(BURSTGPT + "\n")
        for start in range(0, 1_000_000, 10_000):
            file.write(
                "".join(
                    f"{row},GPT-4,{row % 4000 + 1},{row % 200 + 1},0,API log\n" for row in range(start, start + 10_000)
                )
            )
    workload = parse_workload(
        {"kind": "trace", "format": "burstgpt", "path": str(path), "sample": 0.01, "max_input_tokens": 64}
    )
    plan = workload.plan(1, SOURCE)
    requests = requests_in_order(plan)
    next(requests)  # what is loaded once does not count
    process = psutil.Process()
    before = process.memory_info().rss
    # Tracing every allocation makes it eight times slower: a twentieth at either end is traced, all of it watched.
    first = traced_peak(islice(requests, 500))
    middle = sum(1 for _ in islice(requests, 9000))
    last = traced_peak(requests)
    assert plan.notes()["rows"] == 1_000_000
    assert middle == 9000
    assert max(first, last) < 500_000, f"{first} bytes at the peak of the first rows, {last} of the last"
    assert process.memory_info().rss - before < 6_000_000  # one pointer for each row would be 8 MB


def traced_peak(requests):
    tracemalloc.start()
    try:
        for _ in requests:
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
