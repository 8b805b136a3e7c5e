"""Tables of models that bring code of their own: Baichuan, InternLM, ChatGLM and Qwen 1.

They are recognised by what a module holds and how it is called; their classes have many names.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from ropex.errors import UnsupportedModel
from ropex.model.sites.computed import Answer, ComputedSite, angles, base_of, powers, trusted
from ropex.model.sites.hooks import by_row


class Divides(ComputedSite):
    """Tables of a module that may divide positions by its `scaling_factor`."""

    def stretch(self) -> float:
        """The factor, if the config's scaling is of type linear."""
        linear = _own_type(self.config) == "linear"
        return float(getattr(self.module, "scaling_factor", 1.0)) if linear else 1.0


class RowsBySize(Divides):
    """Cos and sin of the first `seq_len` positions, cached and grown on demand.

    `(1, 1, rows, dim)` in Baichuan and InternLM, `(rows, dim)` in InternLM 2 and Open-Llama.
    """

    kept = ("cos", "sin")  # Baichuan, in training

    @classmethod
    def fits(cls, module: Any, model: Any) -> bool:
        """Whether the module caches cos and sin, and is asked for a number of rows."""
        return isinstance(_held(module, "cos_cached"), Tensor) and _asked_by(module, "seq_len")

    def base_of(self) -> float:
        """The module's own, the config's, or the 10000 of the first releases."""
        settings = getattr(self.config, "rotary", None) or {}
        said = getattr(self.module, "base", settings.get("base"))
        return float(said or base_of(_held(self.module, "inv_freq")) or self.base)

    def frequencies(self) -> Tensor:
        """The powers of the base, divided by the factor of a module that scales positions."""
        formula = powers(self.base_of(), _held(self.module, "cos_cached").shape[-1])
        if self.by_length():  # some overwrite the buffer as they grow
            return formula
        return trusted(_held(self.module, "inv_freq"), formula) / self.stretch()

    def by_length(self) -> bool:
        """Whether the module is of a class that rebuilds its tables by a dynamic base."""
        return hasattr(self.module, "scaling_factor") and _own_type(self.config) != "linear"

    def lost(self) -> bool:
        """Whether the cached rows are not those of the frequencies (transformers 5, loading)."""
        cached = _held(self.module, "cos_cached")
        if cached.is_meta:
            return True
        known = self.frequencies().repeat(2)
        if self.by_length():  # no base slows down the first pair
            known = known[:1]
        for name, function in (("cos_cached", torch.cos), ("sin_cached", torch.sin)):
            table = _held(self.module, name)
            row = table.reshape(-1, table.shape[-1])[1].double().cpu()[: len(known)]
            if not torch.allclose(row, function(known), atol=1e-2):
                return True
        return False

    @classmethod
    def answer(
        cls, given: Answer, module: Any, x: Tensor, seq_len: Any = None, **unused: Any
    ) -> tuple[Tensor, Tensor]:
        """Cos and sin in the shape of the cached ones."""
        cached = _held(module, "cos_cached")
        plain = "cos_cached" in vars(module)  # Baichuan 2, which rotates in float32
        dtype = torch.float32 if plain else x.dtype
        made = (_halves(t).to(dtype) for t in given.rows.cos_sin(int(seq_len), x.device))
        cos, sin = (t[None, None] if cached.ndim == 4 else t for t in made)
        return cos, sin

    def first_angles(self, length: int) -> Tensor:
        """Phases at position 1."""
        device = _held(self.module, "inv_freq").device
        x = torch.zeros(1, 1, 1, 1, device="cpu" if device.type == "meta" else device)
        tables = self.module(x, seq_len=length)
        cos, sin = (table.reshape(-1, table.shape[-1])[1] for table in tables)
        return _half_angles(cos, sin)


