"""Run a recipe, stage by stage; what is done is not done again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml
from accelerate import PartialState
from transformers import PrinterCallback, ProgressCallback, Trainer, set_seed

from ropex.files import atomically
from ropex.loading import find, load_model, load_tokenizer
from ropex.patching import Patch
from ropex.storage import save
from ropex.train.adapters import with_adapters
from ropex.train.guard import RopeGuard
from ropex.train.log import FILE, Log
from ropex.train.pools import rows_of
from ropex.train.recipe import Recipe, Stage
from ropex.train.rows import Cutter
from ropex.train.stages import collator_of, prepared
from ropex.train.trainer import RecipeTrainer, accelerated, arguments_of, last_whole

RECIPE, FINAL, ADAPTER = "recipe.yaml", "final", "adapter"


class Watch(Protocol):
    """Who looks on while a recipe runs."""

    def begins(self, model: Any, tokenizer: Any) -> None:
        """The model is loaded, and nothing is changed yet."""

    def trains(self, trainer: Trainer, stage: int) -> None:
        """A stage is about to be trained."""


@dataclass(frozen=True)
class Run:
    """A recipe at work.

    Attributes:
        recipe: What to do.
        source: The folder of the model that it starts from.
        out: Where everything goes.
        model: The model, with adapters if the recipe has some.
        tokenizer: Of the model.
        watch: Who looks on.
        tell: Called with lines for a person.
    """

    recipe: Recipe
    source: Path
    out: Path
    model: Any
    tokenizer: Any
    watch: Watch | None
    tell: Callable[[str], None]

    def stages(self) -> None:
        """Train every stage that is not trained yet, and write the last one's model."""
        for number, stage in enumerate(self.recipe.stages, start=1):
            with prepared(self.model, stage, self.recipe.trained_length) as handle:
                trainer = self._trainer(number, stage, handle)
                self._train(number, stage, trainer)
                if number == len(self.recipe.stages):
                    self._finish(trainer)

    def _trainer(self, number: int, stage: Stage, handle: Patch) -> RecipeTrainer:
        recipe, seed = self.recipe, self.recipe.seed + number
        cutter = Cutter.of(stage.data, self.tokenizer, recipe.model)
        with PartialState().main_process_first():
            rows = rows_of(stage, cutter, self.out / "rows", seed)
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

    def _train(self, number: int, stage: Stage, trainer: RecipeTrainer) -> None:
        """Train a stage, go on with it, or load what it has left."""
        last = last_whole(self.out / f"stage-{number}")
        if last is not None and last.name == f"checkpoint-{stage.training.steps}":
            trainer._load_from_checkpoint(str(last))
            return
        tokens = stage.training.batch * stage.window
        trainer.add_callback(Log(self.out / FILE, tokens, self.tell))
        if self.watch is not None:
            self.watch.trains(trainer, number)
        trainer.add_callback(RopeGuard(self.model))  # sees what the others want saved
        trainer.train(resume_from_checkpoint=None if last is None else str(last))

    def _finish(self, trainer: RecipeTrainer) -> None:
        """Write the model as plain transformers loads it, and the adapters beside it."""
        state = PartialState()
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:  # each process has a part
            trainer.save_model(str(self.out / (FINAL if self.recipe.lora is None else ADAPTER)))
        elif state.is_main_process:
            model = self.model
            if self.recipe.lora is not None:
                write_folder(self.out / ADAPTER, lambda folder: save(self.model, folder))
                model = model.merge_and_unload()
            write_folder(self.out / FINAL, lambda folder: self._write(model, folder))
        state.wait_for_everyone()

    def _write(self, model: Any, folder: Path) -> None:
        save(model, folder)
        self.tokenizer.save_pretrained(folder)


def train(
    recipe: Recipe,
    out: Path,
    watch: Watch | None = None,
    tell: Callable[[str], None] = print,
) -> None:
    """Run a recipe, or go on where it was left.

    Args:
        recipe: What to do.
        out: Folder for checkpoints, rows, logs and the final model.
        watch: Who looks on.
        tell: Called with lines for a person.

    Raises:
        FileExistsError: The folder holds the run of another recipe.
        FileNotFoundError: A model or a text is not there.
        OSError: A checkpoint could not be written; the ones before are whole.
        ValueError: The recipe does not fit the model or the texts, or the loss is no number.
    """
    with PartialState(cpu=not accelerated()).main_process_first():
        keep_recipe(recipe, out)
    source = find(recipe.model)
    trusted = recipe.trust_remote_code
    tokenizer = load_tokenizer(source, trust_remote_code=trusted)
    model = load_model(source, dtype=recipe.dtype, trust_remote_code=trusted)
    model.set_attn_implementation(recipe.attention)
    if watch is not None:
        watch.begins(model, tokenizer)
    if recipe.lora is not None:
        set_seed(recipe.seed)  # adapters begin at random
        checkpointed = any(stage.training.gradient_checkpointing for stage in recipe.stages)
        model = with_adapters(model, recipe.lora, checkpointed)
    Run(recipe, source, out, model, tokenizer, watch, tell).stages()


def keep_recipe(recipe: Recipe, out: Path) -> None:
    """Write the recipe into the folder of its run.

    Raises:
        FileExistsError: There is another one.
    """
    content = json.loads(json.dumps(asdict(recipe)))
    path = out / RECIPE
    if path.is_file():
        there = yaml.safe_load(path.read_text(encoding="utf-8"))
        if there == content:
            return
        key = next(k for k in content if not isinstance(there, dict) or there.get(k) != content[k])
        raise FileExistsError(
            f"{out} holds the run of another recipe ({key} differs); write elsewhere (-o), or "
            "remove it"
        )
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty and holds no run of a recipe; write elsewhere")
    out.mkdir(parents=True, exist_ok=True)
    with atomically(path) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder, which appears complete or not at all."""
    built = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(built, ignore_errors=True)
    try:
        write(built)
        shutil.rmtree(folder, ignore_errors=True)
        built.rename(folder)
    finally:
        shutil.rmtree(built, ignore_errors=True)
