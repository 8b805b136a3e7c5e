"""Run a recipe, stage by stage; finished work is not repeated."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from accelerate import PartialState
from safetensors import SafetensorError
from transformers import PrinterCallback, ProgressCallback, Trainer, set_seed

from ropex.checkpoints.find import find
from ropex.checkpoints.load_save import save
from ropex.checkpoints.loading import load_model, load_tokenizer
from ropex.patching.handle import Patch
from ropex.train.guard import RopeGuard
from ropex.train.ranks import by_first
from ropex.train.recipes.adapters import with_adapters
from ropex.train.recipes.folder import ADAPTER, FINAL, claimed, not_written, write_folder
from ropex.train.recipes.log import FILE, Log
from ropex.train.recipes.pools import rows_of
from ropex.train.recipes.recipe import Recipe, Stage
from ropex.train.recipes.rows import Cutter, MixedRows
from ropex.train.recipes.stages import collator_of, prepared
from ropex.train.recipes.trainer import (
    FiniteGradients,
    RecipeTrainer,
    accelerated,
    arguments_of,
    check_reporters,
)
from ropex.train.recipes.whole import last_whole

_MANY = 4
"""Report a text that is read at least this many times."""

_PRECISION = "ACCELERATE_MIXED_PRECISION"
"""The variable by which accelerate and transformers agree on a dtype."""


class Watch(Protocol):
    """An observer of a run."""

    def __call__(self, trainer: Trainer, stage: int, patch: Patch) -> None:
        """Called before a stage is trained under a patch; stages count from 1."""


@dataclass(frozen=True)
class Run:
    """A running recipe.

    Attributes:
        recipe: The recipe.
        out: The folder of the run.
        model: The model, with adapters if the recipe has some.
        tokenizer: Of the model.
        watch: Who looks on.
        tell: Called with lines for a person.
    """

    recipe: Recipe
    out: Path
    model: Any
    tokenizer: Any
    watch: Watch | None
    tell: Callable[[str], None]

    def stages(self) -> None:
        """Train every stage that is not trained yet, and write the model of the last."""
        for number, stage in enumerate(self.recipe.stages, start=1):
            given = (self.recipe.trained_length, self.recipe.autocast)
            with prepared(self.model, stage, *given) as handle:
                trainer = self._trainer(number, stage, handle)
                self._train(number, stage, trainer, handle)
                if number == len(self.recipe.stages):
                    self._finish(trainer, handle)

    def _trainer(self, number: int, stage: Stage, handle: Patch) -> RecipeTrainer:
        recipe, seed = self.recipe, self.recipe.seed + number
        cutter = Cutter.of(stage.data, self.tokenizer, self.model, recipe.model)
        if handle.in_config:  # engines use the smaller of both limits
            limit = max(self.tokenizer.model_max_length, handle.target_length)
            self.tokenizer.model_max_length = limit
        rows = rows_of(stage, cutter, self.out / "rows", seed)
        if isinstance(rows, MixedRows):
            self._tell_rounds(stage, rows.rounds)
        cached = self.model.config.use_cache
        trainer = RecipeTrainer(
            model=self.model,
            args=arguments_of(recipe, stage, self.out / f"stage-{number}"),
            train_dataset=rows,
            data_collator=collator_of(stage, handle, seed),
            processing_class=self.tokenizer,
        )
        self.model.config.use_cache = cached  # Trainer of transformers 5 would save it as false
        for each in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(each)
        return trainer

    def _tell_rounds(self, stage: Stage, rounds: list[float]) -> None:
        for source, times in zip(stage.data.sources, rounds, strict=True):
            if times > _MANY and PartialState().is_main_process:
                self.tell(f"{source.text} is short: each row is read {times:.1f} times")

    def _train(self, number: int, stage: Stage, trainer: RecipeTrainer, handle: Patch) -> None:
        """Train a stage, resume it, or load its result."""
        last = by_first(lambda: last_whole(self.out / f"stage-{number}", self.tell))
        if last is not None and last.name == f"checkpoint-{stage.training.steps}":
            trainer._load_from_checkpoint(str(last))
            return
        tokens = stage.training.batch * stage.window
        trainer.add_callback(Log(self.out / FILE, number, tokens, self.tell))
        trainer.add_callback(FiniteGradients())
        if self.watch is not None:
            self.watch(trainer, number, handle)
        trainer.add_callback(RopeGuard(self.model))  # sees what the others want saved
        trainer.train(resume_from_checkpoint=None if last is None else str(last))

    def _finish(self, trainer: RecipeTrainer, handle: Patch) -> None:
        """Write the model as plain transformers loads it, and the adapters beside it."""
        state = PartialState()
        if not handle.in_config and state.is_main_process:
            self.tell(
                f"no config says all of {handle.strategy}: ropex.load applies it to {FINAL}, and "
                "other loaders do not"
            )
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:  # every process has a part
            folder = self.out / (FINAL if self.recipe.lora is None else ADAPTER)
            try:
                trainer.save_model(str(folder))
            except (OSError, SafetensorError) as error:
                raise not_written(folder, error) from error
        elif state.is_main_process:
            model = self.model
            if self.recipe.lora is not None:
                write_folder(self.out / ADAPTER, lambda folder: save(self.model, folder))
                model = model.float().merge_and_unload()  # small updates would be lost to rounding
            write_folder(self.out / FINAL, lambda folder: self._write(model, folder))
        state.wait_for_everyone()

    def _write(self, model: Any, folder: Path) -> None:
        save(model, folder)
        self.tokenizer.save_pretrained(folder)


def train(
    recipe: Recipe, out: Path, watch: Watch | None = None, tell: Callable[[str], None] = print
) -> None:
    """Run a recipe, or resume it.

    Args:
        recipe: The recipe.
        out: Folder for checkpoints, rows, logs and the final model.
        watch: Who looks on.
        tell: Called with lines for a person.

    Raises:
        FileExistsError: The folder holds the run of a different recipe, or a run is at work there.
        FileNotFoundError: A model or a text is not there.
        OSError: A checkpoint could not be written; earlier ones are complete.
        ValueError: No checkpoint is complete, the recipe does not fit the model or the texts, or
            the loss is not a number.
    """
    with ExitStack() as undo:
        undo.enter_context(_own_precision(recipe))
        PartialState(cpu=not accelerated())  # lets processes find each other
        by_first(lambda: undo.enter_context(claimed(recipe, out, tell)))
        _run(recipe, out, watch, tell)


def _run(recipe: Recipe, out: Path, watch: Watch | None, tell: Callable[[str], None]) -> None:
    check_reporters(recipe.report_to)
    source = find(recipe.model)
    trusted = recipe.trust_remote_code
    tokenizer = load_tokenizer(source, trust_remote_code=trusted)
    model = load_model(source, dtype=recipe.dtype, trust_remote_code=trusted)
    try:
        model.set_attn_implementation(recipe.attention)
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split()).split(". ")[0]
        raise ValueError(f"attention: {reason}; give another, such as attention: eager") from None
    if recipe.lora is not None:
        set_seed(recipe.seed)  # adapters begin at random
        checkpointed = any(stage.training.gradient_checkpointing for stage in recipe.stages)
        model = with_adapters(model, recipe.lora, checkpointed)
    Run(recipe, out, model, tokenizer, watch, tell).stages()


@contextmanager
def _own_precision(recipe: Recipe) -> Iterator[None]:
    """Set the compute dtype of the recipe, and restore it (transformers 4 does not).

    Raises:
        ValueError: accelerate was started with a different one.
    """
    given = os.environ.get(_PRECISION)
    if given not in (None, "no", "bf16" if recipe.autocast else None):
        raise ValueError(
            f"accelerate was started with mixed_precision {given}, and the recipe says autocast: "
            f"{str(recipe.autocast).lower()}; let them say the same"
        )
    try:
        yield
    finally:
        os.environ.pop(_PRECISION, None)
        if given is not None:
            os.environ[_PRECISION] = given
