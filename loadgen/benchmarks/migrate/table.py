"""The result of the migration experiment for a reader at a terminal: a column for each method."""

from typing import Any

from rich.table import Table

from loadgen.benchmarks.reconfigure.table import shown

_ROWS: tuple[tuple[str, str, str], ...] = (
    # figure, label, unit
    ("pause_ms", "worst pause of a stream", "ms"),
    ("pause_ms_p50", "median pause", "ms"),
    ("pause_ms_at_cutover", "worst pause in the cutover step", "ms"),
    ("pause_ms_undisturbed", "worst pause without a change (noise)", "ms"),
    ("total_ms", "whole change", "ms"),
    ("total_ms_max", "whole change, longest", "ms"),
    ("bytes_moved", "bytes moved", "bytes"),
    ("rounds", "pre-copy rounds", ""),
    ("stop_reasons", "why pre-copy stopped", ""),
    ("throughput_dip", "throughput missing during the change", ""),
    ("itl_ratio", "between tokens, during / before (p50)", "x"),
    ("tpot_ratio", "time per token, during / before, no cutover", "x"),
    ("tpot_ratio_with_cutover", "time per token, during / before, all", "x"),
    ("requests_begun_during_change", "requests begun during changes", ""),
    ("ttft_ms_during", "their time to first token", "ms"),
    ("ttft_ms_quiet", "time to first token otherwise", "ms"),
    ("tokens_lost", "tokens lost", ""),
    ("tokens_repeated", "tokens repeated", ""),
    ("outputs_identical", "outputs identical", ""),
    ("streams_broken", "streams broken", ""),
    ("foreign_cpus_max", "CPUs used by others meanwhile (worst)", ""),
    ("changes_committed", "changes committed", ""),
    ("aborted", "changes aborted, and why", ""),
)


def render(result: dict[str, Any]) -> Table:
    """Return a table of the figures that `loadgen.benchmarks.migrate.bench.run` returned."""
    options, methods, quiet = result["options"], result["methods"], result["quiet"]
    table = Table(
        title=f"{options['layers_from']} -> {options['layers_to']} under {options['streams']} streams, {_link(result)}",
        caption=(
            f"between tokens {shown(quiet['itl_ms_p50'])} ms (p50), prompts of {quiet['prompt_tokens_min']} to "
            f"{quiet['prompt_tokens_max']} tokens; vLLM {result['vllm_version']}; {_wire(result['wire'])}"
            f"{result['machine']['cpus']} CPUs, Python {result['machine']['python']}; logs in {result['log_dir']}"
        ),
    )
    table.add_column("figure")
    for method in methods:
        table.add_column(method, justify="right")
    for name, label, unit in _ROWS:
        table.add_row(label, *(_cell(figures[name], unit) for figures in methods.values()))
    return table


def _cell(value: Any, unit: str) -> str:
    if isinstance(value, list):
        return ", ".join(sorted({shown(item) for item in value})) or "-"
    return f"{shown(value)} {unit}".rstrip()


def _link(result: dict[str, Any]) -> str:
    link = result["link"]
    measured = link.get("measured_mbit_per_s")
    if measured is None:
        return str(link["kind"])
    return f"{link['kind']} ({shown(measured['near_to_far'])} Mbit/s measured)"


def _wire(wire: dict[str, Any] | None) -> str:
    if wire is None:
        return ""
    found = ", ".join(wire["plaintext_found"]) or "none"
    return f"plaintext in {wire['bytes']:,} bytes on the wire: {found}; "
