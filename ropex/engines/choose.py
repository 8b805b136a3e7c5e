"""Pick the encoding that an engine computes as planned, or comes nearest to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ropex.engines.answer import Exactness
from ropex.engines.encodings import Encoding, encodings
from ropex.engines.facts import Engine
from ropex.engines.readers import Reading, read
from ropex.engines.wanted import Wanted
from ropex.model.tables import TOLERANCE

# What may be off and still be called the same method: the temperature that is said with a whole
# number of tokens is off by less, a temperature that is left out by more.
NEAR = 0.01


@dataclass(frozen=True, eq=False)
class Choice:
    """An encoding, and what one engine makes of it.

    Attributes:
        encoding: The encoding.
        exactness: How near it comes.
        bound: Largest relative error; 0 where it is exact.
        reason: Why, in words.
    """

    encoding: Encoding
    exactness: Exactness
    bound: float
    reason: str


def choose(engine: Engine, wanted: Wanted) -> Choice | str:
    """The first exact encoding, or the nearest approximation; or, in words, why there is none."""
    found: list[Choice] = []
    reasons: list[str] = []
    for encoding in encodings(wanted):
        choice = assess(engine, encoding, wanted)
        if isinstance(choice, str):
            reasons.append(choice)
        elif choice.exactness == "exact":
            return choice
        else:
            found.append(choice)
    if found:
        return min(found, key=lambda choice: choice.bound)
    return f"{engine.title} {reasons[0]}"


def assess(engine: Engine, encoding: Encoding, wanted: Wanted) -> Choice | str:
    """What an engine makes of one encoding; in words, if that is something else."""
    reading = read(engine, encoding, wanted)
    if isinstance(reading, str):
        return reading
    verdict = compare(reading, wanted)
    if isinstance(verdict, str):
        return f"reads {encoding.what} otherwise: {verdict}"
    exactness, bound, note = verdict
    return Choice(encoding, exactness, bound, f"{engine.title} reads {encoding.what}{note}")


def compare(reading: Reading, wanted: Wanted) -> tuple[Exactness, float, str] | str:
    """How near a reading comes, its bound and a note; in words, if it is too far off."""
    scale = abs(reading.attention_scale / wanted.attention_scale - 1)
    target = error(reading.inv_freq, wanted.inv_freq)
    short = error(reading.short, wanted.short)
    bound = max(scale, target, short)
    if bound <= TOLERANCE:
        return "exact", 0.0, ""
    if max(scale, target) <= NEAR and wanted.by_length:
        tokens = f"{wanted.target_length:,} tokens"
        return "approximate", bound, f": the frequencies for {tokens}, for texts of any length"
    if bound <= NEAR:
        return "approximate", bound, f", to {bound:.1e}"
    if max(target, short) <= NEAR:
        return (
            f"cos and sin are multiplied by {reading.attention_scale:.4f}, "
            f"not {wanted.attention_scale:.4f}"
        )
    return f"frequencies are off by up to {max(target, short):.0%}"


def error(found: Tensor, planned: Tensor) -> float:
    """Largest relative error of a frequency; of those that are planned as 0, their size."""
    still = planned.abs() < 1e-20
    scale = planned.abs().masked_fill(still, 1.0)
    return float(((found - planned).abs() / scale).max())


def last_resort(wanted: Wanted) -> str:
    """What the user can do where no encoding is left."""
    if wanted.endless:
        return "; a strategy with a length, such as dynamic:length=32k, has one base for all texts"
    if wanted.attention_scale != 1 and not wanted.latent:
        return "; ropex patch --fold-temperature moves the temperature into the weights"
    return ""
