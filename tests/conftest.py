"""Settings that must stand before torch is imported for the first time."""

import os

# As `midstream serve` does: idle OpenMP threads must not spin on the cores that others compute on.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
# Likewise: compiling a kernel for the first logprobs takes longer than the test.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
