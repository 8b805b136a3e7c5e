"""Several strategies, one after the other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ropex.rope import Plan, Rope
from ropex.strategies.base import Length, LengthClass, PerLength, Scaled, Strategy


@dataclass(frozen=True)
class Composed(Strategy):
    """Strategies applied left to right; the text form joins theirs with `+`.

    Args:
        parts: Two strategies or more.
    """

    parts: tuple[Strategy, ...]

    def __post_init__(self) -> None:
        stated = [p for p in self.parts if isinstance(p, (Scaled, PerLength)) and p.length]
        growing = [p for p in self.parts if p.length_class == "per_length"]
        if len(stated) > 1 or len(growing) > 1:
            raise ValueError(
                f"{self}: each part starts from the result of the one before, so two target "
                "lengths do not combine; give factors"
            )
        for place, part in enumerate(self.parts):
            later = [p for p in self.parts[place + 1 :] if p.changes_frequencies]
            if part.comes_last and later:
                raise ValueError(
                    f"{self}: {later[0].name} would change the frequencies that {part.name} "
                    f"leaves; put {part.name} last"
                )

    def apply(self, plan: Plan, rope: Rope, length: Length) -> Plan:
        """Give each strategy the plan of the one before it."""
        for part in self.parts:
            plan = part.apply(plan, rope, length)
        return plan

    @property
    def name(self) -> str:  # type: ignore[override]  # of an instance, not of the class
        """The names of the parts, joined with `+`."""
        return "+".join(part.name for part in self.parts)

    @property
    def paper(self) -> str:  # type: ignore[override]
        """The papers of the parts, joined with a space."""
        return " ".join(part.paper for part in self.parts)

    def fixed(self, length: int) -> Composed:
        """The same with each part fixed."""
        return Composed(tuple(part.fixed(length) for part in self.parts))

    @property
    def length_class(self) -> LengthClass:
        """The most demanding class of the parts."""
        classes: tuple[LengthClass, ...] = ("static", "two", "per_length")
        return max((part.length_class for part in self.parts), key=classes.index)

    @property
    def keeps_lists(self) -> bool:
        """Whether all parts do."""
        return all(part.keeps_lists for part in self.parts)

    def scale(self, rope: Rope) -> float:
        """The product of the parts' scales."""
        return math.prod(part.scale(rope) for part in self.parts)

    def native(self, rope: Rope) -> dict[str, Any] | None:
        """The entry of the only part that changes frequencies, if it is the only one."""
        entries = [entry for part in self.parts if (entry := part.native(rope)) != {}]
        return {} if not entries else entries[0] if len(entries) == 1 else None

    def __str__(self) -> str:
        """The text forms of the parts, joined."""
        return "+".join(map(str, self.parts))
