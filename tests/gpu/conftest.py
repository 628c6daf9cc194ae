"""Tests that need one NVIDIA GPU and torch; no vLLM. Elsewhere each is skipped with the reason."""

import pytest

from runtime.warm.devices import CudaDevice, unavailable


@pytest.fixture
def device() -> CudaDevice:
    if reason := unavailable("cuda"):
        pytest.skip(reason)
    return CudaDevice()
