"""From what was measured to what is reported: a pure function to one JSON object.

Rules: a figure that was not measured is null and its reason stands under `not_measured`. Where the figures of several
repeats are boiled down to one, the values of each repeat and their interquartile range stand under `spread`.

`pause_ms` is the worst stream of all committed changes. `pause_ms_undisturbed` is what the same definition yields on
the quiet passes, in a window of the same length without a change: the machine's own noise, to be read beside it.
`references_identical` is the same kind of control for `outputs_identical`: quiet passes compared with each other.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import msgspec

from loadgen.disturbance import (
    Repeat,
    around,
    begun_during_change,
    cutover_pauses,
    differences,
    first_token_waits_ms,
    latency_p50_ms,
    pauses,
    throughput_dip,
    undisturbed_pauses,
)
from loadgen.gaps import Pause, PauseStatus, full_load, percentile, time_to_first_token_ms
from loadgen.passes import Pass, Restart
from loadgen.reconfigure_options import ReconfigureOptions


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


class _Result:
    """The object under construction."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}
        self.spread: dict[str, dict[str, Any]] = {}
        self.not_measured: dict[str, str] = {}

    def put(self, name: str, value: Any, reason: str | None = None) -> None:
        """Add a figure; if it is None, with the reason."""
        self.figures[name] = _rounded(value)
        if value is None:
            self.not_measured[name] = reason or "the server did not report it"

    def boil(
        self,
        name: str,
        each: Iterable[float | None],
        *,
        to_one: Callable[[Sequence[float]], float] = median,
        reason: str | None = None,
    ) -> None:
        """Add one figure for the values of all repeats, and their spread."""
        values = [value for value in each if value is not None]
        self.put(name, to_one(values) if values else None, reason)
        if values:
            iqr = percentile(values, 75) - percentile(values, 25)
            self.spread[name] = {"each": [_rounded(value) for value in values], "iqr": _rounded(iqr)}


def summarise(measured: Measured) -> dict[str, Any]:
    """Return the result of an experiment as one JSON object."""
    options, result = measured.options, _Result()
    result.put("vllm_version", measured.vllm_version)
    for name in ("streams", "tokens", "repeat", "layers_from", "layers_to"):
        result.put(name, getattr(options, name))
    _put_latencies(result, measured)
    _put_pauses(result, measured)
    _put_changes(result, measured)
    _put_tokens(result, measured)
    _put_stock(result, measured)
    _put_restart(result, measured)
    return {**result.figures, "spread": result.spread, "not_measured": result.not_measured}


def _put_latencies(result: _Result, measured: Measured) -> None:
    streams, repeats = measured.options.streams, measured.repeats
    reason = "the streams were not all generating at the same time"
    result.boil("itl_ms_p50", (_quiet_p50(r.reference, streams) for r in repeats), reason=reason)
    before = (latency_p50_ms(r.disturbed.records, around(r, streams)[0]) for r in repeats)
    result.boil("itl_ms_p50_before", before, reason=reason)
    after = (latency_p50_ms(r.disturbed.records, around(r, streams)[1]) for r in repeats if r.committed)
    result.boil("itl_ms_p50_after", after, reason=_uncommitted(measured) or reason)
    foreign = (_foreign_cpus(r) for r in repeats)
    result.boil("foreign_cpus_max", foreign, to_one=max, reason="nobody watched the CPUs")
    result.boil("ttft_ms_p50", (_quiet_ttft(r.reference) for r in repeats))
    waits = [wait for r in repeats for wait in first_token_waits_ms(r)]
    result.put("requests_begun_during_change", sum(map(begun_during_change, repeats)))
    result.put("ttft_ms_max_during_change", max(waits, default=None), "no request began during a change")
    dips = (throughput_dip(r, streams) for r in repeats if r.committed)
    result.boil("throughput_dip", dips, to_one=max, reason=_uncommitted(measured) or reason)


def _foreign_cpus(repeat: Repeat) -> float | None:
    watched = [p.cpus for p in (repeat.reference, repeat.stock) if p is not None and p.cpus is not None]
    return max((use.foreign for use in watched), default=None)


def _quiet_p50(quiet: Pass, streams: int) -> float | None:
    return latency_p50_ms(quiet.records, full_load(quiet.records, streams))


def _quiet_ttft(quiet: Pass) -> float | None:
    waits = [wait for wait in map(time_to_first_token_ms, quiet.records) if wait is not None]
    return median(waits) if waits else None


