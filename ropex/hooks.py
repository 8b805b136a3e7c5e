"""What runs inside a patched model: the planned table, and the scale of the queries."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ropex.errors import UnsupportedModel
from ropex.rope import QueryScale


class FixedTable:
    """Forward pre-hook: the rotary module reads the planned float32 frequencies.

    A hook and not only a buffer, because `.to(bfloat16)` rounds buffers and a later
    re-initialisation rebuilds them.

    Args:
        inv_freq: The planned frequencies, `(dim // 2,)`, float32.
    """

    def __init__(self, inv_freq: Tensor) -> None:
        self.inv_freq = protected(inv_freq)

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Put the table where the module reads it, on the device of its input."""
        device = args[0].device if args else kwargs["x"].device
        table = self.inv_freq  # one name for all lines, as replicas on other devices share the hook
        if table.device != device:
            table = self.inv_freq = protected(table.to(device))
        if module.inv_freq is not table:
            module.inv_freq = table


def protected(table: Tensor) -> Tensor:
    """The same tensor, marked so that transformers 5 does not initialise it again in place."""
    table._is_hf_initialized = True  # type: ignore[attr-defined]
    return table


class LengthTable:
    """Forward hooks: frequencies by the length of each sequence, from its positions.

    Nothing depends on what the model saw before, nor on the other rows of the batch.

    Args:
        table_at: Length in tokens, a 0-dimensional tensor, to frequencies `(dim // 2,)`, float32.
    """

    def __init__(self, table_at: Callable[[Tensor], Tensor]) -> None:
        self.table_at = table_at

    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook: the table of the longest row."""
        module.inv_freq = self.table_at(_positions(args, kwargs).max() + 1)

    def after(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any | None:
        """Hook: where rows differ in length, each row's own cos and sin."""
        positions = _positions(args, kwargs)
        if positions.shape[0] == 1:
            return None
        x = args[0] if args else kwargs["x"]
        rows = []
        for row in torch.split(positions, 1):
            module.inv_freq = self.table_at(row.max() + 1)
            rows.append(module.forward(x, row))
        if isinstance(output, Tensor):
            return torch.cat(rows)
        return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))


def _positions(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    positions: Tensor = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
    return positions


class CacheGuard:
    """Pre-hook of the decoder: refuse to mix keys that were rotated for different lengths.

    Args:
        strategy: The strategy's text, for the message.
        trained_length: Tokens up to which every length has the same frequencies.
    """

    def __init__(self, strategy: str, trained_length: int) -> None:
        self.strategy, self.trained_length = strategy, trained_length

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise a RuntimeError if a filled cache is continued beyond the trained length."""
        values = (*args, *kwargs.values())
        cache = next((value for value in values if hasattr(value, "get_seq_length")), None)
        past = 0 if cache is None else int(cache.get_seq_length())
        if past and _end(past, args, kwargs) > self.trained_length:
            raise RuntimeError(
                f"{self.strategy}: a key-value cache cannot be continued beyond the trained length "
                f"of {self.trained_length} tokens, as its keys are rotated for a shorter sequence; "
                "fix the length (dynamic:length=32k) or pass use_cache=False"
            )


def _end(past: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Length of the longest sequence after this call: by its positions, else by its tokens."""
    positions = kwargs.get("position_ids")
    if positions is not None and not torch.compiler.is_compiling():
        return int(positions.max()) + 1
    names = ("input_ids", "inputs_embeds")
    given = [kwargs[name] for name in names if kwargs.get(name) is not None] or args
    return past + int(given[0].shape[1])


def scaled_attention(base: str) -> str:
    """Name under which transformers finds attention `base` with scaled queries.

    The name is added to transformers' tables of attention and mask functions the first time it is
    asked for; nothing that was there changes.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = f"ropex_{base}"
    if name not in ALL_ATTENTION_FUNCTIONS:

        def attend(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
        ) -> Any:
            scale: QueryScale = module.ropex_query_scale  # type: ignore[assignment]
            positions = kwargs.get("position_ids")
            if positions is None:
                raise UnsupportedModel(
                    f"{type(module).__name__} does not tell its attention function the positions, "
                    "so its queries cannot be scaled by position"
                )
            query = query * scale(positions)[:, None, :, None].to(query.dtype)
            function: Any = ALL_ATTENTION_FUNCTIONS.get(base)
            if function is None:
                function = _eager_of(type(module))
            return function(module, query, key, value, *args, **kwargs)

        AttentionInterface.register(name, attend)
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    return name


def _eager_of(attention: type) -> Any:
    """The eager attention function of the modeling file that a class, or a parent, comes from."""
    files = [vars(sys.modules[cls.__module__]) for cls in attention.__mro__]
    return next(f["eager_attention_forward"] for f in files if "eager_attention_forward" in f)
