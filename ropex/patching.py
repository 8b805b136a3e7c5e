"""Patch the rotary embeddings of a loaded model, and put them back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Literal

import torch
from torch import nn

from ropex.attention import AttentionGuard
from ropex.cache import CacheGuard, KeyRotation
from ropex.errors import UnsupportedModel
from ropex.hooks import TableAt
from ropex.install import Options, install_attention, install_rope
from ropex.models import Site, decoder_of, rope_at, sites
from ropex.native import OneTable, PlannedTable, realise
from ropex.nesting import Applied, stack, unwind
from ropex.own_config import keep_edits, own_configs
from ropex.registry import strategy as parse_strategy
from ropex.rope import Plan, Rope
from ropex.rope_config import scaling_of, write_entry
from ropex.saving import install_saving
from ropex.sizes import format_size
from ropex.strategies.base import Strategy
from ropex.verify import Verification, has_weights, probe_logits, same_unrotated, verify
from ropex.warn import warn
from ropex.window import lift_window


def patch(
    model: nn.Module,
    strategy: str | Strategy,
    *,
    trained_length: int | None = None,
    lift_sliding_window: bool = False,
    precision: Literal["parity", "exact"] = "parity",
    cache: Literal["rotated", "unrotated"] = "rotated",
) -> Patch:
    """Give every rotary embedding of `model` the frequencies of `strategy`, in place.

    Only this instance changes: no class, no other model. Its config is replaced by a changed copy,
    so that `save_pretrained` writes what the model computes; give the whole model and not a part
    of it, as the rest keeps its config. The change lasts until
    `Patch.remove()`, or until the end of the `with` block if used as one.

    Args:
        model: A model of transformers with rotary embeddings.
        strategy: A strategy, or its text, such as `"yarn:4"`.
        trained_length: Tokens that the model was trained at, where its config does not say.
        lift_sliding_window: Let every token see all tokens before it, in a model whose attention
            has a window (Mistral 7B v0.1).
        precision: `parity` computes cos and sin in float32, as transformers and every engine do, so
            that a checkpoint made of this model computes the same there. `exact` computes them in
            float64, within 1e-6 at any position; float32 is off by 3e-3 at 131,072.
        cache: `rotated` keeps rotated keys in key-value caches, as ever; a strategy that depends on
            the length then refuses to continue one beyond the trained length. `unrotated` keeps
            keys as they are, so that prefill equals decoding under every strategy, at the
            price of rotating the whole cache in each layer and call. Each token is then read at the
            length that the sequence has there, so a prompt beyond the trained length takes as long
            as generating it would, if the strategy depends on the length.

    Returns:
        The handle that undoes the change, checks it and lists what was changed.

    Raises:
        UnsupportedModel: The model has no rotary embedding that ropex can patch.
        ValueError: The strategy is unknown or does not fit the model.

    Example:
        >>> with ropex.patch(model, "yarn:4"):
        ...     logits = model(input_ids).logits
    """
    options = Options(precision, cache)
    handle = Patch(model, parse_strategy(strategy), trained_length, lift_sliding_window, options)
    if cache == "unrotated" and has_weights(model):
        try:
            _check_unrotated(handle)
        except BaseException:
            handle.remove()
            raise
    warn(handle, lift_sliding_window)
    return handle


class Patch:
    """A strategy applied to a model; what `patch` returns.

    Attributes:
        model: The patched model.
        strategy: The strategy applied.
        rope: The rotary embedding as it was before.
        plan: The float64 plan; where it depends on the length, the one at the trained length.
        sites: The rotary modules.
        options: How cos and sin are computed, and what caches hold.
        scaled_by: How the checkpoint itself was scaled (`yarn, factor 4`); None if it was not.
        target_length: Tokens that the patched model is meant to reach.
        in_config: Whether the model's config says all that the patch does, so that a saved
            checkpoint computes the same without ropex.
    """

    def __init__(
        self,
        model: nn.Module,
        strategy: Strategy,
        trained_length: int | None,
        lift: bool,
        options: Options,
    ) -> None:
        self.model: Any = model
        self.strategy, self._lift, self.options = strategy, lift, options
        self.sites: tuple[Site, ...] = sites(model)
        self.rope: Rope = rope_at(self.sites[0], trained_length)
        self.plan: Plan = strategy.plan(self.rope)
        self.scaled_by: str | None = scaling_of(self.sites[0].module.config)
        self.target_length: int = strategy.target_length(self.rope)
        self._check_start()
        self._check_nesting()
        self.in_config: bool = all(earlier.in_config for earlier in stack(self.sites))
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
        if not has_weights(self.model):
            raise RuntimeError("the model has no weights yet; load them and verify then")
        return verify(self)

    def remove(self) -> None:
        """Restore the model bit for bit. A patch that is removed already stays so.

        Raises:
            RuntimeError: A later patch of the same model is still in place.
        """
        if self._undo is None:
            return
        last = stack(self.sites)[-1]
        if last.identity != id(self):
            raise RuntimeError(
                f"patches are removed last first: remove {last.strategy} before {self.strategy}"
            )
        self._undo.close()
        self._undo = None

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """The model as it was before this patch, for the length of the block.

        Patches made inside the block end with it.
        """
        self.remove()
        below = len(stack(self.sites))
        try:
            yield
        finally:
            unwind(self.sites, below)
            self._apply()

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._undo is not None:
            unwind(self.sites, [each.identity for each in stack(self.sites)].index(id(self)))

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
        if self.options.precision == "exact":
            parts.append("phases in float64")
        if self.options.cache == "unrotated":
            parts.append("un-rotated keys in caches")
        trained, target = map(format_size, (self.rope.trained_length, self.target_length))
        lines = [f"Patch({self.strategy}): trained at {trained} tokens, target {target}"]
        lines += [f"  {s.name} ({type(s.module).__name__}): {', '.join(parts)}" for s in self.sites]
        return "\n".join(lines)

    @property
    def _changes_anything(self) -> bool:
        changes = self.changes_rope or self.plan.query_scale is not None
        return changes or self.options != Options()

    @property
    def _reads_token_by_token(self) -> bool:
        """Whether each token has a length of its own, which no config can say."""
        return self.options.cache == "unrotated" and self.strategy.length_class != "static"

    def _check_start(self) -> None:
        """Refuse options for a checkpoint whose own frequencies would be lost by them."""
        if self.rope.by_length and not self.changes_rope and self.options != Options():
            raise ValueError(
                f"the checkpoint changes its frequencies with the length, and {self.strategy} "
                "leaves them alone; precision and cache need a strategy that replaces them"
            )

    def _check_nesting(self) -> None:
        """Refuse a patch over one whose effect it could not start from."""
        for earlier in stack(self.sites):
            by_length = earlier.by_length and self._changes_anything
            attends = self.plan.query_scale is not None or self.options.cache == "unrotated"
            twice = earlier.scales_queries and attends
            if by_length or twice:
                raise ValueError(
                    f"the model is patched with {earlier.strategy}, and {self.strategy} cannot "
                    "start from that; remove it first"
                )

    def _apply(self) -> None:
        with ExitStack() as undo:
            if self._changes_anything or self._lift:
                copies = own_configs(self.model, undo)
                if self._lift:
                    for config in self._configs:
                        lift_window(config)
                if self.changes_rope or self.options != Options():
                    self._install_rope(undo)
                self._install_attention(undo)
                refused = None if self.in_config else str(self.strategy)
                install_saving(self.model, self._configs, refused, undo)
                keep_edits(copies, undo)
            patches = stack(self.sites)
            patches.append(Applied.of(self))
            undo.callback(patches.pop)
            self._undo = undo.pop_all()

    @property
    def _configs(self) -> tuple[Any, ...]:
        """The configs that the rotary modules read: one, but for an encoder and a decoder."""
        return tuple({id(s.module.config): s.module.config for s in self.sites}.values())

    def _install_rope(self, undo: ExitStack) -> None:
        native = realise(self.sites[0].module, self.strategy, self.rope)
        saved = native.entry is not None and not self._reads_token_by_token
        self.in_config = self.in_config and saved
        for config in self._configs:
            if native.entry is not None:
                write_entry(config, native.entry, self.rope.trained_length, self.target_length)
        exact_at: TableAt = PlannedTable(self.strategy, self.rope, torch.float64)
        if self.strategy.length_class == "static":  # no need to plan it again in each forward
            exact_at = OneTable(self.plan)
        for site in self.sites:
            length = site.module.config.max_position_embeddings
            tables = install_rope(site.module, native, exact_at, self.options, length, undo)
        decoder = decoder_of(self.model, self.sites[0])
        if self.options.cache == "unrotated":
            keys = KeyRotation(self.sites[-1].module, tables, native.table_at)
            undo.callback(decoder.register_forward_pre_hook(keys.before, with_kwargs=True).remove)
            undo.callback(decoder.register_forward_hook(keys.after, with_kwargs=True).remove)
        elif native.table_at is not None:
            switches = self.strategy.length_class == "two"
            guard = CacheGuard(str(self.strategy), self.rope.trained_length, switches)
            undo.callback(decoder.register_forward_pre_hook(guard.before, with_kwargs=True).remove)
            undo.callback(decoder.register_forward_hook(guard.after, with_kwargs=True).remove)

    def _install_attention(self, undo: ExitStack) -> None:
        attributes: dict[str, Any] = {}
        if self.plan.query_scale is not None:
            self.in_config = False
            attributes["ropex_query_scale"] = self.plan.query_scale
        if self.options.cache == "unrotated":
            attributes["ropex_unrotated"] = self.rope.dim
        if attributes:
            split = self._reads_token_by_token
            install_attention(self.model, self._configs, attributes, split, undo)
            guard = AttentionGuard(str(self.strategy), self._configs[0])
            decoder = decoder_of(self.model, self.sites[0])
            undo.callback(decoder.register_forward_pre_hook(guard).remove)


def _check_unrotated(patch: Patch) -> None:
    """Compare with rotated keys on a few tokens, where both mean the same.

    Raises:
        UnsupportedModel: They differ.
    """
    with patch.suspended():
        options = Options(patch.options.precision)
        same = Patch(patch.model, patch.strategy, patch.rope.trained_length, False, options)
        rotated = probe_logits(patch.model, patch.rope.trained_length)
        same.remove()
    cause: Exception | None = None
    try:
        alike = same_unrotated(patch, rotated)
    except (RuntimeError, ValueError) as error:  # shapes that do not fit
        alike, cause = False, error
    if not alike:
        raise UnsupportedModel(
            f"{patch.model.config.model_type} rotates a part of its heads in a way that ropex's "
            'attention does not, so its keys cannot stay un-rotated; leave cache="unrotated" out'
        ) from cause