def _put_pauses(result: _Result, measured: Measured) -> None:
    committed = [r for r in measured.repeats if r.committed]
    each = [(index, p) for index, r in enumerate(committed) for p in pauses(r)]
    values = [p.ms for _, p in each if p.ms is not None]
    broken = sum(p.status is PauseStatus.BROKEN for _, p in each)
    reason = (
        f"{broken} streams broke during a change: their pause has no end"
        if broken
        else _uncommitted(measured) or "no stream had enough tokens before the change"
    )
    result.put("pause_ms", None if broken else max(values, default=None), reason)
    result.put("pause_ms_p50", None if broken or not values else median(values), reason)
    result.put("pause_ms_each", values)
    result.put("pauses_without_figure", len(each) - len(values))
    quiet = [p for r in committed for p in undisturbed_pauses(r, measured.options.change_after_tokens)]
    result.put("pause_ms_undisturbed", _worst(quiet), reason)
    at_cutover = [p for r in committed for p in cutover_pauses(r)]
    result.put("pause_ms_at_cutover", None if broken else _worst(at_cutover), reason)
    result.put("pauses", [{"change": index, **_pause_row(p)} for index, p in each])


def _worst(measured: Iterable[Pause]) -> float | None:
    return max((p.ms for p in measured if p.ms is not None), default=None)


def _pause_row(measured: Pause) -> dict[str, Any]:
    return {name: _rounded(value) for name, value in asdict(measured).items()}


def _put_changes(result: _Result, measured: Measured) -> None:
    reports = [r.disturbed.report for r in measured.repeats if r.committed]
    reason = _uncommitted(measured)
    result.boil("total_ms", (report.total_ms for report in reports), reason=reason)
    client = (r.disturbed.change.ms for r in measured.repeats if r.committed)
    result.boil("total_ms_seen_by_client", client, reason=reason)
    for name in ("bytes_moved", "rounds", "peak_extra_bytes"):
        result.boil(name, (getattr(report, name) for report in reports), to_one=max, reason=reason)
    result.put("changes_committed", len(reports))
    result.put("changes", [msgspec.to_builtins(r.disturbed.report) for r in measured.repeats])


def _uncommitted(measured: Measured) -> str | None:
    if any(r.committed for r in measured.repeats):
        return None
    return f"no change was committed: {measured.repeats[-1].disturbed.report.reason}"


def _put_tokens(result: _Result, measured: Measured) -> None:
    found = [d for r in measured.repeats for d in differences(r.disturbed.records, r.reference)]
    records = [record for r in measured.repeats for record in r.disturbed.records]
    result.put("tokens_lost", sum(d.lost for d in found))
    result.put("tokens_repeated", sum(d.repeated for d in found))
    result.put("outputs_identical", all(d.identical for d in found))
    result.put("streams_compared", len(found))
    result.put("streams_diverged", sum(d.diverged_at is not None for d in found))
    result.put("streams_broken", sum(record.broken for record in records))
    result.put("stream_identity_kept", all(len(record.identities) <= 1 for record in records))
    counted = [r for r in records if r.reported_tokens is not None]
    agree = all(r.reported_tokens == len(r.tokens) for r in counted) if counted else None
    result.put("server_token_count_agrees", agree)
    first, *others = [r.reference for r in measured.repeats]
    control = [d.identical for other in others for d in differences(other.records, first)]
    result.put("references_identical", all(control) if control else None, "needs two repeats or more")


def _put_stock(result: _Result, measured: Measured) -> None:
    streams, reason = measured.options.streams, measured.stock_missing
    pairs = [(r.reference, r.stock) for r in measured.repeats if r.stock is not None and reason is None]
    result.boil("stock_itl_ms_p50", (_quiet_p50(stock, streams) for _, stock in pairs), reason=reason)
    result.boil("stock_ttft_ms_p50", (_quiet_ttft(stock) for _, stock in pairs), reason=reason)
    ratios = (_ratio(_quiet_p50(ours, streams), _quiet_p50(stock, streams)) for ours, stock in pairs)
    result.boil("itl_ratio", ratios, reason=reason)
    same = [d.identical for ours, stock in pairs for d in differences(ours.records, stock)]
    result.put("outputs_identical_to_stock", all(same) if same else None, reason)
    result.boil("stock_idle_cpus_max", (_idle_cpus(ours) for ours, _ in pairs), to_one=max, reason=reason)
    result.boil("midstream_idle_cpus_max", (_idle_cpus(stock) for _, stock in pairs), to_one=max, reason=reason)


def _idle_cpus(other: Pass) -> float | None:
    return None if other.cpus is None else other.cpus.idle_server


def _put_restart(result: _Result, measured: Measured) -> None:
    restart, reason = measured.restart, measured.restart_missing
    for name in ("downtime_ms", "stop_ms", "start_ms", "broken_streams"):
        result.put(f"restart_{name}", None if restart is None else getattr(restart, name), reason)
    result.put("restart_foreign_cpus", None if restart is None else restart.cpus.foreign, reason)
    ratio = _ratio(result.figures["restart_downtime_ms"], result.figures["pause_ms"])
    result.put("restart_ratio", ratio, reason or "there is no pause above zero to compare with")


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None or base <= 0 else value / base


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    return [_rounded(item) for item in value] if isinstance(value, list) else value
