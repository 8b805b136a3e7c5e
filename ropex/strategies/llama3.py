"""The scaling of Llama 3.1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ropex.strategies.ntk_by_parts import NtkByParts


@dataclass(frozen=True)
class Llama3(NtkByParts):
    """NTK-by-parts with the narrow band of Llama 3.1: one to four turns.

    Grattafiori et al., "The Llama 3 Herd of Models" (arXiv:2407.21783), and the code released
    with Llama 3.1. Llama 4 Scout has both bounds at one turn: a step instead of a ramp.

    Args:
        factor: Target length over trained length, at least 1 (8 in Llama 3.1, 32 in 3.2).
        length: Target length in tokens, instead of `factor`.
        alpha: Pairs that make fewer turns than this are divided by the factor
            (`low_freq_factor`).
        beta: Pairs that make more turns than this keep their frequency (`high_freq_factor`).
    """

    name: ClassVar[str] = "llama3"
    aliases: ClassVar[tuple[str, ...]] = ("llama3.1",)
    paper: ClassVar[str] = "https://arxiv.org/abs/2407.21783"

    beta: float = 4.0
