"""Trace files: the public formats as they are published, and one clear word about each way they can be broken."""

import gzip
import re

import pytest

from loadgen.workloads import TraceError
from loadgen.workloads.trace_files import BadRow, TraceRow, read_trace

# The first lines of the published files.
AZURE_2023 = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:01+00:00,2399,6
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45.5,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,0,417,API log
"""
BURSTGPT_WITH_SESSIONS = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5,s1,1.5,GPT-4,472,18,490,Conversation log
"""
MOONCAKE = """{"timestamp": 0, "input_length": 915, "output_length": 355, "hash_ids": [0, 462]}
{"timestamp": 3052, "input_length": 1024, "output_length": 1, "hash_ids": [0, 463]}
"""


@pytest.fixture
def write(tmp_path):
    def write(content, name="trace"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def rows(path, trace_format):
    return list(read_trace(path, trace_format))


def moment_ns(text):
    return int(__import__("datetime").datetime.fromisoformat(text).timestamp()) * 10**9


def test_azure_2023_keeps_its_seven_digits(write):
    assert rows(write(AZURE_2023), "azure2023") == [
        TraceRow(2, moment_ns("2023-11-16T18:15:46+00:00") + 680_590_000, 374, 44),
        TraceRow(3, moment_ns("2023-11-16T18:15:50+00:00") + 995_169_000, 396, 109),
    ]
    first, second = rows(write(AZURE_2023.replace("6805900", "6805901")), "azure2023")
    assert first.at_ns % 1_000_000_000 == 680_590_100
    assert second.line == 3


def test_azure_2024_has_an_offset_and_may_lack_a_fraction(write):
    assert rows(write(AZURE_2024), "azure2024") == [
        TraceRow(2, moment_ns("2024-05-10T00:00:00+00:00") + 9_930_000, 2162, 5),
        TraceRow(3, moment_ns("2024-05-10T00:00:01+00:00"), 2399, 6),
    ]


def test_burstgpt_has_seconds_and_models(write):
    assert rows(write(BURSTGPT), "burstgpt") == [
        TraceRow(2, 5_000_000_000, 472, 18, "ChatGPT"),
        TraceRow(3, 45_500_000_000, 1087, 230, "ChatGPT"),
        TraceRow(4, 118_000_000_000, 417, 0, "GPT-4"),
    ]


def test_columns_are_found_by_name_wherever_they_stand(write):
    assert rows(write(BURSTGPT_WITH_SESSIONS), "burstgpt") == [TraceRow(2, 5_000_000_000, 472, 18, "GPT-4")]


def test_mooncake_has_milliseconds_and_hashes(write):
    assert rows(write(MOONCAKE), "mooncake") == [
        TraceRow(1, 0, 915, 355, hash_ids=(0, 462)),
        TraceRow(2, 3_052_000_000, 1024, 1, hash_ids=(0, 463)),
    ]


@pytest.mark.parametrize(
    ("text", "trace_format"),
    [(AZURE_2023, "azure2023"), (AZURE_2024, "azure2024"), (BURSTGPT, "burstgpt"), (MOONCAKE, "mooncake")],
)
def test_compression_byte_order_mark_line_ends_and_empty_lines_make_no_difference(write, text, trace_format):
    plain = rows(write(text), trace_format)
    assert rows(write(gzip.compress(text.encode()), "trace.csv.gz"), trace_format) == plain
    assert rows(write(gzip.compress(text.encode()), "trace.csv"), trace_format) == plain
    assert rows(write(b"\xef\xbb\xbf" + text.encode()), trace_format) == plain
    assert rows(write(text.replace("\n", "\r\n")), trace_format) == plain
    assert rows(write(text + "\n\n"), trace_format) == plain


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("2023-11-16 18:15:47,-5,4", "ContextTokens is '-5': should be a whole number from 0 to 100000000"),
        ("2023-11-16 18:15:47,5,4.5", "GeneratedTokens is '4.5': should be a whole number from 0 to 100000000"),
        ("2023-11-16 18:15:47,5,", "GeneratedTokens is '': should be a whole number from 0 to 100000000"),
        ("2023-11-16 18:15:47,٣,4", "ContextTokens is '٣': should be a whole number from 0 to 100000000"),
        (
            "2023-11-16 18:15:47,999999999,4",
            "ContextTokens is '999999999': should be a whole number from 0 to 100000000",
        ),
        ("yesterday,5,4", "TIMESTAMP is 'yesterday': should be a moment like 2024-05-10 00:00:00.009930+00:00"),
        ("2023-11-16 18:15:47.x,5,4", "TIMESTAMP is '2023-11-16 18:15:47.x': should be a moment like"),
        ("2023-11-16 18:15:47,5", "2 columns instead of 3"),
        ("2023-11-16 18:15:45.6805900,5,4", "1 s earlier than the row before it (sort the file by time)"),
    ],
)
def test_a_wrong_row_is_named_by_its_line_and_the_others_are_read(write, row, reason):
    lines = AZURE_2023.splitlines()
    path = write("\n".join([*lines[:2], row, lines[2]]))
    first, bad, last = rows(path, "azure2023")
    assert isinstance(bad, BadRow)
    assert bad.line == 3
    assert bad.reason.startswith(reason)
    assert (first.input_tokens, last.input_tokens, last.line) == (374, 396, 4)


