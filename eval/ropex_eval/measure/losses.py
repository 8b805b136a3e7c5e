"""Negative log-likelihood of tokens, without ever holding all logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ropex.model.head import Finish
from ropex.model.head import close as close
from ropex.model.head import finishes as _finishes
from ropex.model.probe import probe_size
from ropex_eval.measure.feed_forward import ROWS, feed_forward, in_rows

# Logits of one chunk of rows, in the model's dtype, in float32 and as probabilities.
BYTES_PER_LOGIT = 10
ROWS_BYTES = 32 * 2**20
_PROBE = 32


class Scorer:
    """Scores tokens under one loaded model, whatever strategy it is patched with.

    The decoder runs once; the output embedding and the loss run over chunks of its rows, so that
    memory does not grow with length times vocabulary. That these are all that makes a logit, with a
    soft cap or a scale that the config names, is found by comparing; if it is not, the model's own
    forward is used.

    Args:
        model: A causal language model of transformers, in evaluation mode.

    Attributes:
        head_alone: Whether the output embedding, capped or scaled, is all that follows the decoder.
        feed_forward: Modules that may read a few rows at a time.
        chunkable: Whether the model reads a text in pieces, through its cache, as it does at once.
        processes: How many processes share a text.
    """

    processes = 1

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = model.get_input_embeddings().weight.device
        self.head = model.get_output_embeddings()
        base = model.base_model  # the model itself in some families (Llama 4)
        self.decoder = model.get_decoder() if base is model else base
        self._finish = self._found_finish()
        self.head_alone = self._finish is not None
        self.feed_forward = feed_forward(model)
        self.chunkable = self._chunks_are_exact()

    @torch.no_grad()
    def nll(
        self, ids: Tensor, goals: Tensor, rows: Sequence[tuple[int, int]], chunk: int | None = None
    ) -> Tensor:
        """Negative log-likelihood, in nats, of the tokens that follow.

        Args:
            ids: What is read, `(batch, length)`.
            goals: The token after each, `(batch, length)`; those that are not scored do not matter.
            rows: Positions whose next token is scored, as stretches in ascending order.
            chunk: Tokens that are read at a time, through the model's key-value cache; all at once
                if None.

        Returns:
            `(batch, scored)`, float32, on the CPU.
        """
        ids, goals = ids.to(self.device), goals.to(self.device)
        scored = []
        for begin, states in self._read(ids, chunk):
            for first, last in within(rows, begin, states.shape[1]):
                part = states[:, first - begin : last - begin]
                scored.append(self._score(part, goals[:, first:last].to(part.device)))
        return torch.cat(scored, dim=1).cpu()

    def _read(self, ids: Tensor, chunk: int | None) -> Iterator[tuple[int, Tensor]]:
        """Hidden states, or logits where the head is more than a matrix, piece by piece."""
        run = self.decoder if self.head_alone else self.model
        if chunk is None or chunk >= ids.shape[1]:
            long = ids.shape[1] > ROWS
            with in_rows(self.feed_forward) if long else nullcontext():
                states = run(ids, use_cache=False)[0]
            yield 0, states
            return
        cache: Any = None
        for begin in range(0, ids.shape[1], chunk):
            output = run(ids[:, begin : begin + chunk], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            yield begin, output[0]

    def _score(self, states: Tensor, goals: Tensor) -> Tensor:
        """NLL of `goals`, `(batch, rows)`, from hidden states or logits, a few rows at a time."""
        flat, wanted = states.flatten(0, 1), goals.flatten()
        if not self.head_alone:
            return nll_of(flat, wanted).view_as(goals)
        size = self._rows(*flat.shape)
        chunks = zip(torch.split(flat, size), torch.split(wanted, size), strict=True)
        return torch.cat([nll_of(self._logits(part), goal) for part, goal in chunks]).view_as(goals)

    def _logits(self, states: Tensor) -> Tensor:
        assert self._finish is not None  # head_alone
        return self._finish(self.head(states.to(self.head.weight.device)))

    def _rows(self, length: int, width: int) -> int:
        """Rows of logits at a time: what fits the budget, or takes no more than hidden states."""
        vocabulary: int = self.head.weight.shape[0]
        budget = ROWS_BYTES // (BYTES_PER_LOGIT * vocabulary)
        return max(1, budget, length * width // (BYTES_PER_LOGIT * vocabulary))

    @torch.no_grad()
    def _found_finish(self) -> Finish | None:
        """What makes the model's logits of what the output embedding returns; None if unknown."""
        if self.head is None:
            return None
        ids = self.probe()
        logits = self.model(ids, use_cache=False).logits
        hidden: Tensor = self.decoder(ids, use_cache=False)[0]
        if hidden.shape[-1] != self.head.weight.shape[1]:
            return None
        raw = self.head(hidden.to(self.head.weight.device)).to(logits.device)
        known = _finishes(self.model.config.get_text_config())
        return next((f for f in known if close(f(raw), logits)), None)

    @torch.no_grad()
    def _chunks_are_exact(self) -> bool:
        ids = self.probe()
        try:
            whole = torch.cat([states for _, states in self._read(ids, None)], dim=1)
            parts = torch.cat(
                [states for _, states in self._read(ids, max(1, ids.shape[1] // 4))], dim=1
            )
        except Exception:  # of its cache, or without one: code of models fails in many ways
            return False
        return close(parts, whole)

    def probe(self) -> Tensor:
        """Tokens to compare on, `(1, tokens)`: few, but beyond windows, if these are not long."""
        config, vocabulary = self.model.config.get_text_config(), self.model.get_input_embeddings()
        most = getattr(config, "max_position_embeddings", None) or _PROBE
        rows: int = vocabulary.weight.shape[0]
        size = max(min(_PROBE, rows), min(probe_size(config), most))
        return torch.arange(size, device=self.device)[None] % rows


def nll_of(logits: Tensor, goals: Tensor) -> Tensor:
    """Of each goal by the logits that predict it, in float32 at least."""
    return functional.cross_entropy(logits.float(), goals, reduction="none")


def within(rows: Sequence[tuple[int, int]], begin: int, length: int) -> Iterator[tuple[int, int]]:
    """The parts of stretches that lie in `length` positions from `begin` on."""
    for first, last in rows:
        first, last = max(first, begin), min(last, begin + length)
        if first < last:
            yield first, last
