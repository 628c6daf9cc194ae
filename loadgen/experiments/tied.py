"""`python -m loadgen.experiments.tied PROGRAM ARGUMENT...`: become a program that ends when its parent does.

A server that an experiment starts is in a session of its own. If the experiment is killed with SIGKILL nobody ends that
server, and it takes processor time from whatever is measured next. Linux sends a process a signal when its parent dies
(`PR_SET_PDEATHSIG`, see prctl(2)); that survives becoming another program. Elsewhere the server is just started.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def tied(argv: list[str]) -> list[str]:
    """Return the command line that runs `argv` so."""
    return [sys.executable, "-m", "loadgen.experiments.tied", *argv]


def main() -> None:
    """Become the program of the command line."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit("the parent has ended")
    try:
        os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 - a list, no shell
    except OSError as error:
        sys.exit(f"cannot run {sys.argv[1]}: {error}")


if __name__ == "__main__":
    main()
