import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet
import pytest

from loadgen.results.columns import TABLES, MarkRow
from loadgen.results.errors import ResultsError
from loadgen.results.reader import read_run
from loadgen.results.tables import parquet_path, stream_path
from loadgen.results.writer import RunWriter
from tests.unit.loadgen.results.runs import Stream, manifest, mark, request_row

REPOSITORY = Path(__file__).parents[4]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def wait_for(condition, deadline_s: float = 30.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come about"
        time.sleep(0.005)


class TestWhatIsWritten:
    def test_everything_comes_back_from_parquet(self, folder):
        row = request_row(0, Stream([1.0, 2.0, 2.0], chunks=[0, 1, 1], phase="first", due=0.5, user=3))
        with RunWriter(folder, manifest(state="running")) as writer:
            writer.token(0, 0, 1_000_000, 0, 17)
            writer.tokens(0, 1, [2_000_000, 2_000_000], [1, 1], None)
            writer.request(row)
            writer.mark(MarkRow("change-1", "reconfigure", -5, 7, "journal", '{"layers": "8,12,10"}'))
            writer.sample("client.lag_ms", 9, 0.25)
        run = read_run(folder)
        assert run.state == "finished"
        assert run.notes == ()
        assert run.tokens.to_pylist() == [
            {"request": 0, "index": 0, "at_ns": 1_000_000, "chunk": 0, "token_id": 17},
            {"request": 0, "index": 1, "at_ns": 2_000_000, "chunk": 1, "token_id": None},
            {"request": 0, "index": 2, "at_ns": 2_000_000, "chunk": 1, "token_id": None},
        ]
        assert run.requests.to_pylist() == [{name: getattr(row, name) for name in TABLES["requests"].names}]
        assert run.marks.to_pylist()[0]["start_ns"] == -5
        assert run.samples.to_pylist() == [{"name": "client.lag_ms", "at_ns": 9, "value": 0.25}]

    def test_a_closed_run_is_zstd_parquet_and_nothing_else(self, folder):
        with RunWriter(folder, manifest(state="running")) as writer:
            writer.token(0, 0, 1, 0)
        assert {path.name for path in folder.iterdir()} == {"run.json", *(f"{table}.parquet" for table in TABLES)}
        row_group = pyarrow.parquet.ParquetFile(folder / "tokens.parquet").metadata.row_group(0)
        assert {row_group.column(n).compression for n in range(row_group.num_columns)} == {"ZSTD"}

    def test_more_tokens_than_fit_one_batch(self, folder):
        with RunWriter(folder, manifest(state="running")) as writer:
            writer.tokens(0, 0, range(150_000), range(150_000))
        assert read_run(folder).tokens.column("at_ns").to_pylist() == list(range(150_000))

    def test_a_run_that_ends_with_an_error_says_so(self, folder):
        def fail() -> None:
            with RunWriter(folder, manifest(state="running")) as writer:
                writer.token(0, 0, 1, 0)
                raise RuntimeError("the target went away")

        with pytest.raises(RuntimeError):
            fail()
        run = read_run(folder)
        assert (run.state, run.manifest.error, run.tokens.num_rows) == ("interrupted", "the target went away", 1)

    def test_it_may_be_called_from_several_threads(self, folder):
        with RunWriter(folder, manifest(state="running"), flush_s=0.001) as writer:

            def write(request: int) -> None:
                for n in range(5_000):
                    writer.token(request, n, n, n)

            threads = [threading.Thread(target=write, args=(request,)) for request in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        tokens = read_run(folder).tokens.to_pylist()
        for request in range(4):
            mine = [row["index"] for row in tokens if row["request"] == request]
            assert mine == list(range(5_000))


class TestWhileItRuns:
    def test_what_was_measured_can_be_read_before_the_end(self, folder):
        writer = RunWriter(folder, manifest(state="running"), flush_s=0.01)
        writer.token(0, 0, 1, 0)
        wait_for(lambda: read_run(folder).tokens.num_rows == 1)
        assert read_run(folder).state == "running"
        writer.close()
        assert read_run(folder).state == "finished"

    def test_a_killed_process_leaves_all_but_its_last_second(self, folder):
        """A real process, killed in the middle of writing; it tells on its output what it had measured when."""
        script = """
import sys, time
from pathlib import Path
from loadgen.results.writer import RunWriter
from tests.unit.loadgen.results.runs import manifest
writer = RunWriter(Path(sys.argv[1]), manifest(state="running"))
n = 0
while True:
    for _ in range(50):
        writer.token(0, n, time.monotonic_ns(), n)
        n += 1
    print(n, time.monotonic_ns(), flush=True)
    time.sleep(0.002)
"""
        with subprocess.Popen(
            [sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, cwd=REPOSITORY, text=True
        ) as process:
            told = []
            for line in process.stdout:
                told.append(tuple(map(int, line.split())))
                if told[-1][1] - told[0][1] > 2.5e9:
                    os.kill(process.pid, signal.SIGKILL)
                    break
            process.wait(30)
        killed_ns = told[-1][1]
        run = read_run(folder)
        assert run.state == "killed"
        indices = run.tokens.column("index").to_pylist()
        assert indices == list(range(len(indices)))
        older = max(count for count, at_ns in told if at_ns < killed_ns - 1e9)
        assert len(indices) >= older > 1_000


class TestLimits:
    def test_a_disk_that_does_not_follow_is_an_error_and_not_a_growing_memory(self, folder, monkeypatch):
        """The writing thread is held, as by a disk that does not answer."""
        held = threading.Event()
        monkeypatch.setattr(RunWriter, "_write", lambda self, pending: held.wait(60) and None)
        writer = RunWriter(folder, manifest(state="running"), flush_s=0.001, max_pending_bytes=24 * 1_000)
        written = 0

        def fill() -> None:
            nonlocal written
            while written < 10_000:
                writer.token(0, written, written, written)
                written += 1

        with pytest.raises(ResultsError, match=r"the disk is too slow.*faster disk"):
            fill()
        assert written <= 2_000  # as much again may be in the thread's hands
        with pytest.raises(ResultsError, match="too slow"):
            writer.sample("client.lag_ms", 0, 0.0)
        held.set()
        with pytest.raises(ResultsError, match="too slow"):
            writer.close()
        assert json.loads((folder / "run.json").read_text())["state"] == "interrupted"

    def test_other_rows_are_bounded_too(self, folder, monkeypatch):
        monkeypatch.setattr(RunWriter, "_write", lambda self, pending: None)
        writer = RunWriter(folder, manifest(state="running"), flush_s=60, max_pending_rows=10)
        for n in range(10):
            writer.sample("client.lag_ms", n, 0.0)
        with pytest.raises(ResultsError, match="10 other rows wait"):
            writer.sample("client.lag_ms", 10, 0.0)
        with pytest.raises(ResultsError):
            writer.close()

    def test_a_full_disk_is_told_and_what_was_written_is_kept(self, folder):
        """A real limit on the size of files, in a process of its own."""
        script = """
import resource, signal, sys
from pathlib import Path
from loadgen.results.errors import ResultsError
from loadgen.results.writer import RunWriter
from tests.unit.loadgen.results.runs import manifest
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
writer = RunWriter(Path(sys.argv[1]), manifest(state="running"), flush_s=0.005)
try:
    for n in range(10_000_000):
        writer.token(0, n, n, n)
except ResultsError as error:
    print(error)
try:
    writer.close()
except ResultsError as error:
    print("closed:", error)
"""
        done = subprocess.run(
            [sys.executable, "-c", script, str(folder)],
            capture_output=True,
            cwd=REPOSITORY,
            text=True,
            timeout=60,
            check=True,
        )
        assert "results cannot be written" in done.stdout
        assert "closed:" in done.stdout
        run = read_run(folder)
        assert run.state == "interrupted"
        assert "cannot be written" in run.manifest.error
        indices = run.tokens.column("index").to_pylist()
        assert indices == list(range(len(indices)))


class TestMisuse:
    def test_a_folder_that_holds_a_run_is_refused(self, folder):
        RunWriter(folder, manifest(state="running")).close()
        with pytest.raises(ResultsError, match=r"holds a run already \(run.json\)"):
            RunWriter(folder, manifest(state="running"))

    def test_two_writers_of_one_folder_are_refused(self, folder):
        writing = RunWriter(folder, manifest(state="running"))
        with writing, pytest.raises(ResultsError, match="being written by another run"):
            RunWriter(folder, manifest(state="running"))

    def test_a_file_in_place_of_the_folder_is_told(self, folder):
        folder.write_text("")
        with pytest.raises(ResultsError, match="cannot be written"):
            RunWriter(folder, manifest(state="running"))

    def test_rows_that_make_no_sense_are_refused_at_once(self, folder):
        with RunWriter(folder, manifest(state="running")) as writer:
            with pytest.raises(ValueError, match="ends before it starts"):
                writer.mark(mark(2, 1))
            with pytest.raises(ValueError, match="source 'hearsay' is none of cli, broker"):
                writer.mark(mark(1, source="hearsay"))
            with pytest.raises(ValueError, match="outcome 'odd' is none of"):
                writer.request(request_row(0, Stream([1.0], outcome="odd")))
            with pytest.raises(ValueError, match="2 arrivals, 1 chunks"):
                writer.tokens(0, 0, [1, 2], [0])

    def test_a_closed_run_takes_nothing_more(self, folder):
        writer = RunWriter(folder, manifest(state="running"))
        writer.close()
        writer.close()
        with pytest.raises(ResultsError, match="the run is closed"):
            writer.token(0, 0, 1, 0)

    def test_a_long_detail_is_cut(self, folder):
        with RunWriter(folder, manifest(state="running")) as writer:
            row = request_row(0, Stream([], outcome="error"))
            writer.request(type(row)(**{name: getattr(row, name) for name in row.__slots__} | {"detail": "x" * 9_999}))
        assert len(read_run(folder).requests.column("detail")[0].as_py()) == 2_000


def test_files_have_the_names_that_others_look_for(tmp_path):
    assert stream_path(tmp_path, "tokens").name == "tokens.arrows"
    assert parquet_path(tmp_path, "tokens").name == "tokens.parquet"
