"""Patch the rotary embeddings of a loaded model, and restore them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from torch import nn

from ropex.model.options import Options
from ropex.model.probe import has_weights
from ropex.patching.advise import warn
from ropex.patching.apply import apply, check_start
from ropex.patching.stack import Applied, check_below, push, stack, unwind
from ropex.patching.state import PatchState
from ropex.patching.verify import Verification, check_unrotated, verify
from ropex.sizes import format_size
from ropex.strategies.base import Strategy
from ropex.strategies.registry import strategy as parse_strategy


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
    planned = parse_strategy(strategy)
    handle = Patch(PatchState.of(model, planned, trained_length, options, lift_sliding_window))
    if cache == "unrotated" and has_weights(model):
        try:
            check_unrotated(handle.state, handle.suspended())
        except BaseException:
            handle.remove()
            raise
    warn(handle.state)
    return handle


class Patch:
    """A strategy applied to a model; what `patch` returns.

    Attributes:
        state: All of the following but `in_config`, as one value.
        model: The patched model.
        strategy: The strategy applied.
        rope: The rotary embedding as it was before; where layers rotate differently, that of the
            layers which see the whole context.
        plan: The float64 plan; where it depends on the length, the one at the trained length.
        sites: The tables of its rotary modules.
        planned: What the strategy makes of each.
        options: How cos and sin are computed, and what caches hold.
        scaled_by: How the checkpoint itself was scaled (`yarn, factor 4`); None if it was not.
        rebuilds: Whether it also repairs tables that were lost while loading.
        target_length: Tokens that the patched model is meant to reach.
        length_class: Which lengths share one plan, the model's own switch included.
        shares_a_plan: Tokens up to which sequences of all lengths are planned alike; as trained,
            or fewer.
        changes_rope: Whether the frequencies or the attention scale change, at this length or at
            another.
        changes_anything: Whether the patched model computes differently, if only in rounding.
        reads_token_by_token: Whether each token has a length of its own, which no config can say.
        in_config: Whether the model's config says all that the patch does, so that a saved
            checkpoint computes the same without ropex.
    """

    def __init__(self, state: PatchState) -> None:
        self.state = state
        self.model, self.strategy, self.options = state.model, state.strategy, state.options
        self.sites, self.planned = state.sites, state.planned
        self.rope, self.plan, self.scaled_by = state.rope, state.plan, state.scaled_by
        self.target_length, self.length_class = state.target_length, state.length_class
        self.shares_a_plan, self.rebuilds = state.shares_a_plan, state.rebuilds
        self.changes_rope, self.changes_anything = state.changes_rope, state.changes_anything
        self.reads_token_by_token = state.reads_token_by_token
        check_start(state)
        self._below: tuple[Applied, ...] = stack(self.sites)
        self._undo: ExitStack | None = None
        self._blocks: list[int] = []  # how many patches each `with` of it leaves in place
        self._apply()

    @property
    def configs(self) -> tuple[Any, ...]:
        """The configs that the rotary modules read now: one, but for an encoder and a decoder."""
        return self.state.configs

    def verify(self) -> Verification:
        """Check on the live model that the patch does what was planned; see `patching.verify`.

        Raises:
            RuntimeError: It does not, and the message says where, or the patch is removed.
        """
        if self._undo is None:
            raise RuntimeError(f"{self.strategy} is removed; there is nothing to verify")
        if not has_weights(self.model):
            raise RuntimeError("the model has no weights yet; load them and verify then")
        return verify(self.state, self.suspended())

    def remove(self) -> None:
        """Restore the model bit for bit. A patch that is removed already stays so.

        Raises:
            RuntimeError: A later patch of the same model is still in place.
        """
        if self._undo is None:
            return
        last = stack(self.sites)[-1]
        if last.handle is not self:
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
        applied = self._undo is not None
        self.remove()
        below = len(stack(self.sites))
        try:
            yield
        finally:
            unwind(self.sites, below)
            if applied:
                self._apply()

    def __enter__(self) -> Patch:
        """Apply it again if it was removed.

        Raises:
            RuntimeError: The model is not the one that it was made for: other patches are in place.
        """
        within = bool(self._blocks) and self._undo is not None
        if self._undo is None:
            check_below(self.strategy, self._below, stack(self.sites))
            self._apply()
        self._blocks.append(len(stack(self.sites) if within else self._below))
        return self

    def __exit__(self, *error: object) -> None:
        left = self._blocks.pop()
        if self._undo is not None:
            unwind(self.sites, left)

    def __repr__(self) -> str:
        if self._undo is None:
            return f"Patch({self.strategy}, removed)"
        parts = [f"queries x {self.plan.query_scale}"] if self.plan.query_scale else []
        parts += ["mapped positions"] if self.plan.positions else []
        parts += ["phases in float64"] if self.options.precision == "exact" else []
        parts += ["un-rotated keys in caches"] if self.options.cache == "unrotated" else []
        trained, target = map(format_size, (self.rope.trained_length, self.target_length))
        lines = [f"Patch({self.strategy}): trained at {trained} tokens, target {target}"]
        for each in self.planned:
            site, shown = each.site, each.describe(self.length_class != "static")
            about = [shown] if each.kept else [shown, *parts]
            lines.append(f"  {site} ({type(site.module).__name__}): {', '.join(about)}")
        return "\n".join(lines)

    def _apply(self) -> None:
        with ExitStack() as undo:
            self.in_config: bool = apply(self.state, undo)
            push(self.sites, Applied.of(self, self.in_config), undo)
            self._undo = undo.pop_all()
