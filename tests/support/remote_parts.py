"""What the doubles of `remote_code` share: a plain causal LM around a rotary module."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

COMMON = {"vocab_size": 64, "hidden_size": 64, "num_attention_heads": 4, "use_cache": False}
Past = Sequence[tuple[Tensor, Tensor]]


def turn_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def turn_pairs(x: Tensor, cache: Tensor) -> Tensor:
    """Rotates the channels that the table [S, B, pairs, 2] has; `x` is [S, B, heads, channels]."""
    width = 2 * cache.shape[-2]
    even, odd = x[..., :width:2], x[..., 1:width:2]
    cos, sin = cache.unsqueeze(2).unbind(-1)
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return torch.cat((turned.flatten(-2), x[..., width:]), dim=-1)


@contextmanager
def quiet() -> Iterator[None]:
    """Transformers 5 warns of `rope_scaling`, which such models still use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def config_class(kind: str, own: dict[str, Any]) -> type[PretrainedConfig]:
    """A configuration with the names that a family uses; `kind` is its `model_type`."""

    def start(self: Any, **given: Any) -> None:
        with quiet():
            for name, value in {**COMMON, **own}.items():
                setattr(self, name, given.pop(name, value))
        PretrainedConfig.__init__(self, **{"tie_word_embeddings": False, **given})

    return type(
        f"{kind.title()}Config", (PretrainedConfig,), {"model_type": kind, "__init__": start}
    )


class Attention(nn.Module):
    """Attention over queries and keys in the order of axes (batch, sequence, heads, dim) `axes`."""

    axes = "bhsd"
    read = False  # whether the cache holds keys that are not rotated

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.heads = config.num_attention_heads
        self.dim = config.hidden_size // self.heads
        self.W_pack = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def turn(self, q: Tensor, k: Tensor, v: Tensor, where: Any, past: int) -> tuple[Tensor, Tensor]:
        return q, k

    def forward(self, hidden: Tensor, bias: Tensor, where: Any, old: Any) -> Any:
        order = ["bshd".index(axis) for axis in self.axes]
        back = [self.axes.index(axis) for axis in "bhsd"]
        tokens = self.axes.index("s")
        packed = self.W_pack(hidden).chunk(3, dim=-1)
        q, k, v = (x.unflatten(-1, (self.heads, self.dim)).permute(order) for x in packed)
        past = 0 if old is None else old[0].shape[tokens]
        if not self.read:
            q, k = self.turn(q, k, v, where, past)
        if old is not None:
            k, v = torch.cat((old[0], k), dim=tokens), torch.cat((old[1], v), dim=tokens)
        new = (k, v)
        if self.read:
            q, k = self.turn(q, k, v, where, past)
        q, k, v = (x.permute(back) for x in (q, k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), new


class Block(nn.Module):
    def __init__(self, config: Any, name: str, attention: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, attention)
        self.input_layernorm = nn.LayerNorm(config.hidden_size)
        self.mlp = nn.Sequential(
            nn.LayerNorm(config.hidden_size),
            nn.Linear(config.hidden_size, 96),
            nn.SiLU(),
            nn.Linear(96, config.hidden_size),
        )

    def forward(self, hidden: Tensor, bias: Tensor, where: Any, old: Any) -> Any:
        mixed, new = self.get_submodule(self.name)(self.input_layernorm(hidden), bias, where, old)
        hidden = hidden + mixed
        return hidden + self.mlp(hidden), new


class Base(PreTrainedModel):
    """What the model and its trunk share."""

    started = True  # whether `post_init` is called

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(std=0.2)


class Trunk(Base):
    embedding, blocks, attention = "embed_tokens", "layers", ("self_attn", Attention)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.add_module(self.embedding, nn.Embedding(config.vocab_size, config.hidden_size))
        *path, leaf = self.blocks.split(".")
        holder: nn.Module = self
        for name in path:
            holder.add_module(name, nn.Module())
            holder = holder.get_submodule(name)
        name, attention = self.attention
        layers = (Block(config, name, attention(config)) for _ in range(2))
        holder.add_module(leaf, nn.ModuleList(layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.own()
        if self.started:
            self.post_init()  # type: ignore[no-untyped-call]

    def own(self) -> None:
        """Adds what the family has beside the layers."""

    def get_input_embeddings(self) -> Any:
        return self.get_submodule(self.embedding)

    def places(self, ids: Tensor, positions: Tensor | None, past: int, mask: Any) -> Any:
        """What the layers get to find their positions."""
        if positions is None:
            positions = torch.arange(past, past + ids.shape[1], device=ids.device)[None]
        return positions

    def bias(self, mask: Tensor | None, rows: int, length: int, hidden: Tensor) -> Tensor:
        lowest = torch.finfo(hidden.dtype).min
        allowed = torch.ones(rows, length, dtype=torch.bool, device=hidden.device)
        allowed = allowed.tril(length - rows)[None, None]
        if mask is not None and mask.ndim == 4:  # ChatGLM's, true where a token is hidden
            allowed = ~mask
        elif mask is not None:
            allowed = allowed & mask[:, None, None].bool()
        return torch.zeros(1, dtype=hidden.dtype, device=hidden.device).where(allowed, lowest)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        past_key_values: Past | None,
    ) -> tuple[Tensor, list[Any]]:
        ids, mask, positions, past = input_ids, attention_mask, position_ids, past_key_values
        hidden = self.get_input_embeddings()(ids)
        layers: Any = self.get_submodule(self.blocks)
        tokens = self.attention[1].axes.index("s")
        before = past[0][0].shape[tokens] if past else 0
        where = self.places(ids, positions, before, mask)
        bias = self.bias(mask, ids.shape[1], before + ids.shape[1], hidden)
        new = []
        for index, layer in enumerate(layers):
            hidden, pair = layer(hidden, bias, where, past[index] if past else None)
            new.append(pair)
        return self.norm(hidden), new


class Double(Base):
    trunk: ClassVar[type[Trunk]] = Trunk

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.add_module(self.base_model_prefix, self.trunk(config))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if self.started:
            self.post_init()  # type: ignore[no-untyped-call]

    def get_output_embeddings(self) -> Any:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Past | None = None,
        use_cache: bool = False,
        **ignored: Any,
    ) -> CausalLMOutputWithPast:
        trunk = self.get_submodule(self.base_model_prefix)
        hidden, new = trunk(input_ids, attention_mask, position_ids, past_key_values)
        past: Any = tuple(new) if use_cache else None
        return CausalLMOutputWithPast(logits=self.lm_head(hidden), past_key_values=past)


def trunk(attention: type[Attention], name: str = "self_attn") -> type[Trunk]:
    return type(f"{attention.__name__}Trunk", (Trunk,), {"attention": (name, attention)})


def double(
    kind: str, trunk: type[Trunk], own: dict[str, Any], half: bool = False, prefix: str = "model"
) -> Callable[[], nn.Module]:
    """A maker of one double, always with the same weights."""
    config = config_class(kind, own)
    members = {
        "config_class": config,
        "trunk": trunk,
        "base_model_prefix": prefix,
        "started": trunk.started,
    }
    made = type(f"{kind.title()}ForCausalLM", (Double,), members)

    def make() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: Any = made(config())
            model.apply(model._init_weights)  # also where the model itself does not
        return (model.half() if half else model).eval()

    return make
