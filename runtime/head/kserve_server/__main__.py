"""`python -m runtime.head.kserve_server`: serve a head by KServe's protocols."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Sequence


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m runtime.head.kserve_server",
        description="Serve a Midstream head by KServe's V1 and V2 protocols, with OpenAI's API handed on to it.",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model-name", required=True, help="the model's name for KServe (its InferenceService's)")
    parser.add_argument("--head", type=_address, default="http://127.0.0.1:8000", help="the head's address")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen; 0.0.0.0 for everybody, as in a pod")
    parser.add_argument("--http-port", type=int, default=8080, help="the port to listen on")
    parser.add_argument("--drain-seconds", type=int, default=30, help="how long requests may go on after SIGTERM")
    return parser.parse_args(arguments)


def main() -> None:
    """Serve until told to stop."""
    given = parse(sys.argv[1:])
    sys.argv = sys.argv[:1]  # KServe reads it when it is imported
    from runtime.head.kserve_server.server import ServerOptions, serve

    serve(ServerOptions(given.model_name, given.head, given.host, given.http_port, given.drain_seconds))


def _address(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.path not in {"", "/"}:
        raise argparse.ArgumentTypeError(f"{text!r} is no address such as http://127.0.0.1:8000")
    return text.rstrip("/")


if __name__ == "__main__":
    main()
