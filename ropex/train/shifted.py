"""Shifted sparse attention of LongLoRA: training at a long length for the price of short groups."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from ropex.attention import PREFIX
from ropex.errors import UnsupportedModel
from ropex.install import set_attribute
from ropex.nesting import patches_of
from ropex.own_config import keep_edits, own_configs
from ropex.train.grouped import shifted_attention
from ropex.train.probing import probe_ids, trying
from ropex.verify import has_weights
from ropex.window import window_of

_BASE = "sdpa"
_NAME = f"{PREFIX}shifted_{_BASE}"
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
        over: The patches that were in place before, which are suspended without this.
    """

    def __init__(self, model: nn.Module, groups: int) -> None:
        self.model, self.groups = _inner(model), groups
        _check_config(self.model)
        self.over = frozenset(patch.identity for patch in patches_of(self.model))
        self._shift = _Shift(groups, self)
        self._install(tried=has_weights(self.model))

    def _install(self, tried: bool) -> None:
        with ExitStack() as undo:
            self._own_config(undo)
            config = self.model.config.get_text_config()
            self.layers = _layers(self.model, config)
            for layer in self.layers:
                set_attribute(layer, "ropex_shift", self._shift, undo)
                undo.callback(layer.register_forward_pre_hook(_guard).remove)
            if tried:
                self._try()
            self._undo = undo.pop_all()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """The model without this, for the length of the block; a patch below may come and go."""
        self._undo.close()
        try:
            yield
        finally:
            self._install(tried=False)

    def remove(self) -> None:
        """Restore the model. An attention that is restored already stays so."""
        self._undo.close()

    def __enter__(self) -> ShiftedAttention:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def _own_config(self, undo: ExitStack) -> None:
        """Name the attention in copies of the configs, which go unless a patch has come or gone."""
        copies = own_configs(self.model, ExitStack())
        before = {id(mine): original for original, mine in copies}

        def restore() -> None:
            for module in self.model.modules():
                mine = vars(module).get("config")
                if id(mine) in before:
                    module.config = before[id(mine)]

        undo.callback(restore)
        self.model.config.get_text_config()._attn_implementation = _registered()
        keep_edits(copies, undo)

    def _try(self) -> None:
        """Run a few tokens, so that what cannot be shifted is refused now."""
        self._shift.tried = set()
        with trying(self.model):
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
        handle: What removes it; None in a copy of the model.
        tried: Layers that have been shifted while trying; None if not trying.
    """

    def __init__(self, groups: int, handle: ShiftedAttention | None = None) -> None:
        self.groups, self.handle = groups, handle
        self.tried: set[int] | None = None

    def __reduce__(self) -> Any:
        """A copied model stays shifted, but the handle is the first model's."""
        return _Shift, (self.groups,)


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
    if base.startswith(_NAME) or any(hasattr(each, "ropex_shift") for each in model.modules()):
        raise ValueError("the attention of this model is shifted already; remove that first")
    if base.startswith(PREFIX):
        raise UnsupportedModel(_scaled(config.model_type))
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


def _scaled(name: str) -> str:
    return (
        f"{name} is patched to scale its queries by how many tokens they see or to keep keys "
        "un-rotated, and a group hides most of these; shift attention under another strategy"
    )


def _layers(model: Any, config: Any) -> tuple[nn.Module, ...]:
    """Attention modules that read `config`."""
    return tuple(
        module
        for module in model.modules()
        if vars(module).get("config") is config and hasattr(module, "is_causal")
    )


def _guard(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Pre-hook of an attention module: refuse to train past the shift."""
    name: str = module.config._attn_implementation  # type: ignore[union-attr, assignment]
    if module.training and not name.endswith(_NAME):
        raise RuntimeError(
            f"the attention implementation is {name} since a change after shift_attention, so "
            "it is no longer shifted; patch the model and set its attention before"
        )


def _registered() -> str:
    """Name under which transformers finds the attention; added to its tables when asked for."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if _NAME not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(_NAME, _attention)
        AttentionMaskInterface.register(_NAME, ALL_MASK_ATTENTION_FUNCTIONS[_BASE])
    return _NAME


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """An attention function of transformers: in groups if the module trains, else `sdpa`."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    shift: Any = getattr(module, "ropex_shift", None)
    if shift is None or not (module.training or shift.tried is not None):
        function = ALL_ATTENTION_FUNCTIONS[_BASE]
        return function(module, query, key, value, attention_mask, *args, **kwargs)
    _check_call(module, query, key, attention_mask, kwargs)
    if shift.tried is not None:
        shift.tried.add(id(module))
    settings = {"dropout_p": kwargs.get("dropout", 0.0), "scale": kwargs.get("scaling")}
    repeats = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(repeats, dim=1) for states in (key, value))
    output = shifted_attention(query, key, value, attention_mask, shift.groups, **settings)
    return output.transpose(1, 2).contiguous(), None


def _check_call(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
) -> None:
    name = type(module).__name__
    if hasattr(module, "ropex_query_scale") or hasattr(module, "ropex_unrotated"):
        raise UnsupportedModel(_scaled(name))
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
