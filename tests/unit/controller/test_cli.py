"""What every `midstream` command costs before it does anything."""

import subprocess
import sys


def test_a_command_imports_nothing_heavy_before_it_needs_it():
    heavy = {
        "torch",
        "vllm",
        "transformers",
        "matplotlib",
        "pyarrow",
        "numpy",
        "networkx",
        "openai",
        "os_ken",
        "kubernetes",
    }
    script = f"import sys, controller.cli; print(sorted({heavy} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"
