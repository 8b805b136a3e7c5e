"""LongPPL: perplexity of the tokens that a long context helps with (Fang et al., 2410.23771).

A token is a key token if an evaluator finds it much more probable after the whole text than after
the last few thousand tokens alone, and probable enough. LongPPL goes with downstream scores, which
the perplexity of all tokens does not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ropex_eval.scores.definitions import Settings, short_spans, whole
from ropex_eval.study.table import Table

GAIN = 2.0
"""Nats that the long context must add to the log-probability (alpha)."""

LEAST = -2.0
"""The log-probability that a key token must have after it (beta)."""


def key_tokens(evaluator: Table, excerpt: int, length: int, settings: Settings) -> Tensor:
    """Which tokens of the prefix are key tokens, as booleans from its first scored one on."""
    text = evaluator.corpus.text
    long = -evaluator.nll(excerpt, whole(0, length, text.bos))
    spans = short_spans(text, length, settings)
    short = -torch.cat([evaluator.nll(excerpt, span) for span in spans])
    late = long[len(long) - len(short) :]
    early = torch.zeros(len(long) - len(short), dtype=torch.bool)
    return torch.cat([early, (late - short > GAIN) & (late > LEAST)])
