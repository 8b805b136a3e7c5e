"""The sizes of a model that decide its memory and its work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

Self = TypeVar("Self", bound="Shape")


@dataclass(frozen=True)
class Shape:
    """What decides memory and work.

    Attributes:
        weights: Number of parameters.
        active: Parameters that one token passes through; fewer in a mixture of experts.
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
    def of(cls: type[Self], model: Any, dtype: torch.dtype | None = None) -> Self:
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


def _number(config: Any, name: str, default: int = 0) -> int:
    """A size in a config; the largest, in the few families with one per layer."""
    value = getattr(config, name, None)
    if isinstance(value, (list, tuple)):
        value = max(value, default=None)
    return int(value) if value else default


def _idle(model: Any, config: Any) -> int:
    """Parameters of the experts that a token does not pass through."""
    experts = _number(config, "num_local_experts") or _number(config, "num_experts")
    experts = experts or _number(config, "n_routed_experts")
    used = _number(config, "num_experts_per_tok")
    if not experts or not used:
        return 0
    inside: int = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    return inside - inside * used // experts
