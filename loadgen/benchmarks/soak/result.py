"""The result of a soak: pure functions of what was seen, and the judgement over it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loadgen.benchmarks.alignment import compare
from loadgen.benchmarks.soak.options import SoakOptions
from loadgen.benchmarks.soak.schedule import KILLING, Kind, Step
from loadgen.benchmarks.soak.usage import LIMITS, Usage, grown
from loadgen.gaps import Window, largest_gap, percentile
from loadgen.records import Outcome, StreamRecord

_UNAVAILABLE = "HTTP 503"
_MOST_EXAMPLES = 20


@dataclass(frozen=True, slots=True)
class Done:
    """A step that was made, and when; `what` was done, None if there was nothing to do it to."""

    step: Step
    started_ns: int
    ended_ns: int
    what: str | None

    @property
    def window(self) -> Window:
        """From its beginning until the pipeline served again, if that was waited for."""
        return Window(self.started_ns, self.ended_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Soak:
    """What was seen of a soak.

    Attributes:
        options: What was asked for.
        vllm_version: As the server says.
        link: Facts of the link.
        reference: Undisturbed answers, one for each request.
        records: All further answers.
        done: Steps in their order.
        recoveries: When each recovery of the server was first seen, and what it took in ms.
        changes: How many changes of the layout ended how.
        none_left: When no node was left.
        back_ms: How long nodes and the link were away, by "node" and "link".
        problems: What is not allowed and was noticed at once, in words.
        before, after: What was held at the idle point, by role; `after` is None if that was not reached again.
        completed: Whether all steps were made and everything is back.
        left: What was left when everything had been stopped.
        seconds: From the first request to the end.
    """

    options: SoakOptions
    vllm_version: str | None
    link: Mapping[str, Any]
    reference: tuple[StreamRecord, ...]
    records: tuple[StreamRecord, ...]
    done: tuple[Done, ...]
    recoveries: Mapping[str, tuple[int, float]]
    changes: Mapping[str, int]
    none_left: tuple[Window, ...]
    back_ms: Mapping[str, Sequence[float]]
    problems: tuple[str, ...]
    before: Mapping[str, Usage]
    after: Mapping[str, Usage] | None
    completed: bool
    seconds: float
    left: Sequence[str] = ()


def allowed(record: StreamRecord, none_left: Sequence[Window]) -> bool:
    """Whether an error may be: a 503 for a request that had to wait while no node was left."""
    if record.outcome is not Outcome.REFUSED or not (record.detail or "").startswith(_UNAVAILABLE):
        return False
    waited = Window(record.started_ns, record.ended_ns)
    return any(waited.overlaps(window) for window in none_left)


def summarise(soak: Soak) -> dict[str, Any]:
    """Return the result; times in ms. See `loadgen.benchmarks.soak.bench` for what is a violation."""
    expected = {record.name: record.token_ids for record in soak.reference}
    whole = [record for record in soak.records if not record.broken]
    broken = [record for record in soak.records if record.broken]
    excused = [record for record in broken if allowed(record, soak.none_left)]
    errors = [record for record in broken if not allowed(record, soak.none_left)]
    # What had arrived of a broken answer must be right too.
    wrong = [r for r in whole if r.token_ids != expected[r.name]]
    wrong += [r for r in broken if r.token_ids != expected[r.name][: len(r.token_ids)]]
    renamed = [record for record in soak.records if len(record.identities) > 1]
    leaks = [] if soak.after is None else grown(soak.before, soak.after)
    violations = [
        *(f"{len(found)} {text}" for found, text in ((wrong, "answers differ"), (errors, "errors")) if found),
        *([f"{len(renamed)} streams changed their identity"] if renamed else []),
        *soak.problems,
        *(f"more at the idle point than before: {text}" for text in leaks),
        *(f"left in the end: {text}" for text in soak.left),
        *([] if soak.completed else ["not completed"]),
    ]
    made = [done for done in soak.done if done.what is not None]
    tokens = sum(len(record.tokens) for record in soak.records)
    return {
        "passed": not violations,
        "violations": violations,
        "vllm_version": soak.vllm_version,
        "options": {
            "seed": soak.options.seed,
            "kills": soak.options.kills,
            "streams": soak.options.streams,
            "tokens": soak.options.tokens,
            "prompt_tokens": soak.options.prompt_tokens,
            "layers_from": soak.options.layers_from,
        },
        "link": dict(soak.link),
        "seconds": round(soak.seconds, 1),
        "kills": sum(done.step.kind in KILLING for done in made),
        "steps": len(soak.done),
        "disturbances": {str(kind): _disturbance(kind, soak) for kind in Kind},
        "changes": dict(soak.changes),
        "answers": len(whole),
        "tokens": tokens,
        "different": len(wrong),
        "differences": [_difference(record, expected, soak.done) for record in wrong[:_MOST_EXAMPLES]],
        "errors": dict(Counter(str(record.outcome) for record in errors)),
        "error_details": [_error(record, soak.done) for record in errors[:_MOST_EXAMPLES]],
        "refused_without_nodes": len(excused),
        "no_node_left_ms": round(sum(window.ms for window in soak.none_left)),
        "recoveries": len(soak.recoveries),
        "recovery_ms": _spread([ms for _, ms in soak.recoveries.values()]),
        "node_away_ms": _spread(soak.back_ms["node"]),
        "link_away_ms": _spread(soak.back_ms["link"]),
        "idle_point": {
            role: {
                "before": asdict(usage),
                "after": None if soak.after is None else asdict(soak.after[role]),
            }
            for role, usage in soak.before.items()
        },
        "idle_limits": asdict(LIMITS),
        "leaks": leaks,
        "left": list(soak.left),
    }


def _disturbance(kind: Kind, soak: Soak) -> dict[str, Any]:
    """Return the figures of one kind: the stall of a step is the largest gap of any stream that overlaps it."""
    steps = [done for done in soak.done if done.step.kind is kind]
    made = [done for done in steps if done.what is not None]
    stalls = []
    for done in made:
        touched = [gap.ms for record in soak.records if (gap := largest_gap(record, done.window)) is not None]
        if touched:
            stalls.append(max(touched))
    recovered = [
        ms for at, ms in soak.recoveries.values() if any(done.started_ns <= at <= done.ended_ns for done in made)
    ]
    return {
        "made": len(made),
        "nothing_to_hit": len(steps) - len(made),
        "stall_ms": _spread(stalls),
        "recovery_ms": _spread(recovered),
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    """Return the median and the worst; None without any."""
    return {"p50": round(percentile(values, 50), 1), "max": round(max(values), 1)} if values else None


def _difference(record: StreamRecord, expected: Mapping[str, tuple[int, ...]], done: Sequence[Done]) -> dict[str, Any]:
    found = compare(expected[record.name][: None if not record.broken else len(record.token_ids)], record.token_ids)
    return {**_error(record, done), **asdict(found), "tokens": len(record.tokens)}


def _error(record: StreamRecord, done: Sequence[Done]) -> dict[str, Any]:
    """Say what a client saw, and during which steps."""
    life = Window(record.started_ns, record.ended_ns)
    return {
        "name": record.name,
        "outcome": str(record.outcome),
        "detail": record.detail,
        "at": round((record.started_ns + record.unix_offset_ns) / 1e9, 3),
        "ended": round((record.ended_ns + record.unix_offset_ns) / 1e9, 3),
        "steps": [one.step.number for one in done if life.overlaps(one.window)],
    }