class RowsByPosition(Divides):
    """Cos and sin at given positions, by a module that scales in its own way (InternLM 2.5)."""

    any_position = True

    @classmethod
    def fits(cls, module: Any, model: Any) -> bool:
        """Whether the module has positions and a factor, and nothing that transformers' have."""
        ours = hasattr(module, "inv_freq") and hasattr(module, "scaling_factor")
        return ours and not hasattr(module, "config") and _asked_by(module, "x", "position_ids")

    def frequencies(self) -> Tensor:
        """The powers of the base; the buffer of a dynamic one is overwritten as it grows."""
        formula = powers(self.module.base, self.module.dim)
        live = None if self.by_length() else self.module.inv_freq
        return trusted(live, formula) / self.stretch()

    def by_length(self) -> bool:
        """Whether the module enlarges its base as sequences grow."""
        return _own_type(self.config) == "dynamic"

    def lost(self) -> bool:
        """Whether the buffer is not the powers of the base (transformers 5, loading)."""
        live = self.module.inv_freq
        return not live.is_meta and not abs(float(live[0]) - 1) < 1e-2  # NaN is neither

    @classmethod
    def answer(cls, given: Answer, module: Any, x: Tensor, position_ids: Tensor) -> Any:
        """Cos and sin, `(batch, length, dim)`, of the length that each row reaches."""
        parts = []
        rows = by_row(position_ids, None) if given.rows.by_length else [(position_ids, None)]
        for row, _ in rows:
            tables = given.rows.cos_sin(int(row.max()) + 1, x.device)
            parts.append([_halves(t)[row].to(x.dtype) for t in tables])
        cos, sin = (torch.cat(each) for each in zip(*parts, strict=True))
        return cos, sin

    def first_angles(self, length: int) -> Tensor:
        """Phases at position 1 of a sequence of `length` tokens."""
        x = torch.zeros(1, 1, 1, device=self.module.inv_freq.device)
        cos, sin = self.module(x, torch.tensor([[1, length - 1]], device=x.device))
        return _half_angles(cos[0, 0], sin[0, 0])


