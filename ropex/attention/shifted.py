"""Shifted sparse attention of LongLoRA: training at a long length for the price of short groups."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ropex.attention.dispatch import Step, calls_interface, check, route
from ropex.attention.grouped import shifted_attention
from ropex.errors import UnsupportedModel
from ropex.model.attributes import set_attribute
from ropex.model.modes import in_mode
from ropex.model.probe import has_weights, probe_ids
from ropex.model.window import window_of

_BASE = "sdpa"
_ADVICE = "train it without shift_attention"
# What attention functions are asked for besides a causal mask and a scale.
_UNKNOWN = ("softcap", "s_aux", "sliding_window", "position_bias")


def shift_attention(model: nn.Module, groups: int = 4) -> ShiftedAttention:
    """Let every layer of `model` attend within groups of tokens while it trains, in place.

    S²-Attn of LongLoRA (Chen et al. 2023, arXiv:2309.12307, section 3.2). With `g` tokens in a
    group, the first half of the heads sees the tokens before it in group `i // g` of position `i`;
    for the second half groups are shifted by half their size, to `(i + g // 2) // g`, so that what
    one half separates the other joins. The first shifted group is shorter; the paper's code rolls
    the tokens around instead, by which the last group holds the first tokens.

    In evaluation mode, attention is the model's own. Padding and packed documents are masked as
    ever. Apply it after `ropex.patch`. It lasts until `ShiftedAttention.remove()`, or to the end of
    a `with` block.

    Args:
        model: A causal language model of transformers with `sdpa` attention, or what wraps one.
        groups: How many groups a sequence has; where they do not divide it, the last one is
            shorter. The paper has 4.

    Returns:
        The handle that undoes the change.

    Raises:
        UnsupportedModel: The attention of the model is more than causal, or scales its queries by
            what they see.
        ValueError: `groups` is below 2, or the attention is shifted already.

    Example:
        >>> with shift_attention(model):
        ...     Trainer(model=model, args=arguments, train_dataset=data).train()
    """
    if groups < 2:
        raise ValueError(f"groups is {groups}, it must be at least 2; one group is full attention")
    return ShiftedAttention(model, groups)


class ShiftedAttention:
    """Shifted attention of a model; what `shift_attention` returns.

    Attributes:
        model: The model of transformers.
        groups: How many groups a sequence has.
        layers: The attention modules.
    """

    def __init__(self, model: nn.Module, groups: int) -> None:
        self.model, self.groups = _inner(model), groups
        _check_config(self.model)
        with ExitStack() as undo:
            config = self.model.config.get_text_config()
            self.layers = _layers(self.model, config)
            self._shift = _Shift(groups)
            for layer in self.layers:
                if calls_interface(layer):
                    route(layer, SHIFTED, undo)
                set_attribute(layer, "ropex_shift", self._shift, undo)
                undo.callback(layer.register_forward_pre_hook(_guard).remove)
            if has_weights(self.model):
                self._try()
            self._undo = undo.pop_all()

    def remove(self) -> None:
        """Restore the model. An attention that is restored already stays so."""
        self._undo.close()

    def __enter__(self) -> ShiftedAttention:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def _try(self) -> None:
        """Run a few tokens, so that what cannot be shifted is refused now."""
        self._shift.tried = set()
        with in_mode(self.model, training=False), torch.no_grad():
            self.model(input_ids=probe_ids(self.model))
        if len(self._shift.tried) != len(self.layers):
            raise UnsupportedModel(
                f"{self.model.config.model_type}: {len(self._shift.tried)} of {len(self.layers)} "
                f"attention layers call transformers' attention interface; {_ADVICE}"
            )
        self._shift.tried = None


class _Shift:
    """What the attention function finds on a module.

    Attributes:
        groups: How many groups a sequence has.
        tried: Layers that have been shifted while trying; None if not trying.
    """

    def __init__(self, groups: int) -> None:
        self.groups = groups
        self.tried: set[int] | None = None


def _inner(model: nn.Module) -> Any:
    from transformers import PreTrainedModel

    found = next((each for each in model.modules() if isinstance(each, PreTrainedModel)), None)
    if found is None or not found._supports_attention_backend:
        raise UnsupportedModel(
            f"{type(model if found is None else found).__name__} does not call transformers' "
            f"attention interface, so its attention cannot be shifted; {_ADVICE}"
        )
    return found


def _check_config(model: Any) -> None:
    config = model.config.get_text_config()
    base = config._attn_implementation
    if any(hasattr(each, "ropex_shift") for each in model.modules()):
        raise ValueError("the attention of this model is shifted already; remove that first")
    if base != _BASE:
        raise UnsupportedModel(
            f"attention {base!r} cannot be shifted; load the model with attn_implementation="
            f"{_BASE!r}"
        )
    if window_of(config):
        raise UnsupportedModel(
            f"{config.model_type} has a sliding window over all layers, so its attention cannot be "
            "shifted; patch it with lift_sliding_window=True first"
        )
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        raise UnsupportedModel(
            f"{config.model_type} has layers with {', '.join(sorted(kinds))}, so its attention "
            f"cannot be shifted; {_ADVICE}"
        )


def _layers(model: Any, config: Any) -> tuple[nn.Module, ...]:
    """Attention modules that read `config`."""
    return tuple(
        module
        for module in model.modules()
        if vars(module).get("config") is config and hasattr(module, "is_causal")
    )


def _guard(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Pre-hook of an attention module: refuse to train with masks that a shift cannot read."""
    name: str = module.config._attn_implementation  # type: ignore[union-attr, assignment]
    if module.training and name != _BASE:
        raise RuntimeError(
            f"the attention implementation is {name} since a change after shift_attention, which "
            f"shifts {_BASE} alone; set it before"
        )


def _attend(
    function: Any,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    shift: Any = getattr(module, "ropex_shift", None)
    if shift is None or not (module.training or shift.tried is not None):
        return function(module, query, key, value, attention_mask, *args, **kwargs)
    _check_call(module, query, key, attention_mask, kwargs)
    if shift.tried is not None:
        shift.tried.add(id(module))
    settings = {"dropout_p": kwargs.get("dropout", 0.0), "scale": kwargs.get("scaling")}
    repeats = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(repeats, dim=1) for states in (key, value))
    output = shifted_attention(query, key, value, attention_mask, shift.groups, **settings)
    return output.transpose(1, 2).contiguous(), None


SHIFTED = Step(
    "shifted attention",
    "ropex_shift",
    _attend,
    without=("scaled queries", "un-rotated keys", "mapped positions"),
    why="a group hides most of the keys that these count on; shift it under another strategy",
    trains=True,
)
"""In groups if the module trains; finds a `_Shift` on the module as `ropex_shift`."""


def _check_call(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
) -> None:
    name = type(module).__name__
    check(module, SHIFTED)
    asked = [each for each in _UNKNOWN if kwargs.get(each) is not None]
    causal = kwargs.get("is_causal")
    if not (module.is_causal if causal is None else causal):
        asked.append("attention to later tokens")
    if mask is not None and mask.shape[1] != 1:
        asked.append("a mask for each head")
    if asked:
        raise UnsupportedModel(
            f"{name} asks for {', '.join(asked)}, so its attention cannot be shifted; {_ADVICE}"
        )
    if key.shape[2] != query.shape[2]:
        raise RuntimeError(
            f"{name} has {key.shape[2]} keys for {query.shape[2]} queries; shifted attention "
            "trains on whole sequences, so give it no key-value cache"
        )
