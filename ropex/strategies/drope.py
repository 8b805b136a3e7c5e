"""DroPE: no pair turns, and the model learns to read without positions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from ropex.rope import Plan, Rope
from ropex.strategies.base import Length, Strategy, require_length, require_longer


@dataclass(frozen=True)
class Drope(Strategy):
    """Stop every pair: cos is 1 and sin is 0, and only the causal mask conveys order.

    Gelberg et al., "Extending the Context of Pretrained LLMs by Dropping Their Positional
    Embeddings" (arXiv:2512.12167), and the authors' code. Useless without further training: drop
    the positions, then continue training at the original length (the authors: Llama 2 7B for 5,000
    steps of 512 sequences of 4k tokens, at a learning rate of 1e-4). The model then reads beyond
    that length. If attention spreads too thin there, add `logn`, or `temperature` for one scale of
    all logits, which the authors' code can set as well: `drope+temperature:1.1`.

    Args:
        length: Target length in tokens; by default the trained length.
    """

    name: ClassVar[str] = "drope"
    paper: ClassVar[str] = "https://arxiv.org/abs/2512.12167"

    length: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        require_length(self)

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Set all frequencies to 0.

        Raises:
            ValueError: The stated length is shorter than the trained length.
        """
        self.scale(rope)
        return replace(plan, inv_freq=plan.inv_freq.new_zeros(plan.inv_freq.shape))

    def scale(self, rope: Rope) -> float:
        """The stated length over the trained length; 1 if none is stated."""
        if self.length is None:
            return 1.0
        require_longer(self, self.length, rope)
        return self.length / rope.trained_length
