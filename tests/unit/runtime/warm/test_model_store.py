"""A model's files travel to a node, are kept once, verified, protected while they are used, and removed for room."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from runtime.warm.model_files import MAX_FILES, MAX_SIZE, ModelFile, ModelFiles, ModelStoreError
from runtime.warm.model_store import MAX_READ_BYTES, ModelStore
from tests.unit.runtime.engine.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])
DEADLINE_S = 60
CONTENT = {
    "config.json": b'{"layers": 30}',
    "model-00001-of-00002.safetensors": bytes(range(256)) * 40,
    "model-00002-of-00002.safetensors": b"second" * 1000,
    "empty.txt": b"",
    "tokenizer/tokenizer.json": b"{}",
}
WEIGHTS = "model-00001-of-00002.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "model", CONTENT)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store", None)


@pytest.fixture
def files(store: ModelStore, model: Path) -> ModelFiles:
    return store.describe(model, "tiny")


def write_folder(folder: Path, content: dict[str, bytes]) -> Path:
    for path, data in content.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def read_folder(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def on_disk(store: ModelStore) -> dict[str, bytes]:
    """All bytes of model files that the store has, complete or not."""
    return read_folder(store.folder / "blobs") | read_folder(store.folder / "partial")


def file_of(data: bytes, path: str = "weights") -> ModelFile:
    return ModelFile(path, len(data), hashlib.sha256(data).hexdigest())


def model_of(*contents: bytes, name: str = "tiny") -> ModelFiles:
    return ModelFiles(name, tuple(file_of(data, f"weights-{i}") for i, data in enumerate(contents)))


def download(store: ModelStore, file: ModelFile, *chunks: bytes) -> None:
    with store.writer(file) as writer:
        for chunk in chunks:
            writer.write(chunk)


def put(store: ModelStore, *contents: bytes) -> None:
    for data in contents:
        download(store, file_of(data), data)


def interrupt(store: ModelStore, data: bytes, file: ModelFile) -> None:
    """Write `data`, then let the connection break."""
    with suppress(ConnectionError), store.writer(file) as writer:
        writer.write(data)
        raise ConnectionError


def kept(store: ModelStore, *contents: bytes) -> list[bool]:
    return [not store.missing(model_of(data)) for data in contents]


def fetch(store: ModelStore, source: ModelStore, files: ModelFiles, folder: Path, chunk: int = 1000) -> None:
    """What a node does with a peer: read chunks there, write them here."""
    for file in store.missing(files):
        with store.writer(file) as writer:
            while writer.offset < file.size:
                writer.write(source.read(files, folder, file.sha256, writer.offset, chunk))


@contextmanager
def process(work: Callable[..., None], *arguments: Any) -> Iterator[tuple[Any, Connection]]:
    """Run `work(connection, *arguments)` in a process of its own, which is dead afterwards."""
    here, there = PROCESSES.Pipe()
    child = PROCESSES.Process(target=work, args=(there, *arguments))
    child.start()
    there.close()
    try:
        yield child, here
    finally:
        child.kill()
        child.join(DEADLINE_S)
        here.close()


def receive(connection: Connection) -> Any:
    assert connection.poll(DEADLINE_S), "the other process said nothing"
    return connection.recv()


# -- the whole way -----------------------------------------------------------------------------------------------------


def test_a_model_arrives_byte_for_byte(tmp_path: Path, store: ModelStore, model: Path, files: ModelFiles):
    node = ModelStore(tmp_path / "node", None)
    assert {file.path for file in node.missing(files)} == set(CONTENT)
    travelled = msgspec.msgpack.decode(msgspec.msgpack.encode(files), type=ModelFiles)
    fetch(node, store, travelled, model)
    assert node.missing(files) == []
    assert read_folder(node.open(files, "stage-0")) == CONTENT
    assert node.used_bytes() == sum(map(len, CONTENT.values()))
    assert list((node.folder / "partial").iterdir()) == []


def test_what_one_node_opened_it_can_serve_to_the_next(
    tmp_path: Path, store: ModelStore, model: Path, files: ModelFiles
):
    store.adopt(model, files)
    opened = store.open(files, "stage-0")
    shutil.rmtree(model)
    node = ModelStore(tmp_path / "node", None)
    fetch(node, store, files, opened)
    assert read_folder(node.open(files, "stage-0")) == CONTENT


def test_equal_files_of_two_models_are_kept_once(store: ModelStore):
    put(store, b"shared", b"first")
    assert [file.path for file in store.missing(model_of(b"shared", b"second", b"second"))] == ["weights-1"]
    put(store, b"second")
    first, second = store.open(model_of(b"shared", b"first"), "a"), store.open(model_of(b"shared", b"second"), "a")
    assert first != second
    assert (first / "weights-0").samefile(second / "weights-0")
    assert store.used_bytes() == len(b"sharedfirstsecond")


def test_opening_names_what_is_missing_and_leases_nothing(tmp_path: Path):
    store = ModelStore(tmp_path / "store", 10)
    put(store, b"there")
    with pytest.raises(ModelStoreError, match=r"tiny cannot be opened: weights-1 \(4 bytes\) missing or damaged"):
        store.open(model_of(b"there", b"gone"), "stage-0")
    put(store, b"ten bytes.")
    assert kept(store, b"there") == [False]


def test_a_blob_cannot_be_written_by_accident(store: ModelStore):
    put(store, b"weights")
    assert all(path.stat().st_mode & 0o222 == 0 for path in (store.folder / "blobs").iterdir())


# -- describing --------------------------------------------------------------------------------------------------------


def test_a_description_names_what_an_engine_needs_and_writes_nothing_there(store: ModelStore, model: Path):
    write_folder(
        model,
        {
            ".git/HEAD": b"x",
            ".gitattributes": b"x",
            "a.lock": b"x",
            "b.incomplete": b"x",
            "midstream-manifest.json": b"x",
        },
    )
    os.mkfifo(model / "pipe")
    before = {path: path.lstat().st_mtime_ns for path in [model, *model.rglob("*")]}
    files = store.describe(model, "tiny")
    assert files.files == tuple(file_of(CONTENT[path], path) for path in sorted(CONTENT))
    assert {path: path.lstat().st_mtime_ns for path in [model, *model.rglob("*")]} == before


def test_links_of_a_hub_cache_are_followed(store: ModelStore, tmp_path: Path):
    write_folder(tmp_path / "hub", {"blobs/abc": b"{}", "snapshots/r1/unused": b""})
    (tmp_path / "hub/snapshots/r1/config.json").symlink_to("../../blobs/abc")
    files = store.describe(tmp_path / "hub/snapshots/r1", "hub")
    assert file_of(b"{}", "config.json") in files.files


def test_a_link_that_leads_nowhere_is_said(store: ModelStore, model: Path):
    (model / "gone.safetensors").symlink_to("nowhere")
    with pytest.raises(
        ModelStoreError, match=r"gone\.safetensors is listed .* cannot be found; download the model again"
    ):
        store.describe(model, "tiny")


def test_a_folder_without_files_is_no_model(store: ModelStore, tmp_path: Path):
    with pytest.raises(ModelStoreError, match="holds no model files"):
        store.describe(tmp_path / "nothing", "tiny")


@pytest.mark.parametrize("same_times", [False, True])
def test_only_changed_files_are_read_again(
    store: ModelStore, model: Path, files: ModelFiles, same_times: bool, monkeypatch: pytest.MonkeyPatch
):
    read = []
    taken = hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, name: read.append(Path(file.name).name) or taken(file, name)
    )
    assert ModelStore(store.folder, None).describe(model, "tiny") == files
    assert read == []
    status = (model / WEIGHTS).stat()
    (model / WEIGHTS).write_bytes(CONTENT[WEIGHTS][::-1])
    if same_times:
        os.utime(model / WEIGHTS, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file_of(CONTENT[WEIGHTS][::-1], WEIGHTS) in store.describe(model, "tiny").files
    assert read == [WEIGHTS]


def test_a_file_that_changes_while_it_is_described_is_refused(
    store: ModelStore, model: Path, monkeypatch: pytest.MonkeyPatch
):
    taken = hashlib.file_digest

    def digest_and_write(file: Any, name: str) -> Any:
        digest = taken(file, name)
        with open(file.name, "ab") as download:
            download.write(b"more")
        return digest

    monkeypatch.setattr(hashlib, "file_digest", digest_and_write)
    with pytest.raises(ModelStoreError, match="changed while it was read"):
        store.describe(model, "tiny")


# -- hostile descriptions ----------------------------------------------------------------------------------------------

SHA = "0" * 64


@pytest.mark.parametrize(
    "path",
    [
        "", "/etc/passwd", "..", "../x", "a/../../x", "a/..", ".", "./a", "a/./b", "a//b", "a/",
        ".git/hooks/post-merge",
        "a\0b", "a\nb", "C:\\x", "..\\x", "\ud800", "x" * 256, "/".join(["x" * 100] * 11),
    ],
)  # fmt: skip
def test_a_path_that_is_not_plain_is_refused(path: str):
    with pytest.raises(ModelStoreError, match="path"):
        ModelFile(path, 1, SHA)


@pytest.mark.parametrize("size", [-1, MAX_SIZE + 1])
def test_an_impossible_size_is_refused(size: int):
    with pytest.raises(ModelStoreError, match=f"cannot have {size} bytes"):
        ModelFile("a", size, SHA)


@pytest.mark.parametrize(
    "sha256", ["", "0" * 63, "0" * 65, "A" * 64, "0" * 63 + "g", "../" + "0" * 61, "0" * 64 + "\n"]
)
def test_what_is_no_digest_is_refused(sha256: str):
    with pytest.raises(ModelStoreError, match="no SHA-256"):
        ModelFile("a", 1, sha256)


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("", (ModelFile("a", 1, SHA),), "no name"),
        ("a\nb", (ModelFile("a", 1, SHA),), "no name"),
        ("m", (), "has 0 files"),
        ("m", (ModelFile("a", 1, SHA),) * (MAX_FILES + 1), f"has {MAX_FILES + 1} files"),
        ("m", (ModelFile("a", 1, SHA), ModelFile("a", 1, "1" * 64)), "twice"),
        ("m", (ModelFile("a/b/c", 1, SHA), ModelFile("a", 1, SHA)), "both as a file and as a folder"),
        ("m", (ModelFile("a", 1, SHA), ModelFile("b", 2, SHA)), "two sizes, 1 and 2"),
    ],
)
def test_files_that_do_not_go_together_are_refused(name: str, files: tuple[ModelFile, ...], message: str):
    with pytest.raises(ModelStoreError, match=message):
        ModelFiles(name, files)


parts = st.sampled_from(["..", ".", "", "/", "a", "b", "\\", "\0", "~", ".git", "-", " ", "ä"]) | st.text(max_size=4)


@settings(max_examples=300, deadline=None)
@given(st.lists(parts, max_size=5).map("/".join), st.integers() | st.text(), st.text() | st.just(SHA))
@example("../../outside", 3, SHA)
def test_what_decodes_lies_below_the_folder(path: str, size: Any, sha256: str):
    wire = {"name": "m", "files": [{"path": path, "size": size, "sha256": sha256}]}
    try:
        (file,) = msgspec.convert(wire, ModelFiles).files
    except (ModelStoreError, msgspec.ValidationError):
        return
    assert Path(os.path.normpath(Path("/store") / file.path)).is_relative_to("/store/")
    assert os.path.normpath(file.path) == file.path
    assert Path("/store", file.sha256).parent == Path("/store")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "path": st.lists(parts, min_size=1, max_size=3).map("/".join),
                "size": st.just(1),
                "sha256": st.just(file_of(b"x").sha256),
            }
        ),
        min_size=1,
        max_size=4,
    )
)
def test_opening_any_accepted_description_touches_nothing_else(tmp_path: Path, wire: list[dict[str, Any]]):
    with suppress(ModelStoreError):
        files = msgspec.convert({"name": "m", "files": wire}, ModelFiles)
        folder = tmp_path / "store"
        store = ModelStore(folder, None)
        put(store, b"x")
        assert read_folder(store.open(files, "o")) == {file.path: b"x" for file in files.files}
        store.release("o")
        assert list((folder / "views").iterdir()) == []
        assert list(tmp_path.iterdir()) == [folder]


def test_a_wrong_size_for_a_known_digest_does_not_cost_the_blob(store: ModelStore):
    put(store, b"weights")
    wrong = ModelFile("weights", 3, file_of(b"weights").sha256)
    with (
        pytest.raises(ModelStoreError, match="described with 3 bytes, but the file with this SHA-256 has 7"),
        store.writer(wrong),
    ):
        pass
    assert kept(store, b"weights") == [True]


# -- downloads that go wrong -------------------------------------------------------------------------------------------

DATA = bytes(range(256)) * 8
FLIPPED = DATA[:1000] + bytes([DATA[1000] ^ 1]) + DATA[1001:]


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([DATA[:-1]], "only 2047 of 2048 bytes have arrived"),
        ([], "only 0 of 2048 bytes"),
        ([DATA, b"x"], "2049 bytes have arrived, but it is described with 2048"),
        ([FLIPPED], "what arrived has the SHA-256 " + hashlib.sha256(FLIPPED).hexdigest()),
    ],
)
def test_what_is_not_the_file_leaves_nothing_and_is_said(store: ModelStore, chunks: list[bytes], message: str):
    with pytest.raises(ModelStoreError, match=f"weights is not the file that was described: {message}"):
        download(store, file_of(DATA), *chunks)
    assert on_disk(store) == {}
    assert store.used_bytes() == 0


def refused_chunk(store: ModelStore) -> None:
    """Send too much, look at the disk, and go on as if nothing had been said."""
    with store.writer(file_of(DATA)) as writer:
        with pytest.raises(ModelStoreError, match="1048576 bytes have arrived"):
            writer.write(bytes(1 << 20))
        assert store.used_bytes() == len(DATA)
        assert list(on_disk(store).values()) == [b""]
        writer.write(DATA)


def test_too_many_bytes_are_refused_before_they_are_written(store: ModelStore):
    with pytest.raises(ModelStoreError, match="1048576 bytes have arrived"):
        refused_chunk(store)
    assert on_disk(store) == {}


def test_an_interrupted_download_goes_on_where_it_was(store: ModelStore):
    interrupt(store, DATA[:700], file_of(DATA))
    assert kept(store, DATA) == [False]
    with store.writer(file_of(DATA)) as writer:
        assert writer.offset == 700
        writer.write(DATA[700:])
    assert on_disk(store) == {file_of(DATA).sha256: DATA}


def test_a_resumed_file_is_verified_as_a_whole(store: ModelStore):
    interrupt(store, FLIPPED[:1500], file_of(DATA))
    with pytest.raises(ModelStoreError, match="what arrived has the SHA-256"):
        download(store, file_of(DATA), DATA[1500:])
    assert on_disk(store) == {}


def test_a_full_disk_is_said_and_what_arrived_is_kept(store: ModelStore, monkeypatch: pytest.MonkeyPatch):
    write = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if offset:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ModelStoreError, match=r"cannot write weights at byte 9: .*No space left"):
        download(store, file_of(DATA), DATA[:9], DATA[9:])
    monkeypatch.undo()
    download(store, file_of(DATA), DATA[9:])
    assert kept(store, DATA) == [True]


def write_and_wait(connection: Connection, folder: Path, data: bytes, stop: int) -> None:
    with ModelStore(folder, None).writer(file_of(data)) as writer:
        writer.write(data[writer.offset : stop])
        connection.send(writer.offset)
        connection.recv()
        writer.write(data[writer.offset :])
    connection.send("done")


def test_a_killed_download_goes_on_where_it_was(store: ModelStore):
    with process(write_and_wait, store.folder, DATA, 700) as (child, connection):
        assert receive(connection) == 700
        os.kill(child.pid, signal.SIGKILL)
        child.join(DEADLINE_S)
    with store.writer(file_of(DATA)) as writer:
        assert writer.offset == 700
        writer.write(DATA[700:])
    assert on_disk(store) == {file_of(DATA).sha256: DATA}


def waits_for_a_lock(pid: int) -> bool:
    waiters = [line.split() for line in Path("/proc/locks").read_text().splitlines() if "->" in line]
    return any(int(fields[5]) == pid for fields in waiters)


def test_two_writers_of_one_file_take_turns(store: ModelStore):
    with process(write_and_wait, store.folder, DATA, 700) as (_, first):
        assert receive(first) == 700
        with process(write_and_wait, store.folder, DATA, 700) as (child, second):
            assert eventually(lambda: waits_for_a_lock(child.pid))
            first.send("go on")
            assert receive(first) == "done"
            assert receive(second) == len(DATA)  # nothing is left to write
            second.send("go on")
            assert receive(second) == "done"
    assert on_disk(store) == {file_of(DATA).sha256: DATA}


# -- adoption ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("can_clone", [True, False])
def test_a_local_folder_spares_the_transfer(
    store: ModelStore, model: Path, files: ModelFiles, can_clone: bool, monkeypatch: pytest.MonkeyPatch
):
    def unsupported(*_: Any, **__: Any) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    if not can_clone:
        monkeypatch.setattr(os, "copy_file_range", unsupported)
    assert {file.path for file in store.adopt(model, files)} == set(CONTENT)
    assert store.adopt(model, files) == []
    assert read_folder(store.open(files, "stage-0")) == CONTENT


def test_only_identical_files_are_adopted(store: ModelStore, model: Path, files: ModelFiles):
    (model / WEIGHTS).write_bytes(CONTENT[WEIGHTS][::-1])
    (model / "config.json").unlink()
    assert {file.path for file in store.adopt(model, files)} == set(CONTENT) - {WEIGHTS, "config.json"}
    assert {file.path for file in store.missing(files)} == {WEIGHTS, "config.json"}


def test_an_adopted_file_is_the_stores_own(store: ModelStore, model: Path, files: ModelFiles):
    """A hard link would fail here: one file under two names changes under both."""
    mode = (model / WEIGHTS).stat().st_mode
    store.adopt(model, files)
    folder = store.open(files, "stage-0")
    with (model / WEIGHTS).open("r+b") as users_own:
        users_own.write(b"changed in place")
    assert read_folder(folder) == CONTENT
    assert store.integrity() == []
    assert (model / WEIGHTS).stat().st_mode == mode


def test_a_source_that_changes_while_it_is_copied_is_not_published(
    store: ModelStore, model: Path, files: ModelFiles, monkeypatch: pytest.MonkeyPatch
):
    copy = os.copy_file_range

    def change_and_copy(source: int, *arguments: Any, **offsets: Any) -> int:
        Path(f"/proc/self/fd/{source}").resolve().write_bytes(b"truncated")
        return copy(source, *arguments, **offsets)

    monkeypatch.setattr(os, "copy_file_range", change_and_copy)
    with pytest.raises(ModelStoreError, match="not the file that was described: only 9 of"):
        store.adopt(model, ModelFiles("tiny", tuple(file for file in files.files if file.path == WEIGHTS)))
    assert on_disk(store) == {}


# -- damage ------------------------------------------------------------------------------------------------------------


def damage(store: ModelStore, data: bytes, *, silently: bool, monkeypatch: pytest.MonkeyPatch) -> str:
    """Flip the first byte of a blob; `silently` means as a disk does it, with all that stat(2) says unchanged."""
    digest = file_of(data).sha256
    blob = store.folder / "blobs" / digest
    before = blob.stat()
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.write(bytes([data[0] ^ 1]))
    blob.chmod(0o444)
    if silently:
        fstat = os.fstat
        monkeypatch.setattr(os, "fstat", lambda fd: before if fstat(fd).st_ino == before.st_ino else fstat(fd))
    return digest


def test_opening_notices_a_blob_that_was_written(store: ModelStore, monkeypatch: pytest.MonkeyPatch):
    put(store, DATA)
    damage(store, DATA, silently=False, monkeypatch=monkeypatch)
    with pytest.raises(ModelStoreError, match=r"weights-0 \(2\.0 kB\) missing or damaged"):
        store.open(model_of(DATA), "stage-0")
    put(store, DATA)
    assert read_folder(store.open(model_of(DATA), "stage-0")) == {"weights-0": DATA}


def test_integrity_finds_what_a_disk_did(store: ModelStore, monkeypatch: pytest.MonkeyPatch):
    put(store, DATA, b"sound")
    digest = damage(store, DATA, silently=True, monkeypatch=monkeypatch)
    assert kept(store, DATA) == [True]
    assert store.integrity() == [digest]
    assert kept(store, DATA, b"sound") == [False, True]
    monkeypatch.undo()
    put(store, DATA)
    assert store.integrity() == []


def test_a_blob_that_the_disk_cannot_read_is_damaged(store: ModelStore, monkeypatch: pytest.MonkeyPatch):
    put(store, DATA)

    def unreadable(*_: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(hashlib, "file_digest", unreadable)
    assert store.integrity() == [file_of(DATA).sha256]
    assert kept(store, DATA) == [False]


# -- budget and leases -------------------------------------------------------------------------------------------------

A, B, C, D = (letter * 10 for letter in (b"a", b"b", b"c", b"d"))


@pytest.fixture
def small(tmp_path: Path) -> ModelStore:
    """Room for three files of ten bytes."""
    return ModelStore(tmp_path / "small", 30)


def test_the_least_recently_used_goes_first(small: ModelStore):
    put(small, A, B, C)
    small.open(model_of(A), "stage-0")
    small.release("stage-0")
    put(small, D)
    assert kept(small, A, B, C, D) == [True, False, True, True]
    put(small, b"e" * 20)
    assert kept(small, A, C, D, b"e" * 20) == [False, False, True, True]
    assert small.used_bytes() == 30


def test_a_lease_protects_until_its_release(small: ModelStore):
    put(small, A, B, C)
    small.open(model_of(A, B), "stage-0")
    put(small, D)
    assert kept(small, A, B, C, D) == [True, True, False, True]
    small.release("stage-0")
    put(small, C)
    assert kept(small, A, B, C, D).count(False) == 1


def test_a_budget_that_cannot_be_met_names_who_holds_what_and_removes_nothing(small: ModelStore):
    put(small, A, B, C)
    small.open(model_of(A, B), "stage-0")
    small.open(model_of(B), "stage-1")
    with pytest.raises(ModelStoreError) as error:
        put(small, b"e" * 25)
    assert "no room for weights (25 bytes)" in str(error.value)
    assert "15 bytes too little" in str(error.value)
    assert "Of 30 bytes, 'stage-0' holds 20 bytes, 'stage-1' holds 10 bytes" in str(error.value)
    assert kept(small, A, B, C) == [True, True, True]
    assert small.used_bytes() == 30


def test_what_is_being_written_has_its_room(small: ModelStore):
    put(small, A)
    with small.writer(file_of(b"e" * 20)) as writer:
        writer.write(b"e" * 15)
        assert small.used_bytes() == 30
        with pytest.raises(ModelStoreError, match=r"5 bytes too little.* other files being written take 20 bytes"):
            put(small, b"f" * 15)
        assert kept(small, A) == [True]
        writer.write(b"e" * 5)


def test_a_leftover_of_a_download_makes_room(small: ModelStore):
    interrupt(small, b"e" * 15, file_of(b"e" * 20))
    put(small, A)
    assert small.used_bytes() == 25
    put(small, B)
    assert small.used_bytes() == 20
    assert kept(small, A, B) == [True, True]


def test_what_a_download_has_already_is_counted_once(small: ModelStore):
    put(small, A)
    small.open(model_of(A), "stage-0")
    interrupt(small, b"e" * 15, file_of(b"e" * 20))
    download(small, file_of(b"e" * 20), b"e" * 5)
    assert small.used_bytes() == 30


def test_a_damaged_blob_can_be_replaced_in_a_full_store(small: ModelStore, monkeypatch: pytest.MonkeyPatch):
    put(small, A, B, C)
    small.lease(model_of(A, B, C), "stage-0")
    damage(small, A, silently=False, monkeypatch=monkeypatch)
    put(small, A)
    assert kept(small, A, B, C) == [True, True, True]


def test_a_lease_taken_early_keeps_what_arrives_one_by_one(small: ModelStore):
    files = model_of(A, B)
    put(small, C)
    small.lease(files, "stage-0")
    put(small, A, B)
    with pytest.raises(ModelStoreError, match="'stage-0' holds 20 bytes"):
        put(small, b"e" * 20)
    assert small.missing(files) == []


@pytest.mark.parametrize("take", [ModelStore.lease, ModelStore.open])
def test_a_model_beyond_the_budget_is_refused_at_once(small: ModelStore, take: Callable[..., Any]):
    with pytest.raises(
        ModelStoreError, match=r"tiny takes 40 bytes, .* may hold only 30 bytes; raise its budget by 10"
    ):
        take(small, model_of(A, B, C, D), "stage-0")


def test_without_a_budget_the_disk_is_the_limit(store: ModelStore, monkeypatch: pytest.MonkeyPatch):
    put(store, A)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 95, 5))
    put(store, B)
    assert kept(store, A, B) == [False, True]
    with pytest.raises(ModelStoreError, match="5 bytes too little"):
        put(store, b"e" * 20)


def test_releasing_one_of_two_owners_keeps_the_folder(store: ModelStore):
    put(store, A)
    folder = store.open(model_of(A), "stage-0")
    assert store.open(model_of(A), "stage-0") == folder
    assert store.open(model_of(A), "stage-1") == folder
    store.release("stage-0")
    assert read_folder(folder) == {"weights-0": A}
    store.release("stage-1")
    store.release("stage-1")
    assert not folder.exists()
    assert kept(store, A) == [True]


def open_and_wait(connection: Connection, folder: Path, files: ModelFiles, fork: bool) -> None:
    """Lease, tell the opened folder, and wait; with `fork`, have a child that outlives this process."""
    opened = ModelStore(folder, 30).open(files, "stage-0")
    if fork and os.fork() == 0:
        connection.send(opened)
        with suppress(EOFError):
            connection.recv()
        os._exit(0)
    if not fork:
        connection.send(opened)
    signal.pause()


@pytest.mark.parametrize("fork", [False, True])
def test_a_lease_ends_with_its_process_even_if_a_forked_child_lives_on(small: ModelStore, fork: bool):
    put(small, A, B, C)
    with process(open_and_wait, small.folder, model_of(A, B), fork) as (child, connection):
        opened = receive(connection)
        with pytest.raises(ModelStoreError, match="'stage-0' holds 20 bytes"):
            put(small, b"e" * 20)
        small.release("stage-0")  # another process's lease is not ours to end
        ModelStore(small.folder, 30)
        assert read_folder(opened) == {"weights-0": A, "weights-1": B}
        os.kill(child.pid, signal.SIGKILL)
        child.join(DEADLINE_S)
        if fork:
            ModelStore(small.folder, 30)
            assert not opened.exists()
        put(small, D)
    assert kept(small, A, B, C) == [True, True, False]
    put(small, b"e" * 30)
    assert kept(small, A, B) == [False, False]
    assert list((small.folder / "leases").iterdir()) == []


def test_a_forked_child_does_not_end_its_parents_lease(small: ModelStore):
    put(small, A)
    small.open(model_of(A), "stage-0")
    held = list((small.folder / "leases").iterdir())
    with process(release_in_fork, small.folder, model_of(A)) as (_, connection):
        assert receive(connection) == len(held) + 1
    ModelStore(small.folder, 30)
    assert list((small.folder / "leases").iterdir()) == held


def release_in_fork(connection: Connection, folder: Path, files: ModelFiles) -> None:
    store = ModelStore(folder, 30)
    store.open(files, "stage-0")
    child = os.fork()
    if child == 0:
        store.release("stage-0")
        os._exit(0)
    os.waitpid(child, 0)
    connection.send(len(list((folder / "leases").iterdir())))
    signal.pause()


def use_in_turn(connection: Connection, folder: Path, contents: list[bytes]) -> None:
    store = ModelStore(folder, 30)
    for data in contents:
        store.lease(model_of(data), f"process-{os.getpid()}")
        with store.writer(file_of(data)) as writer:
            writer.write(data[writer.offset :])
        assert read_folder(store.open(model_of(data), f"process-{os.getpid()}")) == {"weights-0": data}
        store.release(f"process-{os.getpid()}")
    connection.send("done")


def test_several_processes_share_a_store_too_small_for_all_they_use(small: ModelStore):
    contents = [A, B, C, D, b"e" * 10]
    with (
        process(use_in_turn, small.folder, contents * 8) as (_, first),
        process(use_in_turn, small.folder, contents[::-1] * 8) as (_, second),
        process(use_in_turn, small.folder, [*contents[2:], *contents[:2]] * 8) as (_, third),
    ):
        assert [receive(connection) for connection in (first, second, third)] == ["done"] * 3
    assert small.used_bytes() == 30
    assert small.integrity() == []
    assert all(list((small.folder / part).iterdir()) == [] for part in ("leases", "views", "partial", "locks"))


# -- serving -----------------------------------------------------------------------------------------------------------


def test_only_described_files_are_served(store: ModelStore, model: Path, files: ModelFiles):
    write_folder(model, {".secret": b"token"})
    for sha256 in (file_of(b"token").sha256, "../.secret", str(model / ".secret"), ""):
        with pytest.raises(ModelStoreError, match="tiny has no file with the SHA-256"):
            store.read(files, model, sha256, 0, 10)


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, 0), (0, -1), (0, MAX_READ_BYTES + 1), (10241, 1)])
def test_a_chunk_outside_the_file_or_too_long_is_refused(
    store: ModelStore, model: Path, files: ModelFiles, offset: int, length: int
):
    with pytest.raises(ModelStoreError, match=f"cannot read {length} bytes at {offset} of {WEIGHTS}: it has 10240"):
        store.read(files, model, file_of(CONTENT[WEIGHTS]).sha256, offset, length)


def test_a_chunk_ends_with_the_file(store: ModelStore, model: Path, files: ModelFiles):
    assert store.read(files, model, file_of(CONTENT[WEIGHTS]).sha256, 10230, 1000) == CONTENT[WEIGHTS][10230:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(CONTENT[WEIGHTS][::-1]), "has changed since it was described"),
        (Path.unlink, "cannot read .*No such file"),
    ],
)
def test_a_changed_file_is_not_served(
    store: ModelStore, model: Path, files: ModelFiles, change: Callable[[Path], Any], message: str
):
    change(model / WEIGHTS)
    with pytest.raises(ModelStoreError, match=message):
        store.read(files, model, file_of(CONTENT[WEIGHTS]).sha256, 0, 10)


def test_a_store_that_cannot_be_made_says_where(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ModelStoreError, match=r"cannot use .*file/store for model files: .*choose another folder"):
        ModelStore(tmp_path / "file/store", None)
