"""Models that a stage cannot inherit are loaded stage by stage: the way of GPUs, tried out on a processor."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.tiny_models import write_tiny_qwen

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.engine


def test_stages_that_load_their_own_layers_change_and_recover(tmp_path: Path) -> None:
    model = write_tiny_qwen(tmp_path, layers=6)
    environment = {
        **os.environ,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",
    }
    program = [sys.executable, "-m", "tests.integration.engine.per_stage_loading", str(model)]
    run = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    assert "every answer was the same" in run.stdout
