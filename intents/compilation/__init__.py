"""From an inventory and typed intents to placements, routes, Kubernetes manifests and flow rules, or to a refusal.

    intents -> vacuous? -> problem -> placement -> routing -> kubernetes, onos -> Compiled
                                        |
                                        + impossible -> explanation -> nearest -> Refusal

`compile_intents` is pure: the same inventory and intents give the same result, whatever order their lists are in.
"""

from __future__ import annotations

from intents.compilation.compiled import Compiled, Placement, Route, Transfer
from intents.compilation.compiler import compile_intents

__all__ = ["Compiled", "Placement", "Route", "Transfer", "compile_intents"]
