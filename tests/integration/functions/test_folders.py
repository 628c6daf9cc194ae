"""Each function is built from its own folder: its tests run there."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.functions.process import FUNCTIONS

FOLDERS = sorted(folder.parent for folder in FUNCTIONS.glob("*/func.yaml"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_functions_own_tests_pass(folder: Path):
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)],
        cwd=FUNCTIONS.parent,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_stand_in_for_a_head_is_the_same_in_each():
    assert len({(folder / "tests/conftest.py").read_text() for folder in FOLDERS}) == 1
