"""Reads a GGUF file's metadata with errors that name the missing or unexpected key."""

from pathlib import Path
from typing import Any, TypeVar

from gguf import GGUFReader

from runtime.model.errors import ConversionError

_T = TypeVar("_T")


class GgufFile:
    """A memory-mapped GGUF file: metadata by key, tensors in the order of the file."""

    def __init__(self, path: Path) -> None:
        try:
            reader = GGUFReader(path)
        except ValueError as error:
            raise ConversionError(f"{path.name} is not a GGUF file that gguf can read: {error}") from error
        self._fields = reader.fields
        self.tensors: list[Any] = reader.tensors
        self.name = path.name

    def get(self, key: str, kind: type[_T]) -> _T:
        """Return a metadata value, which must be there and of type `kind`.

        Raises:
            ConversionError: it is not.
        """
        value = self._fields[key].contents() if key in self._fields else None
        if not isinstance(value, kind):
            raise ConversionError(f"{self.name}: metadata {key} is {value!r:.60}, expected {kind.__name__}")
        return value

    def require(self, key: str, expected: str) -> None:
        """Raise `ConversionError` unless the metadata value `key` is `expected`."""
        value = self.get(key, str)
        if value != expected:
            raise ConversionError(f"{self.name}: metadata {key} is {value!r}; only {expected!r} can be converted")
