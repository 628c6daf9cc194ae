"""The experiment behind `midstream bench wake`: how long does the first token take from zero?

A Midstream server that sleeps after a short idle time is asked a long question; when it sleeps (no stage process is
left), it is asked the same again. For comparison a stock vLLM server is started cold, in the same run, once for each
repeat, and asked the same: from the start of its process to its first token. Its files are in the page cache by then,
so this is a cold start at its best.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families
from rich.table import Table

from loadgen.benchmarks.client import CompletionClient, StreamRequest, served_model
from loadgen.benchmarks.reconfigure.options import ReconfigureOptions, default_model_folder
from loadgen.benchmarks.side import Side, server_logs, side
from loadgen.clock import now_ns
from loadgen.control import ControlClient
from loadgen.errors import MeasurementError
from loadgen.gaps import percentile, time_to_first_token_ms
from loadgen.machine import machine_facts
from loadgen.records import StreamRecord
from loadgen.server import ServerProcess, free_port

_POLL_S = 0.05
_PREFIX_HITS = "vllm:prefix_cache_hits_total"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class WakeOptions(ReconfigureOptions):
    """Options of the experiment: `layers_from` throughout, one stream.

    Attributes:
        sleep_after_s: Idle seconds after which the server sleeps.
        prompt_words: Length of the question in words.
    """

    layers_to: str = "8,12,10"
    sleep_after_s: float = 1.0
    prompt_words: int = 200

    def question(self) -> StreamRequest:
        """Return the request that is asked again and again."""
        words = ("Once upon a time there was a keeper of a lighthouse who wrote a letter every day. " * 40).split()
        return StreamRequest("question", " ".join(words[: self.prompt_words]), self.tokens)

    def midstream_argv(self, port: int) -> list[str]:
        """Return the command line of the Midstream server."""
        return [*ReconfigureOptions.midstream_argv(self, port), "--sleep-after", str(self.sleep_after_s)]


@dataclass(frozen=True, slots=True)
class Wake:
    """One repeat.

    Attributes:
        woken, warm: The answers of the server from its sleep, and right after.
        hits: Prompt tokens that were found in the prefix cache on waking.
        asleep_bytes, awake_bytes: Memory of the server's processes, shared pages counted once.
        cold_ms: From the start of stock vLLM's process to its first token; None when it was not to be measured.
    """

    woken: StreamRecord
    warm: StreamRecord
    hits: int
    asleep_bytes: int
    awake_bytes: int
    cold_ms: float | None


async def run(options: WakeOptions, *, say: Say = lambda _: None) -> dict[str, Any]:
    """Run the experiment and return its result as one JSON object; see `summarise`.

    Raises:
        LoadgenError: a server could not be measured, or did not fall asleep; the message says where the logs are.
    """
    machine = machine_facts()
    with server_logs(options) as log_dir:
        port = free_port()
        say(f"starting Midstream with layers {options.layers_from}")
        async with (
            side("midstream", options.midstream_argv(port), port, options, log_dir) as served,
            ControlClient(served.server.base_url) as control,
        ):
            version = (await control.status()).vllm_version
            reference = await _ask(served.client, options)
            wakes = [await _repeat(options, served, control, log_dir, say) for _ in range(options.repeat)]
    return {**summarise(options, version, reference, wakes), "machine": machine, "log_dir": str(log_dir)}


async def _ask(client: CompletionClient, options: WakeOptions) -> StreamRecord:
    record = await client.stream(options.question())
    if record.broken or not record.tokens:
        raise MeasurementError(f"the question was not answered: {record.outcome}: {record.detail}")
    return record


async def _repeat(options: WakeOptions, served: Side, control: ControlClient, log_dir: Path, say: Say) -> Wake:
    awake_bytes = memory_bytes(served.server.pid)
    say("waiting until Midstream sleeps")
    await _asleep(control, options.change_deadline_s)
    asleep_bytes = memory_bytes(served.server.pid)
    before = await _prefix_hits(served.server.base_url)
    say("waking it")
    woken = await _ask(served.client, options)
    hits = await _prefix_hits(served.server.base_url) - before
    warm = await _ask(served.client, options)
    cold_ms = None
    if options.compare_stock:
        await _asleep(control, options.change_deadline_s)
        say("starting stock vLLM cold")
        cold_ms = await _cold_start_ms(options, log_dir)
        await _ask(served.client, options)
    return Wake(woken, warm, hits, asleep_bytes, awake_bytes, cold_ms)


async def _asleep(control: ControlClient, deadline_s: float) -> None:
    try:
        async with asyncio.timeout(deadline_s):
            while True:
                if (await control.status()).phase == "asleep":
                    return
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise MeasurementError(f"the server did not fall asleep within {deadline_s:g} s") from None


async def _cold_start_ms(options: WakeOptions, log_dir: Path) -> float:
    port, model = free_port(), options.model or await default_model_folder(options)
    started = now_ns()
    async with ServerProcess(
        "stock",
        options.stock_argv(port, model),
        port=port,
        log_path=log_dir / "stock.log",
        env=options.env,
        start_deadline_s=options.start_deadline_s,
    ) as server:
        async with CompletionClient(server.base_url, await served_model(server.base_url)) as client:
            record = await _ask(client, options)
        return (record.tokens[0].arrived_ns - started) / 1e6


async def _prefix_hits(base_url: str) -> int:
    async with httpx.AsyncClient(base_url=base_url, trust_env=False) as http:
        text = (await http.get("/metrics")).text
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples if s.name == _PREFIX_HITS]
    return int(sum(sample.value for sample in samples))


def memory_bytes(pid: int) -> int:
    """Return the memory of a process and all below it; a page that several of them share counts once."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
    return total


