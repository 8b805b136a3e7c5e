"""What a strategy makes of each table of a model; nothing is changed yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ropex.model.sites.base import Site
from ropex.model.tables import Native, table_key
from ropex.model.window import windowed
from ropex.rope import Plan, Rope
from ropex.strategies.base import LARGEST, LARGEST_FACTOR, LARGEST_SCALE, Strategy


@dataclass(frozen=True, eq=False)
class Planned:
    """One table of a model, and what a strategy makes of it.

    Attributes:
        site: Where it is.
        rope: What it was trained with.
        plan: The float64 plan; where it depends on the length, the one at the trained length.
        kept: Whether it is left alone, as its layers have a window within the trained length.
    """

    site: Site
    rope: Rope
    plan: Plan
    kept: bool

    @property
    def changes(self) -> bool:
        """Whether the frequencies or the attention scale change."""
        return Plan(self.plan.inv_freq, self.plan.attention_scale).changes(self.rope)

    def describe(self, by_length: bool) -> str:
        """What is changed, in words."""
        if self.kept:
            return "kept, as its layers have a window within the trained length"
        pairs, changed = self.rope.dim // 2, int((self.plan.inv_freq != self.rope.inv_freq).sum())
        parts = [
            f"{pairs} pairs, by length" if by_length else f"{changed} of {pairs} pairs changed"
        ]
        if self.plan.attention_scale != self.rope.attention_scale:
            parts.append(f"cos and sin x {self.plan.attention_scale:.4f}")
        if self.site.latent and self.plan.softmax_scale != 1:
            parts.append(f"logits x {self.plan.softmax_scale:.4f}")
        return ", ".join(parts)


def plan_sites(
    found: tuple[Site, ...], strategy: Strategy, trained_length: int | None
) -> tuple[Planned, ...]:
    """The plan of each table; those of layers with a window are kept if there are others.

    Raises:
        ValueError: The strategy does not fit the model.
    """
    local = [windowed(site, trained_length) for site in found]
    planned = []
    for site, kept in zip(found, local, strict=True):
        rope = site.rope(trained_length)
        keeps = kept and not all(local)
        plan = Plan.unchanged(rope) if keeps else strategy.plan(rope)
        _require_held(strategy, rope, plan)
        planned.append(Planned(site, rope, plan, keeps))
    return tuple(planned)


def _require_held(strategy: Strategy, rope: Rope, plan: Plan) -> None:
    """Raise a ValueError unless float32 and bfloat16 hold what is planned.

    Each strategy bounds its own numbers; several of them, or an odd model, may still pass these.
    """
    fastest, scale = float(plan.inv_freq.max()), float(plan.attention_scale)
    if not strategy.scale(rope) <= LARGEST_FACTOR:
        problem = f"it reaches {strategy.scale(rope):.3g} times the trained length"
    elif not fastest <= LARGEST:
        problem = f"its fastest pair turns by {fastest:.3g} radians a token"
    elif not 1 / LARGEST_SCALE**2 <= scale <= LARGEST_SCALE**2:
        problem = f"it multiplies cos and sin by {scale:.3g}"
    else:
        return
    raise ValueError(f"{strategy}: {problem}, which no table holds; state smaller numbers")


def realised(
    planned: tuple[Planned, ...], strategy: Strategy
) -> tuple[tuple[Planned, Native], ...]:
    """Each table that is to change, and how it is realised.

    Tables that are the same in several modules are worked out once.
    """
    known: dict[Any, Native] = {}
    made = []
    for each in planned:
        if not each.kept:
            site = each.site
            key = (
                id(site.config),
                type(site.module),
                site.layer_type,
                table_key(each.rope.inv_freq),
            )
            if key not in known:
                known[key] = site.realise(strategy, each.rope)
            made.append((each, known[key]))
    return tuple(made)


def several_tables(planned: tuple[Planned, ...]) -> bool:
    """Whether layers of the model rotate differently."""
    return len({(each.site.layer_type, table_key(each.rope.inv_freq)) for each in planned}) > 1
