"""From what was measured to what is reported: a pure function to one JSON object; rules in `..change_figures`.

`references_identical` is the control for `outputs_identical`: quiet passes compared with each other.
"""

from dataclasses import dataclass
from typing import Any

from loadgen.benchmarks.change_figures import NOT_FULL_LOAD, Figures, put_changes, put_pauses, put_rhythm, put_tokens
from loadgen.benchmarks.disturbance import Repeat, differences, quiet_p50_ms, quiet_ttft_ms
from loadgen.benchmarks.passes import Pass, Restart
from loadgen.benchmarks.reconfigure.options import ReconfigureOptions


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything an experiment saw.

    Attributes:
        options: What was asked for.
        vllm_version: As the Midstream server reports it.
        repeats: In order; at least one.
        restart: What a restart of stock vLLM cost; None with `restart_missing` as the reason.
        stock_missing: Why there are no figures of stock vLLM; None if there are.
        restart_missing: Why there is no restart; None if there is one.
    """

    options: ReconfigureOptions
    vllm_version: str | None
    repeats: tuple[Repeat, ...]
    restart: Restart | None
    stock_missing: str | None
    restart_missing: str | None


def summarise(measured: Measured) -> dict[str, Any]:
    """Return the result of an experiment as one JSON object."""
    options, result = measured.options, Figures()
    result.put("vllm_version", measured.vllm_version)
    for name in ("streams", "tokens", "repeat", "layers_from", "layers_to"):
        result.put(name, getattr(options, name))
    _put_quiet(result, measured)
    put_rhythm(result, measured.repeats, options.streams)
    put_pauses(result, measured.repeats, options.change_after_tokens)
    put_changes(result, measured.repeats)
    put_tokens(result, measured.repeats)
    _put_stock(result, measured)
    _put_restart(result, measured)
    return result.as_dict()


def _put_quiet(result: Figures, measured: Measured) -> None:
    streams, repeats = measured.options.streams, measured.repeats
    result.boil("itl_ms_p50", (quiet_p50_ms(r.reference, streams) for r in repeats), reason=NOT_FULL_LOAD)
    foreign = (_foreign_cpus(r) for r in repeats)
    result.boil("foreign_cpus_max", foreign, to_one=max, reason="nobody watched the CPUs")
    result.boil("ttft_ms_p50", (quiet_ttft_ms(r.reference) for r in repeats))


def _foreign_cpus(repeat: Repeat) -> float | None:
    watched = [p.cpus for p in (repeat.reference, repeat.stock) if p is not None and p.cpus is not None]
    return max((use.foreign for use in watched), default=None)


def _put_stock(result: Figures, measured: Measured) -> None:
    streams, reason = measured.options.streams, measured.stock_missing
    pairs = [(r.reference, r.stock) for r in measured.repeats if r.stock is not None and reason is None]
    result.boil("stock_itl_ms_p50", (quiet_p50_ms(stock, streams) for _, stock in pairs), reason=reason)
    result.boil("stock_ttft_ms_p50", (quiet_ttft_ms(stock) for _, stock in pairs), reason=reason)
    ratios = (_ratio(quiet_p50_ms(ours, streams), quiet_p50_ms(stock, streams)) for ours, stock in pairs)
    result.boil("itl_ratio", ratios, reason=reason)
    same = [d.identical for ours, stock in pairs for d in differences(ours.records, stock)]
    result.put("outputs_identical_to_stock", all(same) if same else None, reason)
    result.boil("stock_idle_cpus_max", (_idle_cpus(ours) for ours, _ in pairs), to_one=max, reason=reason)
    result.boil("midstream_idle_cpus_max", (_idle_cpus(stock) for _, stock in pairs), to_one=max, reason=reason)


def _idle_cpus(other: Pass) -> float | None:
    return None if other.cpus is None else other.cpus.idle_server


def _put_restart(result: Figures, measured: Measured) -> None:
    restart, reason = measured.restart, measured.restart_missing
    for name in ("downtime_ms", "stop_ms", "start_ms", "broken_streams"):
        result.put(f"restart_{name}", None if restart is None else getattr(restart, name), reason)
    result.put("restart_foreign_cpus", None if restart is None else restart.cpus.foreign, reason)
    ratio = _ratio(result.figures["restart_downtime_ms"], result.figures["pause_ms"])
    result.put("restart_ratio", ratio, reason or "there is no pause above zero to compare with")


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None or base <= 0 else value / base
