"""The model that is measured: a checkpoint that is loaded when it is needed, or a live one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

import ropex
from ropex.checkpoints import find, loading
from ropex.checkpoints.skeleton import read_skeleton
from ropex.config.from_file import read_strategy, require_base
from ropex.model.rotary import rope_of, sites
from ropex.patching.stack import stack
from ropex.rope import Rope
from ropex.strategies.base import Strategy
from ropex_eval.measure.memory import enough_memory
from ropex_eval.scores.protocol import Protocol
from ropex_eval.study.corpus import Corpus
from ropex_eval.study.study import Study


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
        load: Loads it, once.
        tokenizer: Loads its tokenizer.
        trained_length: As it was stated; None where the config says it.
    """

    name: str
    folder: Path | None
    skeleton: Any
    rope: Rope
    dtype: str
    device: str
    load: Callable[[], Any]
    tokenizer: Callable[[], Any]
    trained_length: int | None = None

    def fitting(self, given: str | Strategy, lift_sliding_window: bool) -> Strategy:
        """A strategy, in any form, that was tried on the model.

        Raises:
            ValueError: It does not fit.
        """
        if isinstance(given, str):
            require_base(given, self.rope.base)
            given = read_strategy(given)
        ropex.patch(
            self.skeleton,
            given,
            trained_length=self.trained_length,
            lift_sliding_window=lift_sliding_window,
        ).remove()
        return given

    def study(self, corpus: Corpus, protocol: Protocol, **settings: Any) -> Study:
        """A study of it on a text; settings are the other attributes of a `Study`."""
        return Study(
            model_id=self.name, folder=self.folder, skeleton=self.skeleton, load=self.load,
            corpus=corpus, protocol=protocol, dtype=self.dtype,
            device=self.device.partition(":")[0], trained_length=self.trained_length, **settings,
        )  # fmt: skip


def named(
    name: str, trained_length: int | None, *, dtype: str, device: str, device_map: str | None,
    trust: bool, weights: bool,
) -> Subject:  # fmt: skip
    """A checkpoint; see `ropex_eval.api.Evaluation` for the arguments.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        UnsupportedModel: ropex cannot patch it.
        ValueError: Its trained length is not known, or there is no such device.
    """
    folder, skeleton, rope = read_skeleton(
        name, trained_length=trained_length, trust_remote_code=trust, weights=weights
    )
    device = _existing(device)
    dtype = "float32" if dtype == "auto" and device == "cpu" else dtype

    @cache
    def load() -> Any:
        with enough_memory(lambda: f"loading the model onto {device}; --dtype bfloat16 needs less"):
            model = loading.load_model(
                folder, dtype=dtype, device_map=device_map, trust_remote_code=trust
            )
            return model if device_map else model.to(device)

    def tokenizer() -> Any:
        return loading.load_tokenizer(folder, trust_remote_code=trust)

    own = str(getattr(skeleton.config, "dtype", None) or skeleton.dtype).removeprefix("torch.")
    dtype_of_weights = own if dtype == "auto" else dtype
    return Subject(
        name, folder, skeleton, rope, dtype_of_weights, device, load, tokenizer, trained_length
    )


def live(model: Any, trained_length: int | None, *, trust: bool) -> Subject:
    """A causal language model of transformers that is loaded already, and stays where it is.

    Raises:
        UnsupportedModel: ropex cannot patch it.
        ValueError: It is patched, or its trained length is not known.
    """
    if patches := stack(sites(model)):
        raise ValueError(
            f"the model is patched with {' then '.join(map(str, patches))}; remove the patch, and "
            "name what is to be measured among the strategies"
        )
    name, weight = str(model.config._name_or_path), model.get_input_embeddings().weight

    def tokenizer() -> Any:
        if not name:
            raise ValueError("the model does not say where it comes from; give its tokenizer")
        return loading.load_tokenizer(find.find(name, weights=False), trust_remote_code=trust)

    return Subject(
        name or type(model).__name__, None, model, rope_of(model, trained_length),
        str(model.dtype).removeprefix("torch."), str(weight.device), lambda: model, tokenizer,
        trained_length,
    )  # fmt: skip


def _existing(device: str) -> str:
    """The device, or the usual one for `auto`.

    Raises:
        ValueError: There is no such device here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either, by backend
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from None
    return device