@pytest.mark.parametrize("time", ["-1", "nan", "inf", "soon", ""])
def test_burstgpt_seconds_are_numbers_of_at_least_0(write, time):
    (bad,) = rows(write(BURSTGPT.splitlines()[0] + f"\n{time},GPT-4,1,1,2,API log\n"), "burstgpt")
    assert bad == BadRow(2, f"Timestamp is {time!r}: should be seconds of at least 0")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ('{"timestamp": 0, "input_length": 5}', "no Mooncake record: object missing required field `output_length`"),
        (
            '{"timestamp": "0", "input_length": 5, "output_length": 1, "hash_ids": [1]}',
            "no Mooncake record: expected `",
        ),
        ('{"timestamp": -1, "input_length": 5, "output_length": 1, "hash_ids": [1]}', "timestamp is -1: should be"),
        ('{"timestamp": 0, "input_length": -5, "output_length": 1, "hash_ids": []}', "input_length is -5: should be"),
        (
            '{"timestamp": 0, "input_length": 513, "output_length": 1, "hash_ids": [1]}',
            "1 hash_ids for 513 tokens: should be 2, one for each 512 tokens",
        ),
        ('{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [-1]}', "hash_ids have -1: should be"),
        ("{", "no Mooncake record: input data was truncated"),
    ],
)
def test_a_wrong_record_is_named_by_its_line(write, record, reason):
    good, bad = rows(write(MOONCAKE.splitlines()[0] + "\n" + record), "mooncake")
    assert good.line == 1
    assert bad.line == 2
    assert bad.reason.startswith(reason)


def test_bytes_that_are_no_text_are_a_wrong_row(write):
    _, bad, _ = rows(
        write(AZURE_2023.encode().replace(b",396,109", b",3\xff6,109") + b"2023-11-16 18:16:00,1,1"), "azure2023"
    )
    assert bad == BadRow(3, r"ContextTokens is '3\\xff6': should be a whole number from 0 to 100000000")


@pytest.mark.parametrize(
    ("content", "trace_format", "told"),
    [
        (b"", "azure2023", "is empty"),
        (gzip.compress(b""), "azure2023", "has no column 'TIMESTAMP', 'ContextTokens', 'GeneratedTokens'"),
        (AZURE_2023.splitlines()[0], "azure2023", "has no rows: it is not a whole trace"),
        ("\n \n", "mooncake", "has no rows"),
        (BURSTGPT, "azure2023", "has no column 'TIMESTAMP', 'ContextTokens', 'GeneratedTokens': a azure2023 trace has"),
        (AZURE_2023, "burstgpt", "found TIMESTAMP, ContextTokens, GeneratedTokens"),
        (AZURE_2023.replace(",", ";"), "azure2023", "found TIMESTAMP;ContextTokens;GeneratedTokens"),
        (AZURE_2023.encode("utf-16"), "azure2023", "is UTF-16 text: save it as UTF-8"),
        (gzip.compress(AZURE_2023.encode())[:-12], "azure2023", "is damaged: its gzip compression"),
        (gzip.compress(AZURE_2023.encode()) + b"junk", "azure2023", "is damaged: its gzip compression"),
        (b"\x1f\x8b\x08\x00" + b"\x00" * 30, "azure2023", "is damaged: its gzip compression"),
    ],
)
def test_a_useless_file_is_one_error_that_names_it(write, content, trace_format, told):
    path = write(content)
    with pytest.raises(TraceError, match=re.escape(str(path))) as refused:
        rows(path, trace_format)
    assert told in str(refused.value)


def test_a_file_that_is_not_there_is_one_error(tmp_path):
    with pytest.raises(TraceError, match=r"cannot read the trace .*/nothing: No such file or directory"):
        rows(tmp_path / "nothing", "azure2023")
    with pytest.raises(TraceError, match="Is a directory"):
        rows(tmp_path, "azure2023")