class RowsOnDemand(ComputedSite):
    """The same for half a head, `(rows, 1, dim)`, made at the first call (ChatGLM)."""

    lengths = ("max_sequence_length",)

    @classmethod
    def fits(cls, module: Any, model: Any) -> bool:
        """Whether the module makes such rows in the precision of its buffer."""
        return hasattr(module, "inv_freq") and _asked_by(module, "x", "seq_dim", "seq_len")

    def frequencies(self) -> Tensor:
        """The powers of 10000, rounded to half precision as the model was trained with them."""
        return powers(self.base, 2 * len(self.module.inv_freq)).float().half().double()

    def probe(self, count: int) -> dict[str, Tensor]:
        """Both streams of positions, and a mask that is true where a token is hidden."""
        places = torch.arange(count)
        hidden = torch.ones(1, 1, count, count).triu(1).bool()
        return {"position_ids": torch.stack([places, 0 * places])[None], "attention_mask": hidden}

    @classmethod
    def answer(
        cls, given: Answer, module: Any, x: Tensor, seq_dim: int = 1, seq_len: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Cos and sin of the longer of both streams of positions."""
        tables = given.rows.cos_sin(int(x.shape[seq_dim] if seq_len is None else seq_len), x.device)
        cos, sin = (_halves(t)[:, None].to(module.inv_freq.dtype) for t in tables)
        return cos, sin

    def first_angles(self, length: int) -> Tensor:
        """Phases at position 1."""
        x = torch.zeros(1, 1, 1, 1, device=self.module.inv_freq.device)
        cos, sin = (table[1, 0] for table in self.module(x, seq_len=length))
        return _half_angles(cos, sin)


class PairRows(ComputedSite):
    """Cos and sin side by side, `(rows, pairs, 2)`, as many as the config's length (ChatGLM 2, 3).

    `rope_ratio` divides positions in ChatGLM 2, and multiplies the base in 3; which of them is seen
    by calling the module.
    """

    lengths = ("seq_length",)
    given_length = False

    @classmethod
    def fits(cls, module: Any, model: Any) -> bool:
        """Whether the module makes rows from a number of them and an offset."""
        return _makes_rows(module) and not _asked_by(module, "ntk_alpha")

    def base_of(self) -> float:
        """10000, times the ratio if it multiplies the base."""
        return self.base if self._divides() else self.base * _ratio(self.module)

    def frequencies(self) -> Tensor:
        """The powers of the base, divided by the ratio if it divides positions."""
        divisor = _ratio(self.module) if self._divides() else 1.0
        return powers(self.base_of(), self.module.dim) / divisor

    @classmethod
    def answer(cls, given: Answer, module: Any, max_seq_len: int, offset: int = 0) -> Tensor:
        """Rows up to the target length, in the precision of the module."""
        cos, sin = given.rows.cos_sin(max(max_seq_len, given.rows.target), module.inv_freq.device)
        return torch.stack([cos, sin], dim=-1).to(module.inv_freq.dtype)

    def first_angles(self, length: int) -> Tensor:
        """Phases at position 1."""
        row = self.module(2)[1]
        return angles(row[:, 0], row[:, 1])

    def _divides(self) -> bool:
        """Whether the first pair, which no base slows down, is slower than 1."""
        if _ratio(self.module) == 1 or self.module.inv_freq.is_meta:
            return False
        row = type(self.module).forward(self.module, 2)[1, 0].float()
        return float(torch.atan2(row[1], row[0])) < 0.9


class RowsByAlpha(ComputedSite):
    """A list of cos and sin, `(1, rows, 1, dim)`, for an NTK factor of the caller's (Qwen 1).

    A patch takes the place of that factor. The model's own log-n scaling of queries stays on.
    """

    lengths = ("seq_length",)

    @classmethod
    def fits(cls, module: Any, model: Any) -> bool:
        """Whether the module is asked for rows with a factor."""
        return _makes_rows(module) and _asked_by(module, "ntk_alpha")

    def check(self) -> None:
        """Refuse a model that transformers 5 has loaded, of which other tensors are lost as well.

        Raises:
            UnsupportedModel: It has.
        """
        for each in self.owner.modules():
            factors = getattr(each, "logn_tensor", None)
            if factors is None or factors.is_meta:
                continue
            if float(factors.flatten()[0]) != 1:
                raise UnsupportedModel(
                    f"{self.config.model_type}: this transformers made up weights of attention "
                    "while loading (c_proj, logn_tensor); load it with "
                    "ropex.checkpoints.remote_code.load_remote"
                )

    def frequencies(self) -> Tensor:
        """The powers of the base; the buffer is rebuilt in each call."""
        return powers(self.base_of(), self.module.dim)

    def by_length(self) -> bool:
        """Whether the model uses its own dynamic NTK."""
        return bool(getattr(self.config, "use_dynamic_ntk", False))

    @classmethod
    def answer(
        cls, given: Answer, module: Any, max_seq_len: int, offset: int = 0, ntk_alpha: float = 1.0
    ) -> list[Tensor]:
        """Cos and sin, float32, whatever factor the caller has for them."""
        tables = given.rows.cos_sin(int(max_seq_len), module.inv_freq.device)
        return [_halves(t)[None, :, None] for t in tables]

    def first_angles(self, length: int) -> Tensor:
        """Phases at position 1."""
        cos, sin = (table[0, 1, 0] for table in self.module(length))
        return _half_angles(cos, sin)


def _held(module: Any, name: str) -> Any:
    """A buffer or a plain tensor of a module."""
    return module._buffers.get(name, vars(module).get(name))


def _asked_by(module: Any, *names: str) -> bool:
    """Whether the module's class is called with these."""
    return set(names) <= inspect.signature(type(module).forward).parameters.keys()


def _makes_rows(module: Any) -> bool:
    """Whether a module makes rows of its `dim` from a number of them."""
    return (
        hasattr(module, "inv_freq") and hasattr(module, "dim") and _asked_by(module, "max_seq_len")
    )


def _own_type(config: Any) -> str:
    """The type of scaling in the config, of either notation."""
    entry = vars(config).get("rope_parameters") or vars(config).get("rope_scaling") or {}
    return str(entry.get("type", entry.get("rope_type", "")))


def _ratio(module: Any) -> float:
    return float(getattr(module, "rope_ratio", 1.0) or 1.0)


def _halves(table: Tensor) -> Tensor:
    """Columns of each pair for both halves of a head."""
    return torch.cat([table, table], dim=-1)


def _half_angles(cos: Tensor, sin: Tensor) -> Tensor:
    """Phases of a row that has each pair in both halves."""
    pairs = len(cos) // 2
    return angles(cos[:pairs], sin[:pairs])
