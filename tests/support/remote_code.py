"""Test doubles of models that come with their own code: one small causal LM per layout.

Their rotary modules (`remote_rotary`) sit where such a model has them, and are called as it calls
them. Embeddings, attention, cache and masks (`remote_parts`) are shared and plain: unlike most of
the originals, the doubles are causal when several tokens meet a cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tests.support import remote_rotary as rotary
from tests.support.remote_parts import Attention, Trunk, double, trunk, turn_halves, turn_pairs

TRAINED = 32


class TableAttention(Attention):
    """Its own rotary module, asked for as many rows as there are keys."""

    rotary: ClassVar[Any] = rotary.InternLMRotary

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.rotary_emb = self.make(config)

    def make(self, config: Any) -> nn.Module:
        made: nn.Module = self.rotary(self.dim, config.max_position_embeddings)
        return made

    def tables(self, v: Tensor, length: int) -> tuple[Tensor, Tensor]:
        cos, sin = self.rotary_emb(v, seq_len=length)
        return cos.squeeze(1).squeeze(0), sin.squeeze(1).squeeze(0)

    def turn(self, q: Tensor, k: Tensor, v: Tensor, where: Any, past: int) -> tuple[Tensor, Tensor]:
        cos, sin = (part[where].unsqueeze(1) for part in self.tables(v, k.shape[-2] + past))
        return turn_halves(q, cos, sin), turn_halves(k, cos, sin)


class BaichuanAttention(TableAttention):
    """Keeps the tables of its first training step, for good."""

    rotary = rotary.BaichuanRotary

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.cos: Tensor | None = None
        self.sin: Tensor | None = None

    def tables(self, v: Tensor, length: int) -> tuple[Tensor, Tensor]:
        if not self.training:
            return super().tables(v, length)
        if self.cos is None or self.sin is None:
            self.cos, self.sin = super().tables(v, length)
        return self.cos, self.sin


class Baichuan2Attention(TableAttention):
    rotary = rotary.Baichuan2Rotary

    def turn(self, q: Tensor, k: Tensor, v: Tensor, where: Any, past: int) -> tuple[Tensor, Tensor]:
        turned_q, turned_k = super().turn(q.float(), k.float(), v, where, past)
        return turned_q.to(q.dtype), turned_k.to(k.dtype)


class InternLMDynamicAttention(TableAttention):
    """Rotates the whole cache at every step, by row numbers: positions are passed over."""

    rotary = rotary.InternLMDynamicRotary
    read = True

    def make(self, config: Any) -> nn.Module:
        base, factor = config.rotary["base"], config.rotary.get("scaling_factor", 1.0)
        made: nn.Module = self.rotary(
            self.dim, config.max_position_embeddings, base=base, scaling_factor=factor
        )
        return made

    def turn(self, q: Tensor, k: Tensor, v: Tensor, where: Any, past: int) -> tuple[Tensor, Tensor]:
        cos, sin = self.tables(v, k.shape[-2])
        rows = q.shape[-2]
        return turn_halves(q, cos[-rows:], sin[-rows:]), turn_halves(k, cos, sin)


class InternLM2Attention(TableAttention):
    """Tables without leading axes; the module's class follows `rope_scaling`."""

    def make(self, config: Any) -> nn.Module:
        scaling = config.rope_scaling or {}
        length, base = config.max_position_embeddings, config.rope_theta
        if scaling.get("type") is None:  # transformers 5 has no configuration without rope_scaling
            return rotary.InternLM2Rotary(self.dim, length, base)
        kinds: dict[str, Any] = {
            "linear": rotary.InternLM2LinearRotary,
            "dynamic": rotary.InternLM2DynamicRotary,
        }
        kind, factor = kinds[scaling["type"]], scaling["factor"]
        return kind(self.dim, length, base, scaling_factor=factor)  # type: ignore[no-any-return]

    def tables(self, v: Tensor, length: int) -> tuple[Tensor, Tensor]:
        cos, sin = self.rotary_emb(v, seq_len=length)
        return cos, sin


class InternLM25Attention(TableAttention):
    """The later release hands the positions to the module."""

    def make(self, config: Any) -> nn.Module:
        length = config.max_position_embeddings
        return rotary.InternLM25Rotary(self.dim, length, config.rope_theta)

    def turn(self, q: Tensor, k: Tensor, v: Tensor, where: Any, past: int) -> tuple[Tensor, Tensor]:
        cos, sin = (part.unsqueeze(1) for part in self.rotary_emb(v, where))
        return turn_halves(q, cos, sin), turn_halves(k, cos, sin)


