"""Rotary modules of the structure that models with their own code have, for `remote_code`.

The same attributes, buffers and their types, what is saved, the call and what comes back, when
tables are made and when they grow. An adapter is to know them by what they hold and how they are
called: their classes have nothing in common.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def frequencies(dim: int, base: float = 10000) -> Tensor:
    return 1.0 / base ** (torch.arange(0, dim, 2).float() / dim)


def dynamic_base(rotary: Any, length: int) -> Any:
    ratio = rotary.scaling_factor * length / rotary.max_position_embeddings - (
        rotary.scaling_factor - 1
    )
    return rotary.base * ratio ** (rotary.dim / (rotary.dim - 2))


def table(length: int, inv_freq: Tensor, divisor: float = 1.0) -> Tensor:
    """Angles of `length` positions, every frequency twice, in the type of the frequencies."""
    angles = torch.outer(
        torch.arange(length, device=inv_freq.device).to(inv_freq.dtype) / divisor, inv_freq
    )
    return torch.cat((angles, angles), dim=-1)


def keep(rotary: nn.Module, angles: Tensor, leading: int = 0) -> None:
    for name, values in (("cos_cached", angles.cos()), ("sin_cached", angles.sin())):
        rotary.register_buffer(name, values[(None,) * leading], persistent=False)
    rotary.max_seq_len_cached = angles.shape[0]  # type: ignore[assignment]


class Declared(nn.Module):
    """Types only."""

    inv_freq: Tensor
    cos_cached: Any
    sin_cached: Any
    max_seq_len_cached: Any


class BaichuanRotary(Declared):
    saved = True

    def __init__(
        self, dim: int, max_position_embeddings: int = 2048, base: float = 10000, device: Any = None
    ) -> None:
        super().__init__()
        self.register_buffer("inv_freq", frequencies(dim, base), persistent=self.saved)
        keep(self, table(max_position_embeddings, self.inv_freq), leading=2)

    def forward(self, x: Tensor, seq_len: Any = None) -> tuple[Tensor, Tensor]:
        if seq_len > self.max_seq_len_cached:
            keep(self, table(seq_len, self.inv_freq), leading=2)
        return self.cos_cached[:, :, :seq_len].to(x.dtype), self.sin_cached[:, :, :seq_len].to(
            x.dtype
        )


class InternLMRotary(BaichuanRotary):
    saved = False


class Baichuan2Rotary(Declared):
    """Plain attributes: neither moved with the model nor among its buffers."""

    def __init__(
        self, dim: int, max_position_embeddings: int = 2048, base: float = 10000, device: Any = None
    ) -> None:
        super().__init__()
        self.inv_freq = frequencies(dim, base)
        self.max_seq_len_cached = 0
        self.forward(self.inv_freq, max_position_embeddings)

    def forward(self, x: Tensor, seq_len: Any = None) -> tuple[Tensor, Tensor]:
        if seq_len > self.max_seq_len_cached:
            self.max_seq_len_cached = seq_len
            angles = table(seq_len, self.inv_freq)[None, None]
            self.cos_cached, self.sin_cached = angles.cos().to(x.device), angles.sin().to(x.device)
        elif self.cos_cached.device != x.device:
            self.cos_cached = self.cos_cached.to(x.device)
            self.sin_cached = self.sin_cached.to(x.device)
        return self.cos_cached[:, :, :seq_len], self.sin_cached[:, :, :seq_len]


class InternLMDynamicRotary(BaichuanRotary):
    """Its frequencies stay; beyond the trained length the tables are made anew at every call."""

    def __init__(
        self, dim: int, max_position_embeddings: int = 2048, base: float = 10000,
        scaling_factor: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(dim, max_position_embeddings, base)
        self.dim, self.base, self.scaling_factor = dim, base, scaling_factor
        self.max_position_embeddings = max_position_embeddings

    def _update_cached(self, x: Tensor, seq_len: int) -> None:
        longer = seq_len > self.max_position_embeddings
        inv_freq = (
            frequencies(self.dim, dynamic_base(self, seq_len)).to(x.device)
            if longer
            else self.inv_freq
        )
        keep(self, table(max(seq_len, self.max_position_embeddings), inv_freq), leading=2)

    def forward(self, x: Tensor, seq_len: Any = None) -> tuple[Tensor, Tensor]:
        if max(seq_len, self.max_seq_len_cached) > self.max_position_embeddings:
            self._update_cached(x, seq_len)
        return super().forward(x, seq_len)


class InternLM2Rotary(Declared):
    def __init__(
        self, dim: int, max_position_embeddings: int = 2048, base: float = 10000,
        scaling_factor: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.dim, self.max_position_embeddings, self.base = dim, max_position_embeddings, base
        if scaling_factor is not None:
            self.scaling_factor = scaling_factor
        self.register_buffer("inv_freq", frequencies(dim, base), persistent=False)
        self._set_cos_sin_cache(
            max_position_embeddings, self.inv_freq.device, torch.get_default_dtype()
        )

    def _set_cos_sin_cache(self, seq_len: int, device: Any, dtype: torch.dtype) -> None:
        keep(self, table(seq_len, self.inv_freq).to(device))

    def forward(self, x: Tensor, seq_len: Any = None) -> tuple[Tensor, Tensor]:
        if seq_len > self.max_seq_len_cached:
            self._set_cos_sin_cache(seq_len, x.device, torch.float32)
        return self.cos_cached[:seq_len].to(x.dtype), self.sin_cached[:seq_len].to(x.dtype)


class InternLM2LinearRotary(InternLM2Rotary):
    def _set_cos_sin_cache(self, seq_len: int, device: Any, dtype: torch.dtype) -> None:
        keep(self, table(seq_len, self.inv_freq, self.scaling_factor).to(device))


class InternLM2DynamicRotary(InternLM2Rotary):
    """Overwrites its own frequencies when its tables grow, and never returns to the first ones."""

    def _set_cos_sin_cache(self, seq_len: int, device: Any, dtype: torch.dtype) -> None:
        if seq_len > self.max_position_embeddings:
            inv_freq = frequencies(self.dim, dynamic_base(self, seq_len)).to(device)
            self.register_buffer("inv_freq", inv_freq, persistent=False)
        super()._set_cos_sin_cache(seq_len, device, dtype)


class InternLM25Rotary(Declared):
    def __init__(self, dim: int, max_position_embeddings: int = 2048, base: float = 10000) -> None:
        super().__init__()
        self.scaling_factor, self.dim, self.base = 1.0, dim, base
        self.max_position_embeddings = self.max_seq_len_cached = max_position_embeddings
        self.register_buffer("inv_freq", frequencies(dim, base), persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids.float().unsqueeze(-1) * self.inv_freq.float()
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


class ChatGLMRotary(Declared):
    def __init__(
        self, dim: int, base: float = 10000, precision: torch.dtype = torch.half,
        learnable: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.learnable, self.precision = learnable, precision
        self.register_buffer("inv_freq", frequencies(dim, base).half())
        self.max_seq_len_cached = self.cos_cached = self.sin_cached = None

    def _load_from_state_dict(self, *args: Any) -> None:
        """The saved frequencies are passed over."""

    def forward(self, x: Tensor, seq_dim: int = 1, seq_len: Any = None) -> tuple[Tensor, Tensor]:
        seq_len = x.shape[seq_dim] if seq_len is None else seq_len
        if self.max_seq_len_cached is None or seq_len > self.max_seq_len_cached:
            self.max_seq_len_cached = seq_len  # a tensor when the owner asks with one
            angles = table(int(seq_len), self.inv_freq).to(x.device)
            self.cos_cached, self.sin_cached = angles.cos()[:, None], angles.sin()[:, None]
        return self.cos_cached[:seq_len], self.sin_cached[:seq_len]

    def _apply(self, fn: Callable[[Tensor], Tensor]) -> Any:  # type: ignore[override]
        if self.cos_cached is not None:
            self.cos_cached, self.sin_cached = fn(self.cos_cached), fn(self.sin_cached)
        return super()._apply(fn)  # type: ignore[no-untyped-call]


class ChatGLM2Rotary(Declared):
    """Only the type and device of the buffer count: every call makes a table, from 10000."""

    def __init__(
        self, dim: int, rope_ratio: float | None = None, original_impl: bool = False,
        dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.register_buffer("inv_freq", frequencies(dim).to(dtype))
        self.dim, self.original_impl = dim, original_impl
        if rope_ratio is not None:  # the first releases have none
            self.rope_ratio = rope_ratio

    def forward_impl(
        self, seq_len: int, n_elem: int, dtype: torch.dtype, device: torch.device,
        base: float = 10000,
    ) -> Tensor:  # fmt: skip
        """Positions divided by the ratio, in the type of the model."""
        theta = 1.0 / base ** (torch.arange(0, n_elem, 2, dtype=dtype, device=device) / n_elem)
        angles = torch.outer(
            torch.arange(seq_len, dtype=dtype, device=device) / getattr(self, "rope_ratio", 1),
            theta,
        ).float()
        return torch.stack((angles.cos(), angles.sin()), dim=-1).to(dtype)

    def forward(self, max_seq_len: int, offset: int = 0) -> Tensor:
        return self.forward_impl(max_seq_len, self.dim, self.inv_freq.dtype, self.inv_freq.device)


class ChatGLM3Rotary(ChatGLM2Rotary):
    def forward_impl(
        self, seq_len: int, n_elem: int, dtype: torch.dtype, device: torch.device,
        base: float = 10000,
    ) -> Tensor:  # fmt: skip
        """The base times the ratio, in single precision."""
        theta = frequencies(n_elem, base * getattr(self, "rope_ratio", 1)).to(device)
        angles = torch.outer(torch.arange(seq_len, device=device).float(), theta)
        return torch.stack((angles.cos(), angles.sin()), dim=-1).to(dtype)


class QwenRotary(Declared):
    """A table that grows, or another alpha, makes the frequencies anew from the base."""

    def __init__(self, dim: int, base: float = 10000) -> None:
        super().__init__()
        self.dim, self.base = dim, base
        self.register_buffer("inv_freq", frequencies(dim, base), persistent=False)
        self._rotary_pos_emb_cache: list[Tensor] | None = None
        self._seq_len_cached = 0
        self._ntk_alpha_cached = 1.0
        self._ntk_alpha_cached_list = [1.0]  # written by the owner: the alphas of the last prompt

    def update_rotary_pos_emb_cache(self, seqlen: int, ntk_alpha: float = 1.0) -> None:
        if seqlen > self._seq_len_cached or ntk_alpha != self._ntk_alpha_cached:
            base = self.base * ntk_alpha ** (self.dim / (self.dim - 2))
            self.inv_freq = frequencies(self.dim, base).to(self.inv_freq.device)
            self._seq_len_cached, self._ntk_alpha_cached = max(2 * seqlen, 16), ntk_alpha
            angles = table(self._seq_len_cached, self.inv_freq)[None, :, None]
            self._rotary_pos_emb_cache = [angles.cos(), angles.sin()]

    def forward(self, max_seq_len: int, ntk_alpha: float = 1.0) -> list[Tensor]:
        self.update_rotary_pos_emb_cache(max_seq_len, ntk_alpha)
        return [part[:, :max_seq_len] for part in self._rotary_pos_emb_cache or ()]
