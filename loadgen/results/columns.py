"""What a run folder holds: the names of its files, and the columns of its tables.

A run folder:

| file | what |
|---|---|
| `run.json` | what was run, where, with which versions and seed, and how it ended (`loadgen.results.manifest`) |
| `requests`, `tokens`, `marks`, `samples` | the tables below, `.arrows` while it runs, `.parquet` once it is closed |
| `summary.json` | the figures (`loadgen.results.summary`) |
| `report.html` | the same for people |

Time axis: `*_ns` is int64 nanoseconds since the start of the run, from `time.perf_counter_ns`; `run.json` holds
`started_unix_ns`, so that a mark given in unix time can be placed. A moment may be negative (a mark made before the
start).

Columns may be null only where the schema says so. A table may have more columns than these in a later version; a
reader takes what it knows.
"""

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from loadgen.records import Outcome

SCHEMA_VERSION: Final = 1
MANIFEST_FILE: Final = "run.json"
SUMMARY_FILE: Final = "summary.json"
REPORT_FILE: Final = "report.html"
STREAM_SUFFIX: Final = ".arrows"
TABLE_SUFFIX: Final = ".parquet"

CANCELLED: Final = "cancelled"  # by the generator, when the run's time was up: no fault of the server
FINISHED: Final = Outcome.FINISHED.value
OUTCOMES: Final = (*(outcome.value for outcome in Outcome if outcome != CANCELLED), CANCELLED)

LAG_SAMPLE: Final = "client.lag_ms"  # how late the generator's own event loop was: the error bound of its timestamps
CPU_SAMPLE: Final = "client.cpu"  # CPUs that the generator used since the previous sample
STAGE_SAMPLE_PREFIX: Final = "stage."  # stage.0.busy: share of the time that stage 0 computed, 0 to 1

MARK_SOURCES: Final = ("cli", "broker", "journal", "experiment")


def _schema(**columns: tuple[pa.DataType, bool]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=nullable) for name, (kind, nullable) in columns.items()])


REQUESTS: Final = _schema(
    request=(pa.int32(), False),  # index in the order of the plan: the identity in all tables
    user=(pa.int32(), True),  # closed loop: the user; sessions: the session
    turn=(pa.int32(), False),
    phase=(pa.string(), True),
    due_ns=(pa.int64(), True),  # intended send time; null in a closed loop
    sent_ns=(pa.int64(), False),
    first_token_ns=(pa.int64(), True),
    ended_ns=(pa.int64(), False),
    prompt_tokens=(pa.int32(), True),
    max_tokens=(pa.int32(), False),
    output_tokens=(pa.int32(), False),  # as the client counted them: rows in the table of tokens
    reported_tokens=(pa.int32(), True),  # as the server counted them
    chunks=(pa.int32(), False),  # chunks that brought tokens
    outcome=(pa.string(), False),  # one of OUTCOMES
    finish_reason=(pa.string(), True),
    detail=(pa.string(), True),  # what went wrong, in words
    attempt=(pa.int16(), False),  # 0 unless retries were asked for; the row is the last attempt
)

TOKENS: Final = _schema(
    request=(pa.int32(), False),
    index=(pa.int32(), False),  # position in the answer, from 0
    at_ns=(pa.int64(), False),  # when the bytes arrived
    chunk=(pa.int32(), False),  # number of the chunk within its stream; tokens of one chunk share their at_ns
    token_id=(pa.int32(), True),
)

MARKS: Final = _schema(
    name=(pa.string(), False),
    kind=(pa.string(), False),  # reconfigure, kill_stage, intent, mark, ...
    start_ns=(pa.int64(), False),
    end_ns=(pa.int64(), False),  # equal to start_ns: an instant
    source=(pa.string(), False),  # one of MARK_SOURCES
    detail=(pa.string(), False),  # a JSON object, "{}" if there is nothing to say
)

SAMPLES: Final = _schema(
    name=(pa.string(), False),
    at_ns=(pa.int64(), False),
    value=(pa.float64(), False),
)

TABLES: Final = {"requests": REQUESTS, "tokens": TOKENS, "marks": MARKS, "samples": SAMPLES}


@dataclass(frozen=True, slots=True)
class RequestRow:
    """One row of the table of requests; see `REQUESTS` for the meaning of each field."""

    request: int
    user: int | None
    turn: int
    phase: str | None
    due_ns: int | None
    sent_ns: int
    first_token_ns: int | None
    ended_ns: int
    prompt_tokens: int | None
    max_tokens: int
    output_tokens: int
    reported_tokens: int | None
    chunks: int
    outcome: str
    finish_reason: str | None
    detail: str | None
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class MarkRow:
    """One row of the table of marks; see `MARKS`."""

    name: str
    kind: str
    start_ns: int
    end_ns: int
    source: str
    detail: str = "{}"
