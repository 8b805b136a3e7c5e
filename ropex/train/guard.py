"""Ensure that a model trains under the planned rotary tables, on every rank.

A table that is rounded or overwritten raises no error. The model adapts to it, and its checkpoints,
which hold no tables, then compute something different from what was trained.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ropex.errors import UnsupportedModel
from ropex.model.rotary import sites
from ropex.model.sites.base import Site
from ropex.model.sites.buffers import BufferSite
from ropex.patching.record import Record
from ropex.patching.stack import stack
from ropex.rope import Plan
from ropex.strategies.base import Strategy
from ropex.train.built import around, asked, built, same_table
from ropex.train.expected import Expected, Wanted
from ropex.train.ranks import agreed, of_first

_HALVES = (torch.bfloat16, torch.float16)


class RopeChanged(ValueError):
    """The rotary tables of a model in training are not the planned ones."""


class RopeGuard(TrainerCallback):
    """Stops a training run whose rotary tables are not the planned ones, on all ranks at once.

    The planned tables are those of the model's patches; without a patch, those of its config when
    the guard is made. Under `Trainer` they are compared with the live tables when training begins
    (after a checkpoint is resumed), before every checkpoint, and at the end. Put the guard last in
    `callbacks`, so that it sees what others want saved. A comparison calls every rotary module
    with two positions, builds a new one from the config, and sends a few kilobytes between ranks:
    milliseconds, and no forward pass.

    Args:
        model: A model of transformers with rotary embeddings, patched or not, wrapped or not.
        strategy: The strategy, or its text, that the model must be under; None for any.

    Attributes:
        model: The model.
        expected: What is planned for it.

    Raises:
        UnsupportedModel: The model has no rotary embedding that ropex knows, or is a copy of a
            patched model whose config does not say what it computes.
        ValueError: The strategy is unknown or does not fit the model.

    Example:
        >>> ropex.patch(model, "yarn:4")
        >>> Trainer(model=model, args=arguments, callbacks=[RopeGuard(model)]).train()

        In your own loop, on all ranks:

        >>> guard = RopeGuard(model, "yarn:4")
        >>> guard.check()
    """

    def __init__(self, model: nn.Module, strategy: str | Strategy | None = None) -> None:
        self.model = model
        self.expected = Expected.of(model, strategy)

    def check(self, model: nn.Module | None = None) -> None:
        """Compare the live tables with the planned ones. All ranks must call it together.

        Args:
            model: The model as it is wrapped now; by default the one that the guard was made for.

        Raises:
            RopeChanged: They differ on some rank; the message says how, and what to do.
        """
        unlike = self.expected.unlike(of_first(self.expected.spoken))
        live = self.model if model is None else model
        problem = agreed(unlike or next(changes(live, self.expected), None))
        if problem is not None:
            raise RopeChanged(problem)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check; a resumed checkpoint is loaded by now, and must be of this strategy."""
        self.check(kwargs.get("model"))
        resumed = Record.read(Path(args.output_dir) / f"checkpoint-{state.global_step}")
        if resumed is not None and resumed.strategy != self.expected.under:
            raise RopeChanged(
                f"checkpoint-{state.global_step} was saved under {resumed.strategy}, and the model "
                f"is under {self.expected.under}; patch it in the same way before you continue"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check if a checkpoint is to be written."""
        if control.should_save:
            self.check(kwargs.get("model"))

    on_epoch_end = on_step_end

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check if a checkpoint will be written when this is the best so far."""
        if args.save_strategy == "best":
            self.check(kwargs.get("model"))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check; the best checkpoint, if requested, is loaded by now."""
        self.check(kwargs.get("model"))


def changes(model: nn.Module, expected: Expected) -> Iterator[str]:
    """What is not as planned in a live model, one sentence for each problem.

    Args:
        model: The model, possibly wrapped. It is only read.
        expected: What is planned for it.
    """
    if expected.misfit:
        yield expected.misfit
    try:
        found = sites(model)
    except UnsupportedModel:
        found = ()
    if len(found) != len(expected.wanted):
        yield (
            f"the model has {len(found)} rotary tables, and had {len(expected.wanted)} when the "
            "guard was made; make the guard after the last change to its modules"
        )
        return
    pairs = tuple(zip(found, expected.wanted, strict=True))
    yield from _unpatched(pairs, expected)
    for site, wanted in pairs:
        if not _said(model, site, wanted):
            yield (
                f"the config was changed, so that a checkpoint would compute {site} differently "
                "than the trained model; undo that, and make the change with ropex.patch"
            )
    for site, wanted in pairs:
        if fault := _fault(site, wanted):
            yield f"{site} {fault}"


def _unpatched(pairs: tuple[tuple[Site, Wanted], ...], expected: Expected) -> Iterator[str]:
    """Patches that were removed, replaced or added."""
    for site, wanted in pairs:
        if wanted.module is not None and site.module is not wanted.module:
            yield (
                f"{site} was replaced after {expected.under} was applied, and the new one is not "
                "patched; patch the model after the last change to its modules"
            )
    now = stack(tuple(site for site, _ in pairs))
    if len(now) < len(expected.applied):
        yield f"{expected.under} was removed from the model; patch it again and make a new guard"
    elif now != expected.applied:
        yield f"{now[-1].strategy} was applied after the guard was made; make the guard after it"


def _fault(site: Site, wanted: Wanted) -> str | None:
    """What is wrong with a live table, after its name; None if it is as planned."""
    if isinstance(site, BufferSite):
        if site.slot.table(site.module).is_meta:
            return "has no table yet; load the weights of the model before training"
        twin = _twin(site.module)
        for length, plan in wanted.tables:
            table, scale = asked(site, twin, length)
            if not same_table(table, scale, plan):
                return _why(table, plan)
        return None
    for length, plan in wanted.tables:
        live = site.live(length)
        # A patched module returns cos and sin in the dtype of the model.
        if (live.dtype in _HALVES and wanted.module is None) or not site.holds(plan, length):
            return (
                "does not hold the planned frequencies: a cast of the model has rounded it, or "
                "weights were loaded over it; do neither, or patch the model after it"
            )
    return None


def _why(table: Tensor, plan: Plan) -> str:
    """Why a table is not the planned one, in words."""
    for dtype in _HALVES:
        if table.dtype == dtype or _rounded(table, plan, dtype):
            name = str(dtype).removeprefix("torch.")
            return (
                f"is rounded to {name}, as by model.to(torch.{name}); load the model with "
                f"dtype=torch.{name} instead, which leaves its tables alone; tables that a patch "
                "has changed keep float32 anyway"
            )
    return (
        "does not hold the planned frequencies, so something wrote over them, such as weights that "
        "were loaded or initialised; do that before the model is patched and the guard is made"
    )


def _rounded(table: Tensor, plan: Plan, dtype: torch.dtype) -> bool:
    """Whether a table is the planned one, rounded to `dtype`."""
    whole = torch.equal(table, table.to(dtype).to(table.dtype))
    near = 2 * torch.finfo(dtype).eps
    return whole and torch.allclose(table.double(), plan.inv_freq.cpu(), rtol=near, atol=1e-7)


def _twin(module: Any) -> Any:
    """A copy of a rotary module to call, since some keep state of the last call."""
    twin = copy.copy(module)
    patched = "ropex_scales" in vars(module)  # it checks the identity of a tensor
    tables = module._buffers.items()
    twin._buffers = {name: t if patched or t is None else t.clone() for name, t in tables}
    for name in ("forward", "_compiled_call_impl"):  # accelerate's and torch's, of the original
        vars(twin).pop(name, None)
    return twin


def _said(model: nn.Module, site: Site, wanted: Wanted) -> bool:
    """Whether a model built from the config computes as planned, if it must."""
    if not (wanted.said and isinstance(site, BufferSite)):
        return True
    lengths = tuple(length for length, _ in wanted.tables)
    configs = [site.config, *(around(model, site) if wanted.shared else ())]
    for config in {id(each): each for each in configs}.values():
        try:
            tables = built(site, type(config).from_dict(config.to_dict()), lengths)
        except Exception:  # configs refuse entries with exceptions of many kinds
            return False
        for (_, plan), (_, there) in zip(wanted.tables, tables, strict=True):
            # A pair that does not turn has an immense divisor in a file, and no phase anywhere.
            table = (there.inv_freq * (there.inv_freq > 1e-20)).float()
            if not same_table(table, float(there.attention_scale), plan):
                return False
    return True
