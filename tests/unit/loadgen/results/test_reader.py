import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadgen.results import tables
from loadgen.results.columns import TABLES
from loadgen.results.errors import ResultsError
from loadgen.results.manifest import RunManifest
from loadgen.results.reader import find_runs, read_run, seal_run
from loadgen.results.writer import RunWriter
from tests.unit.loadgen.results.runs import Stream, manifest, request_row

ROWS_OF_BATCH, BATCHES = 10, 6


def killed_run(folder: Path) -> Path:
    """A folder as a killed process leaves it: whole batches and no end."""
    folder.mkdir()
    manifest(state="running").write(folder)
    for table, schema in TABLES.items():
        sink = pa.OSFile(str(folder / f"{table}.arrows"), "wb")
        stream = pa.ipc.new_stream(sink, schema)
        for batch in range(BATCHES if table == "tokens" else 0):
            indices = range(batch * ROWS_OF_BATCH, (batch + 1) * ROWS_OF_BATCH)
            rows = [{"request": 0, "index": n, "at_ns": n, "chunk": n, "token_id": None} for n in indices]
            stream.write_batch(pa.RecordBatch.from_pylist(rows, schema))
        sink.close()  # without closing the stream: no end-of-stream mark
    return folder


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    return killed_run(tmp_path / "run")


class TestKilledRuns:
    def test_it_is_told_from_a_running_one(self, killed):
        assert read_run(killed).state == "killed"

    def test_all_whole_batches_are_read(self, killed):
        run = read_run(killed)
        assert run.tokens.num_rows == BATCHES * ROWS_OF_BATCH
        assert run.notes == ()

    @settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_wherever_it_was_cut_off_the_batches_before_are_read_and_the_cut_is_said(self, killed, data):
        whole = (killed / "tokens.arrows").read_bytes()
        length = data.draw(st.integers(0, len(whole)))
        try:
            (killed / "tokens.arrows").write_bytes(whole[:length])
            run = read_run(killed)
        finally:
            (killed / "tokens.arrows").write_bytes(whole)
        indices = run.tokens.column("index").to_pylist()
        assert indices == list(range(len(indices)))
        assert len(indices) % ROWS_OF_BATCH == 0
        lost = BATCHES * ROWS_OF_BATCH - len(indices)
        if length == len(whole):
            assert lost == 0
        if run.notes:
            assert run.notes[0].startswith("the last batch of tokens.arrows is cut off")
            assert f"{len(indices)} rows before it were read" in run.notes[0]

    def test_sealing_makes_it_an_interrupted_run(self, killed):
        seal_run(killed)
        run = read_run(killed)
        assert (run.state, run.manifest.error) == ("interrupted", "the process that wrote it was killed")
        assert run.tokens.num_rows == BATCHES * ROWS_OF_BATCH
        assert not list(killed.glob("*.arrows"))
        with pytest.raises(ResultsError, match="closed already"):
            seal_run(killed)

    def test_sealing_twice_halfway_loses_nothing(self, killed, monkeypatch):
        monkeypatch.setattr(tables, "TABLES", {"tokens": TABLES["tokens"]})
        tables.to_parquet(killed)  # as if it was interrupted after the first table
        monkeypatch.undo()
        assert read_run(killed).tokens.num_rows == BATCHES * ROWS_OF_BATCH
        seal_run(killed)
        assert read_run(killed).tokens.num_rows == BATCHES * ROWS_OF_BATCH

    def test_a_run_that_is_still_written_is_not_sealed(self, tmp_path):
        writing = RunWriter(tmp_path / "run", manifest(state="running"))
        with writing, pytest.raises(ResultsError, match="still being written"):
            seal_run(tmp_path / "run")


