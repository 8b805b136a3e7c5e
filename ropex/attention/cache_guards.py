"""Guards of key-value caches: no cache is continued under a different rotation of its keys."""

from __future__ import annotations

import functools
import gc
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ropex.attention.caches import Call, filled_cache, given_cache, holder_of, named, tokens_in

MARK = "ropex_keys"
"""Attribute of a decoder whose keys a patch rotates, and of each cache with such keys."""

_AFRESH = "start again with an empty cache"


class KeyGuard:
    """How a patch rotates keys; hooks of the decoder write it on each cache that they see.

    Args:
        strategy: The strategy's text, for messages.
        identity: The same for two patches if keys are the same under both.
    """

    def __init__(self, strategy: str, identity: str) -> None:
        self.strategy, self.identity = strategy, identity
        self.caches: WeakSet[Any] = WeakSet()  # those to be spent when the patch is removed
        self.traced = False  # whether compiled calls may have filled more

    def __deepcopy__(self, memo: dict[int, Any]) -> KeyGuard:
        """The same one: what is copied with it is a model, or a cache that is spent with it."""
        for cache in list(self.caches):
            if id(cache) in memo:
                self.caches.add(memo[id(cache)])
        return self

    def __reduce__(self) -> Any:
        """Caches stay where they are."""
        return KeyGuard, (self.strategy, self.identity)

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the decoder.

        Raises:
            RuntimeError: A cache holds keys that were rotated differently.
        """
        if vars(module).get(MARK) is not self:  # a later patch rotates them
            return
        cache = given_cache(args, kwargs)
        if cache is None:
            return
        kept: KeyGuard | None = getattr(holder_of(cache), MARK, None)
        if (kept is None or kept.identity != self.identity) and _may_be_filled(cache, kept):
            under = f"filled under {kept.strategy}" if kept else "not filled under this patch"
            raise RuntimeError(
                f"{self.strategy}: the key-value cache was {under}, so its keys are rotated "
                f"differently; {_AFRESH}"
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
        """Let no cache with such keys be continued: the model no longer makes such keys.

        The model has no hooks then that could notice, so the caches do.
        """
        for cache in self._known():
            if getattr(cache, MARK, None) is self and not isinstance(cache, Spent):
                kind: Any = type(cache)
                cache.__class__ = _spent(kind)

    def _mark(self, cache: Any) -> None:
        holder = holder_of(cache)
        if isinstance(holder, Spent):
            holder.ropex_revive()
        if holder is not None and getattr(holder, MARK, None) is not self:
            setattr(holder, MARK, self)
        if torch.compiler.is_compiling():  # a set that grows would have each call traced again
            self.traced = True
        elif hasattr(cache, "get_seq_length"):
            self.caches.add(holder)

    def _known(self) -> list[Any]:
        """The caches that may hold such keys."""
        from transformers import Cache

        tracked = gc.get_objects() if self.traced else []
        return [*self.caches, *(each for each in tracked if issubclass(type(each), Cache))]


class Spent:
    """First base of the class of a cache that a removed patch has filled."""

    ropex_keys: KeyGuard

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Update the cache, which must have been emptied.

        Raises:
            RuntimeError: It holds keys.
        """
        if tokens_in(self):
            raise RuntimeError(
                f"the key-value cache was filled under {self.ropex_keys.strategy}, which is "
                f"removed since, so its keys are rotated differently; {_AFRESH}"
            )
        self.ropex_revive()
        del self.ropex_keys
        return self.update(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A copy is spent as well."""
        return _spent_anew, (type(self).__mro__[2],), vars(self)

    def ropex_revive(self) -> None:
        """Become the cache that it was."""
        self.__class__ = type(self).__mro__[2]


@functools.cache
def _spent(cls: Any) -> Any:
    return type(cls.__name__, (Spent, cls), {"__module__": cls.__module__})


def _spent_anew(cls: Any) -> Any:
    spent = _spent(cls)
    return spent.__new__(spent)


def _may_be_filled(cache: Any, kept: KeyGuard | None) -> bool:
    """Whether a cache holds keys; tensors are not asked while tracing."""
    if isinstance(cache, (tuple, list)):
        return holder_of(cache) is not None
    if torch.compiler.is_compiling() and isinstance(cache.get_seq_length(), Tensor):
        return kept is not None
    return tokens_in(cache) > 0


class LengthGuard:
    """Hooks of the decoder: refuse to mix keys that were rotated for different lengths.

    That they were rotated by this patch is known already; see `KeyGuard`.

    Args:
        strategy: The strategy's text, for the message.
        trained_length: Tokens up to which every length has the same frequencies.
        switches: Whether all lengths beyond it have the same frequencies as well (LongRoPE).
        by_row: Whether each row of a batch has a table of its own.
    """

    def __init__(
        self, strategy: str, trained_length: int, switches: bool, by_row: bool = True
    ) -> None:
        self.strategy, self.trained_length, self.switches = strategy, trained_length, switches
        self.by_row = by_row

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook.

        Raises:
            RuntimeError: A filled cache is continued beyond the trained length.
        """
        call = Call.of(module, args, kwargs)
        padded = isinstance(call.mask, Tensor) and call.mask.ndim == 2 and not call.mask.all()
        if padded and not self.by_row and call.end > self.trained_length:
            raise RuntimeError(
                f"{self.strategy}: this model rotates all rows of a batch alike, so those with "
                "padding would count as longer than they are; give rows one by one, or fix the "
                "length (dynamic:length=32k)"
            )
        kept: tuple[Tensor, Tensor] | None = getattr(call.cache, "ropex_lengths", None)
        if call.cache is None and call.end > self.trained_length and call.goes_on(module):
            self._refuse()
        if not call.past:
            if kept is not None:  # it was emptied
                del call.cache.ropex_lengths
            return
        if kept is None:
            raise RuntimeError(
                f"{self.strategy}: the key-value cache does not say for which lengths its keys are "
                "rotated, as the call that filled it was cut off; start again with an empty cache"
            )
        shortest, longest = int(kept[0]), max(int(kept[1]), call.end)
        beyond = self.switches and shortest > self.trained_length
        if longest > self.trained_length and not beyond:
            self._refuse()

    def _refuse(self) -> None:
        raise RuntimeError(
            f"{self.strategy}: a key-value cache cannot be continued beyond the trained length "
            f"of {self.trained_length} tokens, as its keys are rotated for a shorter sequence; "
            'patch with cache="unrotated", fix the length (dynamic:length=32k) or pass '
            "use_cache=False"
        )

    def after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Hook: let the cache remember for which lengths its keys are rotated."""
        cache = filled_cache(args, kwargs, output)
        if not hasattr(cache, "get_seq_length"):
            return
        lengths = named(module, args, kwargs).get("position_ids")
        if lengths is None:
            lengths = torch.full((1, 1), tokens_in(cache) - 1, device=output[0].device)
        lengths = lengths.amax(1) + 1
        old = getattr(cache, "ropex_lengths", (lengths.amin(), lengths.amax()))
        cache.ropex_lengths = (
            torch.minimum(old[0], lengths.amin()),
            torch.maximum(old[1], lengths.amax()),
        )
