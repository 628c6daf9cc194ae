"""Invariant I8 as a property of the source: no module of ours can unpickle anything."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
ROOMS = ("runtime", "controller", "loadgen")
FORBIDDEN_MODULES = frozenset({"pickle", "_pickle", "cloudpickle", "jsonpickle", "dill", "joblib", "shelve", "marshal"})
# Calls that unpickle behind a harmless name: ZeroMQ's Python objects, multiprocessing's connections, torch's files.
FORBIDDEN_NAMES = frozenset({"recv_pyobj", "send_pyobj", "Unpickler"})


def sources() -> list[Path]:
    return sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def trespasses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, what) for everything that imports or names a pickle."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"__import__", "importlib.import_module"}:
            names = [argument.value for argument in node.args if isinstance(getattr(argument, "value", None), str)]
        for name in names:
            if FORBIDDEN_MODULES & set(name.split(".")):
                yield node.lineno, f"imports {name}"
        if isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_NAMES | FORBIDDEN_MODULES:
            yield node.lineno, f"uses {node.attr}"
        if isinstance(node, ast.Call):
            unsafe = {"allow_pickle": True, "weights_only": False}
            for keyword in node.keywords:
                if keyword.arg in unsafe and getattr(keyword.value, "value", None) is unsafe[keyword.arg]:
                    yield node.lineno, f"passes {keyword.arg}={unsafe[keyword.arg]}"


def test_the_rooms_are_where_this_test_looks():
    assert {path.relative_to(ROOT).parts[0] for path in sources()} == set(ROOMS)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_i8_no_module_imports_or_uses_a_pickle(path: Path):
    found = [f"line {line} {what}" for line, what in trespasses(ast.parse(path.read_text("utf-8")))]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import cloudpickle as c",
        "from pickle import loads",
        "from joblib import load",
        "def f():\n    import pickle",
        "__import__('pickle')",
        "importlib.import_module('cloudpickle')",
        "torch.load(path, weights_only=False)",
        "numpy.load(path, allow_pickle=True)",
        "socket.recv_pyobj()",
        "multiprocessing.pickle.loads(data)",
    ],
)
def test_a_pickle_would_be_found(source: str):
    assert list(trespasses(ast.parse(source)))


@pytest.mark.parametrize("source", ["'never a pickle'", "# pickle", "numpy.load(path, allow_pickle=False)"])
def test_a_mere_mention_is_no_trespass(source: str):
    assert not list(trespasses(ast.parse(source)))
