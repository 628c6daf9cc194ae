"""Do `vllm bench serve` and this generator say the same of one server? `midstream bench agreement`.

One server is started, or one that runs is used. In each round both generators send the same load to it, one after the
other, the first place taken in turns: requests at a constant rate (`--burstiness inf` there), with prompts and answers
of the same fixed lengths, seeded by the number of the round. The texts differ: each makes its own. A server that is
started here has no prefix cache, which would answer a round from the one before. Nothing is measured of the other
generator's process: it imports its engine before it begins to send.

How the figures are compared: `loadgen.experiments.agreement_result`. Latencies count from the moment of sending on both
sides, since vLLM's generator knows no other.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from loadgen.benchmarks.reconfigure.options import DEFAULT_SERVER_ARGS, ReconfigureOptions, default_model_folder
from loadgen.errors import MeasurementError, OptionsError
from loadgen.experiments.agreement_result import FIGURES, agreement, figures_of_vllm
from loadgen.experiments.client_settings import ClientSettings
from loadgen.experiments.progress import Progress
from loadgen.experiments.schema import Arm, Run, Settings
from loadgen.experiments.servers import AnyTarget, RunningTarget, running
from loadgen.experiments.single_run import measure
from loadgen.experiments.targets import EndpointTarget, MidstreamTarget, VllmTarget
from loadgen.machine import machine_facts
from loadgen.results.figures import figures
from loadgen.results.reader import read_run
from loadgen.results.streams import streams_of
from loadgen.workloads.kinds import parse_workload

# The command `vllm bench serve` asks for a distribution called vllm, which the processor build is not.
_THEIRS = (
    "import argparse; from vllm.benchmarks.serve import add_cli_args, main; p = argparse.ArgumentParser(); "
    "add_cli_args(p); main(p.parse_args())"
)
_SETTLE_S = 5.0
_DEADLINE_S = 600.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementOptions:
    """What is compared.

    Attributes:
        target: The server.
        tokenizer: Folder or hub id of its tokenizer, for the other generator's prompts; None: the built-in model's.
        requests, rate: How many, and how many per second.
        input_tokens, output_tokens: Lengths of all prompts and answers.
        rounds: How often both are run.
        seed: Of the first round.
    """

    target: AnyTarget
    tokenizer: str | None = None
    requests: int = 24
    rate: float = 0.8
    input_tokens: int = 128
    output_tokens: int = 64
    rounds: int = 4
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("requests", "input_tokens", "rounds"):
            if getattr(self, name) < 1:
                raise OptionsError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if self.output_tokens < 2:
            raise OptionsError(f"output_tokens is {self.output_tokens}, but a time per token needs 2")
        if not self.rate > 0:
            raise OptionsError(f"rate is {self.rate}, but must be above 0")


def compared_server(url: str | None, layers: str, *, stock: bool) -> AnyTarget:
    """Return the server to compare at: the one at `url`, else stock vLLM or a Midstream of `layers` to be started."""
    args = (*DEFAULT_SERVER_ARGS, "--no-enable-prefix-caching")
    if url is not None:
        return EndpointTarget(kind="endpoint", url=url)
    if stock:
        return VllmTarget(kind="vllm", args=args)
    return MidstreamTarget(kind="midstream", layers=layers, args=args)


async def run(options: AgreementOptions, folder: Path, *, say: Say = lambda _: None) -> dict[str, Any]:
    """Compare the two and return the result as one JSON object.

    Args:
        options: What is compared.
        folder: Where runs, results of the other generator and logs are kept.
        say: Told a line of progress now and then.

    Raises:
        LoadgenError: it could not be measured.
    """
    tokenizer = options.tokenizer or await default_model_folder(ReconfigureOptions())
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    async with running(options.target, folder, say) as target:
        for index in range(options.rounds):
            turns = ("ours", "theirs") if index % 2 == 0 else ("theirs", "ours")
            for turn in turns:
                say(f"round {index + 1} of {options.rounds}: {turn}")
                await asyncio.sleep(_SETTLE_S)
                if turn == "ours":
                    ours.append(await _our_round(options, target, folder, index, say))
                else:
                    theirs.append(await _their_round(options, target, tokenizer, folder, index))
        facts = target.facts
    compared = [agreement(name, [r[name] for r in ours], [r[name] for r in theirs]) for name in FIGURES]
    return {
        "figures": {each.name: {**asdict(each), "verdict": each.verdict} for each in compared},
        "agrees": all(each.verdict == "agree" for each in compared),
        "rounds": options.rounds,
        "requests": options.requests,
        "rate": options.rate,
        "input_tokens": options.input_tokens,
        "output_tokens": options.output_tokens,
        "seed": options.seed,
        "target": {**options.target.model_dump(mode="json", exclude={"env"}), **facts},
        "machine": machine_facts(),
        "folder": str(folder),
    }


async def _our_round(
    options: AgreementOptions, target: RunningTarget, folder: Path, index: int, say: Say
) -> dict[str, float]:
    workload = parse_workload(
        {
            "kind": "open",
            "arrivals": {"kind": "constant", "rate": options.rate},
            "requests": options.requests,
            "input_tokens": options.input_tokens,
            "output_tokens": options.output_tokens,
        }
    )
    settings = Settings(target=options.target, workload=workload, client=ClientSettings(), settle_s=_SETTLE_S)
    run_folder = folder / "ours" / str(index)
    await measure(
        Run(Arm("ours", settings), index, options.seed + index),
        target,
        run_folder,
        folder,
        Progress(say=say),
        experiment={"metadata": {"name": "agreement"}},
    )
    measured = read_run(run_folder)
    streams = streams_of(measured)
    found = figures(streams, measured.manifest.slo)
    if found.broken or not (found.ttft_from_sent_ms and found.tpot_ms and found.chunk_gap_ms):
        raise MeasurementError(f"our round {index + 1} broke: {found.outcomes}; see {run_folder}")
    return {
        "ttft_ms_p50": found.ttft_from_sent_ms.p50,
        "ttft_ms_mean": found.ttft_from_sent_ms.mean,
        "tpot_ms_p50": found.tpot_ms.p50,
        "tpot_ms_mean": found.tpot_ms.mean,
        "itl_ms_p50": found.chunk_gap_ms.p50,
        "tokens_per_s": found.output_tokens_per_s or 0.0,
    }


def their_command(
    options: AgreementOptions, target: RunningTarget, tokenizer: str, folder: Path, index: int
) -> list[str]:
    """Return the command line of the other generator in a round; it writes its result to `INDEX.json` in `folder`."""
    return [
        *(sys.executable, "-c", _THEIRS, "--base-url", target.base_url, "--model", target.model),
        *("--tokenizer", tokenizer, "--dataset-name", "random", "--ignore-eos", "--temperature", "0"),
        *("--random-input-len", str(options.input_tokens), "--random-output-len", str(options.output_tokens)),
        *("--num-prompts", str(options.requests), "--request-rate", str(options.rate), "--burstiness", "inf"),
        *("--seed", str(options.seed + index), "--num-warmups", "4", "--disable-tqdm"),
        *("--save-result", "--save-detailed", "--result-dir", str(folder), "--result-filename", f"{index}.json"),
    ]


async def _their_round(
    options: AgreementOptions, target: RunningTarget, tokenizer: str, folder: Path, index: int
) -> dict[str, float]:
    results = folder / "theirs"
    results.mkdir(parents=True, exist_ok=True)
    process = await asyncio.create_subprocess_exec(
        *their_command(options, target, tokenizer, results, index),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_DEADLINE_S):
            output, _ = await process.communicate()
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    path = results / f"{index}.json"
    if process.returncode != 0 or not path.is_file():
        last = output.decode(errors="replace")[-1000:]
        raise MeasurementError(f"vllm bench serve ended with status {process.returncode}:\n{last}")
    return figures_of_vllm(json.loads(path.read_text(encoding="utf-8")))


def render(result: dict[str, Any]) -> Table:
    """Return a table of what `run` returned."""
    table = Table(
        title=(
            f"this generator / vllm bench serve, {result['rounds']} rounds of {result['requests']} requests at "
            f"{result['rate']:g}/s, {result['input_tokens']} tokens in, {result['output_tokens']} out"
        ),
        caption=(
            "agree: the 95 % interval of the mean ratio holds 1 and reaches no further than 15 % from it; "
            "too noisy: it holds 1 because it is wide"
        ),
    )
    for name in ("figure", "ours", "vllm's", "ratio", "95 %", "rounds", "own spread", "verdict"):
        table.add_column(name, justify="left" if name == "figure" else "right")
    for each in result["figures"].values():
        interval = "-" if each["low"] is None else f"{each['low']:.3f} to {each['high']:.3f}"
        table.add_row(
            each["name"],
            f"{_mean(each['ours']):.2f}",
            f"{_mean(each['theirs']):.2f}",
            f"{each['ratio']:.3f}",
            interval,
            f"{each['least']:.3f} to {each['most']:.3f}",
            f"{each['spread_ours']:.1%}, {each['spread_theirs']:.1%}",
            each["verdict"],
        )
    return table


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
