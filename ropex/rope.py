"""What a rotary embedding is, and what a strategy may change about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

from ropex.positions import PositionMap


@dataclass(frozen=True, eq=False)
class Rope:
    """The rotary embedding that a checkpoint was trained with.

    Attributes:
        dim: Number of rotated dimensions of a head; it may be smaller than the head.
        base: The constant whose powers are the frequencies (`rope_theta`).
        trained_length: Tokens of context that the checkpoint was trained at.
        inv_freq: Radians per position of each pair of dimensions, `(dim // 2,)`, float64.
        attention_scale: What cos and sin are already multiplied by; 1 unless YaRN was used.
        by_length: Whether the checkpoint itself changes its frequencies with the length (the
            `dynamic` and `longrope` types of transformers); `inv_freq` are those at the trained
            length.
        lists: What it goes by, where these are two lists.
    """

    dim: int
    base: float
    trained_length: int
    inv_freq: Tensor
    attention_scale: float = 1.0
    by_length: bool = False
    lists: Lists | None = None

    @property
    def pairs(self) -> Tensor:
        """Index of each pair, `(dim // 2,)`, float64, on the device of `inv_freq`."""
        import torch

        return torch.arange(self.dim // 2, dtype=torch.float64, device=self.inv_freq.device)

    @classmethod
    def standard(cls, dim: int, base: float, trained_length: int) -> Rope:
        """The unscaled embedding: `inv_freq[i] = base ** (-2 i / dim)` (Su et al., 2104.09864).

        Raises:
            ValueError: `dim` is odd, or below 2.
        """
        if dim < 2 or dim % 2:
            raise ValueError(f"dim is {dim}, it must be even and at least 2: pairs rotate")
        import torch

        exponents = torch.arange(0, dim, 2, dtype=torch.float64) / dim
        return cls(dim, base, trained_length, base**-exponents)


@dataclass(frozen=True, eq=False)
class Lists:
    """Frequencies of a checkpoint with one list for short sequences and one for long (`longrope`).

    Such a checkpoint was trained at both, and its trained length is the longer one. A strategy that
    changes no frequency within the trained length (`none`, `logn`, `dynamic`) starts from the list
    which a sequence of that length has, and so keeps the switch. Any other takes its place: it
    starts from the list at the trained length, which is that of the lengths it continues, and
    gives every sequence what it makes of that.

    Attributes:
        length: Tokens up to which sequences have the short list.
        short: That of short sequences.
        long: That of all others.
    """

    length: int
    short: Plan
    long: Plan

    def at(self, length: int | Tensor) -> Plan:
        """The list that a sequence of `length` tokens has."""
        import torch

        if not isinstance(length, torch.Tensor):
            return self.long if length > self.length else self.short
        beyond = length > self.length
        short, long = (each.inv_freq.to(length.device) for each in (self.short, self.long))
        scale: Any = self.long.attention_scale
        if scale != self.short.attention_scale:
            scale = torch.where(beyond, scale, self.short.attention_scale)
        return Plan(torch.where(beyond, long, short), scale)


class QueryScale(Protocol):
    """A factor for each query, as a function of where it stands."""

    @property
    def first_layer(self) -> int:
        """Layers before this one are left alone."""

    def __call__(self, positions: Tensor) -> Tensor:
        """Factors of the queries at `positions`, same shape, float32."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that a strategy decides, for one sequence length.

    Attributes:
        inv_freq: Radians per position of each pair of dimensions, `(dim // 2,)`, float64.
        attention_scale: Multiplies cos and sin, hence attention logits by its square; a tensor
            without dimensions where it follows the length inside a compiled forward.
        softmax_scale: Multiplies all logits of latent attention (DeepSeek), of which
            `attention_scale` reaches only the slice that is rotated; other models leave it out.
        query_scale: Multiplies each query by a function of its position; None changes nothing.
        positions: Where a rotation sees queries and keys; None for where they stand.
    """

    inv_freq: Tensor
    attention_scale: Any = 1.0
    softmax_scale: float = 1.0
    query_scale: QueryScale | None = None
    positions: PositionMap | None = None

    @classmethod
    def unchanged(cls, rope: Rope, length: int | Tensor | None = None) -> Plan:
        """The plan that leaves `rope` as it is, at `length` tokens (by default as trained)."""
        if rope.lists is not None and length is not None:
            return rope.lists.at(length)
        return cls(rope.inv_freq, rope.attention_scale)

    @property
    def changes_attention(self) -> bool:
        """Whether attention does more than the rotation says."""
        return self.query_scale is not None or self.positions is not None

    @property
    def attention(self) -> str:
        """What it does, the same for equal plans."""
        mapped = "" if self.positions is None else f" {self.positions}"
        return f"{self.query_scale}{mapped}"

    def changes(self, rope: Rope, length: int | None = None) -> bool:
        """Whether any part of the plan differs from what `rope` is at `length` tokens."""
        own = Plan.unchanged(rope, length)
        return (
            not self.inv_freq.equal(own.inv_freq)
            or self.attention_scale != own.attention_scale
            or self.changes_attention
        )
