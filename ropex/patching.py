"""Patch the rotary embeddings of a loaded model, and put them back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from ropex.errors import UnsupportedModel
from ropex.hooks import CacheGuard, FixedTable, LengthTable, RefuseSaving, scaled_attention
from ropex.models import Site, decoder_of, rope_of, sites
from ropex.native import Native, realise
from ropex.registry import strategy as parse_strategy
from ropex.rope import Plan, Rope
from ropex.rope_config import write_entry
from ropex.sizes import format_size
from ropex.strategies.base import Strategy
from ropex.verify import Verification, verify
from ropex.window import lift_window, warn_of_window


def patch(
    model: nn.Module,
    strategy: str | Strategy,
    *,
    trained_length: int | None = None,
    lift_sliding_window: bool = False,
) -> Patch:
    """Give every rotary embedding of `model` the frequencies of `strategy`, in place.

    Only this instance changes: no class, no other model. Its config is replaced by a changed copy,
    so that `save_pretrained` writes what the model computes. The change lasts until
    `Patch.remove()`, or until the end of the `with` block if used as one.

    Args:
        model: A model of transformers with rotary embeddings.
        strategy: A strategy, or its text, such as `"yarn:4"`.
        trained_length: Tokens that the model was trained at, where its config does not say.
        lift_sliding_window: Let every token see all tokens before it, in a model whose attention
            has a window (Mistral 7B v0.1).

    Returns:
        The handle that undoes the change, checks it and lists what was changed.

    Raises:
        UnsupportedModel: The model has no rotary embedding that ropex can patch.
        ValueError: The strategy is unknown or does not fit the model.

    Example:
        >>> with ropex.patch(model, "yarn:4"):
        ...     logits = model(input_ids).logits
    """
    handle = Patch(model, parse_strategy(strategy), trained_length, lift_sliding_window)
    if not lift_sliding_window:
        warn_of_window(model, handle.target_length)
    return handle


class Patch:
    """A strategy applied to a model; what `patch` returns.

    Attributes:
        model: The patched model.
        strategy: The strategy applied.
        rope: The rotary embedding as it was before.
        plan: The float64 plan; where it depends on the length, the one at the trained length.
        sites: The rotary modules.
        target_length: Tokens that the patched model is meant to reach.
        in_config: Whether the model's config says all that the patch does, so that a saved
            checkpoint computes the same without ropex.
    """

    def __init__(
        self, model: nn.Module, strategy: Strategy, trained_length: int | None, lift: bool
    ) -> None:
        self.model: Any = model
        self.strategy, self._lift = strategy, lift
        self.sites: tuple[Site, ...] = sites(model)
        self.rope: Rope = rope_of(model, trained_length)
        self.plan: Plan = strategy.plan(self.rope)
        self.target_length: int = strategy.target_length(self.rope)
        self.in_config: bool = True
        self._undo: ExitStack | None = None
        self._apply()

    @property
    def changes_rope(self) -> bool:
        """Whether the frequencies or the attention scale change, at this length or at another."""
        frequencies = Plan(self.plan.inv_freq, self.plan.attention_scale)
        return self.strategy.length_class != "static" or frequencies.changes(self.rope)

    def verify(self) -> Verification:
        """Check on the live model that the patch does what was planned; see `ropex.verify`.

        Raises:
            RuntimeError: It does not, and the message says where, or the patch is removed.
        """
        if self._undo is None:
            raise RuntimeError(f"{self.strategy} is removed; there is nothing to verify")
        if any(parameter.is_meta for parameter in self.model.parameters()):
            raise RuntimeError("the model has no weights yet; load them and verify then")
        return verify(self)

    def remove(self) -> None:
        """Restore the model bit for bit. A patch that is removed already stays so.

        Raises:
            RuntimeError: A later patch of the same model is still in place.
        """
        if self._undo is None:
            return
        last, name = _stack(self.sites)[-1]
        if last != id(self):
            raise RuntimeError(
                f"patches are removed last first: remove {name} before {self.strategy}"
            )
        self._undo.close()
        self._undo = None

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """The model as it was before this patch, for the length of the block."""
        self.remove()
        try:
            yield
        finally:
            self._apply()

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        if self._undo is None:
            return f"Patch({self.strategy}, removed)"
        pairs, changed = self.rope.dim // 2, int((self.plan.inv_freq != self.rope.inv_freq).sum())
        parts = [f"{changed} of {pairs} pairs changed"]
        if self.strategy.length_class != "static":
            parts = [f"{pairs} pairs, by length"]
        if self.plan.attention_scale != self.rope.attention_scale:
            parts.append(f"cos and sin x {self.plan.attention_scale:.4f}")
        if self.plan.query_scale is not None:
            parts.append(f"queries x {self.plan.query_scale}")
        trained, target = map(format_size, (self.rope.trained_length, self.target_length))
        lines = [f"Patch({self.strategy}): trained at {trained} tokens, target {target}"]
        lines += [f"  {s.name} ({type(s.module).__name__}): {', '.join(parts)}" for s in self.sites]
        return "\n".join(lines)

    def _apply(self) -> None:
        with ExitStack() as undo:
            if self.changes_rope or self.plan.query_scale is not None or self._lift:
                config = _own_config(self.model, self.sites[0].module, undo)
                if self._lift:
                    lift_window(config)
                if self.changes_rope:
                    self._install_rope(config, undo)
                if self.plan.query_scale is not None:
                    self._install_query_scale(config, undo)
                if not self.in_config:
                    _set(self.model, "save_pretrained", RefuseSaving(str(self.strategy)), undo)
            patches = _stack(self.sites)
            patches.append((id(self), str(self.strategy)))
            undo.callback(patches.pop)
            self._undo = undo.pop_all()

    def _install_rope(self, config: Any, undo: ExitStack) -> None:
        native = realise(self.sites[0].module, self.strategy, self.rope)
        rope_type = "default"
        if native.entry is None:
            self.in_config = False
        else:
            write_entry(config, native.entry, self.rope.trained_length, self.target_length)
            if native.entry["rope_type"] not in ("dynamic", "longrope"):
                rope_type = native.entry["rope_type"]  # those two would update themselves
        for site in self.sites:
            _install_table(site.module, native, undo)
            _set(site.module, "rope_type", rope_type, undo)
            _set(site.module, "attention_scaling", native.attention_scale, undo)
            for name in ("max_seq_len_cached", "original_max_seq_len"):
                _set(site.module, name, config.max_position_embeddings, undo)
        if native.table_at is not None:
            guard = CacheGuard(str(self.strategy), self.rope.trained_length)
            decoder = decoder_of(self.model, self.sites[0])
            undo.callback(decoder.register_forward_pre_hook(guard, with_kwargs=True).remove)

    def _install_query_scale(self, config: Any, undo: ExitStack) -> None:
        """Send attention through a function that scales the queries first."""
        if not getattr(self.model, "_supports_attention_backend", False):
            raise UnsupportedModel(
                f"{config.model_type} does not call transformers' attention interface, so "
                f"{self.strategy} cannot scale its queries"
            )
        self.in_config = False
        config._attn_implementation = scaled_attention(config._attn_implementation or "eager")
        for module in self.model.modules():
            if vars(module).get("config") is config:
                _set(module, "ropex_query_scale", self.plan.query_scale, undo)


def _install_table(module: Any, native: Native, undo: ExitStack) -> None:
    table = native.inv_freq
    if native.table_at is not None:
        by_length = LengthTable(native.table_at)
        before = module.register_forward_pre_hook(by_length.before, with_kwargs=True)
        undo.callback(before.remove)
        undo.callback(module.register_forward_hook(by_length.after, with_kwargs=True).remove)
        table = module.inv_freq
    else:
        assert table is not None  # a strategy has a table or a function of the length
        table = table.to(_device(module))
        fixed = module.register_forward_pre_hook(FixedTable(table), with_kwargs=True)
        undo.callback(fixed.remove)
    # A copy each: transformers 4 has one storage for both, and would see changes to either.
    _set(module, "inv_freq", table, undo)
    _set(module, "original_inv_freq", table.clone(), undo)


def _device(module: Any) -> Any:
    return "cpu" if module.inv_freq.is_meta else module.inv_freq.device


_MISSING = object()


def _set(module: Any, name: str, value: Any, undo: ExitStack) -> None:
    """Set an attribute, and remember to put back the very object that was there."""
    old = vars(module).get(name, module._buffers.get(name, _MISSING))

    def restore() -> None:
        if old is _MISSING:
            delattr(module, name)
        elif isinstance(old, Tensor) and not old.is_meta:
            setattr(module, name, old.to(_device(module)))
        else:
            setattr(module, name, old)

    undo.callback(restore)
    setattr(module, name, value)


def _own_config(model: nn.Module, rotary: Any, undo: ExitStack) -> Any:
    """Give the modules of `model` copies of their configs; return the rotary module's."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        config = vars(module).get("config")
        if hasattr(config, "model_type"):
            _set(module, "config", copy.deepcopy(config, memo), undo)
    return rotary.config


def _stack(found: tuple[Site, ...]) -> list[tuple[int, str]]:
    """The patches in place, oldest first: identity and text. Kept on the model, as it is copied."""
    module = found[0].module
    if not hasattr(module, "ropex_patches"):
        module.ropex_patches = []
    patches: list[tuple[int, str]] = module.ropex_patches
    return patches
