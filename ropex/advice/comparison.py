"""What strategies change in the rotary embedding of one model, pair by pair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ropex.advice.bounds import critical_dimension, critical_pair, inside, turns
from ropex.patching.handle import Patch
from ropex.rope import Rope


@dataclass(frozen=True)
class Effect:
    """What one strategy changes, at one length.

    Attributes:
        strategy: Its text form.
        length_class: Which lengths share its frequencies; see `ropex.strategies.base`.
        target_length: Tokens that it is meant to reach.
        at_length: Tokens at which the rest is shown.
        attention_scale: Factor of cos and sin.
        query_scale: Factor of each query as a formula; None if queries stay.
        stretch: Old frequency over new, of each pair; None where a pair does not turn.
        wavelengths: In tokens, of each pair; None where a pair does not turn.
        stopped: Pairs that turned before and no longer do.
        inside: Whether each pair sees only angles that it saw in training.
        saved: Whether a config can hold it.
    """

    strategy: str
    length_class: str
    target_length: int
    at_length: int
    attention_scale: float
    query_scale: str | None
    stretch: tuple[float | None, ...]
    wavelengths: tuple[float | None, ...]
    stopped: int
    inside: tuple[bool, ...]
    saved: bool

    @classmethod
    def of(cls, patch: Patch, length: int | None = None) -> Effect:
        """What a patch changes at its target length.

        Args:
            patch: On any model, with or without weights.
            length: Tokens for a strategy that goes by the length; by default its target, or four
                times the trained length.
        """
        rope, strategy = patch.rope, patch.strategy
        shown = max(patch.target_length, rope.trained_length)
        if patch.length_class != "static":
            beyond = shown if shown > rope.trained_length else 4 * rope.trained_length
            shown = length or beyond
        plan = strategy.plan(rope, shown)
        pairs = list(zip(rope.inv_freq.tolist(), plan.inv_freq.tolist(), strict=True))
        return cls(
            strategy=str(strategy),
            length_class=patch.length_class,
            target_length=patch.target_length,
            at_length=shown,
            attention_scale=float(plan.attention_scale),
            query_scale=None if plan.query_scale is None else str(plan.query_scale),
            stretch=tuple(old / new if old and new else None for old, new in pairs),
            wavelengths=tuple(_wavelength(new) for _, new in pairs),
            stopped=sum(bool(old) and not new for old, new in pairs),
            inside=tuple(inside(rope, plan, shown).tolist()),
            saved=patch.in_config,
        )


@dataclass(frozen=True)
class Comparison:
    """A model's rotary embedding, and strategies side by side.

    Attributes:
        model: What the user calls it.
        model_type: Of its config.
        trained_length: Tokens that it was trained at.
        rope_theta: Base of the frequencies.
        rotary_dim: Rotated dimensions.
        critical_pair: The last pair that makes a full turn in training; None if none does.
        critical_dimension: Dimensions up to and with that pair.
        wavelengths: In tokens, of each pair; None where a pair does not turn.
        turns: Of each pair over the trained length.
        strategies: What each strategy changes.
    """

    model: str
    model_type: str
    trained_length: int
    rope_theta: float
    rotary_dim: int
    critical_pair: int | None
    critical_dimension: int
    wavelengths: tuple[float | None, ...]
    turns: tuple[float, ...]
    strategies: tuple[Effect, ...]

    @classmethod
    def of(cls, model: str, model_type: str, rope: Rope, effects: Sequence[Effect]) -> Comparison:
        """Strategies on one rotary embedding."""
        return cls(
            model,
            model_type,
            trained_length=rope.trained_length,
            rope_theta=rope.base,
            rotary_dim=rope.dim,
            critical_pair=critical_pair(rope),
            critical_dimension=critical_dimension(rope),
            wavelengths=tuple(_wavelength(value) for value in rope.inv_freq.tolist()),
            turns=tuple(turns(rope).tolist()),
            strategies=tuple(effects),
        )


def _wavelength(inv_freq: float) -> float | None:
    return 2 * math.pi / inv_freq if inv_freq else None
