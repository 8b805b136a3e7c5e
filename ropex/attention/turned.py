"""Turned keys that a cache keeps beside its own, so that decoding turns each key once.

They are further layers of the cache, behind those of the model: whatever happens to rows and tokens
of a cache (beams, batches, cropping) happens to them too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ropex.positions import Place

_NAME = "ropex_turned"


def keeper(cache: Any, layer: int | None, layers: int) -> Callable[..., Tensor] | None:
    """What keeps the turned keys of a layer in a cache; None if the cache cannot.

    Args:
        cache: A cache of transformers, or None.
        layer: Index of the layer.
        layers: Layers of the model.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    if type(cache) is not DynamicCache or layer is None or len(cache.layers) < layers:
        return None
    if not all(hasattr(each, _NAME) for each in cache.layers[layers:]):
        return None  # it has layers of its own there
    if type(cache.layers[layer]) is not DynamicLayer:
        return None

    def _layer(place: Place | None) -> Any:
        made = DynamicLayer()
        setattr(made, _NAME, place)
        return made

    def kept(key: Tensor, place: Place, turn: Callable[[Tensor, slice], Tensor]) -> Tensor:
        while len(cache.layers) <= layers + layer:
            cache.layers.append(_layer(None))
        own: Any = cache.layers[layers + layer]
        there = own.keys.shape[2] if own.keys is not None else 0
        if getattr(own, _NAME) != place or there > key.shape[2]:
            own = cache.layers[layers + layer] = _layer(place)
            there = 0
        if there < key.shape[2]:
            run = slice(there, key.shape[2])
            new = turn(key[:, :, run], run)
            own.update(new, new[..., :0])
        keys: Tensor = own.keys
        return keys

    return kept
