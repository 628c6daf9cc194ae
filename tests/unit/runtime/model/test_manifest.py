"""A prepared folder is trusted by stat(2), and by digests where stat cannot tell."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.model import manifest
from runtime.model.manifest import FolderState, Recipe
from tests.unit.runtime.model.reports import MemoryReport

RECIPE = Recipe("tiny-model", "1.0", "00", 1)


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "weights").write_bytes(bytes(1000))
    manifest.seal(folder, RECIPE, MemoryReport())
    return folder


def overwrite_keeping_time(path: Path, content: bytes) -> None:
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_sealed_folder_is_ready_and_undamaged(sealed: Path) -> None:
    assert manifest.inspect(sealed, RECIPE) is FolderState.READY
    assert manifest.find_damage(sealed, MemoryReport()) == []
    assert sorted(path.name for path in sealed.iterdir()) == ["config.json", manifest.FILENAME, "weights"]


def test_a_folder_of_another_recipe_is_unusable(sealed: Path) -> None:
    assert manifest.inspect(sealed, replace(RECIPE, conversion=2)) is FolderState.UNUSABLE


def test_a_missing_file_makes_it_unusable(sealed: Path) -> None:
    (sealed / "weights").unlink()
    assert manifest.inspect(sealed, RECIPE) is FolderState.UNUSABLE


def test_another_size_makes_it_unusable(sealed: Path) -> None:
    overwrite_keeping_time(sealed / "weights", bytes(999))
    assert manifest.inspect(sealed, RECIPE) is FolderState.UNUSABLE


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"recipe": {}, "files": {}}'])
def test_an_unreadable_manifest_makes_it_unusable(content: bytes, sealed: Path) -> None:
    (sealed / manifest.FILENAME).write_bytes(content)
    assert manifest.inspect(sealed, RECIPE) is FolderState.UNUSABLE


def test_a_folder_without_manifest_or_no_folder_at_all_is_unusable(sealed: Path, tmp_path: Path) -> None:
    (sealed / manifest.FILENAME).unlink()
    assert manifest.inspect(sealed, RECIPE) is FolderState.UNUSABLE
    assert manifest.inspect(tmp_path / "none", RECIPE) is FolderState.UNUSABLE
    assert manifest.inspect(sealed / "config.json", RECIPE) is FolderState.UNUSABLE


def test_a_copy_is_touched_and_ready_again_once_its_digests_were_checked(sealed: Path) -> None:
    os.utime(sealed / "weights", ns=(1, 1))
    assert manifest.inspect(sealed, RECIPE) is FolderState.TOUCHED
    assert manifest.find_damage(sealed, MemoryReport()) == []
    assert manifest.inspect(sealed, RECIPE) is FolderState.READY


def test_a_copy_in_a_read_only_cache_is_sound_too(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise PermissionError

    os.utime(sealed / "weights", ns=(1, 1))
    monkeypatch.setattr(manifest, "_write", refuse)
    assert manifest.find_damage(sealed, MemoryReport()) == []


def test_reading_everything_finds_what_stat_cannot_see(sealed: Path) -> None:
    overwrite_keeping_time(sealed / "weights", bytes(999) + b"x")
    assert manifest.inspect(sealed, RECIPE) is FolderState.READY
    assert manifest.find_damage(sealed, MemoryReport()) == ["weights"]


def test_damage_does_not_become_the_new_truth(sealed: Path) -> None:
    (sealed / "weights").write_bytes(bytes(999) + b"x")
    assert manifest.find_damage(sealed, MemoryReport()) == ["weights"]
    assert manifest.find_damage(sealed, MemoryReport()) == ["weights"]


def test_a_file_that_vanishes_while_being_read_counts_as_damaged(sealed: Path) -> None:
    (sealed / "config.json").unlink()
    assert manifest.find_damage(sealed, MemoryReport()) == ["config.json"]
