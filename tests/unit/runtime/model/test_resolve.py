"""What `--model M` means, and what a person reads when it means nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from runtime.model import ModelError, ModelNameError, ResolvedModel, resolve_model


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def never(_cache_dir: Path | None) -> Path:
    pytest.fail("the built-in model must not be prepared here")


def test_without_a_model_the_built_in_one_is_prepared_in_the_given_cache(tmp_path: Path) -> None:
    asked: list[Path | None] = []

    def prepare(cache_dir: Path | None) -> Path:
        asked.append(cache_dir)
        return tmp_path / "ready"

    resolved = resolve_model(None, cache_dir=tmp_path, prepare=prepare)

    assert resolved == ResolvedModel(str(tmp_path / "ready"), "SmolLM2-135M-Instruct", "built-in")
    assert asked == [tmp_path]


def test_a_folder_is_served_under_its_own_name(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "my-model")
    assert resolve_model(str(folder), prepare=never) == ResolvedModel(str(folder), "my-model", "folder")


@pytest.mark.parametrize("given", ["./my-model", "my-model", "my-model/", ".", "../here/my-model", "~/here/my-model"])
def test_a_folder_may_be_given_in_every_usual_way(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model(tmp_path / "here" / "my-model")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(folder if given == "." else folder.parent)
    assert resolve_model(given, prepare=never) == ResolvedModel(str(folder), "my-model", "folder")


def test_a_linked_folder_keeps_the_name_of_the_link(tmp_path: Path) -> None:
    (tmp_path / "nice-name").symlink_to(make_model(tmp_path / "3f9a"))
    assert resolve_model(str(tmp_path / "nice-name"), prepare=never).served_name == "nice-name"


@pytest.mark.parametrize("hub_id", ["Qwen/Qwen3-0.6B", "gpt2", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_a_hub_id_is_passed_on_untouched(hub_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_model(hub_id, prepare=never) == ResolvedModel(hub_id, hub_id, "hub")


def test_an_existing_folder_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model(tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("owner/name", prepare=never) == ResolvedModel(str(folder), "name", "folder")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("", "the model name is empty"),
        ("  ", "the model name is empty"),
        ("./gone", "there is no folder {cwd}/gone"),
        ("../gone", "there is no folder {parent}/gone"),
        ("/gone/model", "there is no folder /gone/model"),
        ("~/gone", "there is no folder {cwd}/gone"),
        ("a/b/c", "there is no folder {cwd}/a/b/c"),
        ("owner/name/", "there is no folder {cwd}/owner/name"),
        ("owner/", "'owner/' is neither an existing folder nor a possible hub id"),
        ("-owner/name", "'-owner/name' is neither"),
        ("owner/na me", "'owner/na me' is neither"),
        ("owner/name\n", "'owner/name\\n' is neither"),
        ("nul\0", "'nul\\x00' is neither"),
        ("x" * 5000, "cannot look up the model"),
        ("no-config", "the folder {cwd}/no-config is no model: it has no config.json"),
        ("file.gguf", "{cwd}/file.gguf is a file, not a model folder"),
    ],
)
def test_what_is_no_model_is_refused_with_what_where_and_how(
    given: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no-config").mkdir()
    (tmp_path / "file.gguf").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNameError) as refusal:
        resolve_model(given, prepare=never)
    assert complaint.format(cwd=tmp_path, parent=tmp_path.parent) in str(refusal.value)
    assert "leave --model out for the built-in model" in str(refusal.value)
    assert isinstance(refusal.value, ModelError)


def test_importing_the_package_loads_no_heavy_library() -> None:
    heavy = ("torch", "transformers", "vllm", "gguf", "tokenizers", "numpy", "huggingface_hub")
    script = f"import runtime.model, sys; print([name for name in {heavy} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
