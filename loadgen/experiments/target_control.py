"""The control API as an experiment needs it: what `ControlClient` has, with the server's own pause and its trace."""

from typing import Any

from loadgen.control import ChangeReport, ControlClient


class FullReport(ChangeReport, frozen=True, kw_only=True):
    """A report with the pause as the server saw it: the largest gap between two answers of its pipeline."""

    pause_ms: float | None = None


class TargetControl(ControlClient):
    """Talks to the control API of a target."""

    async def begin_change(self, layers: str, method: str | None, fallback: str | None) -> FullReport:
        """Ask for a layout and return the report of the change that has begun; None: the server's default.

        Raises:
            ChangeRefusedError: the server will not make this change, or not now.
            ControlError: no answer, or one outside the contract.
        """
        asked = {"layers": layers, "method": method, "fallback": fallback}
        order = {name: value for name, value in asked.items() if value is not None}
        return await self._ask("POST", "/reconfigurations", FullReport, json=order)

    async def final_report(self, change: str, deadline_s: float) -> FullReport:
        """Return the report of a change once it has ended.

        Raises:
            ChangeFailedError: it still runs after so many seconds.
            ControlError: no answer, or one outside the contract.
        """
        await self.wait_for_end(change, deadline_s)
        return await self._ask("GET", f"/reconfigurations/{change}", FullReport)

    async def trace(self) -> list[dict[str, Any]]:
        """Return which stage computed which batch when, as Chrome trace events; raises ControlError."""
        told = await self._ask("GET", "/trace", dict[str, list[dict[str, Any]]])
        return told["traceEvents"]