def summarise(options: WakeOptions, version: str | None, reference: StreamRecord, wakes: list[Wake]) -> dict[str, Any]:
    """Return the result: medians of all repeats in ms and bytes, with each repeat's figures beside them."""
    each: dict[str, list[Any]] = {
        "wake_ttft_ms": [time_to_first_token_ms(wake.woken) for wake in wakes],
        "warm_ttft_ms": [time_to_first_token_ms(wake.warm) for wake in wakes],
        "cold_stock_ttft_ms": [wake.cold_ms for wake in wakes],
        "asleep_bytes": [wake.asleep_bytes for wake in wakes],
        "awake_bytes": [wake.awake_bytes for wake in wakes],
        "prefix_tokens_hit": [wake.hits for wake in wakes],
    }
    medians = {
        name: None if None in values else round(percentile([value for value in values if value is not None], 50), 1)
        for name, values in each.items()
    }
    cold, wake_ms = medians["cold_stock_ttft_ms"], medians["wake_ttft_ms"]
    return {
        "vllm_version": version,
        "layers": options.layers_from,
        "prompt_tokens": len(reference.prompt_token_ids),
        "repeat": options.repeat,
        **medians,
        "cold_ratio": round(cold / wake_ms, 1) if cold and wake_ms else None,
        "outputs_identical": all(
            record.token_ids == reference.token_ids for wake in wakes for record in (wake.woken, wake.warm)
        ),
        "each": each,
    }


def render(result: Mapping[str, Any]) -> Table:
    """Return a table of the figures that `run` returned."""
    machine = result["machine"]
    table = Table(
        title=f"first token of a prompt of {result['prompt_tokens']} tokens, layers {result['layers']}",
        caption=f"vLLM {result['vllm_version']}; {machine['cpus']} CPUs, Python {machine['python']}; "
        f"server logs in {result['log_dir']}",
    )
    table.add_column("figure")
    table.add_column("value", justify="right")
    for label, name, unit, scale in (
        ("from zero", "wake_ttft_ms", "ms", 1),
        ("awake, same prompt again", "warm_ttft_ms", "ms", 1),
        ("stock vLLM from a cold start", "cold_stock_ttft_ms", "ms", 1),
        ("cold start / from zero", "cold_ratio", "x", 1),
        ("prompt tokens found in the prefix cache", "prefix_tokens_hit", "", 1),
        ("memory asleep", "asleep_bytes", "MiB", 1 << 20),
        ("memory awake", "awake_bytes", "MiB", 1 << 20),
    ):
        value = result[name]
        table.add_row(label, "-" if value is None else f"{value / scale:,.1f} {unit}".rstrip())
    table.add_row("outputs identical", "yes" if result["outputs_identical"] else "no")
    return table
