"""Functions are thin: of this project they import `runtime` and `intents` alone, and nothing imports them."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
ROOMS = {"controller", "functions", "intents", "loadgen", "runtime", "tests"}


def imported_rooms(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield each file with each room that it imports."""
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            yield from ((file, room) for name in names if (room := name.partition(".")[0]) in ROOMS)


def test_functions_import_the_runtime_and_the_intents_alone():
    found = [pair for folder in ROOT.glob("functions/*/function") for pair in imported_rooms(folder)]
    assert found, "no function imports anything: is the folder right?"
    assert [pair for pair in found if pair[1] not in {"runtime", "intents"}] == []


def test_nothing_imports_functions():
    found = [pair for room in ("controller", "intents", "loadgen", "runtime") for pair in imported_rooms(ROOT / room)]
    assert [pair for pair in found if pair[1] == "functions"] == []
