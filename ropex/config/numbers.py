"""Frequencies and temperatures that a config entry stands for, in float64."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ropex.rope import Rope
from ropex.sizes import LONGEST
from ropex.strategies.base import Strategy
from ropex.strategies.dynamic import Dynamic
from ropex.strategies.linear import Linear
from ropex.strategies.llama3 import Llama3
from ropex.strategies.none import Unscaled
from ropex.strategies.yarn import Yarn

KNOWN = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
"""Types whose formula stands here, which are those of transformers 4 as well."""


def original(entry: dict[str, Any], length: int) -> int:
    """The length before scaling, as the entry says it; `length` if it does not.

    Raises:
        ValueError: That is no length.
    """
    return _checked(int(entry.get("original_max_position_embeddings") or length))


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
    rope = Rope.standard(dim, float(entry["rope_theta"]), original(entry, trained))
    if entry["rope_type"] == "longrope":
        name = "long_factor" if length > rope.trained_length else "short_factor"
        return rope.inv_freq / torch.tensor(entry[name], dtype=torch.float64)
    return _strategy(entry).plan(rope, length).inv_freq


def _strategy(entry: dict[str, Any]) -> Strategy:
    """The strategy whose native entry this is; its temperature is left out."""
    kind, factor = entry["rope_type"], float(entry.get("factor") or 1)
    if kind == "linear":
        return Linear(factor)
    if kind == "dynamic":
        return Dynamic(factor=factor)
    if kind == "llama3":
        return Llama3(factor, alpha=entry["low_freq_factor"], beta=entry["high_freq_factor"])
    if kind == "yarn":
        betas = float(entry.get("beta_fast") or 32), float(entry.get("beta_slow") or 1)
        return Yarn(factor, None, *betas, entry.get("truncate", True))
    return Unscaled()


def told(entry: dict[str, Any]) -> float | None:
    """The `attention_factor`, if there is one."""
    factor = entry.get("attention_factor")
    return None if factor is None else float(factor)


def usual(entry: dict[str, Any], mscale: float = 1.0) -> float:
    """YaRN's temperature, `0.1 mscale ln(factor) + 1`."""
    factor = float(entry.get("factor") or 1)
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1


def quotient(entry: dict[str, Any]) -> float:
    """The temperature of `mscale` over that of `mscale_all_dim`, by default 1 and 0."""
    over = usual(entry, float(entry.get("mscale_all_dim", 0.0)))
    return usual(entry, float(entry.get("mscale", 1.0))) / over


def root(stretch: float, original: int) -> float:
    """LongRoPE's temperature, `sqrt(1 + ln(stretch) / ln(original))`."""
    return 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(original))
