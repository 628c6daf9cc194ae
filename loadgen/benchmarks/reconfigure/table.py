"""The result of the reconfiguration experiment for a reader at a terminal."""

from typing import Any

from rich.table import Table

_ROWS: tuple[tuple[str, str, str], ...] = (
    # figure, label, unit
    ("pause_ms", "worst pause of a stream", "ms"),
    ("pause_ms_p50", "median pause", "ms"),
    ("pause_ms_at_cutover", "worst pause at the cutover itself", "ms"),
    ("pause_ms_undisturbed", "worst pause without a change (noise)", "ms"),
    ("requests_begun_during_change", "requests begun during changes", ""),
    ("total_ms", "whole change", "ms"),
    ("bytes_moved", "bytes moved", "bytes"),
    ("rounds", "pre-copy rounds", ""),
    ("peak_extra_bytes", "extra memory at peak", "bytes"),
    ("throughput_dip", "throughput missing during the change", ""),
    ("tokens_lost", "tokens lost", ""),
    ("tokens_repeated", "tokens repeated", ""),
    ("outputs_identical", "outputs identical", ""),
    ("references_identical", "outputs identical without a change", ""),
    ("itl_ms_p50_before", "between tokens, before (p50)", "ms"),
    ("itl_ms_p50_after", "between tokens, after (p50)", "ms"),
    ("ttft_ms_p50", "time to first token (p50)", "ms"),
    ("stock_itl_ms_p50", "between tokens, stock vLLM (p50)", "ms"),
    ("itl_ratio", "Midstream / stock vLLM between tokens", "x"),
    ("foreign_cpus_max", "CPUs used by others meanwhile (worst)", ""),
    ("restart_downtime_ms", "downtime of a restart instead", "ms"),
    ("restart_foreign_cpus", "CPUs used by others during the restart", ""),
    ("restart_ratio", "restart / worst pause", "x"),
)


def render(result: dict[str, Any]) -> Table:
    """Return a table of the figures that `.bench.run` returned, with reasons for missing ones."""
    machine = result["machine"]
    table = Table(
        title=f"{result['layers_from']} -> {result['layers_to']} under {result['streams']} streams",
        caption=(
            f"{result['changes_committed']} of {result['repeat']} changes committed; vLLM {result['vllm_version']}; "
            f"{machine['cpus']} CPUs, Python {machine['python']}; server logs in {result['log_dir']}"
        ),
    )
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("each repeat", justify="right")
    for name, label, unit in _ROWS:
        each = result["spread"].get(name, {}).get("each", [])
        beside = " ".join(map(shown, each)) if result[name] is not None else result["not_measured"][name]
        table.add_row(label, f"{shown(result[name])} {unit}".rstrip(), beside)
    return table


def shown(value: Any) -> str:
    """Return a figure as a reader wants it."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float() if abs(value) >= 100:
            return f"{value:,.0f}"
        case float():
            return f"{value:.3g}"
        case int():
            return f"{value:,}"
        case _:
            return str(value)
