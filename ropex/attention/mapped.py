"""A step of attention: position maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ropex.attention.caches import Call, filled_cache
from ropex.attention.dispatch import Step
from ropex.attention.regions import Settings, Turned, attend_in_regions
from ropex.attention.schedule import Schedule
from ropex.attention.turned import keeper
from ropex.attention.turns import Turn
from ropex.attention.unrotated import key_positions
from ropex.errors import UnsupportedModel
from ropex.positions import PositionMap

_BEYOND = 2**40  # where keys stand that are not written yet: after every query


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a batch whose tokens stand at the same positions.

    Attributes:
        batch: Which rows.
        queries: Positions, `(tokens,)`, int64, on the CPU.
        keys: Positions of cached keys and these, likewise.
    """

    batch: list[int]
    queries: Tensor
    keys: Tensor


class Whereabouts:
    """Hooks of the decoder: where queries and keys of a call stand.

    Args:
        strategy: The strategy's text, for messages.
        positions: The map.
        layers: Layers of the model.
    """

    def __init__(self, strategy: str, positions: PositionMap, layers: int) -> None:
        self.strategy, self.positions = strategy, positions
        self.layers = layers
        self.rows: tuple[Rows, ...] = ()
        self.mapped = False
        self.cache: Any = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook.

        Raises:
            RuntimeError: The positions of the keys are not known.
        """
        call = Call.of(module, args, kwargs)
        if call.past and getattr(call.cache, "ropex_positions", None) is None:
            raise RuntimeError(
                f"{self.strategy}: the key-value cache was filled without this patch, so it does "
                "not say where its keys stand; start anew with an empty cache"
            )
        self._known = key_positions(call)
        self.cache = call.cache if call.past else None  # all its layers are there
        found = self._known.cpu()
        rows = found.tolist()
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, row in enumerate(rows):
            groups.setdefault(tuple(row), []).append(place)
        keys = [(batch, torch.tensor(row)) for row, batch in groups.items()]
        self.rows = tuple(Rows(batch, each[call.past :], each) for batch, each in keys)
        self._schedules: dict[tuple[int, int, int], Schedule] = {}
        self.mapped = any(bool(self.positions.level(each.queries).any()) for each in self.rows)

    def schedule(self, rows: Rows, query: Tensor, key: Tensor) -> Schedule:
        """Of the last queries of a call, and of keys of a window, or with room for more."""
        name = rows.batch[0], query.shape[2], key.shape[2]
        if name not in self._schedules:
            missing = key.shape[2] - len(rows.keys)
            keys = functional.pad(rows.keys, (0, max(missing, 0)), value=_BEYOND)
            queries = rows.queries[-query.shape[2] :]
            self._schedules[name] = Schedule(self.positions, queries, keys[-key.shape[2] :])
        return self._schedules[name]

    def after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Hook: let the cache remember where its keys stand."""
        cache = filled_cache(args, kwargs, output)
        if cache is not None:
            cache.ropex_positions = self._known
        self.cache = None


@dataclass(frozen=True, eq=False)
class Mapped:
    """What the step finds on an attention module, as `ropex_mapped`.

    Attributes:
        where: Of all modules of the model.
        turn: How the module holds rotated states.
        ignored: Keyword arguments that its own attention function takes and does not use.
    """

    where: Whereabouts
    turn: Turn
    ignored: tuple[str, ...] = ()


def _attend(
    function: Any,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    mapped: Mapped | None = getattr(module, "ropex_mapped", None)
    if mapped is None or not mapped.where.mapped:
        return function(module, query, key, value, attention_mask, *args, **kwargs)
    given = {name: value for name, value in kwargs.items() if name not in mapped.ignored}
    return through_map(mapped, module, (query, key, value), attention_mask, given), None


MAPPED = Step(
    "mapped positions",
    "ropex_mapped",
    _attend,
    without=("un-rotated keys",),
    why='both rotate keys again; leave cache="unrotated" out',
)
"""Finds a `Mapped` on the module as `ropex_mapped`; goes on where no query needs the map."""


@torch.compiler.disable  # type: ignore[untyped-decorator]
def through_map(
    mapped: Mapped,
    module: nn.Module,
    states: tuple[Tensor, Tensor, Tensor],
    mask: Any,
    kwargs: dict[str, Any],
) -> Tensor:
    """Attention under the map, `(batch, queries, heads, value dim)`.

    Raises:
        UnsupportedModel: The mask is of a kind that only other attention functions read.
    """
    query, key, value = states
    where = mapped.where
    if len(where.rows) == 1:
        kept = keeper(where.cache, getattr(module, "layer_idx", None), where.layers)
        schedule = where.schedule(where.rows[0], query, key)
        return through_regions(*states, module, mask, schedule, mapped.turn, kept, kwargs)
    out = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
    for rows in where.rows:
        batch = rows.batch
        own = mask if mask is None or len(mask) == 1 else mask[batch]
        part = query[batch], key[batch], value[batch]
        schedule = where.schedule(rows, query, key)
        out[batch] = through_regions(*part, module, own, schedule, mapped.turn, None, kwargs)
    return out


def through_regions(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    module: nn.Module,
    mask: Any,
    schedule: Schedule,
    turn: Turn,
    kept: Turned | None,
    kwargs: dict[str, Any],
) -> Tensor:
    """`attend_in_regions` with the arguments of attention functions of transformers."""
    scaling = kwargs.get("scaling")
    settings = Settings(
        query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        _four_dimensional(mask),
        kwargs.get("softcap"),
        kwargs.get("s_aux"),
        kwargs.get("dropout", 0.0) if module.training else 0.0,
    )
    return attend_in_regions(query, key, value, schedule, turn, settings, kept)


def _four_dimensional(mask: Any) -> Tensor | None:
    if mask is None or (isinstance(mask, Tensor) and mask.ndim == 4):
        return mask
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return mask[:, None, None, :].bool()
    raise UnsupportedModel(
        f"a mask of {type(mask).__name__} is read by its own attention function alone; load the "
        "model with attn_implementation='sdpa' or 'eager'"
    )
