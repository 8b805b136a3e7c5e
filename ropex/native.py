"""The numbers that transformers computes for a strategy, checked against the float64 plan.

Where transformers has a method, its own float32 table is what a patched model holds. So the patched
model, a checkpoint saved from it and a model built from that config agree to the last bit. Where it
has none, or reads it otherwise than the plan, any static table is carried by a `longrope` entry.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ropex.errors import UnsupportedModel
from ropex.rope import Plan, Rope
from ropex.rope_config import carrier, read_entry, write_entry
from ropex.strategies.base import Strategy

# transformers computes in float32, a plan in float64; a power of the base costs a few units in the
# last place (measured: at most 7e-7 up to a base of 1e7).
TOLERANCE = 2e-6


@dataclass(frozen=True, eq=False)
class Native:
    """How one strategy is realised in one model.

    Attributes:
        entry: The config entry that stands for it; None where no entry can.
        inv_freq: The table, `(dim // 2,)`, float32; None for a strategy that depends on length.
        table_at: Length (0-dimensional tensor) to table and attention scale, for a strategy that
            depends on length.
        attention_scale: What cos and sin are multiplied by, at the trained length.
    """

    entry: dict[str, Any] | None
    inv_freq: Tensor | None
    table_at: Callable[[Tensor], tuple[Tensor, Any]] | None
    attention_scale: float


def realise(module: Any, strategy: Strategy, rope: Rope) -> Native:
    """Find the config entry and the table of `strategy` for a rotary module.

    Args:
        module: The rotary module; it is not changed.
        strategy: A strategy that changes frequencies or the attention scale.
        rope: What the module was trained with.
    """
    plan = strategy.plan(rope)
    if read_entry(module.config).get("mscale_all_dim"):
        # Attention scales its logits by this key and the old factor (DeepSeek), so that an entry
        # with another factor would mean another model.
        return _outside_config(strategy, rope, plan)
    if strategy.length_class != "static":
        return _by_length(module, strategy, rope, plan)
    for entry in (strategy.native(rope), _carrier(plan, rope, strategy.target_length(rope))):
        config = _reloaded(module, entry, strategy, rope)
        if config is not None:
            table, scale = native_table(module, config)
            stopped = plan.inv_freq == 0  # a file has no infinite divisor, only an immense one
            if bool((table[stopped] < 1e-20).all()):
                table = table * ~stopped
            if close(table, plan.inv_freq) and abs(scale - plan.attention_scale) < 1e-9:
                return Native(entry, table, None, scale)
    return _outside_config(strategy, rope, plan)


@dataclass(frozen=True, eq=False)
class PlannedTable:
    """The table of each length, by the plan of a strategy."""

    strategy: Strategy
    rope: Rope
    dtype: torch.dtype = torch.float32

    def __call__(self, length: Tensor) -> tuple[Tensor, Any]:
        """Frequencies, `(dim // 2,)`, and the attention scale, where `length` is."""
        rope = replace(self.rope, inv_freq=self.rope.inv_freq.to(length.device))
        plan = self.strategy.plan(rope, length)
        return plan.inv_freq.to(self.dtype), plan.attention_scale


@dataclass(frozen=True, eq=False)
class OneTable:
    """The float64 table of a plan that is the same at every length."""

    plan: Plan

    def __call__(self, length: Tensor) -> tuple[Tensor, Any]:
        """Frequencies, `(dim // 2,)`, and the attention scale, where `length` is."""
        return self.plan.inv_freq.to(length.device), self.plan.attention_scale


@dataclass(frozen=True, eq=False)
class DynamicTable:
    """The table of each length, by transformers' own function for its `dynamic` type."""

    config: Any
    trained_length: int

    def __call__(self, length: Tensor) -> tuple[Tensor, Any]:
        """Frequencies, `(dim // 2,)`, float32, and the attention scale, where `length` is."""
        tokens = length.clamp(min=self.trained_length)
        table, scale = _rope_function("dynamic")(self.config, length.device, seq_len=tokens)
        return table, scale


