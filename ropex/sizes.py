"""Lengths in tokens as people write them: `4096`, `32k`, `1M`; and other amounts."""

from __future__ import annotations

import re

LONGEST = 2**40
"""Tokens beyond which no text and no trained length is meant."""

LARGEST = 1e30
"""A number that float32 and bfloat16 hold, with room for what is made of it."""

_MOST_LENGTHS = 1000
_UNITS = {"": 1, "k": 1024, "m": 1024**2}


def parse_size(text: str) -> int:
    """Number of tokens in `text`; `k` is 1024 and `M` is 1024 * 1024.

    Raises:
        ValueError: `text` is not a whole number with an optional unit.
    """
    match = re.fullmatch(r"(\d{1,15})([kKmM]?)", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a length; write 4096, 32k or 1M")
    return int(match[1]) * _UNITS[match[2].lower()]


def format_size(tokens: int) -> str:
    """Shortest text that `parse_size` reads back as `tokens`."""
    for unit, size in (("M", 1024**2), ("k", 1024)):
        if tokens and tokens % size == 0:
            return f"{tokens // size}{unit}"
    return str(tokens)


def count(number: int, thing: str) -> str:
    """`1 pair`, `2 pairs`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def parse_sizes(text: str) -> tuple[int, ...]:
    """Lengths in a list such as `256,1k,4k`, `256..4k` (doubling) or `1k..8k:1k` (steps).

    Returns:
        The lengths, sorted, each once.

    Raises:
        ValueError: A part of the list is not a length or a range of lengths.
    """
    return tuple(sorted({length for part in text.split(",") for length in _range(part)}))


def parse_length(text: str) -> int:
    """A number of tokens that there can be.

    Raises:
        ValueError: `text` is not a length, or it is 0 or beyond `LONGEST`.
    """
    length = parse_size(text)
    if not 1 <= length <= LONGEST:
        raise ValueError(f"{text!r} is no length, it must be from 1 to 2**40")
    return length


def _range(part: str) -> list[int]:
    first, dots, rest = part.partition("..")
    if not dots:
        return [parse_length(part)]
    last, colon, step = rest.partition(":")
    low, high = parse_length(first), parse_length(last)
    if low > high:
        raise ValueError(f"{part!r} is not a range; write the shorter length first, as in 256..4k")
    if not colon:
        lengths = [low]
        while lengths[-1] * 2 <= high:
            lengths.append(lengths[-1] * 2)
        return lengths
    if parse_size(step) < 1:
        raise ValueError(f"{part!r} has no step; write 1k..8k:1k")
    found = range(low, high + 1, parse_size(step))
    if len(found) > _MOST_LENGTHS:
        raise ValueError(f"{part!r} has {len(found)} lengths; at most {_MOST_LENGTHS}")
    return list(found)


def gib(size: float) -> str:
    """A size for people, such as `23.3 GiB`."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.0f} MiB"
