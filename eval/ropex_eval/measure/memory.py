"""What a pass takes: bytes by formula, and what to do where memory runs out all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

import ropex.model.shape
from ropex.sizes import gib
from ropex_eval.measure.feed_forward import ROWS
from ropex_eval.measure.losses import BYTES_PER_LOGIT, ROWS_BYTES

SHORTEST_CHUNK = 256
"""Tokens; smaller pieces of a text save no memory worth having."""


class Shape(ropex.model.shape.Shape):
    """What decides the memory and the work of a pass."""

    def peak(self, length: int, chunk: int | None = None, batch: int = 1) -> int:
        """Bytes that a pass takes above the weights.

        Hidden states, queries, keys, values and the inside of one feed-forward part of what is read
        at a time, attention scores where the attention is eager, the rows of logits that are held
        at once, and the key-value cache if it is read in pieces.
        """
        piece = length if chunk is None else min(chunk, length)
        a_token = 3 * self.hidden + 2 * self.attention + 2 * self.keys
        inside = 3 * self.inner * min(piece, ROWS)
        logits = max(ROWS_BYTES, BYTES_PER_LOGIT * self.vocabulary)
        cache = 0 if chunk is None else 2 * self.layers * self.keys * length
        scores = (2 * self.bytes + 4) * self.heads * piece * length
        return batch * (self.bytes * (a_token * piece + inside + cache) + scores) + logits


def chunk_for(shape: Shape, length: int, limit: int | None) -> int | None:
    """How many tokens to read at a time so that a pass stays within a limit; None for all at once.

    Args:
        shape: Of the model.
        length: Of the pass.
        limit: Bytes, weights included; None if there is none.

    Raises:
        MemoryError: The smallest pieces do not fit either.
    """
    if limit is None or shape.held() + shape.peak(length) <= limit:
        return None
    chunk = 1 << (length - 1).bit_length() - 1  # the largest power of two below the length
    while chunk > SHORTEST_CHUNK and shape.held() + shape.peak(length, chunk) > limit:
        chunk //= 2
    at_once, in_pieces = (shape.held() + shape.peak(length, each) for each in (None, chunk))
    if in_pieces > limit:
        raise MemoryError(
            f"{length} tokens take {gib(at_once)} at once and {gib(in_pieces)} in pieces of "
            f"{chunk}, and {gib(limit)} are allowed; give more (--max-memory), smaller --lengths, "
            "or --dtype bfloat16"
        )
    return chunk


def parse_bytes(text: str) -> int:
    """A size in bytes: `20GiB`, `20G`, `512MiB`, `20GB`.

    Raises:
        ValueError: It is not one.
    """
    units = {"k": 10, "m": 20, "g": 30, "t": 40}
    lowered = text.strip().lower()
    number = lowered.rstrip("kmgtib")
    unit = lowered[len(number) :]
    try:
        value = float(number) * 2 ** units.get(unit[:1], 0)
    except ValueError:
        value = 0.0
    known = unit in {u + end for u in units for end in ("", "b", "ib")}
    if not known or not 1 <= value < 2**60:
        raise ValueError(f"{text!r} is not a size; write 20GiB or 512MiB")
    if unit.endswith("b") and not unit.endswith("ib"):
        value = float(number) * 1000 ** (units[unit[0]] // 10)
    return int(value)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    signs = ("out of memory", "can't allocate memory")  # MPS, CPU: plain errors of torch
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs))


@contextmanager
def enough_memory(where: Callable[[], str]) -> Iterator[None]:
    """Tell where memory ran out, and what needs less, in one sentence.

    Raises:
        MemoryError: That of a CPU or an accelerator is too small.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(f"out of memory {where()}") from error
