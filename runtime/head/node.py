"""Run a node runtime in this process: `midstream node run`."""

from __future__ import annotations

import datetime as dt
import os
import signal
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.head.serve import engine_environment
from runtime.transport.identity import Enrolment, Identity
from runtime.warm.model_store import ModelStore
from runtime.warm.node_daemon import NodeDaemon
from runtime.warm.zygote import Zygote, ZygoteError

if TYPE_CHECKING:
    from pathlib import Path

_IMPORT_S = 300.0


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What `midstream node run` was asked for; sizes in bytes, times in seconds."""

    name: str
    folder: Path
    listen: str
    memory_bytes: int | None
    lease_s: float
    bulk_bytes_per_second: float | None
    models_bytes: int | None = None


def run_node(options: NodeOptions) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        IdentityError, ChannelError, ZygoteError: the node cannot start; the message says why.
        ZygoteError: the process with the engine has ended, and the node with it.

    """
    from runtime.engine.compat import built_for_cpu, check_torchvision, installed_version
    from runtime.engine.model_zygote import be_model_zygote, import_engine

    identity = Identity.load_or_create(options.folder, options.name)
    installed_version()
    os.environ.update(engine_environment(os.environ, on_cpu=built_for_cpu()))
    check_torchvision()
    daemons: list[NodeDaemon] = []

    def on_exit(key: str, status: int) -> None:
        for daemon in daemons:  # none, if it ended before this node was up
            daemon.on_seed_exit(key, status)

    # Forked before this process has threads and sockets.
    seed = Zygote(be_model_zygote, import_engine, on_exit)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    try:
        seed.wait_ready(_IMPORT_S)
        daemon = NodeDaemon(
            identity,
            Enrolment(options.folder),
            options.listen,
            seed,
            options.memory_bytes,
            options.lease_s,
            log,
            options.bulk_bytes_per_second,
            ModelStore(options.folder / "models", options.models_bytes),
        )
    except Exception:
        seed.close()
        raise
    daemons.append(daemon)
    log("ready", node=identity.name, address=daemon.address, fingerprint=identity.fingerprint)
    while seed.alive and not ended.wait(1.0):
        continue
    lost = not seed.alive
    daemon.close()
    if lost:
        raise ZygoteError("the process with the engine has ended; start the node again")


def log(event: str, **details: object) -> None:
    """Write one line to standard error."""
    at = dt.datetime.now(dt.UTC).strftime("%H:%M:%S.%f")[:-3]
    text = "  ".join(f"{name}={value}" for name, value in details.items())
    print(f"{at}  {event:<18} {text}", file=sys.stderr, flush=True)  # noqa: T201 - this is the node's log
