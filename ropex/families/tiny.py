"""Tiny models with random weights, of any family that transformers knows, and without downloads.

A config starts as the family's own default, so that a model keeps what is particular to its
family, such as the order of its kinds of layers and its rotary settings; only its sizes shrink.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch

from ropex.families.settings import (
    FAMILIES,
    FEWEST_LAYERS,
    LARGEST,
    LAYER_NUMBERS,
    LAYERS,
    MOST_LAYERS,
    OLD_FAMILIES,
    SPECIAL,
    TRAINED,
    VOCABULARY,
)

_GAIN = 5.0  # of the weights, with which positions show in the logits


def causal_types() -> tuple[str, ...]:
    """Model types that the installed transformers maps to a causal language model, sorted."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))


def tiny_config(model_type: str, **changes: Any) -> Any:
    """A config of a family with few layers, each of its kinds of layers, and small sizes.

    Args:
        model_type: One of `causal_types()`.
        **changes: Settings that differ. A dict for a sub-config is merged into it, and a setting
            that only the text model of a composite config has goes there. With another number of
            layers, lists with an entry for each layer have to be given too.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    default = CONFIG_MAPPING[model_type]()
    settings = _merged(_shrunk(default), _own(model_type))
    return AutoConfig.for_model(model_type, **_merged(settings, _placed(default, changes)))


def tiny_model(model_type: str, seed: int = 0, **changes: Any) -> Any:
    """A model of `tiny_config` in float32 on the CPU, with weights that make positions matter.

    Args:
        model_type: One of `causal_types()`.
        seed: Of the weights; the global random state stays as it is.
        **changes: As in `tiny_config`.
    """
    from transformers import AutoModelForCausalLM

    config = tiny_config(model_type, **changes)
    model_class: Any = AutoModelForCausalLM._model_mapping[type(config)]
    if not isinstance(config, model_class.config_class):  # only the text model is one
        config = config.get_text_config(decoder=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = model_class._from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if _is_weight(name, parameter):
                parameter.mul_(_GAIN)
            elif name.endswith("qk_norm.temp"):  # Zaya starts with keys of 0
                parameter.fill_(1.0)
    return model.eval()


def _own(model_type: str) -> dict[str, Any]:
    """What the family needs besides the rules."""
    import transformers

    old = transformers.__version__.startswith("4.")
    own = FAMILIES.get(model_type, {})
    return copy.deepcopy({**own, **OLD_FAMILIES.get(model_type, {})} if old else own)


def _is_weight(name: str, parameter: torch.Tensor) -> bool:
    matrix = parameter.ndim == 2 or (parameter.ndim == 3 and "expert" in name)
    return matrix and not re.search(r"emb|wte|wpe|A_log", name)


def _merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with changes, those of sub-configs merged; others, even dicts, replaced."""
    merged = {**settings, **changes}
    for key, value in changes.items():
        if isinstance(value, Mapping) and key.endswith(("_config", "_encoder", "decoder")):
            merged[key] = {**settings.get(key, {}), **value}
    return merged


def _placed(config: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes by where they belong: in the config itself or in the one of its text model."""
    values, text = config.to_dict(), getattr(config, "text_config", None)
    inner = {
        key for key in changes if text is not None and key not in values and hasattr(text, key)
    }
    placed = {_name(config, key): changes[key] for key in changes if key not in inner}
    if inner:
        own = {_name(text, key): changes[key] for key in inner}
        placed["text_config"] = {**placed.get("text_config", {}), **own}
    return placed


def _name(config: Any, key: str) -> str:
    """The name of a setting in this family, as `n_embd` for `hidden_size`."""
    name: str = config.attribute_map.get(key, key)
    return name


def _shrunk(config: Any) -> dict[str, Any]:
    """The settings in which a small config differs from the config given."""
    values = config.to_dict()
    kept = _kept_layers(values)
    smaller = {key: _small(key, value, kept, values) for key, value in values.items()}
    smaller |= _lengths(values)
    if "kv_lora_rank" in values:
        smaller |= _latent(values, smaller)
    settings = {key: value for key, value in smaller.items() if value != values[key]}
    for key, part in vars(config).items():
        if hasattr(part, "to_dict"):
            settings[key] = {"model_type": part.model_type, **_shrunk(part)}
    return settings


def _small(key: str, value: Any, kept: list[int], values: Mapping[str, Any]) -> Any:
    """A setting of the small config, of which the layers `kept` are left."""
    if special := re.fullmatch(r"(\w+)_token_(id|index|ids)", key):
        return value if value is None else SPECIAL.get(special[1], 0)
    if kept and key in LAYERS:
        return value * len(kept) // _depth(values)
    if key in LAYER_NUMBERS and isinstance(value, list):
        return [new for new, old in enumerate(kept) if old in value]
    if isinstance(value, list) and len(value) == _depth(values):
        return [_small(key, value[layer], kept, values) for layer in kept]
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    return min(value, VOCABULARY if "vocab" in key else LARGEST.get(key, value))


def _depth(values: Mapping[str, Any]) -> int:
    return next((values[key] for key in LAYERS if isinstance(values.get(key), int)), 0)


def _kept_layers(values: Mapping[str, Any]) -> list[int]:
    """Numbers of the first layer of each kind, at least two and at most four."""
    depth = _depth(values)
    lists = [value for value in values.values() if isinstance(value, list) and len(value) == depth]
    numbers = [values[key] for key in LAYER_NUMBERS if values.get(key)]
    kinds: dict[str, int] = {}
    for layer in range(depth):
        kind = [entry[layer] for entry in lists] + [layer in entry for entry in numbers]
        kinds.setdefault(repr(kind), layer)
    first = list(kinds.values())[:MOST_LAYERS]
    spare = [layer for layer in range(depth) if layer not in first]
    return sorted(first + spare[: max(0, FEWEST_LAYERS - len(first))])


def _latent(values: Mapping[str, Any], smaller: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of latent attention that equal others in the config given."""
    same = {"num_key_value_heads": "num_attention_heads", "head_dim": "qk_rope_head_dim"}
    return {
        key: smaller[like]
        for key, like in same.items()
        if key in values and values[key] == values.get(like)
    }


def _lengths(values: Mapping[str, Any]) -> dict[str, Any]:
    """Lengths of a config whose rope is scaled from an original length, in their proportion."""
    key = "rope_parameters" if "rope_parameters" in values else "rope_scaling"
    rope, name = values.get(key) or {}, "max_position_embeddings"
    if not rope.get(f"original_{name}"):
        return {}
    share = TRAINED / rope[f"original_{name}"]
    lengths = {k: round(rope[k] * share) for k in rope if k.endswith(name)}
    return {key: {**rope, **lengths}, name: round(values[name] * share)}
