"""Rows to batches, for any trainer: skipped positions, packed documents or neither.

A row is a mapping with `input_ids` and perhaps `labels`. Labels default to the tokens and are
shifted by the model, as in transformers. The first label of a row, which nothing predicts, is
ignored, so that a mean counts only real targets. `transformers.Trainer` drops all other keys of a
row unless `remove_unused_columns=False`.
"""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ropex.model.modes import in_mode
from ropex.train.positions import Sampler

Row = Mapping[str, Any]
Batch = dict[str, Tensor]
_IGNORED = -100  # a label that the loss ignores


@dataclass(frozen=True)
class PlainCollator:
    """Stacks rows of one length, unchanged."""

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Stack the rows.

        Args:
            rows: With `input_ids` and perhaps `labels`; other keys are dropped.

        Returns:
            `input_ids`, `labels` and a mask of ones, `(batch, length)`, int64. Without a mask,
            transformers 4 looks for packed documents, at the cost of a mask of length squared.

        Raises:
            ValueError: The rows differ in length.
        """
        pairs = [_tokens_and_labels(row) for row in rows]
        lengths = sorted({len(tokens) for tokens, _ in pairs})
        if len(lengths) > 1:
            raise ValueError(
                f"rows of {lengths[0]} and {lengths[-1]} tokens do not stack; "
                "cut the data into rows of one length, or pack it and use PackedCollator"
            )
        return _stacked(
            {"input_ids": tokens, "labels": labels, "attention_mask": torch.ones_like(tokens)}
            for tokens, labels in pairs
        )


@dataclass(frozen=True)
class PositionCollator:
    """Rows read at random positions, so that a short window covers the distances of a long context.

    A draw depends only on the seed and the row, so a resumed run sees the same positions, and so
    does a run with a different number of processes or workers. Later epochs repeat them too, unless
    `index` keeps counting.

    Args:
        sampler: Draws the positions, such as `PoSE(window=2048, target=16384)`.
        seed: Of the draws.
    """

    sampler: Sampler
    seed: int = 0

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Draw for each row, and stack what is read of it.

        Args:
            rows: With `input_ids`, perhaps `labels`, and perhaps `index`, the number of the row in
                the data. Without it the draw depends on the tokens.

        Returns:
            `input_ids`, `labels`, `position_ids` and `attention_mask`, `(batch, window)`, int64.
            The label after a skip in the text is ignored. The mask is all ones: without it,
            transformers takes jumps in the positions for packed documents and isolates the chunks.

        Raises:
            ValueError: A row is shorter than the window.
        """
        return _stacked(self._read(row) for row in rows)

    def _read(self, row: Row) -> Batch:
        tokens, labels = _tokens_and_labels(row)
        key = row["index"] if "index" in row else _digest(tokens)
        drawn = self.sampler.draw(len(tokens), random.Random(f"{self.seed}:{key}"))
        follows = torch.diff(drawn.tokens, prepend=drawn.tokens[:1] - 1) == 1
        return {
            "input_ids": tokens[drawn.tokens],
            "labels": labels[drawn.tokens].where(follows, _IGNORED),
            "position_ids": drawn.positions,
            "attention_mask": torch.ones_like(drawn.positions),
        }


