"""Which strategies would carry a model to a length, by closed form: nothing is run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

from ropex.advice.bounds import inside, phase_change
from ropex.engines.answer import Export
from ropex.engines.encodings import in_words
from ropex.engines.judge import exports
from ropex.engines.wanted import Wanted
from ropex.errors import UnsupportedModel
from ropex.rope import Plan, Rope
from ropex.sizes import format_size
from ropex.strategies.base import LARGEST_FACTOR, PerLength, Scaled, Strategy
from ropex.strategies.registry import registry

UNTRAINED = {
    "ntk": "https://www.reddit.com/r/LocalLLaMA/comments/14lz7j5/",
    "ntk_fixed": "https://kexue.fm/archives/9706",
    "ntk_mixed": "https://kexue.fm/archives/9706",
    "ntk_by_parts": "arXiv:2309.00071, section 3.2",
    "yarn": "arXiv:2309.00071, section 3.4",
    "mrrope": "arXiv:2601.22181",
    "mrrope_uni": "arXiv:2601.22181",
    "dynamic": "https://www.reddit.com/r/LocalLLaMA/comments/14mrgpr/",
    "dynamic_linear": "https://www.reddit.com/r/LocalLLaMA/comments/14mrgpr/",
    "dynamic_yarn": "arXiv:2309.00071, section 3.3",
    "dynamic_qwen": "https://github.com/QwenLM/Qwen",
}
"""Where results of a method are published on models that were not trained any further."""


@dataclass(frozen=True)
class Candidate:
    """A strategy for a length, and what can be said about it without running the model.

    Attributes:
        strategy: The strategy, with the smallest factor that suffices where it has one.
        outside: Pairs that would see angles which they did not see in training.
        phase: Radians by which the pair that changes most turns over the nearest tokens, within
            the trained length; see `ropex.advice.bounds.phase_change`.
        logits: Factor of attention logits within the trained length.
        written_as: How `ropex patch` writes it into a config, in words.
        engines: What each engine makes of that, in the order of `ropex.engines.ENGINES`.
    """

    strategy: Strategy
    outside: int
    phase: float
    logits: float
    written_as: str
    engines: tuple[Export, ...]

    @property
    def untrained(self) -> str | None:
        """Where results of the method without further training are published; None if unknown."""
        return UNTRAINED.get(self.strategy.name)

    @property
    def rank(self) -> tuple[bool, bool, bool, float, int, str]:
        """The smaller, the better; see `ORDER`."""
        phase = round(self.phase, 9)
        served = sum(each.verdict == "yes" for each in self.engines)
        unproven = self.untrained is None
        return self.outside > 0, not served, unproven, phase, -served, str(self.strategy)


ORDER = (
    "every pair inside, then an engine that computes it, then results published without further "
    "training, then the smaller phase change"
)


def require_beyond(rope: Rope, length: int) -> None:
    """Raise a ValueError if a model needs no strategy to read `length` tokens."""
    if length <= rope.trained_length:
        raise ValueError(
            f"{format_size(length)} tokens are within the {format_size(rope.trained_length)} that "
            "the model was trained at, so there is nothing to do"
        )


def candidates(
    rope: Rope, length: int, wanted_of: Callable[[Strategy], Wanted]
) -> tuple[list[Candidate], dict[str, str]]:
    """Every strategy that is made for a factor or goes by the length, the best first.

    Methods that need further training, or numbers that belong to one model, are not among them.

    Args:
        rope: The rotary embedding of the model.
        length: Tokens to read, more than the trained length.
        wanted_of: What a strategy makes of this model.

    Returns:
        The candidates, and why others of their kind do not fit, by name.
    """
    found, left_out = [], {}
    for name, cls in registry().items():
        if issubclass(cls, (Scaled, PerLength)) and cls.changes_frequencies:
            try:
                found.append(_candidate(_sufficient(cls, rope, length), rope, length, wanted_of))
            except (ValueError, UnsupportedModel) as error:
                left_out[name] = str(error).removeprefix(f"{name}: ")
    return sorted(found, key=lambda each: each.rank), left_out


def _candidate(
    strategy: Strategy, rope: Rope, length: int, wanted_of: Callable[[Strategy], Wanted]
) -> Candidate:
    near, far = (strategy.plan(rope, tokens) for tokens in (rope.trained_length, length))
    wanted = wanted_of(strategy)
    return Candidate(
        strategy,
        outside=int((~inside(rope, far, length)).sum()),
        phase=phase_change(rope, near),
        logits=float(near.attention_scale / rope.attention_scale) ** 2,
        written_as=written_as(wanted),
        engines=tuple(exports(wanted.patched)),
    )


def written_as(wanted: Wanted) -> str:
    """How `ropex patch` writes a strategy into a config, in words."""
    return "nothing, as no config can say it" if wanted.refusal else in_words(wanted.entry)


def _sufficient(cls: type[Strategy], rope: Rope, length: int) -> Strategy:
    """The strategy with the smallest factor that suffices; with the usual one if none does.

    Raises:
        ValueError: It does not fit the model.
    """
    choices = _by_factor(cls, rope, length)
    usual = next(choices)
    if _suffices(usual, rope, length):
        return usual
    return next((each for each in choices if _suffices(each, rope, length)), usual)


def _by_factor(cls: type[Strategy], rope: Rope, length: int) -> Iterator[Strategy]:
    """A strategy for ever larger factors, 1 % apart; one alone if it takes no factor.

    From the usual factor to length over trained length times as much: what needs more than that is
    no method for this model.
    """
    build: Callable[..., Strategy] = cls
    if not any(field.name == "factor" for field in fields(cls)):
        yield build()
        return
    ratio = length / rope.trained_length
    usual = factor = ratio if issubclass(cls, Scaled) else 1.0
    yield build(factor=factor) if factor == round(factor, 2) else build(length=length)
    while (factor := math.ceil(101 * factor) / 100) <= min(usual * ratio, LARGEST_FACTOR):
        yield build(factor=factor)


def _suffices(strategy: Strategy, rope: Rope, length: int) -> bool:
    plan: Plan = strategy.plan(rope, length)
    return bool(inside(rope, plan, length).all())
