"""The experiment of `midstream bench device` on a real GPU."""

import json

import pytest

from loadgen.benchmarks.device import DeviceOptions, run
from runtime.warm.devices import CudaDevice

pytestmark = pytest.mark.gpu


async def test_state_paths_are_measured_and_no_byte_is_lost(device: CudaDevice):
    result = await run(DeviceOptions(device="cuda", repeat=2), say=print)
    print(json.dumps(result))  # noqa: T201 - the figures of this machine, with -s
    assert result["outputs_identical"]
    assert result["state_intact"]
    assert (len(result["each"]["pause_ms"]), len(result["each"]["attach_ms"])) == (2, 4)
    assert all(row["scattered_gb_s"] > 0 for row in result["copy"])
