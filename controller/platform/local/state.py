"""What is known of a platform on this machine while it runs, in a folder that commands and supervisor share.

::

    <state>/midstream/platform/<name>.lock     held by the supervisor as long as it lives: the only sign of life
    <state>/midstream/platform/<name>.apply    held by who applies a new object
    <state>/midstream/platform/<name>/         mode 0700, removed when the platform ends
        platform.json     the supervisor, its children, ports, the folder for temporary files
        applied.json      the object that serves, and its generation
        proposed-<request>.json   an object that will be, when the change that this request asks for is committed
        settling          held by who makes a proposed object the one that serves
        triggers.yaml     what the broker delivers where
        logs/<child>.log
        nodes/<node>/     identities of node runtimes and of the head

A supervisor that was killed leaves the folder, but not the lock: the kernel has let it go. Who holds a lock removes its
file before letting it go; who gets a lock of a file that was removed tries again, which is filelock's part.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from filelock import FileLock, Timeout

from controller.platform.llm_pipeline import LLMPipeline
from controller.platform.local.processes import PlatformError, ProcessRecord, remove_temporary

if TYPE_CHECKING:
    from collections.abc import Iterator

_T = TypeVar("_T")
_START_S = 2.0  # longer than anybody looks whether the lock is held


class AlreadyRuns(PlatformError):
    """There is a platform of that name."""


class PlatformRecord(msgspec.Struct, frozen=True):
    """What a supervisor tells about itself. `ports` are of 127.0.0.1, by child; `temporary` is a folder."""

    name: str
    supervisor: ProcessRecord
    temporary: str
    ports: dict[str, int] = {}
    nodes: list[str] = []
    total_layers: int = 0
    ready: bool = False
    children: dict[str, ProcessRecord] = {}

    @property
    def endpoint(self) -> str:
        """Address of the users' port."""
        return f"http://127.0.0.1:{self.ports['head']}"

    @property
    def broker(self) -> str:
        """Address of the broker."""
        return f"http://127.0.0.1:{self.ports['broker']}"


class Applied(msgspec.Struct, frozen=True):
    """The object that serves and how often it was changed; the first one has generation 1."""

    generation: int
    object: dict[str, Any]

    @property
    def pipeline(self) -> LLMPipeline:
        """The object."""
        return LLMPipeline.parse(self.object)


class Proposed(msgspec.Struct, frozen=True):
    """An object that waits for the change to `layers` which the event of the id `request` asks for.

    `key` is the event's ``<source>#<id>``, by which the head knows the request.
    """

    request: str
    key: str
    layers: str
    applied: Applied