@dataclass(frozen=True, eq=False)
class TwoTables:
    """The table of short sequences and that of long ones, by transformers' `longrope` function."""

    config: Any
    trained_length: int

    def __call__(self, length: Tensor) -> tuple[Tensor, Any]:
        """Frequencies, `(dim // 2,)`, float32, and the attention scale, where `length` is."""
        function, switch = _rope_function("longrope"), self.trained_length
        short, scale = function(self.config, length.device, seq_len=switch)
        long, _ = function(self.config, length.device, seq_len=switch + 1)
        return torch.where(length > switch, long, short), scale


def _rope_function(rope_type: str) -> Any:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    return ROPE_INIT_FUNCTIONS[rope_type]


def _outside_config(strategy: Strategy, rope: Rope, plan: Plan) -> Native:
    """The plan itself, where no config entry stands for it."""
    if strategy.length_class == "static":
        return Native(None, plan.inv_freq.float(), None, plan.attention_scale)
    return Native(None, None, PlannedTable(strategy, rope), plan.attention_scale)


def native_table(module: Any, config: Any) -> tuple[Tensor, float]:
    """What transformers computes for `config` when it builds such a rotary module.

    Returns:
        The frequencies, `(dim // 2,)`, float32, on the CPU, and the factor of cos and sin.
    """
    built = _built(module, config)
    return built.inv_freq.detach().float(), float(built.attention_scaling)


def _built(module: Any, config: Any) -> Any:
    """A rotary module like `module`, for `config`."""
    with torch.device("cpu"):
        return type(module)(config)


def close(table: Tensor, wanted: Tensor) -> bool:
    """Whether a float32 table is the float64 one, to the accuracy of float32."""
    if table.shape != wanted.shape:
        return False
    return bool(((table.double() - wanted).abs() <= TOLERANCE * wanted.abs()).all())


def _by_length(module: Any, strategy: Strategy, rope: Rope, plan: Plan) -> Native:
    if read_entry(module.config).get("mrope_section"):
        raise UnsupportedModel(
            f"{module.config.model_type} gives each token three positions, which do not tell the "
            f"length of a sequence that {strategy} goes by; fix it (dynamic:length=32k)"
        )
    entry = strategy.native(rope)
    config = _reloaded(module, entry, strategy, rope)
    kinds: dict[str, Any] = {"dynamic": DynamicTable, "longrope": TwoTables}
    made = None if config is None else kinds.get(_built(module, config).rope_type)
    if made is None:
        return _outside_config(strategy, rope, plan)
    table_at, planned = made(config, rope.trained_length), PlannedTable(strategy, rope)
    for tokens in (rope.trained_length, rope.trained_length + 1, 5 * rope.trained_length):
        (table, scale), (wanted, factor) = (at(torch.tensor(tokens)) for at in (table_at, planned))
        if not close(table, wanted.double()) or abs(scale - factor) > 1e-9:
            return _outside_config(strategy, rope, plan)
    return Native(entry, None, table_at, plan.attention_scale)


def _reloaded(module: Any, entry: dict[str, Any] | None, strategy: Strategy, rope: Rope) -> Any:
    """The module's config with `entry`, as it comes back from a file and builds a module.

    None if there is no entry, or if the family does not take one of its type (Phi-3 and YaRN).
    """
    if not entry:
        return None
    config = copy.deepcopy(module.config)
    try:
        write_entry(config, entry, rope.trained_length, strategy.target_length(rope))
        config = type(config).from_dict(config.to_dict())
        native_table(module, config)
    except Exception:  # families refuse entries with exceptions of many kinds
        return None
    return config


def _carrier(plan: Plan, rope: Rope, target: int) -> dict[str, Any]:
    # As transformers computes it in float32, so that pairs which are kept stay so to the last bit.
    places = torch.arange(0, rope.dim, 2).float() / rope.dim
    unscaled = (1.0 / rope.base**places).double()
    divisors = (unscaled / plan.inv_freq).clamp(max=1e30)  # of a pair that does not turn: infinite
    return carrier(divisors.tolist(), plan.attention_scale, target)
