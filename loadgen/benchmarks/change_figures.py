"""What the changes of an experiment cost, as reported figures: shared by all experiments that change a layout.

Rules: a figure that was not measured is null and its reason stands under `not_measured`. Where the figures of several
repeats are boiled down to one, the values of each repeat and their interquartile range stand under `spread`.

`pause_ms` is the worst stream of all committed changes. `pause_ms_undisturbed` is what the same definition yields on
the quiet passes, in a window of the same length without a change: the machine's own noise, to be read beside it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import msgspec

from loadgen.benchmarks.disturbance import (
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
from loadgen.gaps import Pause, PauseStatus, percentile

NOT_FULL_LOAD = "the streams were not all generating at the same time"


class Figures:
    """A result under construction."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}
        self.spread: dict[str, dict[str, Any]] = {}
        self.not_measured: dict[str, str] = {}

    def as_dict(self) -> dict[str, Any]:
        """Return the finished result."""
        return {**self.figures, "spread": self.spread, "not_measured": self.not_measured}

    def put(self, name: str, value: Any, reason: str | None = None) -> None:
        """Add a figure; if it is None, with the reason."""
        self.figures[name] = rounded(value)
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
            self.spread[name] = {"each": [rounded(value) for value in values], "iqr": rounded(iqr)}


def put_rhythm(result: Figures, repeats: Sequence[Repeat], streams: int) -> None:
    """Put the time between tokens around the changes, and what they cost in throughput and first tokens."""
    before = (latency_p50_ms(r.disturbed.records, around(r, streams)[0]) for r in repeats)
    result.boil("itl_ms_p50_before", before, reason=NOT_FULL_LOAD)
    reason = uncommitted(repeats) or NOT_FULL_LOAD
    after = (latency_p50_ms(r.disturbed.records, around(r, streams)[1]) for r in repeats if r.committed)
    result.boil("itl_ms_p50_after", after, reason=reason)
    waits = [wait for r in repeats for wait in first_token_waits_ms(r)]
    result.put("requests_begun_during_change", sum(map(begun_during_change, repeats)))
    result.put("ttft_ms_max_during_change", max(waits, default=None), "no request began during a change")
    dips = (throughput_dip(r, streams) for r in repeats if r.committed)
    result.boil("throughput_dip", dips, to_one=max, reason=reason)


def put_pauses(
    result: Figures,
    repeats: Sequence[Repeat],
    after_tokens: int,
    at_cutover: Callable[[Repeat], list[Pause]] = cutover_pauses,
) -> None:
    """Put the pauses of all streams, and what the same definition yields where there was no change.

    Args:
        result, repeats: As everywhere here.
        after_tokens: Tokens after which the change was posted; in the quiet pass the window begins there.
        at_cutover: The pauses that count as those of the cutover itself.
    """
    committed = [r for r in repeats if r.committed]
    each = [(index, p) for index, r in enumerate(committed) for p in pauses(r)]
    values = [p.ms for _, p in each if p.ms is not None]
    broken = sum(p.status is PauseStatus.BROKEN for _, p in each)
    reason = (
        f"{broken} streams broke during a change: their pause has no end"
        if broken
        else uncommitted(repeats) or "no stream had enough tokens before the change"
    )
    result.put("pause_ms", None if broken else max(values, default=None), reason)
    result.put("pause_ms_p50", None if broken or not values else median(values), reason)
    result.put("pause_ms_each", values)
    result.put("pauses_without_figure", len(each) - len(values))
    quiet = [p for r in committed for p in undisturbed_pauses(r, after_tokens)]
    result.put("pause_ms_undisturbed", _worst(quiet), reason)
    result.put("pause_ms_undisturbed_p50", _median(quiet), reason)
    cutovers = [p for r in committed for p in at_cutover(r)]
    result.put("pause_ms_at_cutover", None if broken else _worst(cutovers), reason)
    result.put("pauses", [{"change": index, **_pause_row(p)} for index, p in each])


def _worst(measured: Iterable[Pause]) -> float | None:
    return max((p.ms for p in measured if p.ms is not None), default=None)


def _median(measured: Iterable[Pause]) -> float | None:
    values = [p.ms for p in measured if p.ms is not None]
    return median(values) if values else None


def _pause_row(measured: Pause) -> dict[str, Any]:
    return {name: rounded(value) for name, value in asdict(measured).items()}


def put_changes(result: Figures, repeats: Sequence[Repeat]) -> None:
    """Put what the server reported of the changes."""
    reports = [r.disturbed.report for r in repeats if r.committed]
    reason = uncommitted(repeats)
    result.boil("total_ms", (report.total_ms for report in reports), reason=reason)
    client = (r.disturbed.change.ms for r in repeats if r.committed)
    result.boil("total_ms_seen_by_client", client, reason=reason)
    for name in ("bytes_moved", "rounds", "peak_extra_bytes"):
        result.boil(name, (getattr(report, name) for report in reports), to_one=max, reason=reason)
    result.put("changes_committed", len(reports))
    result.put("changes", [msgspec.to_builtins(r.disturbed.report) for r in repeats])


def uncommitted(repeats: Sequence[Repeat]) -> str | None:
    """Return why there are no figures of a committed change; None if there was one."""
    if any(r.committed for r in repeats):
        return None
    return f"no change was committed: {repeats[-1].disturbed.report.reason}"


def put_tokens(result: Figures, repeats: Sequence[Repeat]) -> None:
    """Put whether the streams got the tokens of the quiet pass, and whether quiet passes agree with each other."""
    found = [d for r in repeats for d in differences(r.disturbed.records, r.reference)]
    records = [record for r in repeats for record in r.disturbed.records]
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
    first, *others = [r.reference for r in repeats]
    control = [d.identical for other in others for d in differences(other.records, first)]
    result.put("references_identical", all(control) if control else None, "needs two repeats or more")


def rounded(value: Any) -> Any:
    """Return the value with floats cut to three digits after the point."""
    if isinstance(value, float):
        return round(value, 3)
    return [rounded(item) for item in value] if isinstance(value, list) else value
