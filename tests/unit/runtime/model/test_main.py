"""`python -m runtime.model` prints the folder alone, or one error line."""

import runpy
from pathlib import Path

import pytest

import runtime.model
from runtime.model import DownloadError


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["python -m runtime.model", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("runtime.model", run_name="__main__")
    return int(ended.value.code or 0)


def test_it_prints_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[Path | None, bool]] = []

    def prepare(cache_dir: Path | None = None, *, verify: bool = False) -> Path:
        asked.append((cache_dir, verify))
        return tmp_path / "ready"

    monkeypatch.setattr(runtime.model, "prepare_built_in", prepare)
    assert run([], monkeypatch) == 0
    assert run(["--verify", "--cache", str(tmp_path)], monkeypatch) == 0
    assert asked == [(None, False), (tmp_path, True)]
    assert capsys.readouterr().out.split() == [str(tmp_path / "ready")] * 2


def test_an_error_is_one_line_on_standard_error_and_exit_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(cache_dir: Path | None = None, *, verify: bool = False) -> Path:
        raise DownloadError("no network")

    monkeypatch.setattr(runtime.model, "prepare_built_in", fail)
    assert run([], monkeypatch) == 1
    assert capsys.readouterr() == ("", "error: no network\n")
