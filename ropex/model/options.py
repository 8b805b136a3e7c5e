"""How a patched model computes, apart from what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints


@dataclass(frozen=True)
class Options:
    """How a patch computes, apart from what.

    Attributes:
        precision: `parity` computes cos and sin in float32, as transformers and engines do;
            `exact` in float64.
        cache: Whether key-value caches hold `rotated` keys, as ever, or `unrotated` ones.
    """

    precision: Literal["parity", "exact"] = "parity"
    cache: Literal["rotated", "unrotated"] = "rotated"

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if getattr(self, name) not in get_args(kind):
                allowed = " or ".join(map(repr, get_args(kind)))
                raise ValueError(f"{name} is {getattr(self, name)!r}, it must be {allowed}")
