"""`python -m controller.platform.serve_function <folder>`: one Knative function as a process of this machine.

Does what func's own scaffolding does in a function's image: the folder goes on the path, and func-python serves what
its ``new`` makes. The function listens on ``LISTEN_ADDRESS``; without it on loopback, where func-python would take all
interfaces.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

_LISTEN = "127.0.0.1:8080"


def main() -> None:
    """Serve the function of the folder that the command line names, until SIGTERM."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m controller.platform.serve_function <folder of a function>")
    folder = Path(sys.argv[1]).resolve()
    if not (folder / "function" / "__init__.py").is_file():
        raise SystemExit(f"{folder} holds no function: it has no function/__init__.py")
    os.environ.setdefault("LISTEN_ADDRESS", _LISTEN)
    sys.path.insert(0, str(folder))
    from func_python.cloudevent import serve

    serve(importlib.import_module("function").new)


if __name__ == "__main__":
    main()