class ChatGLMAttention(Attention):
    """Positions [B, 2, S]: the first row turns one half of a head, the second row the other."""

    axes = "sbhd"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.rotary_emb = rotary.ChatGLMRotary(self.dim // 2)

    def turn(self, q: Tensor, k: Tensor, v: Tensor, where: Any, past: int) -> tuple[Tensor, Tensor]:
        cos, sin = self.rotary_emb(q.chunk(2, dim=-1)[0], seq_len=where.max() + 1)
        halves = []
        for row, *parts in zip(where.unbind(1), q.chunk(2, -1), k.chunk(2, -1), strict=True):
            at = tuple(part.squeeze(1)[row.T].unsqueeze(2) for part in (cos, sin))
            halves.append([turn_halves(part, *at) for part in parts])
        turned_q, turned_k = (torch.cat(pair, dim=-1) for pair in zip(*halves, strict=True))
        return turned_q, turned_k


class ChatGLMTrunk(Trunk):
    embedding, attention = "word_embeddings", ("attention", ChatGLMAttention)
    started = False

    def places(self, ids: Tensor, positions: Tensor | None, past: int, mask: Any) -> Any:
        if positions is None:  # a prompt's, all of it context
            first = super().places(ids, None, past, mask).expand(ids.shape[0], -1)
            positions = torch.stack((first, torch.zeros_like(first)), dim=1)
        return positions


class ChatGLM2Attention(Attention):
    axes = "sbhd"

    def turn(self, q: Tensor, k: Tensor, v: Tensor, where: Any, past: int) -> tuple[Tensor, Tensor]:
        return turn_pairs(q, where), turn_pairs(k, where)


class ChatGLM2Trunk(Trunk):
    """One rotary module for all layers, asked for `seq_length` rows whatever the input's length."""

    embedding, blocks = "word_embeddings", "encoder.layers"
    attention = ("self_attention", ChatGLM2Attention)
    started = False

    def own(self) -> None:
        self.seq_length = self.config.seq_length
        kind = {2: rotary.ChatGLM2Rotary, 3: rotary.ChatGLM3Rotary}[self.config.generation]
        ratio, width = self.config.rope_ratio, self.config.kv_channels // 2
        self.rotary_pos_emb = kind(width, rope_ratio=ratio, dtype=torch.get_default_dtype())

    def places(self, ids: Tensor, positions: Tensor | None, past: int, mask: Any) -> Any:
        rows = self.rotary_pos_emb(self.seq_length)  # without positions a cache starts at 0 again
        rows = rows[None, : ids.shape[1]] if positions is None else rows[positions]
        return rows.transpose(0, 1).contiguous()


class QwenAttention(Attention):
    """Takes the last rows, and multiplies queries past `seq_length` by the log of their place."""

    axes = "bshd"
    logn_tensor: Tensor

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.seq_length, self.use_logn_attn = config.seq_length, config.use_logn_attn
        factors = [max(1.0, math.log(place, self.seq_length)) for place in range(1, 1024)]
        self.register_buffer(
            "logn_tensor", torch.tensor(factors)[None, :, None, None], persistent=False
        )

    def turn(self, q: Tensor, k: Tensor, v: Tensor, where: Any, past: int) -> tuple[Tensor, Tensor]:
        rows = q.shape[1]
        cos, sin = (torch.cat([pair[part][:, -rows:] for pair in where]) for part in (0, 1))
        width = cos.shape[-1]
        turned = []
        for x in (q.float(), k.float()):
            turned.append(torch.cat((turn_halves(x[..., :width], cos, sin), x[..., width:]), -1))
        if past + rows > self.seq_length and self.use_logn_attn and not self.training:
            turned[0] = turned[0] * self.logn_tensor[:, past : past + rows]
        return turned[0].to(q.dtype), turned[1].to(k.dtype)


class QwenTrunk(Trunk):
    """Dynamic NTK by whole steps, chosen by the prompt and kept while decoding."""

    embedding, blocks, attention = "wte", "h", ("attn", QwenAttention)

    def own(self) -> None:
        self.seq_length, self.use_dynamic_ntk = self.config.seq_length, self.config.use_dynamic_ntk
        width = int(self.config.kv_channels * self.config.rotary_pct)
        self.rotary_emb = rotary.QwenRotary(width, base=self.config.rotary_emb_base)

    def get_ntk_alpha(self, length: int) -> int:
        steps = math.ceil(math.log(length / self.seq_length, 2) + 1)
        return max(int(2**steps) - 1, 1)

    def places(self, ids: Tensor, positions: Tensor | None, past: int, mask: Any) -> Any:
        length = past + ids.shape[1]
        alphas: list[float] = [1.0]
        if not self.training and self.use_dynamic_ntk:
            if past:
                alphas = self.rotary_emb._ntk_alpha_cached_list
            elif mask is not None and length > self.seq_length:
                alphas = [self.get_ntk_alpha(int(own)) for own in mask.sum(-1)]
            else:
                alphas = [self.get_ntk_alpha(length)]
        self.rotary_emb._ntk_alpha_cached_list = alphas
        return [self.rotary_emb(length, ntk_alpha=alpha) for alpha in alphas]


class AlibiTrunk(Trunk):
    """No rotary module: a bias that grows with the place of the key, kept as one buffer."""

    future_mask: Tensor

    def own(self) -> None:
        self.max_cache_pos, self.first_run = self.config.model_max_length, True

    def places(self, ids: Tensor, positions: Tensor | None, past: int, mask: Any) -> Any:
        return None

    def bias(self, mask: Tensor | None, rows: int, length: int, hidden: Tensor) -> Tensor:
        if self.first_run or length > self.max_cache_pos:
            self.first_run, self.max_cache_pos = False, max(length, self.max_cache_pos)
            heads = self.config.num_attention_heads
            slopes = 2.0 ** (-8 * torch.arange(1, heads + 1) / heads)
            places = torch.arange(self.max_cache_pos).float()
            future = torch.full((self.max_cache_pos,) * 2, -math.inf).triu(1)
            table = (future + slopes[:, None, None] * places).to(hidden)
            self.register_buffer("future_mask", table, persistent=False)
        own = self.future_mask[None, :, length - rows : length, :length]
        return own + super().bias(mask, rows, length, hidden)


LAYERS = {"num_hidden_layers": 2, "max_position_embeddings": TRAINED}
ALIBI = {"num_hidden_layers": 2, "model_max_length": TRAINED}
ROTARY = {"rotary": {"base": 10000, "type": "dynamic"}}
INTERNLM2 = {**LAYERS, "rope_theta": 10000, "rope_scaling": None}
LINEAR = {"rope_scaling": {"type": "linear", "factor": 2.0}}
DYNAMIC = {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
CHATGLM = {"num_layers": 2, "max_sequence_length": TRAINED, "position_encoding_2d": True}
GLM = {"num_layers": 2, "kv_channels": 16, "seq_length": TRAINED, "original_rope": True}
QWEN = {
    **{**LAYERS, "seq_length": TRAINED, "kv_channels": 16, "rotary_pct": 1.0},
    **{"rotary_emb_base": 10000, "use_dynamic_ntk": True, "use_logn_attn": True},
}


def internlm2(own: dict[str, Any]) -> Callable[[], nn.Module]:
    return double("internlm2", trunk(InternLM2Attention, "attention"), {**INTERNLM2, **own})


def chatglm(generation: int, ratio: float | None = None) -> Callable[[], nn.Module]:
    own = {**GLM, "generation": generation, "rope_ratio": ratio}
    return double("chatglm", ChatGLM2Trunk, own, prefix="transformer")


DOUBLES: dict[str, Callable[[], nn.Module]] = {
    "baichuan": double("baichuan", trunk(BaichuanAttention), LAYERS),
    "baichuan2": double("baichuan", trunk(Baichuan2Attention), LAYERS),
    "baichuan_alibi": double("baichuan", AlibiTrunk, ALIBI),
    "internlm": double("internlm", trunk(TableAttention), LAYERS),
    "internlm_dynamic": double("internlm", trunk(InternLMDynamicAttention), {**LAYERS, **ROTARY}),
    "internlm2": internlm2({}),
    "internlm2_linear": internlm2(LINEAR),
    "internlm2_dynamic": internlm2(DYNAMIC),
    "internlm2_5": double("internlm2", trunk(InternLM25Attention, "attention"), INTERNLM2),
    "chatglm": double("chatglm", ChatGLMTrunk, CHATGLM, half=True, prefix="transformer"),
    "chatglm2": chatglm(2),
    "chatglm2_32k": chatglm(2, 4),
    "chatglm3": chatglm(3),
    "chatglm3_32k": chatglm(3, 50),
    "qwen": double("qwen", QwenTrunk, QWEN, prefix="transformer"),
}
