"""From a sentence to tokens with offsets.

A token is a run of letters and digits, a punctuation mark or a quoted name. Words are folded (case, accents); hyphens
and the like inside a word only part its tokens (`EU-based`, `edge-1`), and what stood between two tokens is kept as
`glue`, so that names can be told from words that look alike. Contractions are taken apart (`mustn't` is `must`, `not`)
and the possessive is a token of its own.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace

from intents.knowledge.words import fold

# ruff: noqa: RUF001 - the quotation marks, apostrophes and hyphens that people type
_TOKEN = re.compile(
    r"(?P<quoted>\"[^\"\n]{1,253}\"|“[^”\n]{1,253}”|«[^»\n]{1,253}»|`[^`\n]{1,253}`"
    r"|(?<![^\s(,;:])['‘][^'’\n]{1,253}['’](?![^\W_]))"
    r"|(?P<word>(?:[^\W_]|[̀-ͯ])+)"
    r"|(?P<sign><[-=]>|[↔⇔]|[-=]>|[→⇒]|[<>]=?|[≤≥])"
    r"|(?P<mark>\S)"
)
_APOSTROPHES = frozenset("'’ʼ`´")
_NOT = {"won": "will", "can": "can", "shan": "shall", "ca": "can", "ain": "is"}
# Typed without the apostrophe: "dont", "isnt".
_BARE_NOT = {
    f"{verb}nt": _NOT.get(verb, verb)
    for verb in ("do", "does", "did", "is", "are", "was", "must", "should", "would", "could", "need", "has", "have")
} | {"cant": "can", "wont": "will"}
_ENDINGS = {"re": "are", "ll": "will", "ve": "have", "m": "am", "d": "would"}
_IS_AFTER = frozenset({"it", "that", "there", "what", "here", "which", "who", "he", "she", "everything"})
_SIGNS = {"<": "lt", "<=": "lteq", "≤": "lteq", ">": "gt", ">=": "gteq", "≥": "gteq"}
_SIGNS |= dict.fromkeys(("->", "=>", "→", "⇒"), "->") | dict.fromkeys(("<->", "<=>", "↔", "⇔"), "<->")
# Bullets and numbers in front of the parts of a list: at the beginning of a line, numbers behind a full stop too.
_BULLET = re.compile(
    r"(?:^[ \t]*[-*•–]|(?:^[ \t]*|(?<=[.;:!?])[ \t]+)(?:\(?(?:\d{1,2}|[a-z])\)|\d{1,2}\.))"
    r"(?=[ \t])",
    re.MULTILINE,
)
_SHORTENED = frozenset({"max", "min", "approx", "incl", "excl"})
_INNER = frozenset("-‐‑–._/:@+")
SPLITTERS = frozenset(".!?;\n")


@dataclass(frozen=True, slots=True)
class Token:
    """A word, a mark (`,`) or a quoted name.

    Attributes:
        glue: What stood right before it where no space did.
        starts_line: It is the first of its line.
        closes: A bracket closes behind it.
    """

    start: int
    end: int
    text: str
    norm: str
    kind: str = "word"
    glue: str = " "
    starts_line: bool = False
    closes: bool = False

    @property
    def capital(self) -> bool:
        """Whether it is written in capitals only."""
        return self.text.isupper()


def tokenize(sentence: str) -> tuple[Token, ...]:
    """Return the tokens of a sentence."""
    return tuple(_contractions(_pieces(sentence)))


def _pieces(sentence: str) -> list[Token]:
    pieces: list[Token] = []
    end, pending = 0, " "
    matches = list(_TOKEN.finditer(sentence))
    bullets = [match.span() for match in _BULLET.finditer(sentence)]
    for index, match in enumerate(matches):
        start, text = match.start(), match.group()
        while bullets and bullets[0][1] <= start:
            bullets.pop(0)
        if bullets and bullets[0][0] <= start:
            end = bullets[0][1]
            if not pieces or pieces[-1].end <= start:
                pieces.append(Token(start, end, sentence[start:end], "\n", "mark"))
            pending = " "
            continue
        gap = sentence[end:start]
        if "\n" in gap and pieces and "\n\n" in gap:
            pieces.append(Token(start - 1, start, "\n", "\n", "mark"))
        if gap:
            pending = " "
        line = "\n" in gap
        end = match.end()
        if match.lastgroup == "quoted":
            pieces.append(Token(start, end, text, text[1:-1].strip(), "quoted", pending))
            pending = ""
            continue
        if match.lastgroup == "word":
            word = Token(start, end, text, fold(text), "word", pending, starts_line=line)
            pending = ""
            if word.norm == "cannot" or word.norm in _BARE_NOT:
                verb = _BARE_NOT.get(word.norm, "can")
                pieces += [
                    replace(word, norm=verb, end=start + 3),
                    replace(word, norm="not", start=start + 3, glue=" "),
                ]
            else:
                pieces.append(word)
            continue
        if match.lastgroup == "sign":
            pieces.append(Token(start, end, text, _SIGNS[text], "word", pending))
            pending = " "
            continue
        between_words = (
            index > 0
            and matches[index - 1].end() == start
            and index + 1 < len(matches)
            and matches[index + 1].start() == end
            and matches[index - 1].lastgroup == matches[index + 1].lastgroup == "word"
        )
        if between_words and (text in _INNER or text in _APOSTROPHES):
            pending = text
            continue
        if text in "&+" and gap and sentence[end : end + 1].isspace():
            pieces.append(Token(start, end, text, "and"))
            pending = " "
            continue
        if _abbreviation_ends(text, start, pieces, sentence):
            pieces[-1] = replace(pieces[-1], end=end, text=sentence[pieces[-1].start : end])
            continue
        if unicodedata.category(text) in {"Cf", "Cc"} or text in ")]*":
            if text in ")]" and pieces:
                pieces[-1] = replace(pieces[-1], closes=True)
            pending = " "
            continue
        pieces.append(Token(start, end, text, "," if text in "([" else text, "mark", pending))
        pending = ""
    return pieces


def _abbreviation_ends(text: str, start: int, pieces: list[Token], sentence: str) -> bool:
    """Whether this full stop closes an abbreviation such as `U.S.` or `max.` rather than the sentence."""
    if text == "." and pieces and pieces[-1].end == start and pieces[-1].norm in _SHORTENED:
        return sentence[start + 1 :].lstrip()[:1].isdigit()
    if text != "." or not pieces or pieces[-1].end != start or pieces[-1].glue != ".":
        return False
    return len(pieces[-1].text) == 1 and sentence[start + 1 : start + 2] != ""


def _contractions(pieces: list[Token]) -> list[Token]:
    result: list[Token] = []
    for token in pieces:
        before = result[-1] if result else None
        if token.kind == "word" and before is not None and token.glue in _APOSTROPHES:
            if token.norm == "t" and before.norm.endswith("n"):
                stem = before.norm[:-1] if before.norm != "can" else "can"
                result[-1] = replace(before, norm=_NOT.get(before.norm, stem))
                result.append(replace(token, norm="not", glue=" "))
                continue
            if token.norm == "s":
                if before.norm == "let":  # let's
                    result[-1] = replace(before, norm="lets", end=token.end)
                    continue
                is_verb = before.norm in _IS_AFTER
                result.append(replace(token, norm="is" if is_verb else "'s", glue=" "))
                continue
            if token.norm in _ENDINGS:
                result.append(replace(token, norm=_ENDINGS[token.norm], glue=" "))
                continue
        if token.kind == "mark" and token.norm in _APOSTROPHES:
            if before is not None and before.norm.endswith("s") and before.end == token.start:
                result.append(replace(token, norm="'s", kind="word"))
            continue
        result.append(token)
    return result
