"""Folders for sockets: gone when their process is, whatever became of it; never taken from one that lives."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.transport.socket_folder import SocketFolder, remove_left

OWNER = """
import sys, time
from runtime.transport.socket_folder import SocketFolder
print(SocketFolder("node-").path, flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    """Make a temporary folder of its own the one of this process and its children."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return Path(tmp_path)


@pytest.fixture
def owner() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process with a folder."""
    process = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, Path(process.stdout.readline().strip())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_only_the_owner_may_enter_and_nothing_is_left(temporary):
    folder = SocketFolder("node-")
    assert folder.path.name.startswith("midstream-node-")
    assert folder.path.stat().st_mode & 0o777 == 0o700
    (folder.path / "socket").touch()
    folder.remove()
    folder.remove()
    assert list(temporary.iterdir()) == []


def test_the_folder_of_a_killed_process_is_removed_by_the_next_one(temporary, owner):
    process, left = owner
    (left / "pipeline").mkdir()
    (left / "pipeline" / "socket").touch()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert left.is_dir()
    folder = SocketFolder()
    assert list(temporary.iterdir()) == [folder.path]
    folder.remove()


def test_a_folder_in_use_stays(owner):
    _, used = owner
    own = SocketFolder()
    assert remove_left() == []
    assert used.is_dir()
    assert own.path.is_dir()
    own.remove()


def test_what_is_no_such_folder_stays(temporary):
    (temporary / "midstream-bench-keys").mkdir()  # without a lock
    (temporary / "midstream-file").touch()
    (temporary / "another").mkdir()
    (temporary / "another" / "sockets.lock").touch()
    (temporary / "midstream-link").symlink_to(temporary / "another")
    assert remove_left() == []
    assert len(list(temporary.iterdir())) == 4


def test_a_folder_of_another_user_stays(temporary, monkeypatch):
    (temporary / "midstream-theirs").mkdir()
    (temporary / "midstream-theirs" / "sockets.lock").touch()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert remove_left() == []
