"""Why a sentence or an intent is not enforced."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class RefusalKind(enum.StrEnum):
    """The reasons, from "not understood" to "understood, and it contradicts another intent"."""

    NOT_UNDERSTOOD = "not_understood"  # words that could not be accounted for
    AMBIGUOUS = "ambiguous"  # several meanings that differ on this inventory
    OUT_OF_SCOPE = "out_of_scope"  # understood to be about something that is not placement, routes or transfer
    VACUOUS = "vacuous"  # no subject, peer, node or name that it speaks of exists
    UNSATISFIABLE = "unsatisfiable"  # no placement or no path meets it
    CONFLICT = "conflict"  # it cannot hold together with another intent
    UNTRUSTED = "untrusted"  # translators disagree, or an answer failed validation


@dataclass(frozen=True, slots=True)
class Refusal:
    """Nothing is enforced, and why.

    Attributes:
        kind: The reason's kind.
        message: What is the matter, with the words, names or rules that it is about.
        nearest: The nearest change that could be met, in plain words, where one exists.
        details: Further facts, for example the pair of intents that contradict each other.
    """

    kind: RefusalKind
    message: str
    nearest: str | None = None
    details: tuple[str, ...] = ()
