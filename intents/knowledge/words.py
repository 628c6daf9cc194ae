"""How words are compared: without case, accents and punctuation, as a tuple of runs of letters and digits."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_RUN = re.compile(r"[^\W_]+")
_LETTERS = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "æ": "ae", "œ": "oe", "ı": "i", "ħ": "h"})  # noqa: RUF001

Words = tuple[str, ...]


@lru_cache(maxsize=8192)
def fold(text: str) -> str:
    """Return the text in lower case and without accents: `München` and `MUNCHEN` give `munchen`, `ß` gives `ss`."""
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(each for each in decomposed if not unicodedata.combining(each)).translate(_LETTERS)


def words(text: str) -> Words:
    """Return the folded runs of letters and digits: `EU-based` gives `("eu", "based")`."""
    return tuple(_RUN.findall(fold(text)))
