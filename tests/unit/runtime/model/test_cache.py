"""Where the cache is, and how a folder in it appears."""

import errno
import os
from pathlib import Path

import pytest

from runtime.model import CacheError, DiskFullError
from runtime.model.cache import ModelCache, default_cache_dir
from tests.unit.runtime.model.reports import MemoryReport


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"MIDSTREAM_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"MIDSTREAM_CACHE": "~/a"}, "/home/someone/a"),
        ({"MIDSTREAM_CACHE": "a"}, "{cwd}/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/midstream"),
        ({"MIDSTREAM_CACHE": "", "XDG_CACHE_HOME": "/b"}, "/b/midstream"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/someone/.cache/midstream"),
        ({"XDG_CACHE_HOME": ""}, "/home/someone/.cache/midstream"),
        ({}, "/home/someone/.cache/midstream"),
    ],
)
def test_the_first_set_variable_decides(
    environ: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.chdir(tmp_path)
    assert default_cache_dir(environ) == Path(expected.format(cwd=tmp_path))


def test_naming_a_cache_creates_nothing(tmp_path: Path) -> None:
    ModelCache(tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []


def test_the_lock_holder_finds_no_leftovers_and_leaves_none(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    leftover = tmp_path / "models" / ".Tiny.partial-killed"
    other = tmp_path / "models" / ".Other.partial-running"
    for folder in (leftover, other):
        folder.mkdir(parents=True)
        (folder / "half").touch()

    with cache.exclusive("Tiny", MemoryReport()) as work:
        assert not leftover.exists()
        assert other.exists()
        assert list(work.iterdir()) == []
        (work / "half").touch()

    assert not work.exists()


def test_publishing_replaces_what_stood_there(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    cache.folder("Tiny").mkdir(parents=True)
    (cache.folder("Tiny") / "old").touch()
    with cache.exclusive("Tiny", MemoryReport()) as work:
        (work / "built").mkdir()
        (work / "built" / "new").touch()
        cache.publish(work / "built", work, "Tiny")
    assert [path.name for path in cache.folder("Tiny").iterdir()] == ["new"]


def test_too_little_room_is_said_before_anything_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match=r"takes 1\.0 EB in .* are free\. Make room there\. .*MIDSTREAM_CACHE"):
        ModelCache(tmp_path).require_free(10**18)


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (errno.ENOSPC, DiskFullError, r"file system of the cache folder /c is full"),
        (errno.EDQUOT, DiskFullError, r"file system of the cache folder /c is full"),
        (errno.EROFS, CacheError, r"cannot use the cache folder /c: .*Read-only file system: '/c/x'"),
        (errno.EACCES, CacheError, r"cannot use the cache folder /c: .*Permission denied: '/c/x'"),
    ],
)
def test_an_operating_system_error_becomes_advice(code: int, kind: type[CacheError], message: str) -> None:
    with pytest.raises(CacheError, match=message) as explained, ModelCache(Path("/c")).explain_os_errors():
        raise OSError(code, os.strerror(code), "/c/x")
    assert type(explained.value) is kind
    assert "MIDSTREAM_CACHE" in str(explained.value)
