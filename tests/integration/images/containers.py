"""Build an image with `manifests/images/build.sh` and run containers of it with podman and runc.

pip's settings of this machine reach the build as a secret and by mounts, so that a machine with an index of its own can
build too and none of it is in the image. Everything is kept in a folder of the test's own.
"""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

REPOSITORY = Path(__file__).resolve().parents[3]
IMAGES = REPOSITORY / "manifests" / "images"

TOOLS = ("buildah", "podman", "runc", "debootstrap")
LOCKED_DOWN = (
    "--user=65532:65532",
    "--read-only",
    "--read-only-tmpfs=false",
    "--tmpfs=/tmp:rw,nosuid,nodev,size=64m",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
)
"""What the manifests ask of every pod: a user without rights, and nothing to write to but /tmp."""

_BUILD_S = 900.0
_COMMAND_S = 120.0
_CONFIGURATION = """\
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]
"""


def why_not(environment: Mapping[str, str]) -> str | None:
    """Say why no image can be built here, if so."""
    if environment.get("MIDSTREAM_TEST_IMAGES") != "1":
        return "images are built for MIDSTREAM_TEST_IMAGES=1 only: it takes minutes, root and Debian's packages"
    if os.geteuid() != 0:
        return "images are built by root only: debootstrap needs it"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"not here: {', '.join(missing)}" if missing else None


@dataclass(frozen=True)
class Containers:
    """podman with its images and containers in `folder`."""

    folder: Path

    def build(self, image: str) -> str:
        """Build an image on a base from Debian's packages; return its name."""
        configuration, mounts = pip_settings(self.folder)
        subprocess.run(
            [
                str(IMAGES / "build.sh"),
                "--base=debootstrap",
                f"--store={self.folder / 'store'}",
                f"--pip-config={configuration}",
                "--tag=test",
                image,
                "--",
                *(f"--volume={path}:{path}:ro" for path in mounts),
            ],
            check=True,
            timeout=_BUILD_S,
            stdout=sys.stderr,
        )
        return f"localhost/{image}:test"

    def run(self, image: str, environment: Mapping[str, str]) -> str:
        """Start a container, locked down and on the host's network, so that it reaches loopback; return its id."""
        settings = [f"--env={name}={value}" for name, value in environment.items()]
        return self.podman("run", "--detach", "--network=host", *LOCKED_DOWN, *settings, image).strip()

    def inside(self, container: str, *command: str) -> str:
        """Run a command in a container; return what it prints."""
        return self.podman("exec", container, *command)

    def podman(self, *arguments: str) -> str:
        """Run podman; return what it prints. Raises CalledProcessError."""
        (self.folder / "containers.conf").write_text(_CONFIGURATION, encoding="utf-8")
        done = subprocess.run(
            [_program("podman"), *self._storage(), *arguments],
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
            env={**os.environ, "CONTAINERS_CONF": str(self.folder / "containers.conf")},
            check=False,
        )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)
        return done.stdout

    def close(self) -> None:
        """Remove all containers and images."""
        self.podman("rm", "--all", "--force", "--time=0")
        self.podman("rmi", "--all", "--force")
        mounted = str(self.folder / "store" / "root" / "overlay")
        subprocess.run([_program("umount"), mounted], capture_output=True, check=False)
        shutil.rmtree(self.folder)

    def _storage(self) -> Sequence[str]:
        store = self.folder / "store"
        return [f"--root={store / 'root'}", f"--runroot={store / 'run'}", "--storage-driver=overlay"]


def _program(name: str) -> str:
    return shutil.which(name) or name


def pip_settings(folder: Path) -> tuple[Path, list[Path]]:
    """Write pip's settings as one file; return it, and the files and folders of this machine that they name."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    settings: dict[str, str] = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = value.strip("'")
    parser = configparser.RawConfigParser()
    parser["global"] = settings
    file = folder / "pip.conf"
    with file.open("w", encoding="utf-8") as written:
        parser.write(written)
    file.chmod(0o600)
    mounts = []
    for word in " ".join(settings.values()).split():
        url = urlsplit(word)
        # An index in a folder names files beside it.
        path = Path(url.path).parent if url.scheme == "file" else Path(word)
        if path.is_absolute() and path.exists():
            mounts.append(path)
    return file, mounts
