"""The state folder: one owner, whole files, and no process ended that is not the one that was noted."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from filelock import FileLock

from controller.platform.local import down, state
from controller.platform.local.processes import PlatformError, ProcessRecord, remove_temporary
from controller.platform.local.state import AlreadyRuns, Applied, PlatformFolder, PlatformRecord, Proposed

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's state, which is the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "midstream" / "platform"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads a group."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def folder(name: str = "small", **facts: object) -> PlatformFolder:
    made = PlatformFolder(name)
    made.prepare()
    record = PlatformRecord(name, ProcessRecord.of(os.getpid()), "/nowhere", {"head": 1, "broker": 2})
    made.write_record(msgspec.structs.replace(record, **facts))
    return made


class TestProcesses:
    def test_a_noted_process_is_ended_with_its_group(self, sleeper: subprocess.Popen[bytes]):
        record = ProcessRecord.of(sleeper.pid)
        assert record.is_alive()
        assert record.end_group()
        assert sleeper.wait() == -9
        assert not record.is_alive()
        assert not record.end_group()

    @pytest.mark.parametrize("other", [{"created": 1.0}, {"boot": "another start of the machine"}])
    def test_another_process_with_its_number_is_never_ended(
        self, sleeper: subprocess.Popen[bytes], other: dict[str, object]
    ):
        record = msgspec.structs.replace(ProcessRecord.of(sleeper.pid), **other)
        assert not record.is_alive()
        assert not record.end_group()
        assert sleeper.poll() is None

    def test_a_process_that_leads_no_group_takes_nobody_along(self):
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        try:
            assert ProcessRecord.of(process.pid).group() == []
        finally:
            process.kill()
            process.wait()

    def test_only_a_folder_that_a_platform_made_is_removed(self, tmp_path: Path):
        mine, other = tmp_path / "midstream-x", tmp_path / "other"
        for path in (mine, other):
            path.mkdir()
            remove_temporary(str(path))
        assert [mine.exists(), other.exists()] == [False, True]


class TestFolder:
    def test_it_is_for_this_user_alone(self, root: Path):
        made = folder()
        assert made.path == root / "small"
        assert made.path.stat().st_mode & 0o777 == 0o700
        assert (made.path / "platform.json").stat().st_mode & 0o777 == 0o600

    def test_a_name_has_one_owner(self):
        made = folder(ready=True)
        assert not made.is_owned()
        with made.own():
            assert made.is_owned()
            second = PlatformFolder("small").own(0)
            with pytest.raises(AlreadyRuns, match=r"'small' runs already at http://127.0.0.1:1; change it with"):
                second.__enter__()
            with PlatformFolder("other").own(0):
                assert made.is_owned()
        assert not made.is_owned()

    def test_only_one_applies_at_a_time(self):
        with folder().applying():
            second = PlatformFolder("small").applying()
            with pytest.raises(PlatformError, match="another `midstream apply` for 'small' is under way"):
                second.__enter__()

    def test_no_lock_file_is_left_and_no_lock_held_twice_for_that(self, root: Path):
        made = folder()
        with made.own(), made.applying():
            waiting = state.PlatformFolder("small")
        assert sorted(file.name for file in root.iterdir()) == ["small"]
        first = made.own()
        first.__enter__()
        descriptor = os.open(root / "small.lock", os.O_RDWR)  # of somebody who waits
        first.__exit__(None, None, None)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gets a lock of no name
            with waiting.own(0):
                assert made.is_owned()
        finally:
            os.close(descriptor)
        assert not made.is_owned()

    def test_a_lock_file_is_removed_before_anybody_else_can_lock_it(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        there = []
        release = FileLock.release

        def watched(lock: FileLock, force: bool = False) -> None:
            there.append(Path(lock.lock_file).exists())
            release(lock, force)

        monkeypatch.setattr(FileLock, "release", watched)
        with folder().own():
            pass
        assert there
        assert not any(there)

    def test_what_is_written_is_read_again(self):
        made = folder()
        assert made.applied() is None
        made.write_applied(Applied(3, {"a": 1}))
        assert made.applied() == Applied(3, {"a": 1})

    def test_the_newest_of_the_committed_proposals_serves(self):
        made = folder()
        made.write_applied(Applied(3, {}))
        for generation in (6, 4, 5):
            made.write_proposed(Proposed(f"r{generation}", f"/s#r{generation}", "15,15", Applied(generation, {})))
        assert [proposed.request for proposed in made.proposals()] == ["r4", "r5", "r6"]
        made.settle("r4", committed=False)
        made.settle("unknown", committed=True)
        assert made.applied() == Applied(3, {})
        made.write_proposed(Proposed("abandoned", "/s#abandoned", "30", Applied(4, {})))
        made.settle("r5", committed=True)
        assert made.applied() == Applied(5, {})
        assert [proposed.request for proposed in made.proposals()] == ["r6"]
        made.write_applied(Applied(7, {}))
        made.settle("r6", committed=True)  # too late
        assert (made.applied(), made.proposals()) == (Applied(7, {}), [])

    def test_a_damaged_file_is_named(self):
        made = folder()
        (made.path / "platform.json").write_text("{")
        with pytest.raises(PlatformError, match=r"platform.json is damaged"):
            made.record()

    def test_logs_can_be_kept(self):
        made = folder()
        made.log("head").write_text("last words")
        made.clean_up(keep_logs=True)
        assert [path.name for path in made.path.iterdir()] == ["logs"]
        assert made.log("head").read_text() == "last words"
        made.clean_up()
        assert not made.path.exists()

    def test_a_pipeline_that_does_not_run_is_told_with_those_that_do(self):
        other = folder("other")
        with other.own(), pytest.raises(PlatformError, match=r"no pipeline 'small' runs here; .*\(there runs: other\)"):
            state.running("small")

    def test_a_pipeline_that_is_not_ready_is_not_used(self):
        made = folder()
        with made.own(), pytest.raises(PlatformError, match="is starting or ending"):
            state.running("small")
        made.write_record(msgspec.structs.replace(made.record() or pytest.fail("no record"), ready=True))
        with made.own():
            assert state.running("small")[1].endpoint == "http://127.0.0.1:1"


class TestDown:
    def test_nothing_to_end_is_no_error(self):
        assert list(down.end(None)) == ["no pipeline runs here"]
        assert list(down.end("small")) == ["no pipeline 'small' runs here"]

    def test_what_a_killed_supervisor_left_is_ended_and_removed(self, sleeper: subprocess.Popen[bytes]):
        temporary = tempfile.mkdtemp(prefix="midstream-")
        made = folder(children={"head": ProcessRecord.of(sleeper.pid)}, temporary=temporary)
        assert list(down.end(None)) == ["small did not run any more; removed what was left: head"]
        assert sleeper.wait() == -9
        assert not Path(temporary).exists()
        assert not made.path.exists()

    def test_of_several_one_has_to_be_named(self):
        folder("one"), folder("two")
        with pytest.raises(PlatformError, match=r"several pipelines run here \(one, two\); name one of them"):
            list(down.end(None))
        list(down.end("one"))
        assert state.platforms() == ["two"]

    def test_logs_of_a_failed_start_are_removed(self):
        folder().clean_up(keep_logs=True)
        assert list(down.end("small")) == ["small did not run any more; removed what was left: logs"]
