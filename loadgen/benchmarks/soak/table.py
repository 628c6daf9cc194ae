"""The result of a soak for a reader at a terminal: a row for each kind of disturbance, and the judgement below."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from loadgen.benchmarks.reconfigure.table import shown
from loadgen.benchmarks.soak.schedule import Kind

_LABELS = {
    Kind.STAGE: "stage killed",
    Kind.STAGES: "several stages killed",
    Kind.NODE: "node runtime killed",
    Kind.NODES: "all node runtimes killed",
    Kind.LINK: "link cut",
    Kind.CHANGE_STAGE: "stage killed in a change",
    Kind.CHANGE_NODE: "node runtime killed in a change",
    Kind.CHANGE_LINK: "link cut in a change",
    Kind.CHANGE: "change of the layout",
    Kind.CAPACITY: "change of the capacity",
}


def render(result: Mapping[str, Any]) -> Table:
    """Return a table of the figures that `loadgen.benchmarks.soak.bench.run` returned."""
    options, machine = result["options"], result["machine"]
    table = Table(
        title=(
            f"{result['kills']} kills under {options['streams']} clients in {result['seconds']:.0f} s, "
            f"seed {options['seed']}, link {result['link']['kind']}"
        ),
        caption="\n".join((*_judgement(result), _machine(result, machine))),
        caption_justify="left",
    )
    for name in ("disturbance", "made", "median stall", "worst stall", "median recovery", "worst recovery"):
        table.add_column(name, justify="left" if name == "disturbance" else "right")
    for kind, label in _LABELS.items():
        found = result["disturbances"][kind]
        cells = [_cell(found[figure], of) for figure in ("stall_ms", "recovery_ms") for of in ("p50", "max")]
        table.add_row(label, str(found["made"]), *cells)
    return table


def _cell(spread: Mapping[str, float] | None, of: str) -> str:
    return "-" if spread is None else f"{spread[of]:,.0f} ms"


def _judgement(result: Mapping[str, Any]) -> list[str]:
    changes = ", ".join(f"{number} {state}" for state, number in sorted(result["changes"].items())) or "none"
    errors = ", ".join(f"{number} {kind}" for kind, number in sorted(result["errors"].items())) or "none"
    lines = [
        f"answers {shown(result['answers'])}, different {result['different']}, errors {errors}",
        f"refused while no node was left (allowed): {result['refused_without_nodes']}",
        f"changes: {changes}; recoveries {result['recoveries']}",
    ]
    for role, found in result["idle_point"].items():
        before, after = found["before"], found["after"]
        if after is None:
            lines.append(f"{role}: not looked at again")
            continue
        figures = (
            f"{name} {_amount(name, before[name])} -> {_amount(name, after[name])}"
            for name in before
            if before[name] or after[name]
        )
        lines.append(f"{role}: {', '.join(figures)}")
    return [*lines, "passed" if result["passed"] else "FAILED: " + "; ".join(result["violations"])]


def _amount(name: str, value: int) -> str:
    return f"{value / 2**20:,.0f} MiB" if name.endswith("_bytes") else str(value)


def _machine(result: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    return (
        f"vLLM {result['vllm_version']}; {machine['cpus']} CPUs, Python {machine['python']}; logs and journal in "
        f"{result['log_dir']}"
    )
