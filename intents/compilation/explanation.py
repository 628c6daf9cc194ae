"""Why intents cannot hold: the smallest explanation, and between whom.

Rules are left out as long as the rest still cannot be met; what remains is *minimal*: without any one of its rules the
others can be met. First whole intents are left out, then rules, so that an explanation stays within one intent if one
alone cannot hold, and else between as few as this way of looking finds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from intents.compilation.placement import place

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from intents.compilation.problem import Problem
    from intents.compilation.rules import Rule

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Explanation:
    """Names of the intents that cannot hold together (one: it cannot hold at all), and the rules that say so."""

    intents: tuple[str, ...]
    rules: tuple[Rule, ...]


def explain(problem: Problem) -> Explanation:
    """Explain a problem whose hard rules cannot be met.

    Raises:
        SearchBound: whether some part of the rules can be met was not decided.
    """
    names = sorted({rule.id.intent for rule in problem.hard})

    def impossible(rules: Sequence[Rule]) -> bool:
        return place(problem, rules) is None

    def impossible_together(some: Sequence[str]) -> bool:
        return impossible([rule for rule in problem.hard if rule.id.intent in some])

    alone = next((name for name in names if impossible_together([name])), None) if len(names) > 1 else None
    few = [alone] if alone is not None else minimal(names, impossible_together)
    rules = minimal([rule for rule in problem.hard if rule.id.intent in few], impossible)
    return Explanation(tuple(sorted({rule.id.intent for rule in rules})), tuple(rules))


def minimal(items: Sequence[T], impossible: Callable[[Sequence[T]], bool]) -> list[T]:
    """Return a part that is still impossible and of which nothing can be left out.

    `impossible` must not become false when something is added. What is left out is tried in halves first, which takes
    a number of trials that grows with the size of the answer, not with the number of items.
    """
    return _needed([], list(items), impossible, changed=False)


def _needed(kept: list[T], items: list[T], impossible: Callable[[Sequence[T]], bool], *, changed: bool) -> list[T]:
    """Return what of `items` is needed beside `kept` (QuickXplain, Junker 2004)."""
    if changed and impossible(kept):
        return []
    if len(items) <= 1:
        return items
    half = len(items) // 2
    first, second = items[:half], items[half:]
    of_second = _needed([*kept, *first], second, impossible, changed=True)
    of_first = _needed([*kept, *of_second], first, impossible, changed=bool(of_second))
    return [*of_first, *of_second]
