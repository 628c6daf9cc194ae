from dataclasses import dataclass
from pathlib import Path

import pytest

from runtime.model.builtin import Preparation, WheelModel
from runtime.model.cache import ModelCache
from runtime.model.progress import Report
from tests.unit.runtime.model.reports import MemoryReport
from tests.unit.runtime.model.tiny_wheel import FakeFetch, write_wheel


@dataclass
class Workbench:
    """A tiny built-in model, a stand-in for pip and an empty cache."""

    model: WheelModel
    wheel: Path
    fetch: FakeFetch
    cache: ModelCache
    report: MemoryReport

    @property
    def folder(self) -> Path:
        return self.cache.folder(self.model.name)

    def preparation(self, report: Report | None = None, model: WheelModel | None = None) -> Preparation:
        return Preparation(model or self.model, self.cache, report or self.report, self.fetch)

    def leftovers(self) -> list[str]:
        return [path.name for path in self.folder.parent.glob(".*partial*")]


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[WheelModel, Path]:
    """The pins of the tiny model and its wheel, which lies alone in its folder."""
    folder = tmp_path_factory.mktemp("wheel")
    model = write_wheel(folder)
    (folder / "tiny.gguf").unlink()
    return model, folder / model.wheel


@pytest.fixture
def bench(packed: tuple[WheelModel, Path], tmp_path: Path) -> Workbench:
    model, wheel = packed
    return Workbench(model, wheel, FakeFetch(wheel), ModelCache(tmp_path / "cache"), MemoryReport())
