"""What YaRN and LongRoPE multiply cos and sin by; without torch, which the doctor does not load."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

_SLOPE = 0.1
_Number = TypeVar("_Number", float, "Tensor")


def yarn_temperature(factor: _Number, mscale: float = 1.0) -> _Number:
    """YaRN's temperature, `0.1 mscale ln(factor) + 1`; 1 where nothing is stretched.

    Args:
        factor: Target length over trained length; a 0-dimensional tensor in a compiled forward.
        mscale: 1 in the paper (equation 22); DeepSeek has others.
    """
    return _SLOPE * mscale * _log(factor) + 1  # in this order, as transformers has it


def yarn_quotient(factor: float, mscale: float, mscale_all_dim: float) -> float:
    """DeepSeek's factor of cos and sin: the temperature of one `mscale` over that of the other."""
    below = yarn_temperature(factor, mscale_all_dim)
    return yarn_temperature(factor, mscale) / below if below else math.inf


def mscale_of(temperature: float, factor: float) -> float:
    """The `mscale` with which YaRN has this temperature, for a factor above 1."""
    return (temperature - 1) / (_SLOPE * _log(factor))


def _log(factor: _Number) -> _Number:
    return math.log(max(factor, 1.0)) if isinstance(factor, (int, float)) else factor.log()


def longrope_temperature(factor: float, trained: float) -> float:
    """LongRoPE's temperature, `sqrt(1 + ln(factor) / ln(trained))`; 1 if nothing is stretched.

    Args:
        factor: Target length over trained length.
        trained: Tokens, above 1.
    """
    return math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
