"""Which tokens of a stream were lost or repeated, against the undisturbed stream of the same prompt and seed.

Two streams are aligned (`difflib.SequenceMatcher`). A token missing from the disturbed one is lost, an extra one is
repeated. Where instead *other* tokens stand, the streams diverged, which is a different fault: from that place on an
alignment would only match common words by chance, so the two remainders count as replaced, and only their difference
in length as lost or repeated. Always: `len(got) == len(reference) - lost + repeated`.

A server counts `max_tokens` itself. A token that it repeats within a request therefore pushes the last one out, and
shows as one repeated and one lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher


@dataclass(frozen=True, slots=True)
class TokenDifference:
    """How a stream differs from its reference, in tokens.

    Attributes:
        identical: Whether both are the same sequence.
        lost: Reference tokens that are missing.
        repeated: Extra tokens.
        replaced: Tokens that stand where others should.
        diverged_at: Index in the reference of the first replaced token; None if none was replaced.
    """

    identical: bool
    lost: int
    repeated: int
    replaced: int
    diverged_at: int | None


def compare(reference: Sequence[int], got: Sequence[int]) -> TokenDifference:
    """Compare the token ids of a stream with those of its reference."""
    if tuple(reference) == tuple(got):
        return TokenDifference(identical=True, lost=0, repeated=0, replaced=0, diverged_at=None)
    lost = repeated = replaced = 0
    diverged_at: int | None = None
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, reference, got, autojunk=False).get_opcodes():
        if tag == "delete":
            lost += i2 - i1
        elif tag == "insert":
            repeated += j2 - j1
        elif tag == "replace":
            diverged_at = i1
            left, right = len(reference) - i1, len(got) - j1
            replaced = min(left, right)
            lost += left - replaced
            repeated += right - replaced
            break
    return TokenDifference(identical=False, lost=lost, repeated=repeated, replaced=replaced, diverged_at=diverged_at)
