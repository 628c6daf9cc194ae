"""Runs cases through a translator and a plan function, judges what comes of them, and sums it up.

The plan function is given: it turns a translator, a sentence, an inventory and the active intents into the JSON object
that `midstream intent plan` prints. So the benchmark measures whatever is put behind it, a real translator as well as a
made-up one, and depends on none.

What is counted, by part and category: sentences that came out right (enforced as expected, or refused as expected),
wrong policies applied, results that are too strict, refusals right and wrong, errors, latency (wall clock around the
plan function, median and 95th percentile, milliseconds), tokens, and checks per intent that was enforced. An exception
of the plan function is an error and counts as a wrong refusal: nothing was enforced, but not for a reason.

A plan that says `needs_confirmation` waits for a person, whom a benchmark does not have. It is judged as if it had been
confirmed and counted apart: were it wrong, it is no wrong policy that was applied, but one that would have been.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from rich.table import Table

from intents.benchmark.judge import Judgement, Verdict, judge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from intents.benchmark.cases import Case
    from intents.model.intent import PrivacyIntent
    from intents.model.inventory import Inventory

Translator = TypeVar("Translator")
ALL = "all"


@dataclass(frozen=True, slots=True)
class Tried:
    """One sentence, what became of it and what it took.

    Attributes:
        part: The part of the benchmark: intents, traps, paraphrases, or what else was given.
        error: The exception that the plan function raised, if it did.
        checks: How many checks the plan reports; only for what was enforced, else None.
        waits: The plan is enforced only after a person confirms it.
    """

    part: str
    id: str
    category: str
    complexity: str | None
    sentence: str
    judgement: Judgement
    latency_ms: float
    tokens: int
    checks: int | None
    waits: bool = False
    error: str | None = None

    @property
    def applied_wrongly(self) -> bool:
        """Whether a wrong policy was applied without anybody being asked."""
        return self.judgement.verdict is Verdict.WRONG_POLICY and not self.waits


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one part and category (or of all of its categories).

    Attributes:
        right: Enforced as expected or refused as expected, with plans that wait for a person.
        wrong_policies: Applied without a person, and must not have been.
        waiting: Plans that wait for a person.
        wrong_if_confirmed: Of those, the ones that would be a wrong policy.
        without_checks: Enforced with no check at all.
    """

    part: str
    category: str
    cases: int
    right: int
    wrong_policies: int
    waiting: int
    wrong_if_confirmed: int
    too_strict: int
    refused_right: int
    refused_wrongly: int
    errors: int
    latency_median_ms: float
    latency_p95_ms: float
    tokens_mean: float
    tokens_total: int
    checks_per_intent: float | None
    without_checks: int

    @property
    def rate(self) -> float:
        """The share of cases that came out right, 0 to 1."""
        return self.right / self.cases


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was tried with one translator."""

    translator: str
    tried: tuple[Tried, ...]

    def summaries(self) -> list[Summary]:
        """Return for each part its categories in the order of their appearance, then the whole part."""
        rows = []
        for part in dict.fromkeys(each.part for each in self.tried):
            of_part = [each for each in self.tried if each.part == part]
            categories = dict.fromkeys(each.category for each in of_part)
            rows += [_sum_up(part, name, [each for each in of_part if each.category == name]) for name in categories]
            rows.append(_sum_up(part, ALL, of_part))
        return rows

    def wrong_policies(self) -> list[Tried]:
        """Return what was enforced and must not have been: this has to be empty."""
        return [each for each in self.tried if each.applied_wrongly]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object: the summaries, and every case with its verdict and reasons."""
        return {
            "translator": self.translator,
            "wrong_policies": len(self.wrong_policies()),
            "summaries": [asdict(row) | {"rate": row.rate} for row in self.summaries()],
            "cases": [_flat(each) for each in self.tried],
        }

    def table(self) -> Table:
        """Return the summaries for a terminal."""
        table = Table(title=f"Privacy intents, translator {self.translator}")
        for heading in ("part", "category"):
            table.add_column(heading)
        for heading in (
            "cases", "right", "wrong policies", "waiting (wrong)", "too strict", "refused right",
            "refused wrongly", "errors", "median ms", "p95 ms", "tokens", "checks",
        ):  # fmt: skip
            table.add_column(heading, justify="right")
        for row in self.summaries():
            table.add_row(
                row.part, row.category, str(row.cases), f"{100 * row.rate:.1f} %", str(row.wrong_policies),
                f"{row.waiting} ({row.wrong_if_confirmed})",
                str(row.too_strict), str(row.refused_right), str(row.refused_wrongly), str(row.errors),
                f"{row.latency_median_ms:.1f}", f"{row.latency_p95_ms:.1f}", f"{row.tokens_mean:.0f}",
                "-" if row.checks_per_intent is None else f"{row.checks_per_intent:.1f}",
                style="bold" if row.category == ALL else None, end_section=row.category == ALL,
            )  # fmt: skip
        return table


