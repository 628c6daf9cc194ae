"""Start vLLM's own OpenAI server on the pipeline executor.

Nothing of the server is rebuilt: this composes the arguments of ``vllm serve`` and the environment it starts in, and
hands over to vLLM's command line. Every flag of ``vllm serve`` can be given and wins over what is set here.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runtime.model import ResolvedModel

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What `midstream serve` was asked for. `extra` are flags for vLLM, passed on as they are.

    `gateway` says how to reach `nodes` (`runtime.engine.fleet.GatewaySettings`), `guard` who knows the intents that
    bound this pipeline (`runtime.engine.executor.GuardSettings`).
    """

    layers: str | None = None
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    threads: int = 0
    batches_in_flight: int = 0
    spare_stages: int | None = None
    sleep_after_s: float | None = None
    hold_requests: int = 256
    hold_seconds: float = 30.0
    nodes: Sequence[str] = ()
    gateway: Mapping[str, str] | None = None
    node_grace_s: float = 8.0
    guard: Mapping[str, str] | None = None
    extra: Sequence[str] = ()


def vllm_arguments(model: ResolvedModel, options: ServeOptions, *, on_cpu: bool) -> list[str]:
    """Compose the command line of vLLM's API server, without the program's name."""
    defaults: dict[str, list[str]] = {
        "--served-model-name": [model.served_name],
        # Every change is a change of processes; compiling each of them first would take minutes on a processor.
        **({"--enforce-eager": []} if on_cpu else {}),
        # The built-in model is stored in float32, and in float32 equal requests give equal tokens in any company.
        **({"--dtype": ["float32"]} if model.origin == "built-in" else {}),
    }
    given = {argument.split("=")[0] for argument in options.extra}
    chosen = [part for flag, values in defaults.items() if flag not in given for part in (flag, *values)]
    settings = {
        "layers": options.layers or "",
        "threads": options.threads,
        "batches_in_flight": options.batches_in_flight,
        "spare_stages": options.spare_stages,
        "sleep_after_s": options.sleep_after_s,
        "nodes": list(options.nodes),
        "gateway": options.gateway,
        "node_grace_s": options.node_grace_s,
        "guard": options.guard,
    }
    return [
        "--model",
        model.path,
        "--host",
        options.host,
        "--port",
        str(options.port),
        "--distributed-executor-backend",
        "runtime.engine.executor.PipelineExecutor",
        "--scheduler-cls",
        "runtime.engine.scheduler.PipelineScheduler",
        "--additional-config",
        json.dumps({"midstream": settings}),
        "--no-async-scheduling",
        *chosen,
        *options.extra,
    ]


def engine_environment(current: Mapping[str, str], *, on_cpu: bool) -> dict[str, str]:
    """Return the variables that every process with an engine needs before vLLM is imported; what is set stays."""
    wanted = {
        # vLLM would give every stage cores of its own; ours take turns on all of them (runtime.engine.compute_threads).
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # An idle stage's worker threads must not spin on the cores that the next stage computes on. Long enough to
        # bridge the pause between two kernels (0.1 ms), far shorter than the runtime's default (about 7 ms).
        "GOMP_SPINCOUNT": "5000",
        "VLLM_NO_USAGE_STATS": "1",
        # Without it the first request for logprobs, and again after each change, waits seconds for a C++ compiler.
        **({"TORCHDYNAMO_DISABLE": "1"} if on_cpu else {}),
        "VLLM_USE_V2_MODEL_RUNNER": "0",
    }
    return {name: value for name, value in wanted.items() if name not in current}


def environment(model: ResolvedModel, current: Mapping[str, str], *, on_cpu: bool) -> dict[str, str]:
    """Return the variables to set before vLLM is imported; what the user has set stays."""
    plugins = [name for name in current.get("VLLM_PLUGINS", "").split(",") if name]
    chosen = engine_environment(current, on_cpu=on_cpu)
    if model.origin != "hub" and "HF_HUB_OFFLINE" not in current:
        chosen["HF_HUB_OFFLINE"] = "1"
    # The allowlist of vLLM plugins: ours adds the control API.
    chosen["VLLM_PLUGINS"] = ",".join([*plugins, "midstream"])
    return chosen


def serve(model: ResolvedModel, options: ServeOptions) -> None:
    """Run the server in this process until it is told to stop."""
    from runtime.engine.compat import built_for_cpu, check_torchvision, installed_version

    installed_version()
    # Now that its packages are known to be there.
    from runtime.head.hold import HoldLimits
    from runtime.phase import PHASE_VARIABLE, make_phase_word

    on_cpu = built_for_cpu()
    os.environ.update(environment(model, os.environ, on_cpu=on_cpu))
    os.environ.update(HoldLimits(options.hold_requests, options.hold_seconds).as_environment())
    os.environ[PHASE_VARIABLE] = make_phase_word()
    check_torchvision()
    # Not `vllm.entrypoints.cli`: it asks for the distribution `vllm`, which the processor build is not.
    from vllm.entrypoints.launchers.api_server.entry import main as vllm_main

    sys.argv = ["vllm", *vllm_arguments(model, options, on_cpu=on_cpu)]
    vllm_main()
