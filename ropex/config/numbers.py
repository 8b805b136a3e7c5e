"""The frequencies and temperatures that a config entry stands for, in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ropex.config.entry import Entry
from ropex.rope import Rope
from ropex.sizes import LONGEST
from ropex.strategies.attention_factors import longrope_temperature, yarn_quotient, yarn_temperature
from ropex.strategies.base import Strategy
from ropex.strategies.dynamic import Dynamic
from ropex.strategies.linear import Linear
from ropex.strategies.llama3 import Llama3
from ropex.strategies.none import Unscaled
from ropex.strategies.yarn import band, linear_ramp

KNOWN = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
"""Types whose formula stands here, which are those of transformers 4 as well."""


def original(entry: dict[str, Any], length: int) -> int:
    """The length before scaling, as the entry says it; `length` if it does not.

    Raises:
        ValueError: That is no length.
    """
    by_config = Entry.alone(entry).kind == "dynamic"  # which has no other key for it
    stated = None if by_config else entry.get("original_max_position_embeddings")
    return _checked(int(stated or length))


def _checked(length: int) -> int:
    if not 2 <= length <= LONGEST:
        raise ValueError(
            f"config.json has a length of {length:.4g} tokens, it must be from 2 to {LONGEST}; "
            "correct it there"
        )
    return length


def frequencies(entry: dict[str, Any], dim: int, trained: int, length: int) -> Tensor:
    """What transformers computes of an entry for a text, `(dim // 2,)`, float64.

    Args:
        entry: Of a type in `KNOWN`.
        dim: Rotated dimensions of a head.
        trained: Tokens that the model was trained at, where the entry does not say.
        length: Tokens of the text.

    Raises:
        ValueError: One of the lengths is below 2.
    """
    _checked(length)
    found = Entry.alone(entry, trained)
    rope = Rope.standard(dim, float(entry["rope_theta"]), original(entry, trained))
    if found.kind == "longrope":
        name = "long_factor" if length > rope.trained_length else "short_factor"
        return rope.inv_freq / torch.tensor(entry[name], dtype=torch.float64)
    if found.kind == "yarn":  # not by the strategy, which takes no ramp without width (Kimi K2)
        share = linear_ramp(rope, *band(rope, *found.betas, found.truncate, rope.trained_length))
        return rope.inv_freq * (share / (found.stretch or 1.0) + (1 - share))
    return _strategy(found).plan(rope, length).inv_freq


def _strategy(entry: Entry) -> Strategy:
    """The strategy whose native entry this is."""
    factor = entry.factor or 1.0
    if entry.kind == "linear":
        return Linear(factor)
    if entry.kind == "dynamic":
        return Dynamic(factor=factor)
    if entry.kind == "llama3":
        bounds = entry.raw["low_freq_factor"], entry.raw["high_freq_factor"]
        return Llama3(factor, alpha=bounds[0], beta=bounds[1])
    return Unscaled()


def usual(entry: dict[str, Any]) -> float:
    """YaRN's temperature by the factor alone."""
    return yarn_temperature(float(entry.get("factor") or 1))


def quotient(entry: dict[str, Any]) -> float:
    """The temperature of `mscale` over that of `mscale_all_dim`, by default 1 and 0."""
    pair = float(entry.get("mscale", 1.0)), float(entry.get("mscale_all_dim", 0.0))
    return yarn_quotient(float(entry.get("factor") or 1), *pair)


def root(stretch: float, original: int) -> float:
    """LongRoPE's temperature."""
    return longrope_temperature(stretch, original)
