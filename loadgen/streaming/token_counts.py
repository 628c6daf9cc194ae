"""How many tokens each chunk brought, where the server sends text without token ids.

Then a chunk counts as one token, until the server's own count at the end says otherwise. If a tokenizer is at hand, it
tells how the reported number spreads over the chunks; without one nothing is guessed, and the difference is reported.
"""

from collections.abc import Callable, Sequence


def spread(total: int, weights: Sequence[int]) -> list[int]:
    """Divide `total` tokens among chunks in proportion to their weights.

    If `total` is at least the number of chunks, each of them gets one first: a chunk that brought text brought a token.
    What is left goes by what their weights exceed that; each part differs from its exact share by less than one
    (largest remainders; of equal ones the earlier chunk wins). The parts add up to `total`.

    Raises:
        ValueError: there is no chunk to give the tokens to, or a number is negative.
    """
    if total < 0 or any(weight < 0 for weight in weights) or (total and not weights):
        raise ValueError(f"{total} tokens over chunks of weight {list(weights)}")
    if not weights:
        return []
    base = 1 if total >= len(weights) else 0
    left = total - base * len(weights)
    extra = [max(weight - base, 0) for weight in weights]
    whole = sum(extra)
    if not whole:
        extra, whole = [1] * len(weights), len(weights)
    parts = [base + left * share // whole for share in extra]
    by_remainder = sorted(range(len(weights)), key=lambda n: (-(left * extra[n] % whole), n))
    for number in by_remainder[: total - sum(parts)]:
        parts[number] += 1
    return parts


def token_weights(texts: Sequence[str], count: Callable[[str], int]) -> list[int]:
    """Return about how many tokens each text adds to those before it; `count` is the length of a text in tokens.

    Tokens join across the borders of chunks, so each text is counted together with the one before it.
    """
    weights, before = [], ""
    for text in texts:
        weights.append(max(count(before + text) - count(before), 0))
        before = text
    return weights
