"""How a node gets the files of a model: from its own disk if they are there, else from the head, verified by digest.

::

    head                                                    node
      Call open(..., model: files and their digests) ---------> the same folder here, with the same files? use it
                                                                else: what does the store lack?
      <--------------------- Call model_read(sha256, offset, length)
      Reply(bytes), on the bulk link -------------------------> store, verified as a whole
                                                                a folder of links to what the store has

Both sides only ever name a file by its digest. The head reads nothing but the files it has described, and only for the
nodes of its pipeline. What arrived of a file stays when the way breaks: the next attempt goes on from there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from runtime.transport.calls import CallError
from runtime.transport.frames import FrameError
from runtime.transport.gateway import NODE
from runtime.warm.model_files import ModelFiles, ModelStoreError

if TYPE_CHECKING:
    from runtime.transport.calls import Calls
    from runtime.transport.gateway import Gateway
    from runtime.warm.model_store import ModelStore

METHOD = "model_read"
_CHUNK_BYTES = 1 << 20
_ANSWER_S = 60.0


class ModelOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which files a node needs, and where they are on the head's machine: maybe the node has them there as well."""

    files: ModelFiles
    folder: str


class _Read(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of ``model_read``."""

    sha256: str
    offset: int
    length: int


class ModelSource:
    """The head's side: serves the files of one model to some nodes.

    Args:
        store: reads and checks the files.
        order: which files, and where they are.
        readers: the nodes that may have them.

    """

    def __init__(self, store: ModelStore, order: ModelOrder, readers: frozenset[str]) -> None:
        self._store, self.order, self._readers = store, order, readers

    def read(self, peer: str, arguments: dict[str, Any]) -> bytes:
        """Answer ``model_read``; FrameError for what a peer must not ask."""
        if peer not in self._readers:
            raise FrameError(f"{peer} is no node of this pipeline and gets no file of its model")
        try:
            asked = msgspec.convert(arguments, _Read)
        except msgspec.ValidationError as error:
            raise FrameError(f"malformed {METHOD}: {error}") from error
        return self._store.read(
            self.order.files, Path(self.order.folder), asked.sha256, asked.offset, min(asked.length, _CHUNK_BYTES)
        )


class ModelFetch:
    """The node's side: gives a folder with a model's files.

    Args:
        store: keeps what was fetched.
        gateway, calls: the way to heads.

    """

    def __init__(self, store: ModelStore, gateway: Gateway, calls: Calls) -> None:
        self._store, self._gateway, self._calls = store, gateway, calls

    def folder(self, head: str, order: ModelOrder, owner: str) -> tuple[Path, int]:
        """Return a folder with the files of `order`, held for `owner`, and how many bytes had to be fetched.

        Raises:
            ModelStoreError: no room, or what came is not what was described.
            CallError: the head did not send it.

        """
        here = Path(order.folder)
        if here.is_dir() and self._is_same(here, order.files):
            return here, 0
        self._store.lease(order.files, owner)
        self._store.adopt(here, order.files)
        fetched = 0
        for file in self._store.missing(order.files):
            with self._store.writer(file) as writer:
                while writer.offset < file.size:
                    chunk = self._read(head, file.sha256, writer.offset)
                    if not chunk:
                        raise ModelStoreError(f"{head} ended {file.path} after {writer.offset} of {file.size} bytes")
                    writer.write(chunk)
                    fetched += len(chunk)
        return self._store.open(order.files, owner), fetched

    def release(self, owner: str) -> None:
        """Hold files for `owner` no longer; they stay until room is needed."""
        self._store.release(owner)

    def _is_same(self, folder: Path, files: ModelFiles) -> bool:
        try:
            return self._store.describe(folder, files.name).identity() == files.identity()
        except ModelStoreError:
            return False

    def _read(self, head: str, sha256: str, offset: int) -> bytes:
        number, future = self._calls.send(
            head,
            lambda frame, buffers: self._gateway.send(head, NODE, frame, buffers),
            METHOD,
            {"sha256": sha256, "offset": offset, "length": _CHUNK_BYTES},
        )
        try:
            chunk: bytes = future.result(_ANSWER_S)
        except TimeoutError as error:
            self._calls.forget(number)
            raise CallError(f"{head} sent nothing of the model for {_ANSWER_S:g} s") from error
        return chunk