class TestDamage:
    def overwrite(self, path: Path, at: int, what: bytes) -> None:
        content = bytearray(path.read_bytes())
        content[at : at + len(what)] = what
        path.write_bytes(content)

    def batch_at(self, path: Path, number: int) -> int:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_stream(source)
            for _ in range(number):
                reader.read_next_batch()
            return source.tell()

    def test_zeros_in_the_middle_are_not_taken_for_the_end(self, killed):
        path = killed / "tokens.arrows"
        self.overwrite(path, self.batch_at(path, 2), bytes(16))
        with pytest.raises(ResultsError, match=r"tokens.arrows is damaged at byte \d+.*run again"):
            read_run(killed)

    def test_a_message_that_is_none_is_damage(self, killed):
        path = killed / "tokens.arrows"
        self.overwrite(path, self.batch_at(path, 2) + 8, b"\xff" * 40)
        with pytest.raises(ResultsError, match="is damaged at byte"):
            read_run(killed)

    def test_a_length_far_too_large_is_damage_if_it_hides_more_than_a_batch(self, killed, monkeypatch):
        monkeypatch.setattr(tables, "MAX_BATCH_BYTES", 100)
        path = killed / "tokens.arrows"
        self.overwrite(path, self.batch_at(path, 2) + 4, (1 << 24).to_bytes(4, "little"))
        with pytest.raises(ResultsError, match="is damaged at byte"):
            read_run(killed)

    def test_a_damaged_parquet_file(self, killed):
        seal_run(killed)
        content = (killed / "tokens.parquet").read_bytes()
        (killed / "tokens.parquet").write_bytes(content[: len(content) // 2])
        with pytest.raises(ResultsError, match=r"tokens.parquet is damaged"):
            read_run(killed)

    def test_a_missing_table(self, killed):
        (killed / "marks.arrows").unlink()
        with pytest.raises(ResultsError, match=r"holds neither marks.parquet nor marks.arrows"):
            read_run(killed)

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"name": ["a"], "at_ns": [1]}, "has no column 'value'"),
            ({"name": ["a"], "at_ns": [1], "value": ["much"]}, "column 'value' is string, not double"),
            ({"name": ["a"], "at_ns": pa.array([None], pa.int64()), "value": [1.0]}, "column 'at_ns' has 1 nulls"),
        ],
    )
    def test_a_table_that_is_another(self, killed, columns, message):
        pyarrow.parquet.write_table(pa.table(columns), killed / "samples.parquet")
        with pytest.raises(ResultsError, match=message):
            read_run(killed)

    def test_further_columns_of_a_later_version_are_ignored(self, killed):
        more = pa.table({"name": ["a"], "at_ns": [1], "value": [1.0], "colour": ["red"]})
        pyarrow.parquet.write_table(more, killed / "samples.parquet")
        assert read_run(killed).samples.schema.names == TABLES["samples"].names


class TestManifest:
    def test_a_folder_without_one_is_no_run(self, tmp_path):
        with pytest.raises(ResultsError, match=r"is no run: it holds no run.json"):
            read_run(tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "cannot be read"),
            ("[]", "the document: "),
            ('{"schema_version": 99}', "is of schema version 99, this program knows up to 1"),
            ('{"name": "x", "seed": "many", "started_unix_ns": 0}', "seed: "),
        ],
    )
    def test_one_that_is_wrong_is_told_by_field(self, killed, content, message):
        (killed / "run.json").write_text(content)
        with pytest.raises(ResultsError, match=message):
            read_run(killed)

    def test_it_comes_back_as_it_was(self, tmp_path):
        written = manifest(arm="dynamic", repeat=2, machine={"cpus": 2}, versions={"vllm": "0.32.0"})
        written.write(tmp_path)
        assert RunManifest.read(tmp_path) == written
        assert written.title == "test / dynamic (repeat 3)"
        assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


class TestFindingRuns:
    def test_runs_of_an_experiment_come_in_order_of_their_numbers(self, tmp_path):
        for arm in ("static", "dynamic"):
            for repeat in (0, 2, 10):
                folder = tmp_path / arm / str(repeat)
                folder.mkdir(parents=True)
                manifest(arm=arm, repeat=repeat).write(folder)
        found = [path.relative_to(tmp_path).as_posix() for path in find_runs(tmp_path)]
        assert found == ["dynamic/0", "dynamic/2", "dynamic/10", "static/0", "static/2", "static/10"]

    def test_a_run_is_its_own_list(self, killed):
        assert find_runs(killed) == [killed]

    def test_no_run_is_an_error(self, tmp_path):
        with pytest.raises(ResultsError, match="is no run and holds none"):
            find_runs(tmp_path)


def test_a_run_that_is_closed_while_it_is_read_is_read_all_the_same(killed, monkeypatch):
    """The streams vanish between the look for Parquet and the look for streams."""
    closed = killed.parent / "closed"
    shutil.copytree(killed, closed)
    seal_run(closed)
    looked = []
    read_parquet = tables._read_parquet

    def read_late(path: Path) -> pa.Table:
        if not looked:
            looked.append(path)
            shutil.copy(closed / path.name, path)
            (killed / f"{path.stem}.arrows").unlink()
            raise FileNotFoundError(path)
        return read_parquet(path)

    monkeypatch.setattr(tables, "_read_parquet", read_late)
    assert read_run(killed).tokens.num_rows == BATCHES * ROWS_OF_BATCH


def test_request_rows_of_a_running_run_have_all_their_tokens(tmp_path):
    writer = RunWriter(tmp_path / "run", manifest(state="running"), flush_s=0.001)
    for request in range(300):
        writer.token(request, 0, request, 0)
        writer.request(request_row(request, Stream([1.0])))
        run = read_run(tmp_path / "run")
        rows = set(run.requests.column("request").to_pylist())
        assert rows <= set(run.tokens.column("request").to_pylist())
    writer.close()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "finished"
