"""Negative log-likelihood of every token, without ever holding all logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Logits of one chunk of rows, in the model's dtype, in float32 and as probabilities.
_BYTES_PER_LOGIT = 10
_CHUNK_BYTES = 32 * 2**20
_PROBE = 32


class Scorer:
    """Scores tokens under one loaded model, whatever strategy it is patched with.

    The decoder runs once; the output embedding and the loss run over chunks of its rows, so that
    memory does not grow with length times vocabulary. Models whose logits are more than an output
    embedding of the last hidden state (a soft cap, a scale) are found by comparing, and then the
    model's own forward is used.

    Args:
        model: A causal language model of transformers, in evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.head = model.get_output_embeddings()
        base = model.base_model  # the model itself in some families (Llama 4)
        self.decoder = model.get_decoder() if base is model else base
        self.chunked = self.head is not None and self._head_is_everything()

    @torch.no_grad()
    def nll(self, ids: Tensor, last: int | None = None) -> Tensor:
        """Negative log-likelihood, in nats, of the last tokens of a sequence.

        Args:
            ids: Token ids, `(length,)`.
            last: How many tokens to score, at most `length - 1`, which is the default.

        Returns:
            `(last,)`, float32, on the CPU.
        """
        ids = ids.to(self.device)
        last = len(ids) - 1 if last is None else last
        targets = ids[len(ids) - last :]
        if not self.chunked:
            logits = self.model(ids[None], use_cache=False).logits[0, -1 - last : -1]
            return _nll_of(logits, targets).cpu()
        hidden = self._hidden(ids)[-1 - last : -1]
        rows = self._rows(len(ids), hidden.shape[-1])
        chunks = zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
        return torch.cat([_nll_of(self.head(part), goal) for part, goal in chunks]).cpu()

    def _hidden(self, ids: Tensor) -> Tensor:
        """Last hidden states, `(length, width)`."""
        hidden: Tensor = self.decoder(ids[None], use_cache=False)[0][0]
        return hidden

    def _rows(self, length: int, width: int) -> int:
        """Rows of logits at a time: what fits the budget, or takes no more than hidden states."""
        vocabulary: int = self.head.weight.shape[0]
        budget = _CHUNK_BYTES // (_BYTES_PER_LOGIT * vocabulary)
        return max(1, budget, length * width // (_BYTES_PER_LOGIT * vocabulary))

    @torch.no_grad()
    def _head_is_everything(self) -> bool:
        size = min(_PROBE, self.head.weight.shape[0])
        ids = torch.arange(size, device=self.device)
        logits, hidden = self.model(ids[None], use_cache=False).logits[0], self._hidden(ids)
        if hidden.shape[-1] != self.head.weight.shape[1]:
            return False
        return bool(torch.allclose(self.head(hidden), logits, rtol=1e-4, atol=1e-4))


def _nll_of(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits.float(), targets, reduction="none")
