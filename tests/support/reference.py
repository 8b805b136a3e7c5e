"""Every formula once more, from the papers: plain numbers, one pair at a time.

Functions that are named after a method return the frequencies of all pairs, in radians a token. In
the papers' letters, `d` is `Shape.dim`, `b` is `Shape.base` and `L` is `Shape.length`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

TURN = 2 * math.pi


class Shape(NamedTuple):
    """What a rotary embedding was trained with."""

    dim: int
    base: float
    length: int


def default(shape: Shape) -> list[float]:
    return [1 / shape.base ** (2 * i / shape.dim) for i in range(shape.dim // 2)]


def linear(shape: Shape, factor: float) -> list[float]:
    return [theta / factor for theta in default(shape)]


# A larger base.


def theta(shape: Shape, base: float) -> list[float]:
    return default(shape._replace(base=base))


def ntk_base(shape: Shape, alpha: float) -> float:
    power: float = alpha ** (shape.dim / (shape.dim - 2))
    return shape.base * power


def ntk(shape: Shape, alpha: float) -> list[float]:
    return theta(shape, ntk_base(shape, alpha))


def theta_scale_base(shape: Shape, factor: float) -> float:
    """The pair that turned once over `L` turns once over `factor * L`."""
    growth = math.log(factor * shape.length / TURN) / math.log(shape.length / TURN)
    return math.exp(math.log(shape.base) * growth)


def theta_scale(shape: Shape, factor: float) -> list[float]:
    return theta(shape, theta_scale_base(shape, factor))


def ntk_fixed(shape: Shape, factor: float) -> list[float]:
    pairs = enumerate(default(shape))
    return [theta / factor ** ((2 * i + 2) / shape.dim) for i, theta in pairs]


def ntk_mixed(shape: Shape, factor: float, beta: float = 0.625) -> list[float]:
    a = math.log(factor) / (shape.dim / 2) ** beta
    return [theta * math.exp(-a * (i + 1) ** beta) for i, theta in enumerate(default(shape))]


# Bands of pairs: below, 1 is a pair that keeps its frequency and 0 one that is interpolated.


def kept_by_turns(shape: Shape, slow: float, fast: float, length: int | None = None) -> list[float]:
    """Linear in the turns that a pair makes over `length` tokens."""
    turns = [(length or shape.length) * theta / TURN for theta in default(shape)]
    return [min(max((r - slow) / (fast - slow), 0), 1) for r in turns]


def index_of(shape: Shape, turns: float, length: int | None = None) -> float:
    """The pair that makes so many turns over `length` tokens."""
    length = length or shape.length
    return shape.dim * math.log(length / (TURN * turns)) / (2 * math.log(shape.base))


def bounds(
    shape: Shape, fast: float = 32, slow: float = 1, truncate: bool = True, last: int | None = None,
    length: int | None = None,
) -> tuple[float, float]:  # fmt: skip
    """First and last pair of the ramp, at most `last` (`d - 1` if it is not given)."""
    low, high = index_of(shape, fast, length), index_of(shape, slow, length)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, shape.dim - 1 if last is None else last)
    return low, high + 0.001 if low == high else high


def kept_by_index(shape: Shape, low: float, high: float) -> list[float]:
    """Linear in the index of a pair."""
    return [1 - min(max((i - low) / (high - low), 0), 1) for i in range(shape.dim // 2)]


def blend_frequencies(shape: Shape, factor: float, kept: list[float]) -> list[float]:
    pairs = zip(default(shape), kept, strict=True)
    return [gamma * theta + (1 - gamma) * theta / factor for theta, gamma in pairs]


def blend_wavelengths(shape: Shape, factor: float, kept: list[float]) -> list[float]:
    waves = [TURN / theta for theta in default(shape)]
    pairs = zip(waves, kept, strict=True)
    return [TURN / (gamma * wave + (1 - gamma) * factor * wave) for wave, gamma in pairs]


def blend_logarithms(shape: Shape, factor: float, kept: list[float]) -> list[float]:
    pairs = zip(default(shape), kept, strict=True)
    return [
        math.exp(gamma * math.log(theta) + (1 - gamma) * math.log(theta / factor))
        for theta, gamma in pairs
    ]


def ntk_by_parts(shape: Shape, factor: float, slow: float = 1, fast: float = 32) -> list[float]:
    return blend_frequencies(shape, factor, kept_by_turns(shape, slow, fast))


def yarn(shape: Shape, factor: float) -> list[float]:
    return blend_frequencies(shape, factor, kept_by_index(shape, *bounds(shape)))


def yarn_temperature(factor: float, mscale: float = 1) -> float:
    return 0.1 * mscale * math.log(factor) + 1


def llama3(shape: Shape, factor: float, low: float = 1, high: float = 4) -> list[float]:
    """By wavelength, as the released code has it."""
    scaled = []
    for theta in default(shape):
        wave = TURN / theta
        if wave < shape.length / high:
            scaled.append(theta)
        elif wave > shape.length / low:
            scaled.append(theta / factor)
        else:
            smooth = (shape.length / wave - low) / (high - low)
            scaled.append((1 - smooth) * theta / factor + smooth * theta)
    return scaled


Digits = Callable[[int, int], float]
"""Steps done and steps of the band, to the share of the logarithm of the factor."""


def mrrope_progressive(k: int, steps: int) -> float:
    return k * (k + 1) / (steps * (steps + 1))


def mrrope_uniform(k: int, steps: int) -> float:
    return k / steps


def mrrope_degressive(k: int, steps: int) -> float:
    """`(2 high + 1 - i - low) (i - low) / (K (K + 1))` with `k = i - low` and `K = high - low`."""
    return sum(steps - j for j in range(k)) / (steps * (steps + 1) / 2)


def mrrope(shape: Shape, factor: float, digits: Digits) -> list[float]:
    low, high = (int(bound) for bound in bounds(shape))
    steps = high - low
    done = [min(max(i - low, 0), steps) for i in range(shape.dim // 2)]
    pairs = zip(default(shape), done, strict=True)
    return [theta / factor ** digits(k, steps) for theta, k in pairs]


# Lists and single pairs.


def longrope(shape: Shape, divisors: list[float]) -> list[float]:
    return [theta / divisor for theta, divisor in zip(default(shape), divisors, strict=True)]


def longrope_temperature(factor: float, length: int) -> float:
    return math.sqrt(1 + math.log(factor) / math.log(length))


def proportional(shape: Shape, p: float) -> list[float]:
    kept = int(p * shape.dim / 2)
    return [theta if i < kept else 0.0 for i, theta in enumerate(default(shape))]


def clip_window(count: int, j: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * j / (count - 1)))


def clip(frequencies: list[float], count: int, hard: bool = False) -> list[float]:
    kept, last = frequencies[:-count], frequencies[-count:]
    faded = [0.0 if hard else theta * clip_window(count, j) for j, theta in enumerate(last)]
    return [*kept, *faded]


def giraffe_power(shape: Shape, power: float) -> list[float]:
    pairs = enumerate(default(shape))
    return [theta * (1 - 2 * i / shape.dim) ** power for i, theta in pairs]


def giraffe_truncated(shape: Shape, length: int) -> list[float]:
    a, rho = TURN / length, TURN / (16 * length)
    return [t if t >= a else rho if t >= a / 8 else 0.0 for t in default(shape)]


def drope(shape: Shape) -> list[float]:
    return [0.0 for _ in default(shape)]


def resonance(frequencies: list[float], shortest: float = 0) -> list[float]:
    waves = [TURN / theta for theta in frequencies]
    return [TURN / round(wave) if wave >= shortest else TURN / wave for wave in waves]


# By the length of the sequence.


def dynamic(shape: Shape, length: int, factor: float = 1) -> list[float]:
    if length <= shape.length:
        return default(shape)
    return ntk(shape, factor * length / shape.length - (factor - 1))


def dynamic_linear(shape: Shape, length: int) -> list[float]:
    return [theta * shape.length / max(length, shape.length) for theta in default(shape)]


def dynamic_yarn(shape: Shape, length: int) -> list[float]:
    return yarn(shape, max(1, length / shape.length))


def dynamic_yarn_temperature(shape: Shape, length: int) -> float:
    return yarn_temperature(max(1, length / shape.length))


def qwen_alpha(length: int, trained: int) -> int:
    """1 within the trained length, then 3, 7, 15: the least `k` with `length <= 2^k trained`."""
    doublings = 0
    while length > trained * 2**doublings:
        doublings += 1
    power: int = 2 ** (doublings + 1)
    return power - 1


def dynamic_qwen(shape: Shape, length: int) -> list[float]:
    return ntk(shape, qwen_alpha(length, shape.length))


# Of the query at position `m`.


def logn(m: int, length: int) -> float:
    return max(1, math.log(m + 1) / math.log(length))


def llama4_temperature(m: int, length: int = 8192, beta: float = 0.1) -> float:
    return 1 + beta * math.log(1 + (m + 1) // length)


def ministral_temperature(m: int, length: int, beta: float = 0.1) -> float:
    return 1 + beta * math.log(1 + m // length)