def run(
    name: str,
    translator: Translator,
    plan: Callable[[Translator, str, Inventory, Sequence[PrivacyIntent]], Mapping[str, Any]],
    parts: Mapping[str, Iterable[Case]],
    inventories: Mapping[str, Inventory],
) -> Report:
    """Try every case of every part, in order, one at a time.

    Args:
        name: What the report calls the translator.
        translator: Handed to `plan` as it is.
        plan: (translator, sentence, inventory, active intents) -> the JSON object of a plan.
        parts: Cases by the name of their part.
        inventories: By the name that cases use.
    """
    tried = [
        _try(part, case, inventories[case.inventory], translator, plan)
        for part, cases in parts.items()
        for case in cases
    ]
    return Report(name, tuple(tried))


def _try(
    part: str,
    case: Case,
    inventory: Inventory,
    translator: Translator,
    plan: Callable[[Translator, str, Inventory, Sequence[PrivacyIntent]], Mapping[str, Any]],
) -> Tried:
    started = time.perf_counter()
    error = None
    result: Mapping[str, Any] = {}
    try:
        result = plan(translator, case.sentence, inventory, case.active)
    except Exception as raised:  # noqa: BLE001 - whatever a translator does, the other cases are still to be tried
        error = f"{type(raised).__name__}: {raised}"
    latency_ms = 1000 * (time.perf_counter() - started)
    if error is None:
        judgement = judge(case, inventory, result)
    else:
        judgement = Judgement(Verdict.REFUSED_WRONGLY, (f"no result: {error}",))
    return Tried(
        part=part,
        id=case.id,
        category=case.category,
        complexity=case.complexity,
        sentence=case.sentence,
        judgement=judgement,
        latency_ms=latency_ms,
        tokens=int(result.get("tokens") or 0),
        checks=_checks(result),
        waits=bool(result.get("needs_confirmation")) and result.get("outcome") == "ok",
        error=error,
    )


def _checks(result: Mapping[str, Any]) -> int | None:
    """Count the checks of what was enforced; they come as a list or, with a verdict over all, as {checks: [...]}."""
    if result.get("outcome") != "ok":
        return None
    checks = result.get("checks") or ()
    if isinstance(checks, dict):
        checks = checks.get("checks") or ()
    return len(checks)


def _sum_up(part: str, category: str, tried: Sequence[Tried]) -> Summary:
    verdicts = [each.judgement.verdict for each in tried]
    latencies = [each.latency_ms for each in tried]
    checks = [each.checks for each in tried if each.checks is not None]
    tokens = sum(each.tokens for each in tried)
    return Summary(
        part=part,
        category=category,
        cases=len(tried),
        right=sum(verdict.right for verdict in verdicts),
        wrong_policies=sum(each.applied_wrongly for each in tried),
        waiting=sum(each.waits for each in tried),
        wrong_if_confirmed=sum(each.waits and each.judgement.verdict is Verdict.WRONG_POLICY for each in tried),
        too_strict=verdicts.count(Verdict.TOO_STRICT),
        refused_right=verdicts.count(Verdict.REFUSED_RIGHT),
        refused_wrongly=verdicts.count(Verdict.REFUSED_WRONGLY),
        errors=sum(each.error is not None for each in tried),
        latency_median_ms=float(np.percentile(latencies, 50)),
        latency_p95_ms=float(np.percentile(latencies, 95)),
        tokens_mean=tokens / len(tried),
        tokens_total=tokens,
        checks_per_intent=sum(checks) / len(checks) if checks else None,
        without_checks=checks.count(0),
    )


def _flat(tried: Tried) -> dict[str, Any]:
    fields = asdict(tried)
    judgement = fields.pop("judgement")
    return fields | {"verdict": str(judgement["verdict"]), "reasons": list(judgement["reasons"])}
