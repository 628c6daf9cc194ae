"""One real vLLM engine on the pipeline executor, in this process, shared by all tests of this folder.

The tests step the engine themselves, so they decide between which two batches something happens.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support.tiny_models import write_tiny_qwen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.engine.harness import Harness

LAYERS = 6
KV_BLOCKS = 24  # of 32 tokens: few enough that eight long streams do not fit, and vLLM has to preempt


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    """A six-layer model as two stages of three layers."""
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_NO_USAGE_STATS="1",
        HF_HUB_OFFLINE="1",
    )
    from tests.integration.engine.harness import Harness

    model = write_tiny_qwen(tmp_path_factory.mktemp("tiny-qwen"), layers=LAYERS)
    harness = Harness(str(model), layers="3,3", blocks=KV_BLOCKS)
    yield harness
    harness.close()


@pytest.fixture
def two_stages(harness: Harness) -> Harness:
    """The shared engine, idle and back in its first layout."""
    harness.settle("3,3")
    return harness
