"""What every translator gives back: a typed intent or a refusal, and what each part of a sentence was taken to mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from intents.model.intent import PrivacyIntent
    from intents.model.inventory import Inventory
    from intents.model.refusal import Refusal


@dataclass(frozen=True, slots=True)
class Span:
    """A part of the sentence and its meaning in plain words; `start` and `end` are offsets in characters."""

    start: int
    end: int
    text: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Translation:
    """The answer to one sentence.

    Attributes:
        intent: What was understood; None if the sentence is refused.
        refusal: Why it is refused; None if it was understood. Exactly one of the two is set.
        spans: What each part of the sentence was taken to mean, in the order of the sentence.
        tokens: Tokens of a language model that were spent, prompt and answer; 0 without one.
        latency_ms: Wall-clock milliseconds from the sentence to this answer.
        rounds: How often a model was asked; 1 for a translator that needs no repair.
    """

    intent: PrivacyIntent | None
    refusal: Refusal | None
    spans: tuple[Span, ...] = ()
    tokens: int = 0
    latency_ms: float = 0.0
    rounds: int = 1

    def __post_init__(self) -> None:
        if (self.intent is None) == (self.refusal is None):
            raise ValueError("a translation holds either an intent or a refusal, not both and not neither")


class Translator(Protocol):
    """Whatever turns a sentence into a typed intent; `name` tells it apart in reports."""

    name: str

    def translate(self, sentence: str, inventory: Inventory) -> Translation:
        """Understand a sentence about this inventory, or refuse it.

        Raises:
            TranslatorError: it could not be asked at all; a sentence that is not understood is a refusal instead.
        """
        ...
