"""Measure strategies on one loaded model: passes, their cost, and the tables they fill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import ropex
from ropex.rope import Rope
from ropex.strategies.base import Strategy
from ropex_eval.corpus import Corpus
from ropex_eval.nll import Scorer
from ropex_eval.table import METRICS, NllTable, length_classes


@dataclass(frozen=True)
class Protocol:
    """What is measured; two runs with equal protocols and corpora can be compared.

    Attributes:
        lengths: Tokens of context, BOS included, in ascending order.
        targets: Tokens that local and fixed-target perplexity are taken over.
        metrics: Some of `METRICS`.
    """

    lengths: tuple[int, ...]
    targets: int
    metrics: tuple[str, ...] = METRICS

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 2:
            raise ValueError("lengths must be at least 2: a token needs one before it")
        if not 1 <= self.targets < self.lengths[0]:
            raise ValueError(
                f"targets is {self.targets}, it must be at least 1 and below the shortest length, "
                f"{self.lengths[0]}"
            )
        if unknown := set(self.metrics) - set(METRICS):
            raise ValueError(f"unknown metric {min(unknown)!r}; known: {', '.join(METRICS)}")

    @classmethod
    def of(
        cls, lengths: Sequence[int], targets: int | None = None, metrics: Sequence[str] = METRICS
    ) -> Protocol:
        """A protocol whose targets are 64, or half of a shortest length below 128."""
        ordered = tuple(sorted(set(lengths)))
        if not ordered or ordered[0] < 2:
            raise ValueError("lengths must be at least 2: a token needs one before it")
        if targets is None:
            targets = min(64, max(1, ordered[0] // 2))
        return cls(ordered, targets, tuple(dict.fromkeys(metrics)))

    @property
    def longest(self) -> int:
        """Tokens of a window."""
        return self.lengths[-1]


def passes(strategy: Strategy, rope: Rope, protocol: Protocol) -> list[tuple[str, int]]:
    """The forward passes that one window needs: kind of table and length, longest last."""
    groups = length_classes(strategy, rope, protocol.lengths)
    wanted = [("prefix", group[-1]) for group in groups]
    if "fixed" in protocol.metrics:
        wanted += [("fixed", length) for length in protocol.lengths[:-1]]
    if not {"prefix", "local"} & set(protocol.metrics):
        wanted = [(kind, n) for kind, n in wanted if kind == "fixed" or n == protocol.longest]
    return sorted(wanted, key=lambda item: item[1])


def cost(model: Any, length: int) -> float:
    """Multiply-adds of a pass: linear in the length for the weights, quadratic for attention."""
    config = model.config.get_text_config()
    weights = sum(parameter.numel() for parameter in model.parameters())
    # BLT has neither, but in parts of its own.
    layers, width = (getattr(config, n, 0) for n in ("num_hidden_layers", "hidden_size"))
    attention = 2 * layers * width * length
    return float(length * (weights + attention))


def measure(
    scorer: Scorer,
    corpus: Corpus,
    protocol: Protocol,
    strategy: Strategy,
    *,
    trained_length: int | None = None,
    lift_sliding_window: bool = False,
    advance: Callable[[int], None] = lambda length: None,
) -> NllTable:
    """Fill the table of one strategy, on the model as it is loaded.

    Args:
        scorer: Of the model; it is patched meanwhile, and restored.
        corpus: Windows of `protocol.longest` tokens.
        protocol: What to measure.
        strategy: What to measure it under.
        trained_length: Where the model's config does not say.
        lift_sliding_window: As for `ropex.patch`.
        advance: Called with the length of each pass when it is done.
    """
    tables: dict[str, dict[int, list[torch.Tensor]]] = {"prefix": {}, "fixed": {}}
    with ropex.patch(
        scorer.model,
        strategy,
        trained_length=trained_length,
        lift_sliding_window=lift_sliding_window,
    ) as patch:
        wanted = passes(strategy, patch.rope, protocol)
        for window in corpus.windows:
            for kind, length in wanted:
                if kind == "prefix":
                    row = scorer.nll(corpus.inputs(window, length))
                else:
                    row = scorer.nll(corpus.last_inputs(window, length), protocol.targets)
                tables[kind].setdefault(length, []).append(row)
                advance(length)
    prefix, fixed = (
        {length: torch.stack(rows) for length, rows in tables[kind].items()}
        for kind in ("prefix", "fixed")
    )
    return NllTable(prefix, fixed)
