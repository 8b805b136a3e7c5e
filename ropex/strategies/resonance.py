"""Resonance RoPE: wavelengths in whole tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from ropex.rope import Plan, Rope
from ropex.strategies.base import LARGEST, Length, Strategy, require


@dataclass(frozen=True)
class Resonance(Strategy):
    """Round wavelengths to whole tokens: pairs that made a full turn see only trained angles.

    Wang et al., "Resonance RoPE: Improving Context Length Generalization of Large Language Models"
    (arXiv:2403.00071). Put it after a scaling, as in `yarn:4+resonance`, the authors' best.
    Later strategies must not change the frequencies, or the wavelengths would not stay whole. The
    fastest pair changes by 4.5 % (from 2 pi to 6 tokens). `precision="exact"` keeps far positions
    in phase as well.

    Args:
        min_wavelength: Leave pairs with a shorter wavelength alone (in tokens); rounding them harms
            a model that is not fine-tuned.
    """

    name: ClassVar[str] = "resonance"
    paper: ClassVar[str] = "https://arxiv.org/abs/2403.00071"
    comes_last: ClassVar[bool] = True

    min_wavelength: float = 0.0

    def __post_init__(self) -> None:
        fits = 0 <= self.min_wavelength <= LARGEST
        require(self, "min_wavelength", fits, f"at least 0 and at most {LARGEST:g}")

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Replace each wavelength by the nearest whole one; pairs that do not turn stay so."""
        wavelengths = 2 * math.pi / plan.inv_freq
        rounded = 2 * math.pi / wavelengths.round()
        changed = (plan.inv_freq > 0) & (wavelengths >= self.min_wavelength)
        return replace(plan, inv_freq=rounded.where(changed, plan.inv_freq))
