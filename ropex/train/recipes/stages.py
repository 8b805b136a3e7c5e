"""The model and its batches while a stage runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ropex.attention.shifted import shift_attention
from ropex.config.from_file import read_strategy, require_base
from ropex.patching.handle import Patch, patch
from ropex.strategies.base import Strategy
from ropex.train.chunked_loss import chunk_loss
from ropex.train.collators import PackedCollator, PlainCollator, PositionCollator, isolates
from ropex.train.positions import SAMPLERS
from ropex.train.recipes.recipe import Stage
from ropex.train.recipes.trainer import sharing_a_row


@contextmanager
def prepared(
    model: Any, stage: Stage, trained_length: int | None, autocast: bool = False
) -> Iterator[Patch]:
    """The model under the strategy of a stage, with the stage's changes to how it computes.

    Args:
        model: Of the recipe, with its adapters.
        stage: The stage.
        trained_length: Tokens that the model was trained at, where its config does not say.
        autocast: Whether it computes in bfloat16, whatever its dtype.

    Raises:
        ValueError: The strategy or a setting of the stage does not fit the model.
    """
    with changed(model, stage, trained_length, autocast) as handle:
        rows = stage.training.micro_batch
        with _computing(model, autocast):
            apart = not stage.data.packed or isolates(model, rows, use_cache=False)
        if not apart:
            raise ValueError(
                "this model lets packed documents see each other; give layout: split, or "
                "training.micro_batch=1, or a different attention"
            )
        yield handle


@contextmanager
def changed(
    model: Any, stage: Stage, trained_length: int | None, autocast: bool = False
) -> Iterator[Patch]:
    """The same for a model that may lack its weights, and so cannot be run.

    Raises:
        ValueError: The strategy or a setting of the stage does not fit the model.
    """
    strategy = read_strategy(stage.strategy)
    if sharing_a_row() > 1:
        check_shared(stage, strategy)
    with ExitStack() as undo:
        handle = undo.enter_context(patch(model, strategy, trained_length=trained_length))
        require_base(stage.strategy, handle.rope.base)
        if stage.training.shifted_attention is not None:
            undo.enter_context(shift_attention(model, stage.training.shifted_attention))
        if stage.training.chunked_loss:
            with _computing(model, autocast):  # it is run
                chunked = chunk_loss(model)
            undo.enter_context(chunked)
        yield handle


def _computing(model: Any, autocast: bool) -> Any:
    """The context in which the model computes while it is trained."""
    kind = next(model.parameters()).device.type
    return torch.autocast("cpu" if kind == "meta" else kind, torch.bfloat16, enabled=autocast)


def check_shared(stage: Stage, strategy: Strategy) -> None:
    """Check that processes which share a row see the same row.

    Raises:
        ValueError: They would not.
    """
    if strategy.length_class != "static":
        raise ValueError(
            f"{strategy} depends on the length of a text, and processes that share one (context or "
            f"sequence parallelism) see different lengths; fix it, as in {strategy.fixed(2**15)}, "
            "or share no rows"
        )
    if stage.data.packed or stage.training.shifted_attention:
        raise ValueError(
            "packed documents and shifted attention need whole rows, and processes share them "
            "(context or sequence parallelism); give layout: split and full attention"
        )


def collator_of(stage: Stage, handle: Patch, seed: int) -> Any:
    """The collator of a stage."""
    if stage.positions is not None:
        given = stage.positions
        target = given.target or handle.target_length
        return PositionCollator(SAMPLERS[given.sampler](given.window, target), seed)
    return PackedCollator(stage.data.length) if stage.data.packed else PlainCollator()
