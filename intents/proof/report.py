"""What a proof says: one `Check` for everything that was looked at, and a `Report` of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["state", "subjects", "placement", "spread", "routes", "isolation", "transfer"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked.

    Attributes:
        subject: The workload, or the pair of workloads `a -> b`, that it is about.
        rule: The rule, with where it stands in the intent.
        looked_at: Nodes, switches, links, flow rules and labels that decided it.
        holds: Whether it was proven.
        reason: Why, in words.
        intent: Name of the intent; empty for checks of the state as a whole.
        breach: It does not hold, and something forbidden happens or cannot be ruled out. A check that fails without a
            breach lacks something instead: nothing runs, or a peer cannot be reached.
        kind: What kind of rule it is; `state` for checks of the state as a whole.
    """

    subject: str
    rule: str
    looked_at: tuple[str, ...]
    holds: bool
    reason: str
    intent: str = ""
    breach: bool = False
    kind: Kind = "state"


@dataclass(frozen=True, slots=True)
class Report:
    """All checks. It holds if there is at least one and every one holds."""

    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        """Whether something was proven, and nothing failed."""
        return bool(self.checks) and all(check.holds for check in self.checks)

    @property
    def safe(self) -> bool:
        """Whether nothing forbidden happens, though something may be missing."""
        return bool(self.checks) and not any(check.breach for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that do not hold."""
        return tuple(check for check in self.checks if not check.holds)
