"""The forward passes that a study needs: the fewest that serve every definition and length.

Everything that starts at the same place is a beginning of the longest text that starts there, so
one causal pass serves every length and every definition (of one length class).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ropex.rope import Rope
from ropex.strategies.base import Strategy
from ropex_eval.scores.definitions import DEFINITIONS, Span, Text
from ropex_eval.scores.protocol import Protocol
from ropex_eval.study.corpus import Corpus

Stretches = tuple[tuple[int, int], ...]
"""Positions of a pass, in ascending order: first, and one past the last, of each stretch."""


@dataclass(frozen=True)
class Pass:
    """A text that is read once, and what of it is scored.

    Attributes:
        excerpt: Index of the excerpt.
        start: First token of the excerpt that is read.
        bos: Whether a BOS is read before it.
        length: Tokens that are read, BOS included.
        at: Tokens that a strategy which depends on the length is held at.
        rows: Positions whose next token is scored.
    """

    excerpt: int
    start: int
    bos: bool
    length: int
    at: int
    rows: Stretches

    def ids(self, corpus: Corpus) -> Tensor:
        """What is read, and the token after it if that is scored, `(length or length + 1,)`."""
        scored = self.rows[-1][1] == self.length
        end = self.start + self.length - self.bos + scored
        ids = corpus.excerpts[self.excerpt].ids[self.start : end]
        return torch.cat([ids.new_tensor([corpus.bos]), ids]) if self.bos else ids


def length_classes(strategy: Strategy, rope: Rope, lengths: Iterable[int]) -> dict[int, int]:
    """Each length, and the longest of those that share its plan.

    Args:
        strategy: Its `length_class` decides.
        rope: What the model was trained with.
        lengths: Lengths of passes.

    Raises:
        ValueError: The model would scale by length in its own way, which depends on what it saw
            before, so that no pass could be repeated.
    """
    if rope.by_length and rope.lists is None and strategy.native(rope) == {}:
        raise ValueError(
            f"{strategy}: the model's own config scales by length (rope_type dynamic), and its "
            "results depend on earlier texts; take that out of the config and measure the strategy "
            "dynamic, which computes what a fresh model would"
        )
    shared = {length: shared_by(strategy, rope, length) for length in sorted(set(lengths))}
    longest = {group: length for length, group in shared.items()}
    return {length: longest[group] for length, group in shared.items()}


def shared_by(strategy: Strategy, rope: Rope, length: int) -> tuple[int, int | None]:
    """The first and the last of the lengths that have the plan of one; None if there is no last."""
    bounds = strategy.shared_up_to(rope)
    first = 1 + max((bound for bound in bounds if bound < length), default=0)
    last = min((bound for bound in bounds if bound >= length), default=None)
    if last is None and strategy.class_on(rope) == "per_length":
        return length, length
    return first, last


def passes(corpus: Corpus, protocol: Protocol, strategy: Strategy, rope: Rope) -> list[Pass]:
    """Every pass that a strategy needs, excerpt by excerpt, the shorter ones first."""
    spans = wanted(corpus.text, protocol)
    classes = length_classes(strategy, rope, [span.length for span in spans])
    groups: dict[tuple[int, bool, int], list[Span]] = {}
    for span in spans:
        groups.setdefault((span.start, span.bos, classes[span.length]), []).append(span)
    ordered = sorted(groups.items(), key=lambda item: (max(s.length for s in item[1]), item[0]))
    return [
        Pass(excerpt, start, bos, max(s.length for s in group), at, _rows(group))
        for excerpt in range(len(corpus.excerpts))
        for (start, bos, at), group in ordered
    ]


def wanted(text: Text, protocol: Protocol) -> list[Span]:
    """Every stretch of the table that the definitions of a protocol read, in one excerpt.

    Raises:
        ValueError: A definition scores no token of such an excerpt.
    """
    found: dict[Span, None] = {}
    for name in protocol.definitions:
        for length in protocol.lengths:
            spans = DEFINITIONS[name].spans(text, length, protocol.settings)
            if not any(span.first < span.last for span in spans):
                raise ValueError(
                    f"{name} has nothing to score at {length} tokens in excerpts of "
                    f"{protocol.excerpt}; give longer ones (--excerpt) or other --lengths"
                )
            found |= dict.fromkeys(spans)
    return list(found)


def rows(span: Span) -> tuple[int, int]:
    """The positions of a pass from `span.start` that predict the tokens of a span."""
    shift = span.start + (not span.bos)
    return span.first - shift, span.last - shift


def _rows(spans: Sequence[Span]) -> Stretches:
    """The union of what the spans score."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(rows(span) for span in spans):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)


def batches(todo: Sequence[Pass], tokens: int) -> list[list[Pass]]:
    """Passes that run side by side: alike in all but the text, and not too many tokens together.

    Args:
        todo: The passes of one strategy.
        tokens: At most so many, unless one pass alone has more.
    """
    alike: dict[tuple[int, int, bool, Stretches], list[Pass]] = {}
    for each in todo:
        alike.setdefault((each.length, each.at, each.bos, each.rows), []).append(each)
    found = []
    for (length, *_), group in alike.items():
        size = max(1, tokens // length)
        found += [group[i : i + size] for i in range(0, len(group), size)]
    return found
