"""The active intents of one place: a folder with one YAML file each, as a user would write them.

Every change is a file renamed into place, so that a crash leaves either the old or the new; commands that change
something hold a lock. Files are readable by their owner only: sentences may tell where sensitive data lies.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from filelock import FileLock, Timeout
from pydantic import ValidationError

from intents.errors import IntentFormatError, IntentsError
from intents.model.intent import PrivacyIntent

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOCK_S = 10.0


def default_folder() -> Path:
    """Return the folder in the user's state."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "midstream" / "intents"


class IntentStore:
    """See the module."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from changing the active intents meanwhile.

        Raises:
            IntentsError: somebody else has been changing them for too long.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            with FileLock(self._folder / ".lock", timeout=_LOCK_S):
                yield
        except Timeout:
            raise IntentsError(
                f"{self._folder}: another command has been changing the intents for {_LOCK_S:g} s"
            ) from None

    def active(self) -> tuple[PrivacyIntent, ...]:
        """Return the active intents, by name.

        Raises:
            IntentFormatError: a file there is not an intent; nothing is enforced on half of them.
        """
        return tuple(read_intent(path) for path in sorted(self._folder.glob("*.yaml")))

    def put(self, intent: PrivacyIntent) -> None:
        """Make an intent active, in place of one of the same name."""
        path = self._path(intent.metadata.name)
        new = path.with_suffix(".new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(dump_intent(intent))
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)

    def remove(self, name: str) -> None:
        """Make an intent inactive; nothing happens if it is not active."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.yaml"


def dump_intent(intent: PrivacyIntent) -> str:
    """Return the intent as YAML, without what is left at its default."""
    content = intent.model_dump(mode="json", exclude_defaults=True)
    header = {"apiVersion": intent.apiVersion, "kind": intent.kind}
    return yaml.safe_dump(header | content, sort_keys=False, allow_unicode=True)


def read_intent(path: Path) -> PrivacyIntent:
    """Read an intent file.

    Raises:
        IntentFormatError: it cannot be read or is no intent; the message names file and field.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise IntentFormatError(f"{path}: cannot be read: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise IntentFormatError(f"{path}: not YAML: {error}") from error
    try:
        return PrivacyIntent.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "intent"
        raise IntentFormatError(f"{path}: {where}: {first['msg']}") from error
