"""`python -m controller.platform.broker`: run a CloudEvents broker on this machine.

Prints one line on standard output when it accepts events. Exit codes: 0 everything accepted was delivered or given up,
1 it could not start, 3 events were left undelivered (the log says which).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from controller.platform.broker.server import BrokerOptions, run_broker
from controller.platform.broker.trigger import TriggerError

_FAILED, _UNDELIVERED = 1, 3


def main(arguments: list[str] | None = None) -> int:
    """Run the broker until it is told to stop."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(format="%(asctime)s  broker  %(levelname)s  %(message)s", level=logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    options = BrokerOptions(given.port, tuple(given.triggers), dict(given.service), given.drain_seconds)
    try:
        left = asyncio.run(run_broker(options, _ready))
    except (TriggerError, OSError) as error:
        print(f"midstream: {error}", file=sys.stderr)  # noqa: T201
        return _FAILED
    return _UNDELIVERED if left else 0


def _ready(address: str) -> None:
    print(f"broker ready at {address}", flush=True)  # noqa: T201 - for who started it


def _service(text: str) -> tuple[str, str]:
    name, separator, address = text.partition("=")
    if not (name and separator and address):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=ADDRESS, such as stage=http://127.0.0.1:8081")
    return name, address


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m controller.platform.broker", description="A broker for CloudEvents."
    )
    parser.add_argument("--port", type=int, default=8090, help="port on loopback; 0: any that is free")
    parser.add_argument(
        "--triggers", type=Path, nargs="+", action="extend", default=[], help="YAML files with Knative Triggers"
    )
    parser.add_argument(
        "--service", type=_service, action="append", default=[], help="NAME=ADDRESS of a Service that triggers name"
    )
    parser.add_argument(
        "--drain-seconds", type=float, default=10.0, help="time for delivering what is left when it is told to stop"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