@dataclass(frozen=True)
class PackedCollator:
    """Several documents in a row, isolated from each other.

    There is no mask: transformers finds the documents by positions that restart at 0. It does so
    only without a cache, and flash attention only in batches of one row. `isolates` checks whether
    a model keeps them apart.

    Args:
        length: Tokens of a row of the batch; shorter ones are padded.
        pad_token_id: Id of the padding, which is a separate document without loss.
    """

    length: int
    pad_token_id: int = 0

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Stack the rows, with positions that restart at each document.

        Args:
            rows: With `input_ids`, `lengths` (the tokens of each document in it) and perhaps
                `labels`.

        Returns:
            `input_ids`, `labels` and `position_ids`, `(batch, length)`, int64. The label of the
            first token of each document is ignored.

        Raises:
            ValueError: A row is too long, or `lengths` is missing or does not add up.
        """
        return _stacked(self._packed(row) for row in rows)

    def _packed(self, row: Row) -> Batch:
        tokens, labels = _tokens_and_labels(row)
        lengths = _lengths(row, len(tokens))
        missing = self.length - len(tokens)
        if missing < 0:
            raise ValueError(
                f"a row of {len(tokens)} tokens is longer than {self.length}; "
                "pack fewer documents into it or give a greater length"
            )
        places = torch.cat([torch.arange(n) for n in (*lengths, missing)])
        padded = nn.functional.pad(labels, (0, missing), value=_IGNORED)
        return {
            "input_ids": nn.functional.pad(tokens, (0, missing), value=self.pad_token_id),
            "labels": padded.where(places != 0, _IGNORED),
            "position_ids": places,
        }


def isolates(model: nn.Module, rows: int = 1, **inputs: Any) -> bool:
    """Whether packed documents do not see each other, in training and in evaluation.

    If they do, the model silently learns from unrelated text. The usual reason is the cache, which
    `model.config.use_cache = False` turns off (the Trainer of transformers 5 does that, the one of
    4 does not); the next is flash attention with more than one row.

    Args:
        model: A causal language model, patched or not. It is called on 16 tokens, four times.
        rows: Rows of a batch on one device.
        inputs: Further arguments of the model, such as `use_cache=False`.

    Returns:
        Whether the logits of the second document of every row do not depend on the first.
    """
    return all(_apart(model, rows, inputs, training) for training in (True, False))


@torch.no_grad()
def _apart(model: nn.Module, rows: int, inputs: dict[str, Any], training: bool) -> bool:
    """Whether the logits of the second of two documents stay the same when the first changes."""
    embedding: Tensor = model.get_input_embeddings().weight  # type: ignore[operator]
    gpus = [embedding.device] if embedding.is_cuda else []  # dropout draws the same both times
    half = torch.arange(8, device=embedding.device)
    places = half.repeat(rows, 2)
    seconds = []
    for first in (half + 1, half + 9):
        ids = torch.cat([first, half + 5]).repeat(rows, 1) % embedding.shape[0]
        with (
            in_mode(model, training=training),
            torch.random.fork_rng(gpus),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", UserWarning)  # checkpointing misses gradients
            output = model(input_ids=ids, position_ids=places, **inputs)
            seconds.append(output.logits[:, 8:].float())
    before, after = seconds
    rounding = 1e-4 if embedding.dtype == torch.float32 else 5e-2  # experts round by their load
    return bool((before - after).abs().max() <= rounding * before.abs().max())


def _tokens_and_labels(row: Row) -> tuple[Tensor, Tensor]:
    """Both, `(length,)`, int64; labels default to the tokens, without the first."""
    tokens = torch.as_tensor(row["input_ids"], dtype=torch.int64)
    labels = torch.as_tensor(row.get("labels", tokens), dtype=torch.int64)
    if tokens.ndim != 1 or labels.shape != tokens.shape:
        raise ValueError(
            f"a row has input_ids of shape {tuple(tokens.shape)} and labels of shape "
            f"{tuple(labels.shape)}; give one list of tokens, and labels of the same length or none"
        )
    labels = labels.clone()
    labels[:1] = _IGNORED  # nothing predicts it, and the Trainer of transformers 4 counts it
    return tokens, labels


def _lengths(row: Row, total: int) -> list[int]:
    if "lengths" not in row:
        raise ValueError(
            "a packed row has no lengths; give the tokens of each document, and tell "
            "transformers.Trainer remove_unused_columns=False"
        )
    lengths = [int(n) for n in row["lengths"]]
    if sum(lengths) != total or min(lengths, default=1) < 1:
        raise ValueError(
            f"documents of {lengths} tokens do not make up a row of {total}; "
            "give the tokens of each document, 1 or more"
        )
    return lengths


def _digest(tokens: Tensor) -> str:
    """A hash of these tokens, the same on every machine."""
    return hashlib.sha256(",".join(map(str, tokens.tolist())).encode()).hexdigest()


def _stacked(rows: Iterable[Batch]) -> Batch:
    """One tensor a name, from rows of one length."""
    listed = list(rows)
    return {name: torch.stack([row[name] for row in listed]) for name in listed[0]}
