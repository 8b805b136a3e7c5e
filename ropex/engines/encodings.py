"""Config entries that stand for the same frequencies, best first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ropex.config.notations import with_magnitude
from ropex.config.write import carrier
from ropex.engines.wanted import Wanted

# Float64 against float64: a power of the base costs a few units in the last place.
_SAME = 1e-12
# Keys of an entry that are of use beside its scaling.
_KEPT = (
    "rope_theta",
    "partial_rotary_factor",
    "mrope_section",
    "mrope_interleaved",
    "llama_4_scaling_beta",
)


@dataclass(frozen=True)
class Encoding:
    """One way to write a rotary embedding into a config.

    Attributes:
        what: In words.
        entry: The rope entry, base included.
        length: `max_position_embeddings`.
    """

    what: str
    entry: dict[str, Any]
    length: int


def encodings(wanted: Wanted) -> Iterator[Encoding]:
    """All ways that there are for a rotary embedding at its target length."""
    yield _as_it_is(wanted)
    if wanted.endless:
        return
    yield from _larger_base(wanted)
    yield from _all_low(wanted)
    yield from _lists(wanted)


def _as_it_is(wanted: Wanted) -> Encoding:
    entry = wanted.entry if wanted.latent else with_magnitude(wanted.entry)
    length = int(wanted.config.get("max_position_embeddings") or wanted.trained_length)
    if entry["rope_type"] not in ("linear", "dynamic"):  # which engines multiply by the factor
        length = max(length, wanted.target_length)
    return Encoding(in_words(entry), entry, length)


def in_words(entry: dict[str, Any]) -> str:
    """How a rope entry says what it says."""
    kind = entry["rope_type"]
    if kind == "default":
        return f"`rope_theta` {entry['rope_theta']:.10g}"
    if kind != "longrope" or entry["short_factor"] != entry["long_factor"]:
        return f"the `{kind}` type"
    plain = entry.get("attention_factor", 1) == 1
    return "a `longrope` list" if plain else "a `longrope` list with its temperature"


def _larger_base(wanted: Wanted) -> Iterator[Encoding]:
    base = base_of(wanted)
    if base is not None and wanted.attention_scale == 1:
        entry = _entry(wanted, {"rope_type": "default"}) | {"rope_theta": base}
        yield Encoding(in_words(entry), entry, wanted.target_length)


def _all_low(wanted: Wanted) -> Iterator[Encoding]:
    """`llama3` with every wavelength in the band that is divided, which is linear scaling."""
    factor = constant(wanted.divisors)
    if factor is None or factor <= 1 or wanted.attention_scale != 1:
        return
    length = wanted.trained_length
    bounds = {"low_freq_factor": float(length), "high_freq_factor": 4.0 * length}
    entry = {"rope_type": "llama3", "factor": factor, **bounds}
    entry = _entry(wanted, {**entry, "original_max_position_embeddings": length})
    yield Encoding("the `llama3` type with all pairs divided", entry, wanted.target_length)


def _lists(wanted: Wanted) -> Iterator[Encoding]:
    """`longrope` with two equal lists, and the temperature in all the ways it is read."""
    scale, target = wanted.attention_scale, wanted.target_length
    plain = carrier(wanted.divisors.tolist(), scale, target)
    if scale == 1:
        yield Encoding(in_words(plain), _entry(wanted, plain), target)
        return
    said = with_magnitude({**plain, "original_max_position_embeddings": wanted.trained_length})
    yield Encoding(in_words(said), _entry(wanted, said), target)
    # Engines that work the temperature out from two lengths get the length that gives it.
    length = round(target ** (1 / scale**2))
    if 2 <= length < target:
        derived = {**said, "original_max_position_embeddings": length}
        what = "a `longrope` list and the original length that gives its temperature"
        yield Encoding(what, _entry(wanted, derived), target)


def _entry(wanted: Wanted, entry: dict[str, Any]) -> dict[str, Any]:
    """An entry with what else the wanted one says."""
    return {**entry, **{key: wanted.entry[key] for key in _KEPT if key in wanted.entry}}


def base_of(wanted: Wanted) -> float | None:
    """The base of which the wanted frequencies are the unscaled ones; None if there is none."""
    if wanted.entry["rope_type"] == "default":
        return float(wanted.entry["rope_theta"])
    return power_law(wanted.inv_freq)


def power_law(inv_freq: Tensor) -> float | None:
    """The base of which these are the unscaled frequencies; None if there is none."""
    last = len(inv_freq) - 1
    if last < 1 or float(inv_freq[last]) <= 0:
        return None
    base = math.exp(-math.log(float(inv_freq[last])) * (last + 1) / last)
    exponents = inv_freq.new_tensor(range(last + 1)) / (last + 1)
    same = bool(((inv_freq * base**exponents - 1).abs() < _SAME).all())
    return base if same and base > 1 else None


def constant(divisors: Tensor) -> float | None:
    """The number that all divisors are; None if they differ."""
    first = float(f"{float(divisors[0]):.12g}")
    return first if bool(((divisors / first - 1).abs() < _SAME).all()) else None
