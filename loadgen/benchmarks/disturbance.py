"""What one repeat of the reconfiguration experiment says: pure functions of its records."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from loadgen.benchmarks.alignment import TokenDifference, compare
from loadgen.benchmarks.passes import DisturbedPass, Pass
from loadgen.gaps import (
    MIN_QUIET_GAPS,
    Pause,
    PauseStatus,
    Window,
    full_load,
    gaps,
    inter_token_latencies_ms,
    pause,
    percentile,
    time_to_first_token_ms,
    tokens_per_second,
)
from loadgen.records import StreamRecord


@dataclass(frozen=True, slots=True)
class Repeat:
    """One repeat: the quiet pass on Midstream, the disturbed one, and the quiet pass on stock vLLM if there was one."""

    reference: Pass
    disturbed: DisturbedPass
    stock: Pass | None

    @property
    def committed(self) -> bool:
        """Whether the change went through."""
        return self.disturbed.report.state == "committed"


def latency_p50_ms(records: Sequence[StreamRecord], within: Window | None) -> float | None:
    """Return the median gap of all streams wholly inside `within`; None if there is none."""
    values = [] if within is None else [v for r in records for v in inter_token_latencies_ms(r, within)]
    return percentile(values, 50) if values else None


def quiet_p50_ms(quiet: Pass, streams: int) -> float | None:
    """Return the median time between tokens of a quiet pass under full load; None if there was none."""
    return latency_p50_ms(quiet.records, full_load(quiet.records, streams))


def quiet_ttft_ms(quiet: Pass) -> float | None:
    """Return the median time to first token of a quiet pass; None if no token came."""
    waits = [wait for wait in map(time_to_first_token_ms, quiet.records) if wait is not None]
    return median(waits) if waits else None


def around(repeat: Repeat, streams: int) -> tuple[Window | None, Window | None]:
    """Return the stretches of full load before and after the change."""
    load, change = full_load(repeat.disturbed.records, streams), repeat.disturbed.change
    if load is None:
        return None, None
    before = Window(load.start_ns, change.start_ns) if load.start_ns < change.start_ns else None
    after = Window(change.end_ns, load.end_ns) if change.end_ns < load.end_ns else None
    return before, after


def throughput_dip(repeat: Repeat, streams: int) -> float | None:
    """Return the part of the throughput before the change that is missing during it (0.1: a tenth less)."""
    before, _ = around(repeat, streams)
    usual = None if before is None else tokens_per_second(repeat.disturbed.records, before)
    during = tokens_per_second(repeat.disturbed.records, repeat.disturbed.change)
    return None if not usual or during is None else 1 - during / usual


def pauses(repeat: Repeat) -> list[Pause]:
    """Return the pause of every stream that touches the change."""
    return _pauses(repeat.disturbed.records, repeat.disturbed.change, repeat.disturbed.change.start_ns)


def cutover_pauses(repeat: Repeat) -> list[Pause]:
    """Return the pause of every stream in the one gap around the server's cutover; empty if it named no moment."""
    if repeat.disturbed.cutover_ns is None:
        return []
    cutover = Window(repeat.disturbed.cutover_ns, repeat.disturbed.cutover_ns)
    return _pauses(repeat.disturbed.records, cutover, repeat.disturbed.change.start_ns)


def cutover_step(repeat: Repeat) -> Window | None:
    """Return the server's cutover step, from holding new batches to the new layout's first answer.

    An instant if the server did not say how long it was; None if it named no moment.
    """
    start = repeat.disturbed.cutover_ns
    if start is None:
        return None
    return Window(start, start + round(1e6 * repeat.disturbed.report.steps_ms.get("cutover", 0.0)))


def cutover_step_pauses(repeat: Repeat) -> list[Pause]:
    """Return the pause of every stream in the gaps that overlap the cutover step; empty if no moment was named."""
    step = cutover_step(repeat)
    return [] if step is None else _pauses(repeat.disturbed.records, step, repeat.disturbed.change.start_ns)


@dataclass(frozen=True, slots=True)
class TokenTime:
    """How long a token took: `gap` to the one before it, and `usual_ms` for the same token in the quiet pass."""

    gap: Window
    usual_ms: float


def token_times(repeat: Repeat) -> dict[str, list[TokenTime]]:
    """Return every client's tokens but its first ones, each beside the same token of the quiet pass.

    Both passes ask the same, so the same token has the same context: what longer contexts cost is in both.
    """
    usual = {r.name: [gap.ms for gap in gaps(r)] for r in repeat.reference.records}
    found: dict[str, list[TokenTime]] = {}
    for record in repeat.disturbed.records:
        # Tokens that came together have gaps of zero, which compare with nothing.
        pairs = zip(gaps(record), usual[record.name], strict=False)
        found.setdefault(record.name, []).extend(TokenTime(gap, ms) for gap, ms in pairs if ms > 0)
    return found


