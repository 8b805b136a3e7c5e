"""The model that is measured: a checkpoint that is loaded when it is needed, or a live one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ropex.checkpoints import find
from ropex.checkpoints.skeleton import read_skeleton
from ropex.model.rotary import rope_of, sites
from ropex.patching.stack import stack
from ropex.rope import Rope
from ropex_eval.measure.memory import enough_memory


@dataclass(frozen=True, eq=False)
class Subject:
    """A model that is measured.

    Attributes:
        name: What the user calls it.
        folder: Its checkpoint; None for a live model.
        skeleton: The model, with or without its weights.
        rope: Its rotary embedding.
        dtype: Number type of its weights, such as `float32`.
        device: Where it computes, such as `cuda:1`.
        load: Loads it; called when something is to be measured.
        tokenizer: Loads its tokenizer.
    """

    name: str
    folder: Path | None
    skeleton: Any
    rope: Rope
    dtype: str
    device: str
    load: Callable[[], Any]
    tokenizer: Callable[[], Any]


@dataclass(frozen=True)
class Loading:
    """How a checkpoint is loaded.

    Attributes:
        dtype: `float32`, `bfloat16`, `float16`, or `auto`.
        device: Such as `cuda:1`, or `auto`.
        device_map: How accelerate spreads it over devices; None for one device.
        trust_remote_code: Whether code that comes with it may run.
    """

    dtype: str = "auto"
    device: str = "auto"
    device_map: str | None = None
    trust_remote_code: bool = False


def named(name: str, trained_length: int | None, how: Loading, *, weights: bool = True) -> Subject:
    """A checkpoint; its weights are loaded by `Subject.load`, once.

    Args:
        name: A folder, a hub id or `demo`.
        trained_length: Where its config does not say.
        how: How it is loaded.
        weights: Whether a model of the hub is wanted with its weights.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        UnsupportedModel: ropex cannot patch it.
        ValueError: Its trained length is not known, or there is no such device.
    """
    trust = how.trust_remote_code
    folder, skeleton, rope = read_skeleton(
        name, trained_length=trained_length, trust_remote_code=trust, weights=weights
    )
    device, dtype = _placement(how)

    @cache
    def load() -> Any:
        with enough_memory(lambda: f"loading the model onto {device}; --dtype bfloat16 needs less"):
            spread = how.device_map
            model = find.load_model(folder, dtype=dtype, device_map=spread, trust_remote_code=trust)
            return model if spread else model.to(device)

    return Subject(
        name,
        folder,
        skeleton,
        rope,
        dtype if dtype != "auto" else _own_dtype(skeleton),
        device,
        load,
        cache(lambda: find.load_tokenizer(folder, trust_remote_code=trust)),
    )


def live(model: Any, trained_length: int | None, how: Loading) -> Subject:
    """A model that is loaded already, and stays where it is.

    Args:
        model: A causal language model of transformers.
        trained_length: Where its config does not say.
        how: Must be what it is by default.

    Raises:
        UnsupportedModel: ropex cannot patch it.
        ValueError: It is patched, or is to be loaded in another way.
    """
    if how != Loading(trust_remote_code=how.trust_remote_code):
        raise ValueError(
            "a live model stays as it is loaded; dtype, device and device_map are of models that "
            "are given by name"
        )
    if patches := stack(sites(model)):
        raise ValueError(
            f"the model is patched with {' then '.join(map(str, patches))}; remove the patch, and "
            "name what is to be measured among the strategies"
        )
    name = str(model.config._name_or_path)

    def tokenizer() -> Any:
        if not name:
            raise ValueError("the model does not say where it comes from; give its tokenizer")
        trust = how.trust_remote_code
        return find.load_tokenizer(find.find(name, weights=False), trust_remote_code=trust)

    device = str(model.get_input_embeddings().weight.device)
    rope = rope_of(model, trained_length)
    return Subject(
        name or type(model).__name__,
        None,
        model,
        rope,
        _own_dtype(model),
        device,
        lambda: model,
        cache(tokenizer),
    )


def _placement(how: Loading) -> tuple[str, str]:
    """Device and number type to use.

    Raises:
        ValueError: There is no such device here.
    """
    device = how.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either, by backend
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from None
    return device, "float32" if how.dtype == "auto" and device == "cpu" else how.dtype


def _own_dtype(model: Any) -> str:
    """The number type of a live model, or the one that the checkpoint of a skeleton says it has."""
    said = getattr(model.config, "dtype", None) if model.device.type == "meta" else None
    return str(said or model.dtype).removeprefix("torch.")
