"""A strategy that depends on the length, held at one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ropex.rope import Plan, Rope
from ropex.strategies.base import Length, Strategy


@dataclass(frozen=True)
class Frozen(Strategy):
    """What a strategy makes of sequences of one length, for sequences of any.

    So a text that is read in pieces, or in a batch with others, is rotated as if it were read at
    once and alone.

    Args:
        strategy: The strategy; its text form is kept.
        at: Tokens of the sequences that it is held at.
    """

    strategy: Strategy
    at: int

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """The plan for sequences of `at` tokens."""
        return self.strategy.apply(plan, rope, self.at)

    def plan(self, rope: Rope, length: Length | None = None) -> Plan:
        """The plan for sequences of `at` tokens, whatever the length."""
        return self.strategy.plan(rope, self.at)

    def target_length(self, rope: Rope) -> int:
        """That of the strategy."""
        return self.strategy.target_length(rope)

    def native(self, rope: Rope) -> dict[str, Any] | None:
        """That of the strategy where it is static; else transformers has no such type."""
        return self.strategy.native(rope) if self.strategy.class_on(rope) == "static" else None

    def __str__(self) -> str:
        return str(self.strategy)
