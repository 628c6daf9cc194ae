"""The one interface behind which flow rules are enforced, whoever does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class FlowStore(Protocol):
    """Flow rules in the form of ONOS' REST API, on all switches of a network.

    A store owns the rules that it was given and touches no others, but `read` shows all.

    Raises:
        EnforcementError: by every method, when the network could not be told or asked.
    """

    def apply(self, flows: Sequence[dict[str, Any]]) -> None:
        """Make these the store's rules: what is new is added before what is gone is taken away."""

    def read(self) -> list[dict[str, Any]]:
        """Return every rule that is really installed, whoever it belongs to."""

    def delete(self) -> None:
        """Take away all of the store's rules."""
