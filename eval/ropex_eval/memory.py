"""What a pass takes: bytes by formula, and what to do where memory runs out all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ropex_eval.feed_forward import ROWS
from ropex_eval.nll import BYTES_PER_LOGIT, ROWS_BYTES

SHORTEST_CHUNK = 256
"""Tokens; smaller pieces of a text save no memory worth having."""


@dataclass(frozen=True)
class Shape:
    """What decides the memory and the work of a pass.

    Attributes:
        weights: Number of parameters.
        active: Parameters that one token meets; fewer in a mixture of experts.
        layers: Number of layers.
        hidden: Width of the hidden state.
        attention: Query heads times their size.
        keys: Key heads times their size.
        inner: Width inside the feed-forward part.
        vocabulary: Number of tokens.
        bytes: Of one number.
        heads: Query heads, whose scores are held for each pair of tokens; 0 where they are not.
    """

    weights: int
    active: int
    layers: int
    hidden: int
    attention: int
    keys: int
    inner: int
    vocabulary: int
    bytes: int
    heads: int = 0

    @classmethod
    def of(cls, model: Any, dtype: torch.dtype | None = None) -> Shape:
        """Read a model, with or without its weights."""
        config = model.config.get_text_config()
        hidden, heads = _number(config, "hidden_size"), _number(config, "num_attention_heads", 1)
        size = _number(config, "head_dim") or hidden // max(1, heads)
        keys = _number(config, "num_key_value_heads") or heads
        weights = sum(parameter.numel() for parameter in model.parameters())
        return cls(
            weights,
            weights - _idle(model, config),
            _number(config, "num_hidden_layers"),
            hidden,
            heads * size,
            keys * size,
            _number(config, "intermediate_size") or 4 * hidden,
            _number(config, "vocab_size"),
            (dtype or model.dtype).itemsize,
            heads if config._attn_implementation == "eager" else 0,
        )

    def work(self, length: int) -> float:
        """Multiply-adds of a pass: linear in the length for the weights, quadratic for attention.

        The quadratic part is that of causal attention, half of a square, scores and values.
        """
        return float(length * (self.active + self.layers * self.attention * length))

    def held(self) -> int:
        """Bytes of the weights."""
        return self.weights * self.bytes

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


def gib(size: float) -> str:
    """A size for people, such as `23.3 GiB`."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.0f} MiB"


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


def _number(config: Any, name: str, default: int = 0) -> int:
    """A size of a config; families that lack it, or have one for each layer, are rare."""
    value = getattr(config, name, None)
    if isinstance(value, (list, tuple)):
        value = max(value, default=None)
    return int(value) if value else default


def _idle(model: Any, config: Any) -> int:
    """Parameters of experts that a token does not meet."""
    experts = _number(config, "num_local_experts") or _number(config, "num_experts")
    experts = experts or _number(config, "n_routed_experts")
    used = _number(config, "num_experts_per_tok")
    if not experts or not used:
        return 0
    inside: int = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    return inside - inside * used // experts
