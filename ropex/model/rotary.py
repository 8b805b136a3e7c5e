"""Where the rotary embeddings of a model are, and what they were trained with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from ropex.config.families import BASES_BY_LAYER
from ropex.errors import UnsupportedModel, wrong_type
from ropex.model.latent import latent_attention
from ropex.model.sites import buffers
from ropex.model.sites.base import Site
from ropex.model.sites.computed import ComputedSite
from ropex.model.sites.layouts import (
    PairRows,
    RowsByAlpha,
    RowsByPosition,
    RowsBySize,
    RowsOnDemand,
)
from ropex.model.sites.sinusoids import PositionBuffer, PositionEmbedding
from ropex.model.tables import table_key
from ropex.model.trained_length import origin_of
from ropex.model.window import windowed
from ropex.rope import Rope

LAYOUTS: tuple[type[ComputedSite], ...] = (
    PositionBuffer,
    PositionEmbedding,
    RowsOnDemand,
    RowsBySize,
    RowsByPosition,
    PairRows,
    RowsByAlpha,
)


def sites(model: nn.Module) -> tuple[Site, ...]:
    """Every table of rotary frequencies in `model`, found by what its modules hold.

    Towers for images and sound are left out.

    Raises:
        UnsupportedModel: There is none, or one that ropex cannot patch exactly.
        TypeError: `model` is not a model.
    """
    if not isinstance(model, nn.Module):
        raise wrong_type(
            "model", model, "a loaded model of transformers; ropex.load reads one from a folder"
        )
    family = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    found: list[Site] = []
    origin = origin_of(model)
    for name, module in model.named_modules():
        kind = next((each for each in LAYOUTS if each.fits(module, model)), None)
        if not (kind or buffers.looks_rotary(module)) or not _reads_text(model, name):
            continue
        owner = _owner(model, name)
        here: tuple[Site, ...]
        if kind is None:
            here = buffers.found_in(name, module, owner)
        else:
            here = (kind(name, module, owner),)
            here[0].check()
        if not here:
            raise UnsupportedModel(
                f"{family}: {name} ({type(module).__name__}) is not a rotary module that ropex "
                "knows: it wants 1-dimensional `inv_freq` buffers that forward(x, position_ids) "
                "turns into cos and sin"
            )
        holder = model.get_submodule(name.rpartition(".")[0])
        found += [replace(site, layer=holder, origin=origin) for site in here]
    if not found:
        raise UnsupportedModel(
            f"{family} has no rotary embedding that ropex knows: looked for a module with an "
            f"`inv_freq` buffer in {type(model).__name__} and found none"
        )
    if getattr(found[0].config, "alibi", False):  # Falcon: the module is there, unused
        raise UnsupportedModel(
            f"{family} is built with ALiBi (config.alibi), not rotary embeddings"
        )
    return _with_latent(model, _with_others(found))


def main_site(found: tuple[Site, ...]) -> Site:
    """The table that represents the model: the one whose layers see the whole context."""
    return next((site for site in found if not windowed(site)), found[0])


def rope_of(model: nn.Module, trained_length: int | None = None) -> Rope:
    """What the rotary embedding of `model` was trained with, read from the model.

    Where layers rotate differently (Gemma 3), that of the layers which see the whole context.

    Args:
        model: A model with rotary embeddings. It is not changed.
        trained_length: Tokens that it was trained at, if its config does not say or is wrong.

    Raises:
        UnsupportedModel: No rotary embedding was found, or not one that ropex can patch.
        ValueError: The config does not say the base or the trained length.
    """
    return main_site(sites(model)).rope(trained_length)


def decoder_of(model: nn.Module, site: Site) -> nn.Module:
    """The smallest transformers model around `site`, which is the one called with the cache."""
    owners = reversed(ancestors(model, site.name))
    return next((o for o in owners if hasattr(o, "get_input_embeddings")), model)


def _with_others(found: list[Site]) -> list[Site]:
    """The sites, marked where the base in the config decides on other tables as well."""
    kinds: dict[int, set[Any]] = {}
    for site in found:
        if isinstance(site, buffers.BufferSite) and not site.layer_type:
            kind = windowed(site), table_key(site.frequencies())
            kinds.setdefault(id(site.config), set()).add(kind)
    return [
        replace(site, alone=False)
        if isinstance(site, buffers.BufferSite)
        and (len(kinds.get(id(site.config), ())) > 1 or hasattr(site.config, BASES_BY_LAYER))
        else site
        for site in found
    ]


def _with_latent(model: nn.Module, found: list[Site]) -> tuple[Site, ...]:
    """The sites, with the modules that scale the logits of latent attention."""
    configs = {id(site.config): site.config for site in found}
    latent = {key: latent_attention(model, config) for key, config in configs.items()}
    return tuple(
        replace(site, latent=latent[id(site.config)]) if latent[id(site.config)] else site
        for site in found
    )


def ancestors(model: nn.Module, name: str) -> list[nn.Module]:
    """The modules on the way to `name`, outermost first, and that module itself."""
    path = name.split(".")
    return [model.get_submodule(".".join(path[:depth])) for depth in range(len(path) + 1)]


def _owner(model: nn.Module, name: str) -> Any:
    """The innermost module around a rotary module that has a config."""
    with_config = [m for m in ancestors(model, name) if hasattr(m, "config")]
    return with_config[-1] if with_config else model


def _reads_text(model: nn.Module, name: str) -> bool:
    """Whether a module belongs to a model of tokens, and not to a tower for images or sound."""
    towers = [m for m in ancestors(model, name) if hasattr(m, "main_input_name")]
    if not towers or towers[-1] is model:
        return True
    config = getattr(towers[-1], "config", None)
    pictures = any(hasattr(config, key) for key in ("patch_size", "num_mel_bins"))
    return getattr(towers[-1], "main_input_name", "") == "input_ids" and not pictures
