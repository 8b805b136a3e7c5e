"""What is measured: lengths, definitions and their settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ropex.strategies.registry import strategy
from ropex_eval.scores.definitions import Settings, require_known
from ropex_eval.scores.sealed import read_rows

USUAL = ("local", "fixed", "prefix")


@dataclass(frozen=True)
class Protocol:
    """What is measured on every excerpt, under every strategy.

    Attributes:
        lengths: Tokens of context, BOS included, in ascending order.
        targets: Tokens that local and fixed-target perplexity are taken over.
        definitions: Names of definitions of perplexity.
        stride: Tokens from one sliding window to the next; a quarter of each length if None.
        excerpt: Tokens of an excerpt, BOS included; at least the longest length.
        short: Tokens of the short context of `longppl`; see `Settings`.
        evaluator: The strategy that says which tokens `longppl` is over.
    """

    lengths: tuple[int, ...]
    targets: int
    definitions: tuple[str, ...]
    stride: int | None
    excerpt: int
    short: int | None = None
    evaluator: str = "none"

    @classmethod
    def of(
        cls, lengths: Sequence[int], targets: int | None = None, definitions: Sequence[str] = USUAL,
        stride: int | None = None, excerpt: int | None = None, short: int | None = None,
        evaluator: str = "none",
    ) -> Protocol:  # fmt: skip
        """A protocol with 64 targets, or half of a shortest length below 128, unless given.

        Raises:
            ValueError: These do not go together.
        """
        ordered = tuple(sorted(set(lengths)))
        if not ordered or ordered[0] < 2:
            raise ValueError("lengths must be at least 2: a token needs one before it")
        if targets is None:
            targets = min(64, max(1, ordered[0] // 2))
        names = tuple(dict.fromkeys(definitions))
        require_known(names)
        if not 1 <= targets < ordered[0]:
            raise ValueError(
                f"targets is {targets}, it must be at least 1 and below the shortest length, "
                f"{ordered[0]}"
            )
        if stride is not None and not 1 <= stride < ordered[0] - 1:
            raise ValueError(
                f"stride is {stride}, it must be at least 1 and below the shortest length less "
                f"one, {ordered[0] - 1}, else tokens between windows are never scored"
            )
        if short is not None and short < 1:
            raise ValueError(f"short is {short}, it must be at least 1")
        if excerpt is not None and excerpt < ordered[-1]:
            raise ValueError(
                f"excerpts of {excerpt} tokens do not hold the longest length, {ordered[-1]}"
            )
        evaluator = str(strategy(evaluator))
        return cls(ordered, targets, names, stride, excerpt or ordered[-1], short, evaluator)

    @classmethod
    def read(cls, stored: dict[str, Any], excerpt: int) -> Protocol:
        """What `stored` wrote.

        Raises:
            TypeError: A value is missing, unknown or of another type.
        """
        (protocol,) = read_rows(cls, [{**stored, "excerpt": excerpt}])
        return protocol

    @property
    def stored(self) -> dict[str, Any]:
        """As files hold it: all but the length of excerpts, which stands with the text."""
        return {name: each for name, each in asdict(self).items() if name != "excerpt"}

    @property
    def settings(self) -> Settings:
        """What definitions need to know besides the length."""
        return Settings(self.targets, self.stride, self.short, self.evaluator)


def around(trained: int) -> tuple[int, ...]:
    """The usual lengths: from a quarter of the trained one to four times as much."""
    doubled = (trained // 4, trained // 2, trained, 2 * trained, 4 * trained)
    return tuple(length for length in doubled if length >= 2)
