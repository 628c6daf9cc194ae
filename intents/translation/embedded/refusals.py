"""The exception that ends a reading of the sentence, with the refusal that says why."""

from __future__ import annotations

from intents.model.refusal import Refusal, RefusalKind


class Refused(Exception):
    """This reading of the sentence is refused; `final` if another reading would not help."""

    def __init__(self, refusal: Refusal, *, final: bool = False) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
        self.final = final


def refused(
    kind: RefusalKind, message: str, nearest: str | None = None, *, final: bool = False, details: tuple[str, ...] = ()
) -> Refused:
    """Return the exception that refuses with this message."""
    return Refused(Refusal(kind, message, nearest, details), final=final)
