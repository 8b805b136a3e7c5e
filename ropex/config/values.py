"""Numbers of a config that anybody may have written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ropex.config.families import BASES, SHARES
from ropex.sizes import LARGEST, LONGEST

MAX = "max_position_embeddings"
ORIGINAL = "original_max_position_embeddings"
KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", "attention_factor", "attn_factor", "beta_fast", "beta_slow", "mscale",
        "mscale_all_dim", "truncate"),
    "longrope": ("factor", "attention_factor", "short_factor", "long_factor", "short_mscale",
        "long_mscale"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "proportional": (),
}  # fmt: skip
"""Parameters of each rope type."""
PARAMETERS = (*dict.fromkeys(key for keys in KEYS.values() for key in keys), "alpha")
"""Those of all types, HunYuan's included."""

_SPELLED = re.compile(r"\s*\d{1,15}(\.\d{1,20})?([eE][+-]?\d{1,2})?\s*", re.ASCII)
_MOST = {**dict.fromkeys(SHARES, 1), **dict.fromkeys((MAX, ORIGINAL), LONGEST)}
_ANY_SIGN = ("mscale", "mscale_all_dim", "alpha")


def number(value: Any) -> float | None:
    """The value as a float; None if it is not a number, or too large to be meant."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) <= LARGEST else None  # False for NaN as well


def positive(raw: Mapping[str, Any], key: str) -> float | None:
    """A number above 0 under `key`; else None."""
    found = number(raw.get(key))
    return found if found is not None and found > 0 else None


def allowed(key: str, value: Any) -> bool:
    """Whether a value is a number that `key` can have."""
    found = number(value)
    if found is None or key in _ANY_SIGN:
        return found is not None
    return (1 if key in BASES else 0) < found <= _MOST.get(key, LARGEST)


def range_of(key: str) -> str:
    """Which numbers a key can have, in words."""
    if key in _ANY_SIGN:
        return "number"
    least = "number above 1" if key in BASES else "number above 0"
    return f"{least} and at most {_MOST[key]}" if key in _MOST else least


def spelled(value: Any) -> float | None:
    """The number that a text spells; else None."""
    return number(float(value)) if isinstance(value, str) and _SPELLED.fullmatch(value) else None


def whole(value: float) -> int | float:
    """An int where that says the same."""
    return int(value) if value.is_integer() else value


def close(one: float, other: float, share: float = 1e-6) -> bool:
    """Whether two numbers differ by no more than rounding."""
    return math.isclose(one, other, rel_tol=share)