def state_root() -> Path:
    """Return the folder of all platforms of this user."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "midstream" / "platform"


class PlatformFolder:
    """The folder of one platform; making this object touches nothing."""

    def __init__(self, name: str, root: Path | None = None) -> None:
        self.name = name
        self._root = root or state_root()
        self.path = self._root / name
        self.triggers = self.path / "triggers.yaml"

    def log(self, child: str) -> Path:
        """Return the log file of a child."""
        return self.path / "logs" / f"{child}.log"

    def node(self, name: str) -> Path:
        """Return the folder of a node's identity."""
        return self.path / "nodes" / name

    @contextlib.contextmanager
    def own(self, patience_s: float = _START_S) -> Iterator[None]:
        """Be the supervisor of that name.

        Raises:
            AlreadyRuns: another is.

        """
        lock = self._lock("lock")
        try:
            lock.acquire(timeout=patience_s)
        except Timeout:
            record = self.record()
            told = f" at {record.endpoint}" if record and record.ready else ", and is starting or ending"
            raise AlreadyRuns(
                f"pipeline {self.name!r} runs already{told}; change it with `midstream apply`, or end it with "
                f"`midstream down {self.name}`"
            ) from None
        try:
            yield
        finally:
            _let_go(lock)

    @contextlib.contextmanager
    def applying(self) -> Iterator[None]:
        """Be the only one who applies an object.

        Raises:
            PlatformError: another does.

        """
        lock = self._lock("apply")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise PlatformError(f"another `midstream apply` for {self.name!r} is under way; wait for its end") from None
        try:
            yield
        finally:
            _let_go(lock)

    def is_owned(self) -> bool:
        """Whether a supervisor of that name lives."""
        file = self._root / f"{self.name}.lock"
        if not file.exists():
            return False
        try:
            with self.own(0):
                return False
        except AlreadyRuns:
            return file.exists()  # else it ended at this moment

    def prepare(self) -> None:
        """Make the folder, empty and for this user alone."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(mode=0o700, parents=True)
        (self.path / "logs").mkdir(mode=0o700)

    def record(self) -> PlatformRecord | None:
        """Return what the supervisor told last; None if there is nothing."""
        return self._read("platform.json", PlatformRecord)

    def write_record(self, record: PlatformRecord) -> None:
        """Tell what is known now."""
        self._write("platform.json", record)

    def applied(self) -> Applied | None:
        """Return the object that serves; None if there is none."""
        return self._read("applied.json", Applied)

    def write_applied(self, applied: Applied) -> None:
        """Keep the object that serves from now on."""
        self._write("applied.json", applied)

    def proposals(self) -> list[Proposed]:
        """Return the objects that wait for their changes, the oldest first."""
        names = [file.name for file in self.path.glob("proposed-*.json")]
        found = (self._read(name, Proposed) for name in names)
        there = [proposed for proposed in found if proposed is not None]
        return sorted(there, key=lambda proposed: proposed.applied.generation)

    def write_proposed(self, proposed: Proposed) -> None:
        """Keep an object that becomes the one that serves when its change is committed."""
        self._write(_proposal(proposed.request), proposed)

    def settle(self, request: str, *, committed: bool) -> None:
        """Say what became of the change that an event asked for; of the older ones none will be committed then."""
        if not self.path.is_dir():
            return
        with FileLock(self.path / "settling", mode=0o600):  # apply and the supervisor both do it
            proposed = self._read(_proposal(request), Proposed)
            if proposed is None:
                return
            generation, applied = proposed.applied.generation, self.applied()
            if committed and (applied is None or applied.generation < generation):
                self.write_applied(proposed.applied)
            for other in self.proposals():
                if other.request == request or (committed and other.applied.generation < generation):
                    (self.path / _proposal(other.request)).unlink(missing_ok=True)

    def clean_up(self, *, keep_logs: bool = False) -> list[str]:
        """End what a dead supervisor left and remove the folder; returns the names of what was ended.

        The caller owns the name, or is the supervisor at its end.
        """
        record = self.record()
        ended = []
        if record is not None:
            ended = [name for name, child in reversed(record.children.items()) if child.end_group()]
            remove_temporary(record.temporary)
        for entry in self.path.iterdir() if self.path.is_dir() else ():
            if entry.is_dir() and not (keep_logs and entry.name == "logs"):
                shutil.rmtree(entry, ignore_errors=True)
            elif not entry.is_dir():
                entry.unlink(missing_ok=True)
        if self.path.is_dir() and not keep_logs:
            self.path.rmdir()
        return ended

    def _lock(self, kind: str) -> FileLock:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        return FileLock(self._root / f"{self.name}.{kind}", mode=0o600)

    def _read(self, name: str, kind: type[_T]) -> _T | None:
        try:
            return msgspec.json.decode((self.path / name).read_bytes(), type=kind)
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, OSError) as error:
            raise PlatformError(
                f"{self.path / name} is damaged ({error}); end what runs, then remove {self.path}"
            ) from error

    def _write(self, name: str, value: Any) -> None:
        partial = self.path / f".{name}.{secrets.token_hex(4)}"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(msgspec.json.format(msgspec.json.encode(value), indent=2))
        partial.rename(self.path / name)


def _proposal(request: str) -> str:
    return f"proposed-{request}.json"


def _let_go(lock: FileLock) -> None:
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def platforms(root: Path | None = None) -> list[str]:
    """Return the names of all platforms that run, or that a dead supervisor left."""
    root = root or state_root()
    return sorted(entry.name for entry in root.iterdir() if (entry / "platform.json").exists()) if root.is_dir() else []


def running(name: str) -> tuple[PlatformFolder, PlatformRecord]:
    """Return the platform of that name, which is ready.

    Raises:
        PlatformError: there is none, or it is not ready.

    """
    folder = PlatformFolder(name)
    record = folder.record() if folder.is_owned() else None
    if record is None:
        others = ", ".join(other for other in platforms() if PlatformFolder(other).is_owned())
        raise PlatformError(
            f"no pipeline {name!r} runs here; start it with `midstream up`"
            + (f" (there runs: {others})" if others else "")
        )
    if not record.ready:
        raise PlatformError(f"pipeline {name!r} is starting or ending; try again in a moment")
    return folder, record
