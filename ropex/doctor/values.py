"""Numbers of a config that anybody may have written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

MAX = "max_position_embeddings"
ORIGINAL = "original_max_position_embeddings"
TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")

_LARGEST = 1e15  # beyond any length, base or factor
_SPELLED = re.compile(r"\s*\d{1,15}(\.\d{1,20})?([eE][+-]?\d{1,2})?\s*", re.ASCII)


def number(value: Any) -> float | None:
    """The value as a float; None if it is no number, or not one that a config can mean."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) <= _LARGEST else None  # False for NaN as well


def positive(raw: Mapping[str, Any], key: str) -> float | None:
    """A number above 0 under `key`; else None."""
    found = number(raw.get(key))
    return found if found is not None and found > 0 else None


def spelled(value: Any) -> float | None:
    """The number that a text spells; else None."""
    return number(float(value)) if isinstance(value, str) and _SPELLED.fullmatch(value) else None


def whole(value: float) -> int | float:
    """An int where that says the same."""
    return int(value) if value.is_integer() else value


def close(one: float, other: float, share: float = 1e-6) -> bool:
    """Whether two numbers differ by no more than rounding."""
    return math.isclose(one, other, rel_tol=share)


def yarn_scale(factor: float, mscale: float = 1.0) -> float:
    """What YaRN multiplies cos and sin by; its paper for `mscale` 1, DeepSeek for others."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0