def _before(times: Iterable[TokenTime], window: Window | None) -> list[TokenTime]:
    return [] if window is None else [each for each in times if window.contains(each.gap)]


def _during(times: Iterable[TokenTime], repeat: Repeat, *, cutover: bool) -> list[TokenTime]:
    """Return the tokens that arrived during the change; without `cutover` none whose gap overlaps its step."""
    change, step = repeat.disturbed.change, None if cutover else cutover_step(repeat)
    return [
        each
        for each in times
        if change.start_ns < each.gap.end_ns <= change.end_ns and not (step is not None and each.gap.overlaps(step))
    ]


def _mean_ratio(times: Sequence[TokenTime]) -> float:
    return fmean(each.gap.ms for each in times) / fmean(each.usual_ms for each in times)


def token_time_ratios(repeat: Repeat, streams: int, *, cutover: bool) -> list[float]:
    """Return, for each client, how much longer its mean token took during the change than before it.

    Each is taken against the quiet pass first (`token_times`).
    """
    window, _ = around(repeat, streams)
    found = []
    for times in token_times(repeat).values():
        before, during = _before(times, window), _during(times, repeat, cutover=cutover)
        if during and len(before) >= MIN_QUIET_GAPS:
            found.append(_mean_ratio(during) / _mean_ratio(before))
    return found


def latency_ratio(repeat: Repeat, streams: int) -> float | None:
    """Return how much longer the median token of all clients took during the change, without the cutover, than before.

    Each is taken against the quiet pass first (`token_times`).
    """
    window, _ = around(repeat, streams)
    times = [each for client in token_times(repeat).values() for each in client]
    before, during = (
        [each.gap.ms / each.usual_ms for each in chosen]
        for chosen in (_before(times, window), _during(times, repeat, cutover=False))
    )
    return median(during) / median(before) if len(before) >= MIN_QUIET_GAPS and during else None


def undisturbed_pauses(repeat: Repeat, after_tokens: int) -> list[Pause]:
    """Return what the definition of a pause yields where there was no change.

    The window is as long as the change and begins where the change would have been posted: in the quiet pass, once
    `after_tokens` tokens have arrived.
    """
    records = repeat.reference.records
    arrivals = sorted(token.arrived_ns for record in records for token in record.tokens)
    start = arrivals[min(after_tokens, len(arrivals)) - 1]
    length = repeat.disturbed.change.end_ns - repeat.disturbed.change.start_ns
    return _pauses(records, Window(start, start + length), start)


def _pauses(records: Sequence[StreamRecord], window: Window, quiet_end_ns: int) -> list[Pause]:
    found = []
    for record in records:
        measured = pause(record, window, quiet_before_ns=quiet_end_ns)
        if measured.status is PauseStatus.TOO_FEW_QUIET_GAPS:
            earlier = [r for r in records if r.name == record.name and r.ended_ns <= record.started_ns]
            measured = pause(record, window, quiet_before_ns=quiet_end_ns, predecessors=earlier)
        if measured.status is not PauseStatus.NO_OVERLAP:
            found.append(measured)
    return found


def first_token_waits_ms(repeat: Repeat) -> list[float]:
    """Return the time to first token of the requests that waited for it during the change."""
    waits = [Window(r.started_ns, r.tokens[0].arrived_ns) for r in repeat.disturbed.records if r.tokens]
    return [wait.ms for wait in waits if wait.overlaps(repeat.disturbed.change)]


def first_tokens_ms(repeat: Repeat, *, during: bool) -> list[float]:
    """Return the time to first token of requests begun during the change, or of all that the change did not touch."""
    change, found = repeat.disturbed.change, []
    for record in repeat.disturbed.records if during else (*repeat.disturbed.records, *repeat.reference.records):
        wait = time_to_first_token_ms(record)
        if wait is None:
            continue
        begun = change.start_ns < record.started_ns < change.end_ns
        touched = Window(record.started_ns, record.tokens[0].arrived_ns).overlaps(change)
        if begun if during else not touched:
            found.append(wait)
    return found


def begun_during_change(repeat: Repeat) -> int:
    """Return how many requests began during the change, because earlier ones were over.

    Their prefill delays the other streams' next token, which then counts as a pause: with none the figures are cleaner.
    """
    change = repeat.disturbed.change
    return sum(change.start_ns < record.started_ns < change.end_ns for record in repeat.disturbed.records)


def differences(records: Iterable[StreamRecord], reference: Pass) -> list[TokenDifference]:
    """Compare every stream with the stream of the same name in the reference."""
    expected = {record.name: record.token_ids for record in reference.records}
    return [compare(expected[record.name], record.token_ids) for record in records]
