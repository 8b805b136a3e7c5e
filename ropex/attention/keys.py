"""How keys in caches are rotated, so that no cache is continued under a different rotation."""

from __future__ import annotations

import functools
import gc
import hashlib
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ropex.model.options import Options

if TYPE_CHECKING:
    from ropex.patching.handle import Patch

MARK = "ropex_keys"
"""Attribute of a decoder whose keys a patch rotates, and of each cache with such keys."""

_ANEW = "start anew with an empty cache"


class Keys:
    """How a patch rotates keys; hooks of the decoder write it on each cache that they see.

    Args:
        strategy: The strategy's text, for messages.
        identity: The same for two patches if keys are the same under both.
    """

    def __init__(self, strategy: str, identity: str) -> None:
        self.strategy, self.identity = strategy, identity
        self.caches: WeakSet[Any] = WeakSet()  # those to be spent when the patch is removed
        self.traced = False  # whether compiled calls may have filled more

    @classmethod
    def of(cls, patch: Patch) -> Keys | None:
        """Those of a patch; None if it leaves keys as they are."""
        by_length = patch.strategy.length_class != "static"
        changed = patch.rebuilds or any(each.changes for each in patch.planned)
        if not changed and not by_length and patch.options == Options():
            return None
        text = str(patch.strategy)
        if patch.options.cache == "unrotated":
            return cls(text, "unrotated")
        digest = hashlib.sha256(patch.options.precision.encode())
        if by_length:
            digest.update(f"{text} {patch.rope.trained_length}".encode())
        for each in patch.planned:
            scale = float(each.plan.attention_scale)
            digest.update(f"{each.site.layer_type} {scale!r}".encode())
            digest.update(each.plan.inv_freq.cpu().numpy().tobytes())
        return cls(text, digest.hexdigest())

    def __deepcopy__(self, memo: dict[int, Any]) -> Keys:
        """The same one: what is copied with it is a model, or a cache that is spent with it."""
        for cache in list(self.caches):
            if id(cache) in memo:
                self.caches.add(memo[id(cache)])
        return self

    def __reduce__(self) -> Any:
        """Caches stay where they are."""
        return Keys, (self.strategy, self.identity)

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the decoder.

        Raises:
            RuntimeError: A cache holds keys that were rotated otherwise.
        """
        if vars(module).get(MARK) is not self:  # a later patch rotates them
            return
        cache = given_cache(args, kwargs)
        if cache is None:
            return
        kept: Keys | None = getattr(_holder(cache), MARK, None)
        if (kept is None or kept.identity != self.identity) and _may_be_filled(cache, kept):
            under = f"filled under {kept.strategy}" if kept else "not filled under this patch"
            raise RuntimeError(
                f"{self.strategy}: the key-value cache was {under}, so its keys are rotated "
                f"otherwise; {_ANEW}"
            )
        self._mark(cache)

    def after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Hook of the decoder: caches that it made, and tuples, which it makes in each call."""
        if vars(module).get(MARK) is self:
            cache = filled_cache(args, kwargs, output)
            if cache is not None:
                self._mark(cache)

    def spend(self) -> None:
        """Let no cache be continued that holds such keys: they are no longer what the model makes.

        The model has no hooks then that could notice, so the caches do.
        """
        for cache in self._known():
            if getattr(cache, MARK, None) is self and not isinstance(cache, Spent):
                kind: Any = type(cache)
                cache.__class__ = _spent(kind)

    def _mark(self, cache: Any) -> None:
        holder = _holder(cache)
        if isinstance(holder, Spent):
            holder.ropex_revive()
        if holder is not None and getattr(holder, MARK, None) is not self:
            setattr(holder, MARK, self)
        if torch.compiler.is_compiling():  # a set that grows would have each call traced anew
            self.traced = True
        elif hasattr(cache, "get_seq_length"):
            self.caches.add(holder)

    def _known(self) -> list[Any]:
        """The caches that may hold such keys."""
        from transformers import Cache

        tracked = gc.get_objects() if self.traced else []
        return [*self.caches, *(each for each in tracked if issubclass(type(each), Cache))]


class Spent:
    """First base of the class of a cache whose keys are of a patch that was removed."""

    ropex_keys: Keys

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """That of the cache, once it is emptied.

        Raises:
            RuntimeError: It holds keys.
        """
        if tokens_in(self):
            raise RuntimeError(
                f"the key-value cache was filled under {self.ropex_keys.strategy}, which is "
                f"removed since, so its keys are rotated otherwise; {_ANEW}"
            )
        self.ropex_revive()
        del self.ropex_keys
        return self.update(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A copy is spent as well."""
        return _spent_anew, (type(self).__mro__[2],), vars(self)

    def ropex_revive(self) -> None:
        """Be the cache that it was."""
        self.__class__ = type(self).__mro__[2]


@functools.cache
def _spent(cls: Any) -> Any:
    return type(cls.__name__, (Spent, cls), {"__module__": cls.__module__})


def _spent_anew(cls: Any) -> Any:
    spent = _spent(cls)
    return spent.__new__(spent)


def tokens_in(cache: Any) -> int:
    """Tokens in a key-value cache, by those of its layers that count them."""
    own = getattr(cache, "key_cache", ()) if not hasattr(cache, "layers") else ()
    if len(own) and not any(keys.numel() for keys in own):  # Bamba counts a row of none as a token
        return 0
    length = int(cache.get_seq_length())
    layers = () if length else getattr(cache, "layers", ())  # one without attention has none
    counted = [int(each.get_seq_length()) for each in layers if hasattr(each, "get_seq_length")]
    return max(length, *counted) if counted else length


def _may_be_filled(cache: Any, kept: Keys | None) -> bool:
    """Whether a cache holds keys; what only its tensors know is not asked while tracing."""
    if isinstance(cache, (tuple, list)):
        return _holder(cache) is not None
    if torch.compiler.is_compiling() and isinstance(cache.get_seq_length(), Tensor):
        return kept is not None
    return tokens_in(cache) > 0


def given_cache(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The cache among the arguments of a decoder; None if there is none."""
    cache = kwargs.get("past_key_values")
    return _among((*args, *kwargs.values())) if cache is None else cache


def filled_cache(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """The cache that a decoder has filled: what it returns, or else was given."""
    cache = getattr(output, "past_key_values", None)
    if cache is None and isinstance(output, tuple):
        cache = _among(output)
    return given_cache(args, kwargs) if cache is None else cache


def _among(values: tuple[Any, ...]) -> Any:
    return next((each for each in values if _is_cache(each)), None)


def _is_cache(value: Any) -> bool:
    """Whether it is a cache, or a tuple of pairs in its place; other outputs are flat tuples."""
    pairs = isinstance(value, (tuple, list)) and any(isinstance(e, (tuple, list)) for e in value)
    return pairs or hasattr(value, "get_seq_length")


def _holder(cache: Any) -> Any:
    """What carries the mark of a cache: the one that grows; of tuples, their first tensor."""
    while isinstance(cache, (tuple, list)):
        cache = next((each for each in cache if each is not None), None)
    return getattr(cache, "self_attention_cache", cache)
