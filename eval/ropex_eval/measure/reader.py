"""Run the passes of a strategy on a loaded model, side by side where they are alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ropex.sizes import gib
from ropex_eval.measure.losses import Scorer
from ropex_eval.measure.memory import SHORTEST_CHUNK, Shape, chunk_for, is_out_of_memory
from ropex_eval.study.passes import Pass

BATCH_TOKENS = 8192
"""Tokens that are read side by side, where passes are alike."""

_LOGITS_BYTES = 2**29


class Reader:
    """Reads passes with as much memory as there is.

    Args:
        scorer: Of the loaded model.
        limit: Bytes that weights and pass may take together; None for what the device has.
        tell: Called with a sentence where a text must be read in smaller pieces.
    """

    def __init__(
        self,
        scorer: Scorer,
        limit: int | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.scorer, self.limit, self.tell = scorer, limit, tell
        self.shape = Shape.of(scorer.model)
        self._largest: int | None = None  # tokens at a time, once memory has run out

    def require(self, length: int) -> None:
        """Raise a MemoryError if a text of this length does not fit, by formula."""
        self._chunk(length)

    def read(self, batch: Sequence[Pass], ids: Sequence[Tensor]) -> Tensor:
        """NLL of what the passes score, `(passes, scored)`, float32.

        Args:
            batch: Passes that are alike in length and rows.
            ids: What each reads, and the token after it if that is scored.

        Raises:
            MemoryError: Even the smallest pieces are too much.
        """
        length, rows = batch[0].length, batch[0].rows
        texts = torch.stack(list(ids)).long()
        goals = torch.zeros_like(texts[:, :length])
        following = texts[:, 1 : length + 1]
        goals[:, : following.shape[1]] = following
        return self._fitting(texts[:, :length], goals, rows)

    def _fitting(self, ids: Tensor, goals: Tensor, rows: Any) -> Tensor:
        length = ids.shape[1]
        if len(ids) > 1 and not self._fits(length, len(ids)):
            return self._one_by_one(ids, goals, rows)
        chunk = self._chunk(length)
        try:
            return self.scorer.nll(ids, goals, rows, chunk)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            smallest = (chunk or length) <= SHORTEST_CHUNK or not self.scorer.chunkable
            if len(ids) == 1 and smallest:
                raise MemoryError(
                    f"out of memory at {length} tokens, read {chunk or length} at a time; smaller "
                    "--lengths or --dtype bfloat16 need less, and what is finished is kept"
                ) from error
        return self._smaller(ids, goals, rows, chunk or length)

    def _smaller(self, ids: Tensor, goals: Tensor, rows: Any, chunk: int) -> Tensor:
        """One text at a time, and then pieces half as long as those that did not fit."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(ids) > 1:
            return self._one_by_one(ids, goals, rows)
        self._largest = max(SHORTEST_CHUNK, chunk // 2)
        self.tell(f"out of memory: texts are read {self._largest} tokens at a time from here on")
        return self._fitting(ids, goals, rows)

    def _one_by_one(self, ids: Tensor, goals: Tensor, rows: Any) -> Tensor:
        parts = zip(ids.split(1), goals.split(1), strict=True)
        return torch.cat([self._fitting(*part, rows) for part in parts])

    def _fits(self, length: int, batch: int) -> bool:
        """Whether so many texts may be read at once, side by side."""
        wanted = self.shape.held() + self.shape.peak(length, batch=batch)
        return self.limit is None or wanted <= self.limit

    def _chunk(self, length: int) -> int | None:
        here = -(-length // self.scorer.processes)  # tokens of a text that is split
        chunk = chunk_for(self.shape, here, self.limit)
        if chunk is not None and not self.scorer.chunkable:
            raise MemoryError(
                f"{length} tokens at once take {gib(self.shape.held() + self.shape.peak(length))}, "
                "and this model cannot be read in pieces; give more (--max-memory), or smaller "
                "--lengths"
            )
        if not self.scorer.head_alone and chunk is None and self.scorer.chunkable:
            # The model's own forward makes the logits of all that it reads at once.
            chunk = max(SHORTEST_CHUNK, _LOGITS_BYTES // (4 * max(1, self.shape.vocabulary)))
        known = [tokens for tokens in (chunk, self._largest) if tokens is not None]
        return min(known) if known and min(known) < length else None
